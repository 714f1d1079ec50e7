-- Who told what: 0 whoever has a public key, 1 the brand itself, 2 Shopify. What a trusted source told is not overridden by
-- what a public key says.
alter table events add column source smallint;
alter table identifiers
    -- the source of its link to the profile: trusted where a trusted source named a person by it
    add column source smallint not null default 0;
alter table profiles
    -- whether a trusted source knows who it is
    add column known boolean not null default false;
alter table consents
    -- the e-mail address or number that it is about; null where it is about all that the customer has
    add column address text collate "C",
    add column source smallint not null default 0;
update identifiers set source = 2 where kind = 'shopify_customer_id';
update profiles set known = true from identifiers i where i.profile_id = profiles.id and i.source > 0;
update consents set source = 2 where message_id like 'shopify:%' or message_id like 'import:%';
