-- What was refused of a brand's own keys and shops, counted, so that its owner sees it.
create table refusals (
    brand_id bigint not null references brands (id),
    -- 'key 0123…' or 'shop example.myshopify.com'
    source text not null,
    code text not null,
    count bigint not null,
    last_ms bigint not null,
    primary key (brand_id, source, code)
);
alter table refusals enable row level security;
alter table refusals force row level security;
create policy brand on refusals using (tributary_sees(brand_id));
comment on table refusals is 'Requests and messages of a brand that were refused, by who sent them and why';
