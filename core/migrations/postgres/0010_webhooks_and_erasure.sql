-- Webhooks known by their bodies; shop redactions that wait; what an erasure came to, counted where it is done.

-- Shopify signs a webhook's body alone. The first body of a topic takes effect; the same one under other headers does not. Kept as
-- long as events are.
create table webhook_bodies (
    brand_id bigint not null,
    shop text collate "C" not null,
    -- SHA-256
    digest bytea not null,
    topic text collate "C" not null,
    message_id text collate "C" not null,
    at timestamptz not null,
    primary key (brand_id, shop, digest, topic)
);
create index webhook_bodies_by_time on webhook_bodies (brand_id, at);
alter table webhook_bodies enable row level security;
alter table webhook_bodies force row level security;
create policy brand on webhook_bodies using (tributary_sees(brand_id));

-- not before; null: at once
alter table privacy_requests add column due_at timestamptz;
-- what it has erased so far, counted in the transactions that erased it
alter table privacy_requests add column customers bigint not null default 0;
alter table privacy_requests add column events bigint not null default 0;
alter table privacy_requests add column orders bigint not null default 0;
alter table privacy_requests add column other_rows bigint not null default 0;

-- an expression may name a person, and the log is for good
update audit_log set details = (details::jsonb - 'expression')::text where action = 'segment_written';
