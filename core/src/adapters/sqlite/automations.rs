//! Segments, automations and runs on SQLite.

use std::collections::HashMap;

use async_trait::async_trait;
use futures::TryStreamExt;
use serde_json::json;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row, Sqlite, SqliteConnection, Transaction};
use uuid::Uuid;

use super::customers::{Counted, consent, counted, profile, profile_id, stored_event, summed};
use super::db::{Db, failed};
use super::outbox;
use super::privacy::add_note;
use crate::domain::automation::facts::{CONSENTS_SEEN, EVENTS_SEEN, Facts};
use crate::domain::automation::run::{ActionRow, ActionStatus, Past, Run, State, Status};
use crate::domain::automation::segment::{Change, SegmentRow};
use crate::domain::customer360::StoredEvent;
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::{BrandId, ProfileId};
use crate::ports::automations::{
    AutomationRow, AutomationStatus, Automations, AutomationsTx, Check, DueRun, Member, Peek, RunFilter,
};
use crate::ports::outbox::Stage;
use crate::ports::privacy::AuditEntry;
use crate::ports::store::StoreError;

const RUN: &str = "id, brand_id, automation_id, version, profile_id, trigger_key, status, revision, due_ms, started_ms, \
                   updated_ms, state";
const ACTION: &str = "run_id, node, brand_id, automation_id, profile_id, kind, destination, marketing, status, attempts, \
                      first_ms, last_ms, error";
const AUTOMATION: &str = "id, brand_id, name, status, version, definition, fires_ms, created_ms, updated_ms";

/// Segments, automations and runs on SQLite.
pub struct SqliteAutomations {
    db: Db,
}

impl SqliteAutomations {
    /// Those in an open file.
    pub fn new(db: Db) -> Self {
        Self { db }
    }
}

#[async_trait]
impl Automations for SqliteAutomations {
    async fn begin(&self) -> Result<Box<dyn AutomationsTx>, StoreError> {
        Ok(Box::new(Tx { tx: self.db.begin().await.map_err(failed)? }))
    }

    async fn begin_reading(&self, _brand: BrandId) -> Result<Box<dyn AutomationsTx>, StoreError> {
        Ok(Box::new(Tx { tx: self.db.read.begin().await.map_err(failed)? }))
    }

    async fn segments(&self, brand: BrandId) -> Result<Vec<SegmentRow>, StoreError> {
        let rows = sqlx::query("select * from segments where brand_id = ?1 order by name")
            .bind(brand.0)
            .fetch_all(&self.db.read)
            .await
            .map_err(failed)?;
        rows.iter().map(segment).collect::<Result<_, _>>().map_err(failed)
    }

    async fn delete_segment(&self, brand: BrandId, name: &str) -> Result<bool, StoreError> {
        let mut tx = self.db.begin().await.map_err(failed)?;
        let mut gone = false;
        for statement in [
            "delete from segment_members where brand_id = ?1 and segment = ?2",
            "delete from segment_changes where brand_id = ?1 and segment = ?2",
            "delete from segments where brand_id = ?1 and name = ?2",
        ] {
            let done =
                sqlx::query(statement).bind(brand.0).bind(name).execute(&mut *tx).await.map_err(failed)?;
            gone = done.rows_affected() > 0;
        }
        tx.commit().await.map_err(failed)?;
        Ok(gone)
    }

