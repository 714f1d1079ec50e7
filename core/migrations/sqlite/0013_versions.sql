-- What decides between two reports of the same thing: after the time, what comes later within it. And from which report each part of an
-- order or a product is: a report that does not mention one leaves it as it was.
-- from when what it says holds, where that is not its timestamp
alter table events add column told_at integer;
-- what comes later of two with the same time; null for 0
alter table events add column sequence integer;
alter table consents add column sequence integer not null default 0;
-- json, as domain/order.rs writes it: {"sequence", "current_total", "older": {part: version}}; null where there is nothing but a version
alter table orders add column parts text;
-- versions as text that sorts; empty where no report has mentioned the part
alter table products add column title_told text not null default '';
alter table products add column category_told text not null default '';
alter table products add column vendor_told text not null default '';
alter table products add column price_told text not null default '';
update products set title_told = printf('%015d%018d%s', updated_at, 0, message_id) where updated_at > 0;
update products set category_told = title_told, vendor_told = title_told, price_told = title_told;
alter table products drop column updated_at;
alter table products drop column message_id;
