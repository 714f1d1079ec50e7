-- Segments and automations. Times are milliseconds since 1970 (UTC), as the queue's are.

alter table brands
    add column signing_secret text,
    -- whether its customers were asked what they belong to
    add column segments_filled boolean not null default true;
update brands set segments_filled = false;

create table segments (
    brand_id bigint not null,
    name text collate "C" not null,
    expression text not null,
    description text,
    created_ms bigint not null,
    updated_ms bigint not null,
    primary key (brand_id, name)
);

create table segment_members (
    brand_id bigint not null,
    segment text collate "C" not null,
    profile_id uuid not null,
    since_ms bigint not null,
    primary key (brand_id, segment, profile_id)
);
create index segment_members_by_profile on segment_members (profile_id);

create table segment_changes (
    id uuid primary key,
    brand_id bigint not null,
    segment text collate "C" not null,
    profile_id uuid not null,
    entered boolean not null,
    at_ms bigint not null
);
create index segment_changes_by_segment on segment_changes (brand_id, segment, id);
create index segment_changes_by_profile on segment_changes (profile_id);

-- When time alone may next change what a customer belongs to.
create table segment_checks (
    profile_id uuid primary key,
    brand_id bigint not null,
    due_ms bigint not null
);
create index segment_checks_due on segment_checks (due_ms);

create table automations (
    id uuid primary key,
    brand_id bigint not null,
    name text not null,
    status text collate "C" not null check (status in ('draft', 'active', 'paused')),
    version integer not null,
    definition text not null,
    -- when its schedule next comes up
    fires_ms bigint,
    created_ms bigint not null,
    updated_ms bigint not null
);
create index automations_by_brand on automations (brand_id, id);
create index automations_due on automations (fires_ms) where fires_ms is not null;

create table automation_versions (
    automation_id uuid not null,
    version integer not null,
    brand_id bigint not null,
    definition text not null,
    created_ms bigint not null,
    primary key (automation_id, version)
);

create table automation_runs (
    id uuid primary key,
    brand_id bigint not null,
    automation_id uuid not null,
    version integer not null,
    profile_id uuid not null,
    -- what started it: the same thing starts one run only
    trigger_key text collate "C" not null,
    status text collate "C" not null check (status in ('queued', 'waiting', 'done', 'cancelled', 'failed')),
    -- counts up with each write: a job that was made for another revision does nothing
    revision bigint not null,
    due_ms bigint,
    started_ms bigint not null,
    updated_ms bigint not null,
    state text not null,
    unique (automation_id, trigger_key)
);
create index automation_runs_due on automation_runs (due_ms) where status = 'waiting';
create index automation_runs_queued on automation_runs (updated_ms) where status = 'queued';
create index automation_runs_by_profile on automation_runs (profile_id, automation_id);
create index automation_runs_by_automation on automation_runs (brand_id, automation_id, id);

-- What a run has done or is doing outside of the store: written before and after.
create table automation_actions (
    run_id uuid not null,
    node integer not null,
    brand_id bigint not null,
    automation_id uuid not null,
    profile_id uuid not null,
    kind text not null,
    destination text,
    marketing boolean not null,
    status text collate "C" not null check (status in ('started', 'done', 'skipped', 'failed')),
    attempts integer not null,
    first_ms bigint not null,
    last_ms bigint not null,
    error text,
    primary key (run_id, node)
);
create index automation_actions_by_profile on automation_actions (profile_id, first_ms);

do $$
declare name text;
begin
    foreach name in array array['segments', 'segment_members', 'segment_changes', 'segment_checks', 'automations',
        'automation_versions', 'automation_runs', 'automation_actions']
    loop
        execute format('alter table %I enable row level security', name);
        execute format('alter table %I force row level security', name);
        execute format('create policy brand on %I using (
            coalesce(nullif(current_setting(''tributary.brand'', true), '''')::bigint, brand_id) = brand_id)', name);
    end loop;
end $$;
