-- Events about an order alone (a refund, a parcel) belong to nobody, and speak of somebody: they are found by their order, for export
-- and erasure. An order whose customer was erased keeps nothing about them that comes later.
alter table events add column order_id text;
create index events_of_orders on events (brand_id, shop, order_id) where profile_id is null and order_id is not null;
alter table orders add column erased integer not null default 0;
