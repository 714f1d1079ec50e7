-- Of a profile's identifiers, how many are its own by a trusted source's word, and of the profiles that it took in, how many a
-- trusted source knew, too: json, {"counts": in the order of the kinds, "merges": number}. Limits of what trusted sources say count these.
alter table profiles add column trusted text not null default '{"counts":[0,0,0,0,0,0,0],"merges":0}';
update profiles set trusted = json_build_object('counts', counted.counts, 'merges', 0)::text from (
    select profile_id, json_build_array(
        count(*) filter (where kind = 'user_id'), count(*) filter (where kind = 'email'),
        count(*) filter (where kind = 'phone'), count(*) filter (where kind = 'shopify_customer_id'),
        count(*) filter (where kind = 'anonymous_id'), count(*) filter (where kind = 'cart_token'),
        count(*) filter (where kind = 'checkout_token')) as counts
    from identifiers where source > 0 group by profile_id) counted
where id = counted.profile_id;
