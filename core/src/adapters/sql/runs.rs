//! Runs of automations, and what they have done.

use std::collections::HashMap;

use async_trait::async_trait;
use serde_json::json;
use sqlx_macros::FromRow;
use uuid::Uuid;

use super::automations::{SqlAutomations, SqlAutomationsTx};
use super::codec::{Count, Id, Json};
use super::database::Tx;
use super::read_as;
use super::statement::Given;
use crate::domain::automation::run::{ActionRow, ActionStatus, Past, Run, State, Status};
use crate::domain::ids::{BrandId, ProfileId};
use crate::ports::automations::{DueRun, Peek, RunFilter, Runs, RunsTx};
use crate::ports::store::StoreError;

/// The columns of a run, as it is read.
const RUN: &str = "id, brand_id, automation_id, version, profile_id, trigger_key, status, revision, due_ms, started_ms, updated_ms, state";
/// The columns of an action's record, as it is read.
const ACTION: &str = "run_id, node, brand_id, automation_id, profile_id, kind, destination, marketing, status, attempts, first_ms, \
    last_ms, error";

#[derive(FromRow)]
struct RunRow {
    id: Id,
    brand_id: BrandId,
    automation_id: Id,
    version: i32,
    profile_id: ProfileId,
    trigger_key: String,
    status: Status,
    revision: i64,
    due_ms: Option<i64>,
    started_ms: i64,
    updated_ms: i64,
    state: Json<State>,
}

#[derive(FromRow)]
struct StoredActionRow {
    run_id: Id,
    node: Count,
    brand_id: BrandId,
    automation_id: Id,
    profile_id: ProfileId,
    kind: String,
    destination: Option<String>,
    marketing: bool,
    status: ActionStatus,
    attempts: Count,
    first_ms: i64,
    last_ms: i64,
    error: Option<String>,
}

#[derive(FromRow)]
struct PeekRow {
    id: Id,
    brand_id: BrandId,
    automation_id: Id,
    version: i32,
    profile_id: ProfileId,
}

read_as!(Run: RunRow, ActionRow: StoredActionRow, Peek: PeekRow);

impl From<RunRow> for Run {
    fn from(row: RunRow) -> Self {
        Self {
            id: row.id.0,
            brand: row.brand_id,
            automation: row.automation_id.0,
            version: row.version,
            profile: row.profile_id,
            trigger_key: row.trigger_key,
            status: row.status,
            revision: row.revision,
            due_ms: row.due_ms,
            started_ms: row.started_ms,
            updated_ms: row.updated_ms,
            state: row.state.0,
        }
    }
}

impl From<StoredActionRow> for ActionRow {
    fn from(row: StoredActionRow) -> Self {
        Self {
            run: row.run_id.0,
            node: row.node.0 as usize,
            brand: row.brand_id,
            automation: row.automation_id.0,
            profile: row.profile_id,
            kind: row.kind,
            destination: row.destination,
            marketing: row.marketing,
            status: row.status,
            attempts: row.attempts.0,
            first_ms: row.first_ms,
            last_ms: row.last_ms,
            error: row.error,
        }
    }
}

impl From<PeekRow> for Peek {
    fn from(row: PeekRow) -> Self {
        Self {
            run: row.id.0,
            brand: row.brand_id,
            automation: row.automation_id.0,
            version: row.version,
            profile: row.profile_id,
        }
    }
}