    async fn members(
        &self,
        brand: BrandId,
        segment: &str,
        after: Option<ProfileId>,
        limit: i64,
    ) -> Result<Vec<Member>, StoreError> {
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "select profile_id, since_ms from segment_members
            where brand_id = ?1 and segment = ?2 and profile_id > coalesce(?3, '') order by profile_id limit ?4",
        )
        .bind(brand.0)
        .bind(segment)
        .bind(after.map(|id| id.to_string()))
        .bind(limit)
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        let member = |(id, since): (String, i64)| Ok((profile_id(&id)?, since));
        rows.into_iter().map(member).collect::<Result<_, sqlx::Error>>().map_err(failed)
    }

    async fn member_counts(&self, brand: BrandId) -> Result<HashMap<String, i64>, StoreError> {
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "select segment, count(*) from segment_members where brand_id = ?1 group by segment",
        )
        .bind(brand.0)
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        Ok(rows.into_iter().collect())
    }

    async fn changes(
        &self,
        brand: BrandId,
        segment: Option<&str>,
        profile: Option<ProfileId>,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<Change>, StoreError> {
        let rows = sqlx::query(
            "select * from segment_changes where brand_id = ?1 and (?2 is null or segment = ?2)
                and (?3 is null or profile_id = ?3) and (?4 is null or id < ?4) order by id desc limit ?5",
        )
        .bind(brand.0)
        .bind(segment)
        .bind(profile.map(|id| id.to_string()))
        .bind(before.map(|id| id.to_string()))
        .bind(limit)
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        rows.iter().map(change).collect::<Result<_, _>>().map_err(failed)
    }

    async fn profiles(
        &self,
        brand: BrandId,
        after: Option<ProfileId>,
        limit: i64,
    ) -> Result<Vec<ProfileId>, StoreError> {
        let ids: Vec<String> = sqlx::query_scalar(
            "select id from profiles where brand_id = ?1 and merged_into is null and id > coalesce(?2, '')
            order by id limit ?3",
        )
        .bind(brand.0)
        .bind(after.map(|id| id.to_string()))
        .bind(limit)
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        ids.iter().map(|id| profile_id(id)).collect::<Result<_, _>>().map_err(failed)
    }

    async fn automations(&self, brand: BrandId) -> Result<Vec<AutomationRow>, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {AUTOMATION} from automations where brand_id = ?1 order by id"
        )))
        .bind(brand.0)
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        rows.iter().map(automation).collect::<Result<_, _>>().map_err(failed)
    }

    async fn automation(&self, brand: BrandId, id: Uuid) -> Result<Option<AutomationRow>, StoreError> {
        let row = sqlx::query(AssertSqlSafe(format!(
            "select {AUTOMATION} from automations where brand_id = ?1 and id = ?2"
        )))
        .bind(brand.0)
        .bind(id.to_string())
        .fetch_optional(&self.db.read)
        .await
        .map_err(failed)?;
        row.as_ref().map(automation).transpose().map_err(failed)
    }

    async fn version(&self, automation: Uuid, version: i32) -> Result<Option<String>, StoreError> {
        sqlx::query_scalar(
            "select definition from automation_versions where automation_id = ?1 and version = ?2",
        )
        .bind(automation.to_string())
        .bind(version)
        .fetch_optional(&self.db.read)
        .await
        .map_err(failed)
    }

    async fn versions(&self, brand: BrandId, each: i32) -> Result<Vec<(Uuid, i32, String)>, StoreError> {
        let rows: Vec<(String, i32, String)> = sqlx::query_as(
            "select v.automation_id, v.version, v.definition from automations a join automation_versions v
            on v.automation_id = a.id and v.version > a.version - ?2 where a.brand_id = ?1 and a.status = 'active'",
        )
        .bind(brand.0)
        .bind(each)
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        rows.into_iter()
            .map(|(id, version, definition)| Ok((uuid(&id)?, version, definition)))
            .collect::<Result<_, sqlx::Error>>()
            .map_err(failed)
    }

    async fn add_automation(&self, row: &AutomationRow) -> Result<(), StoreError> {
        let mut tx = self.db.begin().await.map_err(failed)?;
        sqlx::query(AssertSqlSafe(format!(
            "insert into automations ({AUTOMATION}) values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)"
        )))
        .bind(row.id.to_string())
        .bind(row.brand.0)
        .bind(&row.name)
        .bind(row.status.as_str())
        .bind(row.version)
        .bind(&row.definition)
        .bind(row.fires_ms)
        .bind(row.created_ms)
        .bind(row.updated_ms)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        sqlx::query(
            "insert into automation_versions (automation_id, version, brand_id, definition, created_ms)
            values (?1, ?2, ?3, ?4, ?5)",
        )
        .bind(row.id.to_string())
        .bind(row.version)
        .bind(row.brand.0)
        .bind(&row.definition)
        .bind(row.updated_ms)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        tx.commit().await.map_err(failed)
    }

    async fn edit_automation(&self, row: &AutomationRow, old: i32) -> Result<bool, StoreError> {
        let mut tx = self.db.begin().await.map_err(failed)?;
        let done = sqlx::query(
            "update automations set name = ?3, version = ?4, definition = ?5, fires_ms = ?6, updated_ms = ?7
            where id = ?1 and version = ?2",
        )
        .bind(row.id.to_string())
        .bind(old)
        .bind(&row.name)
        .bind(row.version)
        .bind(&row.definition)
        .bind(row.fires_ms)
        .bind(row.updated_ms)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        if row.version != old {
            sqlx::query(
                "insert into automation_versions (automation_id, version, brand_id, definition, created_ms)
            values (?1, ?2, ?3, ?4, ?5)",
            )
            .bind(row.id.to_string())
            .bind(row.version)
            .bind(row.brand.0)
            .bind(&row.definition)
            .bind(row.updated_ms)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(true)
    }

    async fn set_status(
        &self,
        brand: BrandId,
        id: Uuid,
        status: AutomationStatus,
        fires_ms: Option<i64>,
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        let mut tx = self.db.begin().await.map_err(failed)?;
        let done = sqlx::query(
            "update automations set status = ?3, fires_ms = ?4, updated_ms = ?5 where brand_id = ?1 and id = ?2",
        )
        .bind(brand.0)
        .bind(id.to_string())
        .bind(status.as_str())
        .bind(fires_ms)
        .bind(now_ms)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        if status == AutomationStatus::Active {
            sqlx::query(
                "update automation_runs set due_ms = ?2 where automation_id = ?1 and status = 'waiting' and due_ms is null",
            )
            .bind(id.to_string())
            .bind(now_ms)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(done.rows_affected() > 0)
    }

    async fn delete_automation(&self, brand: BrandId, id: Uuid, now_ms: i64) -> Result<bool, StoreError> {
        let mut tx = self.db.begin().await.map_err(failed)?;
        let gone = sqlx::query("delete from automations where brand_id = ?1 and id = ?2")
            .bind(brand.0)
            .bind(id.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        if gone.rows_affected() == 0 {
            return Ok(false);
        }
        sqlx::query("delete from automation_versions where automation_id = ?1")
            .bind(id.to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        sqlx::query(
            "update automation_runs set status = 'cancelled', due_ms = null, revision = revision + 1, updated_ms = ?2
            where automation_id = ?1 and status in ('queued', 'waiting')",
        )
        .bind(id.to_string())
        .bind(now_ms)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(true)
    }

    async fn runs(
        &self,
        brand: BrandId,
        filter: RunFilter,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<Run>, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {RUN} from automation_runs where brand_id = ?1 and (?2 is null or automation_id = ?2)
                and (?3 is null or profile_id = ?3) and (?4 is null or status = ?4) and (?5 is null or id < ?5)
            order by id desc limit ?6"
        )))
        .bind(brand.0)
        .bind(filter.automation.map(|id| id.to_string()))
        .bind(filter.profile.map(|id| id.to_string()))
        .bind(filter.status.map(Status::as_str))
        .bind(before.map(|id| id.to_string()))
        .bind(limit)
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        rows.iter().map(run).collect::<Result<_, _>>().map_err(failed)
    }

    async fn run(&self, brand: BrandId, id: Uuid) -> Result<Option<(Run, Vec<ActionRow>)>, StoreError> {
        let mut tx = self.db.read.begin_with("begin").await.map_err(failed)?;
        let row = sqlx::query(AssertSqlSafe(format!(
            "select {RUN} from automation_runs where brand_id = ?1 and id = ?2"
        )))
        .bind(brand.0)
        .bind(id.to_string())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
        let Some(row) = row else { return Ok(None) };
        let actions = actions(&mut tx, &[id]).await?;
        Ok(Some((run(&row).map_err(failed)?, actions)))
    }

    async fn peek(&self, runs: &[Uuid]) -> Result<Vec<Peek>, StoreError> {
        let rows: Vec<(String, String, i32, String)> = sqlx::query_as(
            "select id, automation_id, version, profile_id from automation_runs where id in (select value from json_each(?1))",
        )
        .bind(json!(runs).to_string())
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        rows.iter()
            .map(|(run, automation, version, id)| {
                Ok(Peek {
                    run: uuid(run)?,
                    automation: uuid(automation)?,
                    version: *version,
                    profile: profile_id(id)?,
                })
            })
            .collect::<Result<_, sqlx::Error>>()
            .map_err(failed)
    }

    async fn run_counts(&self, brand: BrandId, automation: Uuid) -> Result<HashMap<Status, i64>, StoreError> {
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "select status, count(*) from automation_runs where brand_id = ?1 and automation_id = ?2 group by status",
        )
        .bind(brand.0)
        .bind(automation.to_string())
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        Ok(rows.into_iter().filter_map(|(status, count)| Some((Status::parse(&status)?, count))).collect())
    }

    async fn actions_of(
        &self,
        brand: BrandId,
        id: ProfileId,
        limit: i64,
    ) -> Result<Vec<ActionRow>, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {ACTION} from automation_actions where profile_id = ?1 and brand_id = ?2
            order by first_ms desc, run_id desc, node desc limit ?3"
        )))
        .bind(id.to_string())
        .bind(brand.0)
        .bind(limit)
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        rows.iter().map(action).collect::<Result<_, _>>().map_err(failed)
    }

    async fn is_due(&self, now_ms: i64, stuck_ms: i64) -> Result<bool, StoreError> {
        sqlx::query_scalar(
            "select exists (select 1 from automation_runs where status = 'waiting' and due_ms <= ?1)
                or exists (select 1 from automation_runs where status = 'queued' and updated_ms < ?2)
                or exists (select 1 from segment_checks where due_ms <= ?1)
                or exists (select 1 from automations where fires_ms is not null and fires_ms <= ?1)",
        )
        .bind(now_ms)
        .bind(stuck_ms)
        .fetch_one(&self.db.read)
        .await
        .map_err(failed)
    }
}

