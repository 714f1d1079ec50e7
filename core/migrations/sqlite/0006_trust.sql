-- Who told what: 0 whoever has a public key, 1 the brand itself, 2 Shopify. What a trusted source told is not overridden by
-- what a public key says.
alter table events add column source integer;
-- the source of its link to the profile: trusted where a trusted source named a person by it
alter table identifiers add column source integer not null default 0;
-- whether a trusted source knows who it is
alter table profiles add column known integer not null default 0;
-- the e-mail address or number that it is about; null where it is about all that the customer has
alter table consents add column address text;
alter table consents add column source integer not null default 0;
update identifiers set source = 2 where kind = 'shopify_customer_id';
update profiles set known = 1 where id in (select profile_id from identifiers where source > 0);
update consents set source = 2 where message_id like 'shopify:%' or message_id like 'import:%';
