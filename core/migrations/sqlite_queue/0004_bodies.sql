-- Payloads in a table of their own: an item changes hands, and is buried, without its payload being written anew.

create table bodies (
    -- the item's first place; less than 0 for what was there before this table was
    id integer primary key,
    payload blob not null
) strict;
alter table items add column body integer not null default 0;
alter table dead add column body integer not null default 0;
insert into bodies (id, payload) select -2 * seq, payload from items;
update items set body = -2 * seq;
insert into bodies (id, payload) select -2 * seq - 1, payload from dead;
update dead set body = -2 * seq - 1;
alter table items drop column payload;
alter table dead drop column payload;

-- Whether the brand has put something in since the queue was last found empty.
alter table shares add column used integer not null default 0;
update shares set used = 1 where items > 0;
