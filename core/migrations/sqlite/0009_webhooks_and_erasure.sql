-- Webhooks known by their bodies; shop redactions that wait; what an erasure came to, counted where it is done.

-- Shopify signs a webhook's body alone. The first body of a topic takes effect; the same one under other headers does not. Kept as
-- long as events are.
create table webhook_bodies (
    brand_id integer not null,
    shop text not null,
    -- SHA-256
    digest blob not null,
    topic text not null,
    message_id text not null,
    at integer not null,
    primary key (brand_id, shop, digest, topic)
) strict, without rowid;
create index webhook_bodies_by_time on webhook_bodies (brand_id, at);

-- not before; null: at once
alter table privacy_requests add column due_at integer;
-- what it has erased so far, counted in the transactions that erased it
alter table privacy_requests add column customers integer not null default 0;
alter table privacy_requests add column events integer not null default 0;
alter table privacy_requests add column orders integer not null default 0;
alter table privacy_requests add column other_rows integer not null default 0;

-- an expression may name a person, and the log is for good
update audit_log set details = json_remove(details, '$.expression') where action = 'segment_written';
