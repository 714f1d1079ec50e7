-- What keys may do and who made them; secrets that rotate. Secrets are sealed (services/seal.rs).

alter table api_keys add column scopes text not null default 'read write export privacy admin';
update api_keys set scopes = '' where kind = 'write';
-- the id of the key that made it; null for the command line
alter table api_keys add column made_by text;
create index api_keys_by_maker on api_keys (brand_id, made_by);

-- the signing secret before the last rotation, and until when webhooks are signed with it, too
alter table brands add column previous_signing_secret text;
alter table brands add column previous_signing_until integer;
-- what signs links in e-mails; and what signed them before it had a secret of its own: good for customers from before then
alter table brands add column link_secret text;
alter table brands add column old_link_secret text;
alter table brands add column old_link_until integer;
update brands set old_link_secret = signing_secret, old_link_until = unixepoch() * 1000 where signing_secret is not null;
-- a JSON array: the domains that its e-mails may come from; null where none is named
alter table brands add column email_domains text;