struct Tx {
    tx: Transaction<'static, Sqlite>,
}

impl Tx {
    async fn each(&mut self, statement: &'static str, rows: serde_json::Value) -> Result<(), StoreError> {
        sqlx::query(statement).bind(rows.to_string()).execute(&mut *self.tx).await.map_err(failed)?;
        Ok(())
    }
}

#[async_trait]
impl AutomationsTx for Tx {
    async fn statuses(&mut self, ids: &[Uuid]) -> Result<HashMap<Uuid, AutomationStatus>, StoreError> {
        let rows: Vec<(String, String)> = sqlx::query_as(
            "select id, status from automations where id in (select value from json_each(?1))",
        )
        .bind(json!(ids).to_string())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.into_iter()
            .map(|(id, status)| {
                let status = AutomationStatus::parse(&status).ok_or_else(|| unknown("status", &status))?;
                Ok((uuid(&id)?, status))
            })
            .collect::<Result<_, sqlx::Error>>()
            .map_err(failed)
    }

    async fn take_unfilled(&mut self) -> Result<Vec<BrandId>, StoreError> {
        let ids: Vec<i64> = sqlx::query_scalar(
            "update brands set segments_filled = true where not segments_filled returning id",
        )
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        Ok(ids.into_iter().map(BrandId).collect())
    }

