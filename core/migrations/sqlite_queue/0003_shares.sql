-- What brands hold: each has a share of the queue, and bounds of its dead letters.

-- null: of none
alter table items add column brand integer;
alter table dead add column brand integer;
create index dead_of_brand on dead (brand, buried_ms, id);

-- By brand, 0 for what is of none; written in the transactions that move items.
create table shares (
    brand integer primary key,
    -- pending, delayed and in flight
    items integer not null default 0,
    -- what was enqueued
    bytes integer not null default 0,
    dead integer not null default 0,
    -- what was enqueued, and the history
    dead_bytes integer not null default 0
) strict;
insert into shares (brand, items, bytes, dead, dead_bytes)
    select 0, (select count(*) from items), (select coalesce(sum(length(payload)), 0) from items),
        (select count(*) from dead), (select coalesce(sum(length(payload) + length(history)), 0) from dead);
