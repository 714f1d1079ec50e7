-- Segments and automations.

alter table brands add column signing_secret text;
-- whether its customers were asked what they belong to
alter table brands add column segments_filled integer not null default 1;
update brands set segments_filled = 0;

create table segments (
    brand_id integer not null,
    name text not null,
    expression text not null,
    description text,
    created_ms integer not null,
    updated_ms integer not null,
    primary key (brand_id, name)
) strict, without rowid;

create table segment_members (
    brand_id integer not null,
    segment text not null,
    profile_id text not null,
    since_ms integer not null,
    primary key (brand_id, segment, profile_id)
) strict, without rowid;
create index segment_members_by_profile on segment_members (profile_id);

create table segment_changes (
    id text primary key,
    brand_id integer not null,
    segment text not null,
    profile_id text not null,
    entered integer not null,
    at_ms integer not null
) strict;
create index segment_changes_by_segment on segment_changes (brand_id, segment, id);
create index segment_changes_by_profile on segment_changes (profile_id);

-- When time alone may next change what a customer belongs to.
create table segment_checks (
    profile_id text primary key,
    brand_id integer not null,
    due_ms integer not null
) strict, without rowid;
create index segment_checks_due on segment_checks (due_ms);

create table automations (
    id text primary key,
    brand_id integer not null,
    name text not null,
    status text not null check (status in ('draft', 'active', 'paused')),
    version integer not null,
    definition text not null,
    -- when its schedule next comes up
    fires_ms integer,
    created_ms integer not null,
    updated_ms integer not null
) strict;
create index automations_by_brand on automations (brand_id, id);
create index automations_due on automations (fires_ms) where fires_ms is not null;

create table automation_versions (
    automation_id text not null,
    version integer not null,
    brand_id integer not null,
    definition text not null,
    created_ms integer not null,
    primary key (automation_id, version)
) strict, without rowid;

create table automation_runs (
    id text primary key,
    brand_id integer not null,
    automation_id text not null,
    version integer not null,
    profile_id text not null,
    -- what started it: the same thing starts one run only
    trigger_key text not null,
    status text not null check (status in ('queued', 'waiting', 'done', 'cancelled', 'failed')),
    -- counts up with each write: a job that was made for another revision does nothing
    revision integer not null,
    due_ms integer,
    started_ms integer not null,
    updated_ms integer not null,
    state text not null,
    unique (automation_id, trigger_key)
) strict;
create index automation_runs_due on automation_runs (due_ms) where status = 'waiting';
create index automation_runs_queued on automation_runs (updated_ms) where status = 'queued';
create index automation_runs_by_profile on automation_runs (profile_id, automation_id);
create index automation_runs_by_automation on automation_runs (brand_id, automation_id, id);

-- What a run has done or is doing outside of the store: written before and after.
create table automation_actions (
    run_id text not null,
    node integer not null,
    brand_id integer not null,
    automation_id text not null,
    profile_id text not null,
    kind text not null,
    destination text,
    marketing integer not null,
    status text not null check (status in ('started', 'done', 'skipped', 'failed')),
    attempts integer not null,
    first_ms integer not null,
    last_ms integer not null,
    error text,
    primary key (run_id, node)
) strict, without rowid;
create index automation_actions_by_profile on automation_actions (profile_id, first_ms);