    async fn lock(&mut self, ids: &[ProfileId]) -> Result<HashMap<ProfileId, ProfileId>, StoreError> {
        // the transaction is the only one that writes
        let rows: Vec<(String, String)> = sqlx::query_as(
            "with recursive trail as (
                select asked.value as asked, profiles.id, merged_into from json_each(?1) asked join profiles on profiles.id = asked.value
                union all select asked, p.id, p.merged_into from trail t join profiles p on p.id = t.merged_into
            ) select asked, id from trail where merged_into is null",
        )
        .bind(json!(ids).to_string())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.iter()
            .map(|(asked, id)| Ok((profile_id(asked)?, profile_id(id)?)))
            .collect::<Result<_, sqlx::Error>>()
            .map_err(failed)
    }

    async fn facts(
        &mut self,
        ids: &[ProfileId],
        events: bool,
    ) -> Result<HashMap<ProfileId, Facts>, StoreError> {
        let asked = json!(ids).to_string();
        let rows = sqlx::query("select p.* from json_each(?1) asked join profiles p on p.id = asked.value")
            .bind(&asked)
            .fetch_all(&mut *self.tx)
            .await
            .map_err(failed)?;
        let mut all: HashMap<ProfileId, Facts> = HashMap::with_capacity(rows.len());
        for row in &rows {
            let facts = Facts::of(profile(row).map_err(failed)?);
            all.insert(facts.profile.id, facts);
        }
        let rows: Vec<(String, String, String, bool)> = sqlx::query_as(
            "select profile_id, kind, i.value, source > 0 from json_each(?1) asked
            join identifiers i on profile_id = asked.value",
        )
        .bind(&asked)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        for (id, kind, value, trusted) in rows {
            let facts = all.get_mut(&profile_id(&id).map_err(failed)?);
            if let (Some(facts), Some(kind)) = (facts, IdentifierKind::parse(&kind)) {
                facts.own(Identifier { kind, value }, trusted);
            }
        }
        // SQLite would add decimals up as floats: the sums are made here
        let rows = sqlx::query(
            "select profile_id, currency, revenue, refunded, ordered_at from json_each(?1) asked
            join orders on profile_id = asked.value where counts",
        )
        .bind(&asked)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        let mut orders: HashMap<ProfileId, Vec<Counted>> = HashMap::new();
        for row in &rows {
            let id = profile_id(row.try_get("profile_id").map_err(failed)?).map_err(failed)?;
            orders.entry(id).or_default().push(counted(row).map_err(failed)?);
        }
        for (id, orders) in orders {
            if let Some(facts) = all.get_mut(&id) {
                facts.totals = summed(orders);
            }
        }
        let rows = sqlx::query(
            "select * from (
                select newest.*, row_number() over (
                    partition by profile_id order by source > 0 desc, at desc, sequence desc, message_id desc) as place
                from (
                    select profile_id, channel, state, level, at, sequence, message_id, address, source, row_number() over (
                        partition by profile_id, channel, address, source > 0
                        order by at desc, sequence desc, message_id desc) as age
                    from json_each(?1) asked join consents on profile_id = asked.value) newest
                where age = 1)
            where place <= ?2",
        )
        .bind(&asked)
        .bind(CONSENTS_SEEN as i64)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        for row in &rows {
            let id = profile_id(row.try_get("profile_id").map_err(failed)?).map_err(failed)?;
            if let Some(facts) = all.get_mut(&id) {
                facts.consents.push(consent(row).map_err(failed)?);
            }
        }
        let rows: Vec<(String, String, i64)> = sqlx::query_as(
            "select profile_id, segment, since_ms from json_each(?1) asked join segment_members on profile_id = asked.value",
        )
        .bind(&asked)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        for (id, segment, since_ms) in rows {
            if let Some(facts) = all.get_mut(&profile_id(&id).map_err(failed)?) {
                facts.segments.insert(segment, since_ms);
            }
        }
        for (id, facts) in &mut all {
            facts.identifiers.sort();
            facts.trusted.sort();
            if events {
                see_recent(&mut self.tx, *id, facts).await?;
            }
        }
        Ok(all)
    }

    async fn events(
        &mut self,
        ids: &[(BrandId, String)],
    ) -> Result<HashMap<(BrandId, String), StoredEvent>, StoreError> {
        let asked: Vec<_> = ids.iter().map(|(brand, id)| json!([brand.0, id])).collect();
        let rows = sqlx::query(
            "select brand_id, message_id, kind, name, \"timestamp\", body, active, source, received_at
            from (select value ->> 0 as b, value ->> 1 as m from json_each(?1)) asked
            cross join events on brand_id = b and message_id = m",
        )
        .bind(json!(asked).to_string())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.iter()
            .map(|row| {
                let event = stored_event(row)?;
                Ok(((BrandId(row.try_get("brand_id")?), event.message_id.clone()), event))
            })
            .collect::<Result<_, sqlx::Error>>()
            .map_err(failed)
    }

    async fn events_since(
        &mut self,
        of: &[(ProfileId, i64)],
        names: &[String],
    ) -> Result<HashMap<ProfileId, Vec<StoredEvent>>, StoreError> {
        let asked: Vec<_> = of.iter().map(|(id, since)| json!([id, since])).collect();
        let rows = sqlx::query(
            "select profile_id, message_id, kind, name, \"timestamp\", body, active, source, received_at
            from (select value ->> 0 as p, value ->> 1 as s from json_each(?1)) asked
            cross join events on profile_id = p and \"timestamp\" >= s
            where name in (select value from json_each(?2)) order by \"timestamp\", message_id",
        )
        .bind(json!(asked).to_string())
        .bind(json!(names).to_string())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        let mut all: HashMap<ProfileId, Vec<StoredEvent>> = HashMap::new();
        for row in &rows {
            let id = profile_id(row.try_get("profile_id").map_err(failed)?).map_err(failed)?;
            all.entry(id).or_default().push(stored_event(row).map_err(failed)?);
        }
        Ok(all)
    }

    async fn change_members(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let rows: Vec<_> = changes
            .iter()
            .map(|c| json!([c.id, c.brand.0, c.segment, c.profile, c.entered, c.at_ms]))
            .collect();
        let rows = json!(rows);
        self.each(
            "insert into segment_changes (id, brand_id, segment, profile_id, entered, at_ms)
            select value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5 from json_each(?1)",
            rows.clone(),
        )
        .await?;
        self.each(
            "insert into segment_members (brand_id, segment, profile_id, since_ms)
            select value ->> 1, value ->> 2, value ->> 3, value ->> 5 from json_each(?1) where value ->> 4
            on conflict do nothing",
            rows.clone(),
        )
        .await?;
        self.each(
            "delete from segment_members where (brand_id, segment, profile_id) in (
                select value ->> 1, value ->> 2, value ->> 3 from json_each(?1) where not value ->> 4)",
            rows.clone(),
        )
        .await?;
        // Customer360 lists them: an answer from before is old
        self.each(
            "update profiles set revision = revision + 1 where id in (select value ->> 3 from json_each(?1))",
            rows,
        )
        .await
    }

    async fn set_checks(&mut self, checks: &[Check]) -> Result<(), StoreError> {
        let rows: Vec<_> = checks.iter().map(|(brand, id, due)| json!([id, brand.0, due])).collect();
        let rows = json!(rows);
        self.each(
            "insert into segment_checks (profile_id, brand_id, due_ms)
            select value ->> 0, value ->> 1, value ->> 2 from json_each(?1) where value ->> 2 is not null
            on conflict (profile_id) do update set due_ms = excluded.due_ms",
            rows.clone(),
        )
        .await?;
        self.each(
            "delete from segment_checks where profile_id in (
                select value ->> 0 from json_each(?1) where value ->> 2 is null)",
            rows,
        )
        .await
    }

    async fn save_segment(&mut self, row: &SegmentRow) -> Result<(), StoreError> {
        sqlx::query(
            "insert into segments (brand_id, name, expression, description, created_ms, updated_ms)
            values (?1, ?2, ?3, ?4, ?5, ?6)
            on conflict (brand_id, name) do update set expression = excluded.expression,
                description = excluded.description, updated_ms = excluded.updated_ms",
        )
        .bind(row.brand.0)
        .bind(&row.name)
        .bind(&row.expression)
        .bind(&row.description)
        .bind(row.created_ms)
        .bind(row.updated_ms)
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn live_runs(&mut self, profiles: &[ProfileId]) -> Result<Vec<Run>, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {RUN} from automation_runs where profile_id in (select value from json_each(?1))
                and status in ('queued', 'waiting')"
        )))
        .bind(json!(profiles).to_string())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.iter().map(run).collect::<Result<_, _>>().map_err(failed)
    }

    async fn lock_runs(&mut self, ids: &[Uuid]) -> Result<Vec<Run>, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {RUN} from automation_runs where id in (select value from json_each(?1))"
        )))
        .bind(json!(ids).to_string())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.iter().map(run).collect::<Result<_, _>>().map_err(failed)
    }

    async fn past(
        &mut self,
        automations: &[Uuid],
        profiles: &[ProfileId],
    ) -> Result<HashMap<(Uuid, ProfileId), Vec<Past>>, StoreError> {
        let rows: Vec<(String, String, String, i64)> = sqlx::query_as(
            "select automation_id, profile_id, status, started_ms from automation_runs
            where profile_id in (select value from json_each(?1)) and automation_id in (select value from json_each(?2))",
        )
        .bind(json!(profiles).to_string())
        .bind(json!(automations).to_string())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        let mut all: HashMap<_, Vec<Past>> = HashMap::new();
        for (automation, id, status, started_ms) in rows {
            let key = (uuid(&automation).map_err(failed)?, profile_id(&id).map_err(failed)?);
            let status = status_of(&status).map_err(failed)?;
            all.entry(key).or_default().push(Past { status, started_ms });
        }
        Ok(all)
    }

    async fn add_runs(&mut self, runs: &[Run]) -> Result<Vec<Uuid>, StoreError> {
        let rows: Vec<_> = runs
            .iter()
            .map(|r| {
                let state = json!(r.state).to_string();
                json!([
                    r.id,
                    r.brand.0,
                    r.automation,
                    r.version,
                    r.profile,
                    r.trigger_key,
                    r.status.as_str(),
                    r.revision,
                    r.due_ms,
                    r.started_ms,
                    r.updated_ms,
                    state
                ])
            })
            .collect();
        let added: Vec<String> = sqlx::query_scalar(AssertSqlSafe(format!(
            "insert into automation_runs ({RUN})
            select value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7,
                value ->> 8, value ->> 9, value ->> 10, value ->> 11 from json_each(?1) where true
            on conflict (automation_id, trigger_key) do nothing returning id"
        )))
        .bind(json!(rows).to_string())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        added.iter().map(|id| uuid(id)).collect::<Result<_, _>>().map_err(failed)
    }

    async fn save_runs(&mut self, runs: &[Run]) -> Result<(), StoreError> {
        let rows: Vec<_> = runs
            .iter()
            .map(|r| {
                let state = json!(r.state).to_string();
                json!([r.id, r.status.as_str(), r.revision, r.due_ms, r.updated_ms, state])
            })
            .collect();
        self.each(
            "update automation_runs set status = now.value ->> 1, revision = now.value ->> 2, due_ms = now.value ->> 3,
                updated_ms = now.value ->> 4, state = now.value ->> 5
            from json_each(?1) now where automation_runs.id = now.value ->> 0",
            json!(rows),
        )
        .await
    }

    async fn actions(&mut self, runs: &[Uuid]) -> Result<Vec<ActionRow>, StoreError> {
        actions(&mut self.tx, runs).await
    }

    async fn save_actions(&mut self, rows: &[ActionRow]) -> Result<(), StoreError> {
        let rows: Vec<_> = rows
            .iter()
            .map(|r| {
                json!([
                    r.run,
                    r.node,
                    r.brand.0,
                    r.automation,
                    r.profile,
                    r.kind,
                    r.destination,
                    r.marketing,
                    r.status.as_str(),
                    r.attempts,
                    r.first_ms,
                    r.last_ms,
                    r.error
                ])
            })
            .collect();
        self.each(
            "insert into automation_actions (run_id, node, brand_id, automation_id, profile_id, kind, destination, marketing, status,
                attempts, first_ms, last_ms, error)
            select value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7,
                value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12 from json_each(?1) where true
            on conflict (run_id, node) do update set status = excluded.status, attempts = excluded.attempts,
                last_ms = excluded.last_ms, error = excluded.error, destination = excluded.destination",
            json!(rows),
        )
        .await
    }

    async fn sent(&mut self, profiles: &[ProfileId], since_ms: i64) -> Result<Vec<ActionRow>, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {ACTION} from automation_actions where profile_id in (select value from json_each(?1))
                and first_ms > ?2 and marketing and status in ('started', 'done')"
        )))
        .bind(json!(profiles).to_string())
        .bind(since_ms)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.iter().map(action).collect::<Result<_, _>>().map_err(failed)
    }

    async fn take_due_runs(
        &mut self,
        now_ms: i64,
        stuck_ms: i64,
        limit: i64,
    ) -> Result<Vec<DueRun>, StoreError> {
        let rows: Vec<(i64, String, i64)> = sqlx::query_as(
            "update automation_runs set status = 'queued', due_ms = null, revision = revision + 1, updated_ms = ?1
            where id in (select id from automation_runs where status = 'waiting' and due_ms <= ?1 order by due_ms limit ?2)
                or id in (select id from automation_runs where status = 'queued' and updated_ms < ?3 order by updated_ms limit ?2)
            returning brand_id, id, revision",
        )
        .bind(now_ms)
        .bind(limit)
        .bind(stuck_ms)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.iter()
            .map(|(brand, id, revision)| Ok((BrandId(*brand), uuid(id)?, *revision)))
            .collect::<Result<_, sqlx::Error>>()
            .map_err(failed)
    }

    async fn take_due_checks(
        &mut self,
        now_ms: i64,
        limit: i64,
    ) -> Result<Vec<(BrandId, ProfileId)>, StoreError> {
        let rows: Vec<(i64, String)> = sqlx::query_as(
            "delete from segment_checks where profile_id in (
                select profile_id from segment_checks where due_ms <= ?1 order by due_ms limit ?2)
            returning brand_id, profile_id",
        )
        .bind(now_ms)
        .bind(limit)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.iter()
            .map(|(brand, id)| Ok((BrandId(*brand), profile_id(id)?)))
            .collect::<Result<_, sqlx::Error>>()
            .map_err(failed)
    }

    async fn due_schedules(&mut self, now_ms: i64, limit: i64) -> Result<Vec<AutomationRow>, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {AUTOMATION} from automations where fires_ms is not null and fires_ms <= ?1 order by id limit ?2"
        )))
        .bind(now_ms)
        .bind(limit)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.iter().map(automation).collect::<Result<_, _>>().map_err(failed)
    }

    async fn set_fires(&mut self, id: Uuid, fires_ms: Option<i64>) -> Result<(), StoreError> {
        sqlx::query("update automations set fires_ms = ?2 where id = ?1")
            .bind(id.to_string())
            .bind(fires_ms)
            .execute(&mut *self.tx)
            .await
            .map_err(failed)?;
        Ok(())
    }

    async fn stage(&mut self, stages: &[Stage], now_ms: i64) -> Result<(), StoreError> {
        outbox::insert(&mut self.tx, stages, now_ms).await.map(drop)
    }

    async fn note(&mut self, entry: &AuditEntry) -> Result<(), StoreError> {
        add_note(&mut self.tx, entry).await
    }

    async fn commit(self: Box<Self>) -> Result<(), StoreError> {
        self.tx.commit().await.map_err(failed)
    }
}

