-- Places in the order, histories, claims that say what became of their item, pause.

-- The order within a priority: by place, what was released before the rest. A row changes its place when it is promoted,
-- released or reclaimed, so seq does not do.
alter table items add column place integer not null default 0;
alter table items add column released integer not null default 0;
-- names of idempotency keys, with commas between
alter table items add column claims text not null default '';
-- a JSON array of {"at_ms", "error"}
alter table items add column history text not null default '[]';
update items set place = seq;
drop index items_ready;
create index items_ready on items (suspect, priority, released desc, place) where batch is null and not_before_ms = 0;
drop index items_delayed;
create index items_delayed on items (not_before_ms, id) where batch is null and not_before_ms > 0;
-- the last place given out
insert into counters (name, value) select 'place', coalesce(max(place), 0) from items where true
    on conflict (name) do nothing;

create index leases_by_end on leases (deadline_ms, batch);

alter table dead add column claims text not null default '';
alter table dead add column history text not null default '[]';
update dead set history = json_array(json_object('at_ms', buried_ms, 'error', error));
alter table dead drop column error;
create unique index dead_by_id on dead (id);
create index dead_by_time on dead (buried_ms, id);

-- What is remembered of the first item under a key; finished_ms, outcome and by are null until it is ended.
alter table claims add column digest text not null default '';
alter table claims add column item text not null default '';
alter table claims add column claimed_ms integer not null default 0;
alter table claims add column finished_ms integer;
alter table claims add column outcome text;
alter table claims add column by text;

-- One row while the queue is paused.
create table paused (
    since_ms integer not null,
    by text not null
) strict;
