-- What is kept of erased customers' identifiers is keyed: who has a dump without the key cannot try addresses against it.

-- Secrets of the system, sealed (services/seal.rs).
create table system_secrets (
    name text primary key,
    secret text not null
) strict, without rowid;

-- What is not was made by an older version, and is keyed at the next start.
alter table suppressed add column keyed integer not null default 0;
create index suppressed_of_old on suppressed (brand_id, hash) where keyed = 0;