/// One after the other: in full, the messages of a page of customers would be too much to hold.
async fn see_recent(tx: &mut SqliteConnection, id: ProfileId, facts: &mut Facts) -> Result<(), StoreError> {
    let mut rows = sqlx::query(
        "select message_id, kind, name, \"timestamp\", body, active, source, received_at from events
        where profile_id = ?1 order by \"timestamp\" desc, message_id desc limit ?2",
    )
    .bind(id.to_string())
    .bind(EVENTS_SEEN as i64)
    .fetch(&mut *tx);
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        facts.saw(stored_event(&row).map_err(failed)?);
    }
    Ok(())
}

async fn actions(tx: &mut SqliteConnection, runs: &[Uuid]) -> Result<Vec<ActionRow>, StoreError> {
    let rows = sqlx::query(AssertSqlSafe(format!(
        "select {ACTION} from automation_actions where run_id in (select value from json_each(?1)) order by run_id, first_ms, node desc"
    )))
    .bind(json!(runs).to_string())
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    rows.iter().map(action).collect::<Result<_, _>>().map_err(failed)
}

fn uuid(text: &str) -> Result<Uuid, sqlx::Error> {
    text.parse().map_err(|error: uuid::Error| sqlx::Error::Decode(error.into()))
}

fn unknown(what: &str, name: &str) -> sqlx::Error {
    sqlx::Error::Decode(format!("the {what} {name:?}").into())
}

