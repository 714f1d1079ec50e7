-- How often a profile has been written: a cached answer says of which revision it is.
alter table profiles add column revision bigint not null default 0;
