-- Losses that an item suffered alone: who had it, and whether that worker has come back since.
create table losses (
    batch text primary key,
    item text not null,
    at_ms integer not null,
    survived integer not null default 0
) strict;
create index losses_of_item on losses (item);
-- Buried for its losses: it comes back with a worker that does.
alter table dead add column lost integer not null default 0;
