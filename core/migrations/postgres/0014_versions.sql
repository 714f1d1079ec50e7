-- What decides between two reports of the same thing: after the time, what comes later within it. And from which report each part of an
-- order or a product is: a report that does not mention one leaves it as it was.
alter table events
    -- from when what it says holds, where that is not its timestamp
    add column told_at timestamptz,
    -- what comes later of two with the same time; null for 0
    add column sequence bigint;
alter table consents add column sequence bigint not null default 0;
-- json, as domain/order.rs writes it: {"sequence", "current_total", "older": {part: version}}; null where there is nothing but a version
alter table orders add column parts text;
-- versions as text that sorts; empty where no report has mentioned the part
alter table products
    add column title_told text collate "C" not null default '',
    add column category_told text collate "C" not null default '',
    add column vendor_told text collate "C" not null default '',
    add column price_told text collate "C" not null default '';
update products set (title_told, category_told, vendor_told, price_told) = (select v, v, v, v from (values (
    lpad((extract(epoch from updated_at) * 1000)::bigint::text, 15, '0') || lpad('', 18, '0') || message_id)) as told (v))
where updated_at > 'epoch';
alter table products drop column updated_at, drop column message_id;
