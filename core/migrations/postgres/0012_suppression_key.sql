-- What is kept of erased customers' identifiers is keyed: who has a dump without the key cannot try addresses against it.

-- Secrets of the system, sealed (services/seal.rs).
create table system_secrets (
    name text primary key,
    secret text not null
);
alter table system_secrets enable row level security;
alter table system_secrets force row level security;
create policy every_brand on system_secrets using (current_setting('tributary.every_brand', true) = 'on');

-- What is not was made by an older version, and is keyed at the next start.
alter table suppressed add column keyed boolean not null default false;
create index suppressed_of_old on suppressed (brand_id, hash) where not keyed;
