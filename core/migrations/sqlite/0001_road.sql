-- The tables of the embedded profile. migrations/postgres holds the same tables, in the same order, for the services one.
-- Times are milliseconds since 1970 (UTC), amounts of money decimal text, profile ids UUIDs as text.

create table brands (
    id integer primary key autoincrement,
    name text not null unique
) strict;

create table api_keys (
    hash blob primary key,
    brand_id integer not null references brands (id),
    kind text not null check (kind in ('write', 'secret'))
) strict, without rowid;

create table shops (
    domain text primary key,
    brand_id integer not null references brands (id),
    secret text not null,
    previous_secret text
) strict, without rowid;

-- A merged profile stays as a signpost: its id keeps resolving.
create table profiles (
    id text primary key,
    brand_id integer not null,
    first_seen integer,
    last_seen integer,
    events_count integer not null,
    traits text not null,
    merged_into text
) strict;

-- No foreign key to profiles: identifiers are claimed first, the profile is written at the end of the same transaction.
create table identifiers (
    brand_id integer not null,
    kind text not null,
    value text not null,
    profile_id text not null,
    primary key (brand_id, kind, value)
) strict, without rowid;
create index identifiers_by_profile on identifiers (profile_id);

create table events (
    brand_id integer not null,
    message_id text not null,
    profile_id text,
    kind text not null,
    name text,
    "timestamp" integer not null,
    received_at integer not null,
    body text not null,
    primary key (brand_id, message_id)
) strict;
create index events_by_profile on events (profile_id, "timestamp" desc, message_id desc);

create table orders (
    brand_id integer not null,
    shop text not null,
    id text not null,
    profile_id text,
    -- the version: the newest (updated_at, message_id) wins
    updated_at integer not null,
    message_id text not null,
    name text,
    ordered_at integer not null,
    cancelled_at integer,
    test integer not null,
    currency text not null,
    total text not null,
    refunded text not null,
    financial_status text,
    fulfillment_status text,
    items text not null,
    primary key (brand_id, shop, id)
) strict;
create index orders_by_profile on orders (profile_id, ordered_at desc, id desc);