fn status_of(name: &str) -> Result<Status, sqlx::Error> {
    Status::parse(name).ok_or_else(|| unknown("status", name))
}

fn segment(row: &SqliteRow) -> Result<SegmentRow, sqlx::Error> {
    Ok(SegmentRow {
        brand: BrandId(row.try_get("brand_id")?),
        name: row.try_get("name")?,
        expression: row.try_get("expression")?,
        description: row.try_get("description")?,
        created_ms: row.try_get("created_ms")?,
        updated_ms: row.try_get("updated_ms")?,
    })
}

fn change(row: &SqliteRow) -> Result<Change, sqlx::Error> {
    Ok(Change {
        id: uuid(row.try_get("id")?)?,
        brand: BrandId(row.try_get("brand_id")?),
        segment: row.try_get("segment")?,
        profile: profile_id(row.try_get("profile_id")?)?,
        entered: row.try_get("entered")?,
        at_ms: row.try_get("at_ms")?,
    })
}

fn automation(row: &SqliteRow) -> Result<AutomationRow, sqlx::Error> {
    let status: &str = row.try_get("status")?;
    Ok(AutomationRow {
        id: uuid(row.try_get("id")?)?,
        brand: BrandId(row.try_get("brand_id")?),
        name: row.try_get("name")?,
        status: AutomationStatus::parse(status).ok_or_else(|| unknown("status", status))?,
        version: row.try_get("version")?,
        definition: row.try_get("definition")?,
        fires_ms: row.try_get("fires_ms")?,
        created_ms: row.try_get("created_ms")?,
        updated_ms: row.try_get("updated_ms")?,
    })
}