#[async_trait]
impl Runs for SqlAutomations {
    async fn runs(
        &self,
        brand: BrandId,
        filter: RunFilter,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<Run>, StoreError> {
        let mut tx = self.db.looking_at(brand).await?;
        tx.sql(format!("select {RUN} from automation_runs where brand_id = $1"))
            .bind(brand)
            .filter("automation_id = ", filter.automation)
            .filter("profile_id = ", filter.profile)
            .filter("status = ", filter.status)
            .filter("id < ", before)
            .push(" order by id desc limit ")
            .push_bind(limit)
            .all()
            .await
    }

    async fn run(&self, brand: BrandId, id: Uuid) -> Result<Option<(Run, Vec<ActionRow>)>, StoreError> {
        let run = format!("select {RUN} from automation_runs where brand_id = $1 and id = $2");
        let mut tx = self.db.reading(brand).await?;
        let Some(run) = tx.sql(run).bind(brand).bind(id).optional().await? else { return Ok(None) };
        Ok(Some((run, actions(&mut tx, &[id]).await?)))
    }

    async fn peek(&self, runs: &[Uuid]) -> Result<Vec<Peek>, StoreError> {
        let peek =
            "select id, brand_id, automation_id, version, profile_id from automation_runs where id = any($1)";
        self.db.looking().await?.sql(peek).list(runs).all().await
    }

    async fn run_counts(&self, brand: BrandId, automation: Uuid) -> Result<HashMap<Status, i64>, StoreError> {
        let counts = "select status, count(*) from automation_runs where brand_id = $1 and automation_id = $2 group by status";
        let counts: Vec<(Status, i64)> =
            self.db.looking_at(brand).await?.sql(counts).bind(brand).bind(automation).all().await?;
        Ok(counts.into_iter().collect())
    }

    async fn actions_of(
        &self,
        brand: BrandId,
        id: ProfileId,
        limit: i64,
    ) -> Result<Vec<ActionRow>, StoreError> {
        let actions = format!(
            "select {ACTION} from automation_actions where profile_id = $1 and brand_id = $2
            order by first_ms desc, run_id desc, node desc limit $3"
        );
        self.db.looking_at(brand).await?.sql(actions).bind(id).bind(brand).bind(limit).all().await
    }
}

async fn actions(tx: &mut Tx, runs: &[Uuid]) -> Result<Vec<ActionRow>, StoreError> {
    let actions = format!(
        "select {ACTION} from automation_actions where run_id = any($1) order by run_id, first_ms, node desc"
    );
    tx.sql(actions).list(runs).all().await
}

#[async_trait]
impl RunsTx for SqlAutomationsTx {
    async fn live_runs(&mut self, profiles: &[ProfileId]) -> Result<Vec<Run>, StoreError> {
        let live = format!(
            "select {RUN} from automation_runs where profile_id = any($1) and status in ('queued', 'waiting')
            order by id for update"
        );
        self.tx.sql(live).list(profiles.iter().copied()).all().await
    }

    async fn lock_runs(&mut self, ids: &[Uuid]) -> Result<Vec<Run>, StoreError> {
        let lock = format!("select {RUN} from automation_runs where id = any($1) order by id for update");
        self.tx.sql(lock).list(ids).all().await
    }

    async fn past(
        &mut self,
        automations: &[Uuid],
        profiles: &[ProfileId],
    ) -> Result<HashMap<(Uuid, ProfileId), Vec<Past>>, StoreError> {
        let past = "select automation_id, profile_id, status, started_ms from automation_runs
            where profile_id = any($1) and automation_id = any($2)";
        let rows: Vec<(Id, ProfileId, Status, i64)> =
            self.tx.sql(past).list(profiles.iter().copied()).list(automations).all().await?;
        let mut all: HashMap<_, Vec<Past>> = HashMap::new();
        for (automation, id, status, started_ms) in rows {
            all.entry((automation.0, id)).or_default().push(Past { status, started_ms });
        }
        Ok(all)
    }

    async fn add_runs(&mut self, runs: &[Run]) -> Result<Vec<Uuid>, StoreError> {
        let given = Given::of(runs)
            .column("id", |run| run.id)
            .column("brand", |run| run.brand)
            .column("automation", |run| run.automation)
            .column("version", |run| run.version)
            .column("profile", |run| run.profile)
            .column("trigger_key", |run| &run.trigger_key)
            .column("status", |run| run.status)
            .column("revision", |run| run.revision)
            .column("due_ms", |run| run.due_ms)
            .column("started_ms", |run| run.started_ms)
            .column("updated_ms", |run| run.updated_ms)
            .column("state", |run| json!(run.state).to_string())
            .rows();
        let add = format!(
            "insert into automation_runs ({RUN})
            select id, brand, automation, version, profile, trigger_key, status, revision, due_ms, started_ms, updated_ms, state
            from {{given}} where true
            on conflict (automation_id, trigger_key) do nothing returning id"
        );
        let added: Vec<Id> = self.tx.sql(add).given(&given).scalars().await?;
        Ok(added.into_iter().map(|id| id.0).collect())
    }

