-- The outbox: items that wait for a queue. And the last fencing token under which a profile was merged.

create table outbox (
    id uuid primary key,
    seq bigint generated always as identity,
    queue text not null,
    priority smallint not null,
    delay_ms bigint not null,
    -- a JSON array; digest and ttl_ms belong to it
    keys text not null,
    digest text,
    ttl_ms bigint,
    payload bytea not null,
    staged_ms bigint not null,
    -- why the queue refused it; null while it waits
    refused text
);
create index outbox_waiting on outbox (seq) where refused is null;

-- The keys of items that wait, so that a delivery repeated while the queue is away is known.
create table outbox_claims (
    queue text not null,
    key text collate "C" not null,
    digest text not null,
    item uuid not null references outbox (id) on delete cascade,
    primary key (queue, key)
);
create index outbox_claims_by_item on outbox_claims (item);

alter table profiles add column fence bigint not null default 0;
create index profiles_by_fence on profiles (fence) where fence > 0;