fn run(row: &SqliteRow) -> Result<Run, sqlx::Error> {
    let state: &str = row.try_get("state")?;
    let state: State = serde_json::from_str(state).map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(Run {
        id: uuid(row.try_get("id")?)?,
        brand: BrandId(row.try_get("brand_id")?),
        automation: uuid(row.try_get("automation_id")?)?,
        version: row.try_get("version")?,
        profile: profile_id(row.try_get("profile_id")?)?,
        trigger_key: row.try_get("trigger_key")?,
        status: status_of(row.try_get("status")?)?,
        revision: row.try_get("revision")?,
        due_ms: row.try_get("due_ms")?,
        started_ms: row.try_get("started_ms")?,
        updated_ms: row.try_get("updated_ms")?,
        state,
    })
}

fn action(row: &SqliteRow) -> Result<ActionRow, sqlx::Error> {
    let status: &str = row.try_get("status")?;
    Ok(ActionRow {
        run: uuid(row.try_get("run_id")?)?,
        node: usize::try_from(row.try_get::<i64, _>("node")?).unwrap_or_default(),
        brand: BrandId(row.try_get("brand_id")?),
        automation: uuid(row.try_get("automation_id")?)?,
        profile: profile_id(row.try_get("profile_id")?)?,
        kind: row.try_get("kind")?,
        destination: row.try_get("destination")?,
        marketing: row.try_get("marketing")?,
        status: ActionStatus::parse(status).ok_or_else(|| unknown("status", status))?,
        attempts: u32::try_from(row.try_get::<i64, _>("attempts")?).unwrap_or_default(),
        first_ms: row.try_get("first_ms")?,
        last_ms: row.try_get("last_ms")?,
        error: row.try_get("error")?,
    })
}
