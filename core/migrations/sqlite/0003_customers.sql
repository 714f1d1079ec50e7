-- Who the customer is, in full: limits, merges that can be undone, refunds, products, consent, privacy, keys.

alter table brands add column settings text not null default '{}';

-- how people name a key: the first digits of its hash
alter table api_keys add column id text generated always as (lower(substr(hex(hash), 1, 12))) virtual;
alter table api_keys add column created_at integer not null default 0;
alter table api_keys add column rate_limit integer;
alter table api_keys add column expires_at integer;
alter table api_keys add column last_used_at integer;
create index api_keys_by_brand on api_keys (brand_id);

alter table shops add column uninstalled_at integer;
alter table shops add column redacted_at integer;

-- how many identifiers it has of each kind, in the order of the kinds
alter table profiles add column counts text not null default '[0,0,0,0,0,0,0]';
alter table profiles add column merges integer not null default 0;
-- which limit it reached, if one
alter table profiles add column limited text;
-- whether relations speak of it
alter table profiles add column related integer not null default 0;
-- lower case, for searching: "first last" and "last first"
alter table profiles add column name text;
alter table profiles add column surname text;
update profiles set counts = counted.counts from (
    select profile_id, json_array(
        count(*) filter (where kind = 'user_id'), count(*) filter (where kind = 'email'),
        count(*) filter (where kind = 'phone'), count(*) filter (where kind = 'shopify_customer_id'),
        count(*) filter (where kind = 'anonymous_id'), count(*) filter (where kind = 'cart_token'), 0) as counts
    from identifiers group by profile_id) counted
where id = counted.profile_id;
create index profiles_by_brand on profiles (brand_id, id) where merged_into is null;
create index profiles_by_name on profiles (brand_id, name, id) where name is not null;
create index profiles_by_surname on profiles (brand_id, surname, id) where surname is not null;
create index profiles_by_survivor on profiles (merged_into) where merged_into is not null;

-- The profile that a row came to first. A split gives back what came to the profiles it takes out.
alter table identifiers add column origin text not null default '';
update identifiers set origin = profile_id;

alter table events add column origin text;
-- whether the customer was there
alter table events add column active integer not null default 1;
-- the shop of a webhook
alter table events add column shop text;
update events set origin = profile_id where profile_id is not null;
create index events_by_shop on events (brand_id, shop) where shop is not null;
create index events_of_groups on events (profile_id, "timestamp" desc) where kind = 'group';

alter table orders add column origin text;
-- counts up with each write: who writes over a version that they have not read starts again
alter table orders add column version integer not null default 1;
-- neither test nor cancelled nor deleted
alter table orders add column counts integer not null default 0;
-- what counts as revenue: the total without gift cards sold
alter table orders add column revenue text not null default '0';
alter table orders add column gift_cards text not null default '0';
alter table orders add column presentment text;
-- json by Shopify's id; null where only their sum is known
alter table orders add column refunds text;
alter table orders add column fulfillments text not null default '{}';
alter table orders add column deleted_at integer;
update orders set origin = profile_id, revenue = total, counts = not test and cancelled_at is null;
create index orders_by_name on orders (brand_id, name);

create table products (
    brand_id integer not null,
    shop text not null,
    id text not null,
    updated_at integer not null,
    message_id text not null,
    title text,
    category text,
    vendor text,
    price text,
    deleted_at integer,
    primary key (brand_id, shop, id)
) strict, without rowid;

-- What a customer said of being written to; the newest (at, message_id) of a channel holds.
create table consents (
    brand_id integer not null,
    message_id text not null,
    channel text not null,
    profile_id text not null,
    origin text not null,
    state text not null,
    level text,
    at integer not null,
    primary key (brand_id, message_id, channel)
) strict, without rowid;
create index consents_by_profile on consents (profile_id);

create table merges (
    id text primary key,
    brand_id integer not null,
    survivor text not null,
    loser text not null,
    at integer not null,
    -- the event that linked the two
    message_id text not null,
    -- the loser as it was
    state text not null,
    identifiers text not null,
    orders text not null,
    undone_at integer
) strict, without rowid;
create index merges_by_survivor on merges (survivor);
create index merges_by_loser on merges (loser);

-- Pairs of profiles, the smaller id first: taken apart by a split, or a link that a limit refused.
create table relations (
    a text not null,
    b text not null,
    brand_id integer not null,
    kind text not null check (kind in ('split', 'refused')),
    reason text not null,
    at integer not null,
    primary key (a, b, kind)
) strict, without rowid;
create index relations_by_b on relations (b);

-- Identifiers of erased customers, hashed: what comes of them later is not kept.
create table suppressed (
    brand_id integer not null,
    hash blob not null,
    kind text not null,
    at integer not null,
    primary key (brand_id, hash)
) strict, without rowid;

create table privacy_requests (
    id text primary key,
    brand_id integer not null,
    -- repeated deliveries are one request
    message_id text not null,
    kind text not null check (kind in ('export', 'erase', 'erase_shop')),
    subject text,
    source text not null,
    created_at integer not null,
    done_at integer,
    result text,
    unique (brand_id, message_id)
) strict;
create index privacy_requests_open on privacy_requests (created_at) where done_at is null;

create table audit_log (
    id text primary key,
    brand_id integer not null,
    at integer not null,
    actor text not null,
    action text not null,
    subject text,
    details text not null
) strict, without rowid;
create index audit_log_by_brand on audit_log (brand_id, id);
