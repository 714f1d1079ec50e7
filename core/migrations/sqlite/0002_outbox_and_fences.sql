-- The outbox: items that wait for a queue. And the last fencing token under which a profile was merged.

create table outbox (
    seq integer primary key autoincrement,
    id text not null unique,
    queue text not null,
    priority integer not null,
    delay_ms integer not null,
    -- a JSON array; digest and ttl_ms belong to it
    keys text not null,
    digest text,
    ttl_ms integer,
    payload blob not null,
    staged_ms integer not null,
    -- why the queue refused it; null while it waits
    refused text
) strict;
create index outbox_waiting on outbox (seq) where refused is null;

-- The keys of items that wait, so that a delivery repeated while the queue is away is known.
create table outbox_claims (
    queue text not null,
    key text not null,
    digest text not null,
    item text not null references outbox (id) on delete cascade,
    primary key (queue, key)
) strict, without rowid;
create index outbox_claims_by_item on outbox_claims (item);

alter table profiles add column fence integer not null default 0;
create index profiles_by_fence on profiles (fence) where fence > 0;
