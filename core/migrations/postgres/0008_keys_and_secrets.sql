-- What keys may do and who made them; secrets that rotate. Secrets are sealed (services/seal.rs).

alter table api_keys add column scopes text not null default 'read write export privacy admin';
update api_keys set scopes = '' where kind = 'write';
-- the id of the key that made it; null for the command line
alter table api_keys add column made_by text collate "C";
create index api_keys_by_maker on api_keys (brand_id, made_by);

-- the signing secret before the last rotation, and until when webhooks are signed with it, too
alter table brands add column previous_signing_secret text;
alter table brands add column previous_signing_until timestamptz;
-- what signs links in e-mails; and what signed them before it had a secret of its own: good for customers from before then
alter table brands add column link_secret text;
alter table brands add column old_link_secret text;
alter table brands add column old_link_until timestamptz;
update brands set old_link_secret = signing_secret, old_link_until = now() where signing_secret is not null;
-- a JSON array: the domains that its e-mails may come from; null where none is named
alter table brands add column email_domains text;

-- The second wall, closed where it stood open: a transaction that says no brand sees nothing, unless its connection says that it
-- works for every brand, as Tributary's own do (workers serve all brands at once). A hand, or another program, under the same
-- role has to say it. And the tables of tenants stand behind it, too. The outbox has no brand: who works for every brand sees it.
create function tributary_sees(brand bigint) returns boolean language sql stable as $$
    select coalesce(
        nullif(current_setting('tributary.brand', true), '')::bigint = brand,
        current_setting('tributary.every_brand', true) = 'on',
        false)
$$;

do $$
declare name text;
begin
    for name in select tablename from pg_policies where schemaname = current_schema() and policyname = 'brand'
    loop
        execute format('alter policy brand on %I using (tributary_sees(brand_id))', name);
    end loop;
    foreach name in array array['api_keys', 'shops']
    loop
        execute format('alter table %I enable row level security', name);
        execute format('alter table %I force row level security', name);
        execute format('create policy brand on %I using (tributary_sees(brand_id))', name);
    end loop;
end $$;

alter table brands enable row level security;
alter table brands force row level security;
create policy brand on brands using (tributary_sees(id));

alter table outbox enable row level security;
alter table outbox force row level security;
create policy every_brand on outbox using (current_setting('tributary.every_brand', true) = 'on');
alter table outbox_claims enable row level security;
alter table outbox_claims force row level security;
create policy every_brand on outbox_claims using (current_setting('tributary.every_brand', true) = 'on');