    async fn save_runs(&mut self, runs: &[Run]) -> Result<(), StoreError> {
        let given = Given::of(runs)
            .column("id", |run| run.id)
            .column("status", |run| run.status)
            .column("revision", |run| run.revision)
            .column("due_ms", |run| run.due_ms)
            .column("updated_ms", |run| run.updated_ms)
            .column("state", |run| json!(run.state).to_string())
            .rows();
        self.tx
            .sql(
                "update automation_runs set status = given.status, revision = given.revision, due_ms = given.due_ms,
                    updated_ms = given.updated_ms, state = given.state
                from {given} where automation_runs.id = given.id",
            )
            .given(&given)
            .run()
            .await?;
        Ok(())
    }

    async fn actions(&mut self, runs: &[Uuid]) -> Result<Vec<ActionRow>, StoreError> {
        actions(&mut self.tx, runs).await
    }

    async fn save_actions(&mut self, rows: &[ActionRow]) -> Result<(), StoreError> {
        let given = Given::of(rows)
            .column("run", |row| row.run)
            .column("node", |row| i32::try_from(row.node).unwrap_or(i32::MAX))
            .column("brand", |row| row.brand)
            .column("automation", |row| row.automation)
            .column("profile", |row| row.profile)
            .column("kind", |row| &row.kind)
            .column("destination", |row| row.destination.as_deref())
            .column("marketing", |row| row.marketing)
            .column("status", |row| row.status)
            .column("attempts", |row| i32::try_from(row.attempts).unwrap_or(i32::MAX))
            .column("first_ms", |row| row.first_ms)
            .column("last_ms", |row| row.last_ms)
            .column("error", |row| row.error.as_deref())
            .rows();
        let save = format!(
            "insert into automation_actions ({ACTION})
            select run, node, brand, automation, profile, kind, destination, marketing, status, attempts, first_ms, last_ms, error
            from {{given}} where true
            on conflict (run_id, node) do update set status = excluded.status, attempts = excluded.attempts,
                last_ms = excluded.last_ms, error = excluded.error, destination = excluded.destination"
        );
        self.tx.sql(save).given(&given).run().await?;
        Ok(())
    }

    async fn sent(&mut self, profiles: &[ProfileId], since_ms: i64) -> Result<Vec<ActionRow>, StoreError> {
        let sent = format!(
            "select {ACTION} from automation_actions where profile_id = any($1) and first_ms > $2 and marketing
                and status in ('started', 'done')"
        );
        self.tx.sql(sent).list(profiles.iter().copied()).bind(since_ms).all().await
    }

    async fn take_due_runs(
        &mut self,
        now_ms: i64,
        stuck_ms: i64,
        limit: i64,
    ) -> Result<Vec<DueRun>, StoreError> {
        // those that another process takes at this moment are left to it
        let take = "update automation_runs set status = 'queued', due_ms = null, revision = revision + 1, updated_ms = $1
            where id in (select id from automation_runs where status = 'waiting' and due_ms <= $1
                order by due_ms limit $2 for update skip locked)
                or id in (select id from automation_runs where status = 'queued' and updated_ms < $3
                order by updated_ms limit $2 for update skip locked)
            returning brand_id, id, revision";
        let rows: Vec<(BrandId, Id, i64)> =
            self.tx.sql(take).bind(now_ms).bind(limit).bind(stuck_ms).all().await?;
        Ok(rows.into_iter().map(|(brand, id, revision)| DueRun { brand, run: id.0, revision }).collect())
    }
}
