-- A second wall between brands: a transaction that says for which brand it reads (`tributary.brand`) sees that brand's rows
-- only, whatever its statements forget. Workers, who serve all brands at once, say none. It binds every role but superusers
-- and those with BYPASSRLS; a process that connects as one of these warns at its start. SQLite has nothing of the kind.
do $$
declare name text;
begin
    foreach name in array array['profiles', 'identifiers', 'events', 'orders', 'products', 'consents', 'merges', 'relations',
        'suppressed', 'privacy_requests', 'audit_log']
    loop
        execute format('alter table %I enable row level security', name);
        execute format('alter table %I force row level security', name);
        execute format('create policy brand on %I using (
            coalesce(nullif(current_setting(''tributary.brand'', true), '''')::bigint, brand_id) = brand_id)', name);
    end loop;
end $$;
