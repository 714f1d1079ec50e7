-- Who the customer is, in full: limits, merges that can be undone, refunds, products, consent, privacy, keys.

alter table brands add column settings text not null default '{}';

alter table api_keys
    -- how people name a key: the first digits of its hash
    add column id text collate "C" generated always as (substr(encode(hash, 'hex'), 1, 12)) stored,
    add column rate_limit integer,
    add column expires_at timestamptz,
    add column last_used_at timestamptz;
create index api_keys_by_brand on api_keys (brand_id);

alter table shops
    add column uninstalled_at timestamptz,
    add column redacted_at timestamptz;

alter table profiles
    -- how many identifiers it has of each kind, in the order of the kinds
    add column counts text not null default '[0,0,0,0,0,0,0]',
    add column merges integer not null default 0,
    -- which limit it reached, if one
    add column limited text,
    -- whether relations speak of it
    add column related boolean not null default false,
    -- lower case, for searching: "first last" and "last first"
    add column name text collate "C",
    add column surname text collate "C";
update profiles set counts = counted.counts from (
    select profile_id, translate(json_build_array(
        count(*) filter (where kind = 'user_id'), count(*) filter (where kind = 'email'),
        count(*) filter (where kind = 'phone'), count(*) filter (where kind = 'shopify_customer_id'),
        count(*) filter (where kind = 'anonymous_id'), count(*) filter (where kind = 'cart_token'), 0)::text, ' ', '') as counts
    from identifiers group by profile_id) counted
where id = counted.profile_id;
create index profiles_by_brand on profiles (brand_id, id) where merged_into is null;
create index profiles_by_name on profiles (brand_id, name, id) where name is not null;
create index profiles_by_surname on profiles (brand_id, surname, id) where surname is not null;
create index profiles_by_survivor on profiles (merged_into) where merged_into is not null;

-- The profile that a row came to first. A split gives back what came to the profiles it takes out.
alter table identifiers add column origin uuid;
update identifiers set origin = profile_id;
alter table identifiers alter column origin set not null;

alter table events
    add column origin uuid,
    -- whether the customer was there
    add column active boolean not null default true,
    -- the shop of a webhook
    add column shop text collate "C";
update events set origin = profile_id where profile_id is not null;
create index events_by_shop on events (brand_id, shop) where shop is not null;
create index events_of_groups on events (profile_id, "timestamp" desc) where kind = 'group';
create index events_by_receipt on events using brin (received_at);

alter table orders
    add column origin uuid,
    -- counts up with each write: who writes over a version that they have not read starts again
    add column version integer not null default 1,
    -- neither test nor cancelled nor deleted
    add column counts boolean not null default false,
    -- what counts as revenue: the total without gift cards sold
    add column revenue numeric not null default 0,
    add column gift_cards numeric not null default 0,
    add column presentment text,
    -- json by Shopify's id; null where only their sum is known
    add column refunds text,
    add column fulfillments text not null default '{}',
    add column deleted_at timestamptz;
update orders set origin = profile_id, revenue = total, counts = not test and cancelled_at is null;
create index orders_by_name on orders (brand_id, name);

create table products (
    brand_id bigint not null,
    shop text collate "C" not null,
    id text collate "C" not null,
    updated_at timestamptz not null,
    message_id text collate "C" not null,
    title text,
    category text,
    vendor text,
    price numeric,
    deleted_at timestamptz,
    primary key (brand_id, shop, id)
);

-- What a customer said of being written to; the newest (at, message_id) of a channel holds.
create table consents (
    brand_id bigint not null,
    message_id text collate "C" not null,
    channel text collate "C" not null,
    profile_id uuid not null,
    origin uuid not null,
    state text not null,
    level text,
    at timestamptz not null,
    primary key (brand_id, message_id, channel)
);
create index consents_by_profile on consents (profile_id);

create table merges (
    id uuid primary key,
    brand_id bigint not null,
    survivor uuid not null,
    loser uuid not null,
    at timestamptz not null,
    -- the event that linked the two
    message_id text not null,
    -- the loser as it was
    state json not null,
    identifiers json not null,
    orders json not null,
    undone_at timestamptz
);
create index merges_by_survivor on merges (survivor);
create index merges_by_loser on merges (loser);

-- Pairs of profiles, the smaller id first: taken apart by a split, or a link that a limit refused.
create table relations (
    a uuid not null,
    b uuid not null,
    brand_id bigint not null,
    kind text collate "C" not null check (kind in ('split', 'refused')),
    reason text not null,
    at timestamptz not null,
    primary key (a, b, kind)
);
create index relations_by_b on relations (b);

-- Identifiers of erased customers, hashed: what comes of them later is not kept.
create table suppressed (
    brand_id bigint not null,
    hash bytea not null,
    kind text not null,
    at timestamptz not null,
    primary key (brand_id, hash)
);

create table privacy_requests (
    id uuid primary key,
    brand_id bigint not null,
    -- repeated deliveries are one request
    message_id text collate "C" not null,
    kind text not null check (kind in ('export', 'erase', 'erase_shop')),
    subject text,
    source text not null,
    created_at timestamptz not null,
    done_at timestamptz,
    result text,
    unique (brand_id, message_id)
);
create index privacy_requests_open on privacy_requests (created_at) where done_at is null;

create table audit_log (
    id uuid primary key,
    brand_id bigint not null,
    at timestamptz not null,
    actor text not null,
    action text not null,
    subject text,
    details text not null
);
create index audit_log_by_brand on audit_log (brand_id, id);
