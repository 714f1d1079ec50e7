-- An item stays in the outbox until its job has ended: a queue that forgets it gets it again.
-- When it is next asked whether the queue still has it, in milliseconds since 1970; null while it waits to be enqueued.
alter table outbox add column check_ms bigint;
drop index outbox_waiting;
drop index outbox_of_brand;
create index outbox_waiting on outbox (seq) where refused is null and check_ms is null;
create index outbox_of_brand on outbox (brand_id) where refused is null and check_ms is null;
create index outbox_to_check on outbox (check_ms) where check_ms is not null;
comment on table outbox is 'Items on their way to a queue, or in it: each stays until its job has ended';
