-- What was refused of a brand's own keys and shops, counted, so that its owner sees it.
create table refusals (
    brand_id integer not null references brands (id),
    -- 'key 0123…' or 'shop example.myshopify.com'
    source text not null,
    code text not null,
    count integer not null,
    last_ms integer not null,
    primary key (brand_id, source, code)
);
