-- Whose the items are that wait for a queue: each brand has a share. Null: of none.
alter table outbox add column brand_id integer;
-- a public key sent it
alter table outbox add column public integer not null default 0;
create index outbox_of_brand on outbox (brand_id) where refused is null;
