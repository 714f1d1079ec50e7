-- Whose the items are that wait for a queue: each brand has a share. Null: of none.
alter table outbox add column brand_id bigint;
-- a public key sent it
alter table outbox add column public boolean not null default false;
create index outbox_of_brand on outbox (brand_id) where refused is null;
