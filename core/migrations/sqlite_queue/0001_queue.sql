-- The queue of the embedded profile, in a file of its own: taking events in never waits for a worker's transaction.

create table items (
    seq integer primary key autoincrement,
    id text not null,
    priority integer not null,
    enqueued_ms integer not null,
    attempt integer not null,
    suspect integer not null,
    losses integer not null,
    -- 0: may be fetched; else: not before
    not_before_ms integer not null,
    -- the batch that holds it; null: nobody does
    batch text,
    payload blob not null
) strict;
create index items_ready on items (suspect, priority, seq) where batch is null and not_before_ms = 0;
create index items_delayed on items (not_before_ms) where batch is null and not_before_ms > 0;
create index items_held on items (batch) where batch is not null;

create table leases (
    batch text primary key,
    deadline_ms integer not null
) strict, without rowid;

create table dead (
    seq integer primary key autoincrement,
    id text not null,
    priority integer not null,
    enqueued_ms integer not null,
    attempt integer not null,
    suspect integer not null,
    losses integer not null,
    error text not null,
    buried_ms integer not null,
    payload blob not null
) strict;

create table claims (
    key text primary key,
    until_ms integer not null
) strict, without rowid;
create index claims_by_end on claims (until_ms);

create table counters (
    name text primary key,
    value integer not null
) strict, without rowid;
