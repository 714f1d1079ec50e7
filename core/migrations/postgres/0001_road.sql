-- The tables of the services profile. migrations/sqlite holds the same tables, in the same order, for the embedded one.
-- Text that is a key is collated "C": compared by bytes, as SQLite does, and faster.

create table brands (
    id bigint generated always as identity primary key,
    name text collate "C" not null unique,
    created_at timestamptz not null default now()
);

create table api_keys (
    hash bytea primary key,
    brand_id bigint not null references brands (id),
    kind text not null check (kind in ('write', 'secret')),
    created_at timestamptz not null default now()
);

create table shops (
    domain text collate "C" primary key,
    brand_id bigint not null references brands (id),
    secret text not null,
    previous_secret text
);

-- A merged profile stays as a signpost: its id keeps resolving.
create table profiles (
    id uuid primary key,
    brand_id bigint not null,
    first_seen timestamptz,
    last_seen timestamptz,
    events_count bigint not null,
    -- json, not jsonb: kept byte for byte, so that both stores answer alike
    traits json not null,
    merged_into uuid
);

-- No foreign key to profiles: identifiers are claimed first, the profile is written at the end of the same transaction.
create table identifiers (
    brand_id bigint not null,
    kind text collate "C" not null,
    value text collate "C" not null,
    profile_id uuid not null,
    primary key (brand_id, kind, value)
);
create index identifiers_by_profile on identifiers (profile_id);

create table events (
    brand_id bigint not null,
    message_id text collate "C" not null,
    profile_id uuid,
    kind text not null,
    name text,
    "timestamp" timestamptz not null,
    received_at timestamptz not null,
    body json not null,
    primary key (brand_id, message_id)
);
create index events_by_profile on events (profile_id, "timestamp" desc, message_id desc);

create table orders (
    brand_id bigint not null,
    shop text collate "C" not null,
    id text collate "C" not null,
    profile_id uuid,
    -- the version: the newest (updated_at, message_id) wins
    updated_at timestamptz not null,
    message_id text collate "C" not null,
    name text,
    ordered_at timestamptz not null,
    cancelled_at timestamptz,
    test boolean not null,
    currency text collate "C" not null,
    total numeric not null,
    refunded numeric not null,
    financial_status text,
    fulfillment_status text,
    items json not null,
    primary key (brand_id, shop, id)
);
create index orders_by_profile on orders (profile_id, ordered_at desc, id desc);
