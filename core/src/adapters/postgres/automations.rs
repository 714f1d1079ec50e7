//! Segments, automations and runs on PostgreSQL.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use futures::TryStreamExt;
use rust_decimal::Decimal;
use serde_json::json;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, Row, Transaction};
use uuid::Uuid;

use super::customers::{consent, profile, stored_event};
use super::db::{begin, begin_for, begin_reading, failed};
use super::outbox;
use super::privacy::add_note;
use super::processing::uuids;
use crate::domain::automation::facts::{CONSENTS_SEEN, EVENTS_SEEN, Facts};
use crate::domain::automation::run::{ActionRow, ActionStatus, Past, Run, State, Status};
use crate::domain::automation::segment::{Change, SegmentRow};
use crate::domain::customer360::{OrderTotals, StoredEvent};
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::time::from_ms;
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

/// Segments, automations and runs on PostgreSQL.
pub struct PgAutomations {
    pool: PgPool,
}

impl PgAutomations {
    /// Those in an open pool.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }
}

#[async_trait]
impl Automations for PgAutomations {
    async fn begin(&self) -> Result<Box<dyn AutomationsTx>, StoreError> {
        Ok(Box::new(Tx { tx: begin(&self.pool).await? }))
    }

    async fn begin_reading(&self, brand: BrandId) -> Result<Box<dyn AutomationsTx>, StoreError> {
        Ok(Box::new(Tx { tx: begin_reading(&self.pool, brand).await? }))
    }

    async fn segments(&self, brand: BrandId) -> Result<Vec<SegmentRow>, StoreError> {
        let rows = sqlx::query("select * from segments where brand_id = $1 order by name")
            .bind(brand.0)
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        rows.iter().map(segment).collect::<Result<_, _>>().map_err(failed)
    }

    async fn delete_segment(&self, brand: BrandId, name: &str) -> Result<bool, StoreError> {
        let mut tx = begin_for(&self.pool, brand).await?;
        let mut gone = false;
        for statement in [
            "delete from segment_members where brand_id = $1 and segment = $2",
            "delete from segment_changes where brand_id = $1 and segment = $2",
            "delete from segments where brand_id = $1 and name = $2",
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
        let rows: Vec<(Uuid, i64)> = sqlx::query_as(
            "select profile_id, since_ms from segment_members
            where brand_id = $1 and segment = $2 and ($3::uuid is null or profile_id > $3) order by profile_id limit $4",
        )
        .bind(brand.0)
        .bind(segment)
        .bind(after.map(|id| id.0))
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        Ok(rows.into_iter().map(|(id, since)| (ProfileId(id), since)).collect())
    }

    async fn member_counts(&self, brand: BrandId) -> Result<HashMap<String, i64>, StoreError> {
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "select segment, count(*) from segment_members where brand_id = $1 group by segment",
        )
        .bind(brand.0)
        .fetch_all(&self.pool)
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
            "select * from segment_changes where brand_id = $1 and ($2::text is null or segment = $2)
                and ($3::uuid is null or profile_id = $3) and ($4::uuid is null or id < $4) order by id desc limit $5",
        )
        .bind(brand.0)
        .bind(segment)
        .bind(profile.map(|id| id.0))
        .bind(before)
        .bind(limit)
        .fetch_all(&self.pool)
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
        let ids: Vec<Uuid> = sqlx::query_scalar(
            "select id from profiles where brand_id = $1 and merged_into is null and ($2::uuid is null or id > $2)
            order by id limit $3",
        )
        .bind(brand.0)
        .bind(after.map(|id| id.0))
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        Ok(ids.into_iter().map(ProfileId).collect())
    }

    async fn automations(&self, brand: BrandId) -> Result<Vec<AutomationRow>, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {AUTOMATION} from automations where brand_id = $1 order by id"
        )))
        .bind(brand.0)
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        rows.iter().map(automation).collect::<Result<_, _>>().map_err(failed)
    }

    async fn automation(&self, brand: BrandId, id: Uuid) -> Result<Option<AutomationRow>, StoreError> {
        let row = sqlx::query(AssertSqlSafe(format!(
            "select {AUTOMATION} from automations where brand_id = $1 and id = $2"
        )))
        .bind(brand.0)
        .bind(id)
        .fetch_optional(&self.pool)
        .await
        .map_err(failed)?;
        row.as_ref().map(automation).transpose().map_err(failed)
    }

    async fn version(&self, automation: Uuid, version: i32) -> Result<Option<String>, StoreError> {
        sqlx::query_scalar(
            "select definition from automation_versions where automation_id = $1 and version = $2",
        )
        .bind(automation)
        .bind(version)
        .fetch_optional(&self.pool)
        .await
        .map_err(failed)
    }

    async fn versions(&self, brand: BrandId, each: i32) -> Result<Vec<(Uuid, i32, String)>, StoreError> {
        sqlx::query_as(
            "select v.automation_id, v.version, v.definition from automations a join automation_versions v
            on v.automation_id = a.id and v.version > a.version - $2 where a.brand_id = $1 and a.status = 'active'",
        )
        .bind(brand.0)
        .bind(each)
        .fetch_all(&self.pool)
        .await
        .map_err(failed)
    }

    async fn add_automation(&self, row: &AutomationRow) -> Result<(), StoreError> {
        let mut tx = begin_for(&self.pool, row.brand).await?;
        sqlx::query(AssertSqlSafe(format!(
            "insert into automations ({AUTOMATION}) values ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
        )))
        .bind(row.id)
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
            values ($1, $2, $3, $4, $5)",
        )
        .bind(row.id)
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
        let mut tx = begin_for(&self.pool, row.brand).await?;
        let done = sqlx::query(
            "update automations set name = $3, version = $4, definition = $5, fires_ms = $6, updated_ms = $7
            where id = $1 and version = $2",
        )
        .bind(row.id)
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
            values ($1, $2, $3, $4, $5)",
            )
            .bind(row.id)
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
        let mut tx = begin_for(&self.pool, brand).await?;
        let done = sqlx::query(
            "update automations set status = $3, fires_ms = $4, updated_ms = $5 where brand_id = $1 and id = $2",
        )
        .bind(brand.0)
        .bind(id)
        .bind(status.as_str())
        .bind(fires_ms)
        .bind(now_ms)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        if status == AutomationStatus::Active {
            sqlx::query(
                "update automation_runs set due_ms = $2 where automation_id = $1 and status = 'waiting' and due_ms is null",
            )
            .bind(id)
            .bind(now_ms)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(done.rows_affected() > 0)
    }

    async fn delete_automation(&self, brand: BrandId, id: Uuid, now_ms: i64) -> Result<bool, StoreError> {
        let mut tx = begin_for(&self.pool, brand).await?;
        let gone = sqlx::query("delete from automations where brand_id = $1 and id = $2")
            .bind(brand.0)
            .bind(id)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        if gone.rows_affected() == 0 {
            return Ok(false);
        }
        sqlx::query("delete from automation_versions where automation_id = $1")
            .bind(id)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        sqlx::query(
            "update automation_runs set status = 'cancelled', due_ms = null, revision = revision + 1, updated_ms = $2
            where automation_id = $1 and status in ('queued', 'waiting')",
        )
        .bind(id)
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
            "select {RUN} from automation_runs where brand_id = $1 and ($2::uuid is null or automation_id = $2)
                and ($3::uuid is null or profile_id = $3) and ($4::text is null or status = $4) and ($5::uuid is null or id < $5)
            order by id desc limit $6"
        )))
        .bind(brand.0)
        .bind(filter.automation)
        .bind(filter.profile.map(|id| id.0))
        .bind(filter.status.map(Status::as_str))
        .bind(before)
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        rows.iter().map(run).collect::<Result<_, _>>().map_err(failed)
    }

    async fn run(&self, brand: BrandId, id: Uuid) -> Result<Option<(Run, Vec<ActionRow>)>, StoreError> {
        let mut tx = begin_reading(&self.pool, brand).await?;
        let row = sqlx::query(AssertSqlSafe(format!(
            "select {RUN} from automation_runs where brand_id = $1 and id = $2"
        )))
        .bind(brand.0)
        .bind(id)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
        let Some(row) = row else { return Ok(None) };
        let actions = actions(&mut tx, &[id]).await?;
        Ok(Some((run(&row).map_err(failed)?, actions)))
    }

    async fn peek(&self, runs: &[Uuid]) -> Result<Vec<Peek>, StoreError> {
        let rows: Vec<(Uuid, Uuid, i32, Uuid)> = sqlx::query_as(
            "select id, automation_id, version, profile_id from automation_runs where id = any($1)",
        )
        .bind(runs)
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        let peek = |(run, automation, version, id)| Peek { run, automation, version, profile: ProfileId(id) };
        Ok(rows.into_iter().map(peek).collect())
    }

    async fn run_counts(&self, brand: BrandId, automation: Uuid) -> Result<HashMap<Status, i64>, StoreError> {
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "select status, count(*) from automation_runs where brand_id = $1 and automation_id = $2 group by status",
        )
        .bind(brand.0)
        .bind(automation)
        .fetch_all(&self.pool)
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
            "select {ACTION} from automation_actions where profile_id = $1 and brand_id = $2
            order by first_ms desc, run_id desc, node desc limit $3"
        )))
        .bind(id.0)
        .bind(brand.0)
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        rows.iter().map(action).collect::<Result<_, _>>().map_err(failed)
    }

    async fn is_due(&self, now_ms: i64, stuck_ms: i64) -> Result<bool, StoreError> {
        sqlx::query_scalar(
            "select exists (select 1 from automation_runs where status = 'waiting' and due_ms <= $1)
                or exists (select 1 from automation_runs where status = 'queued' and updated_ms < $2)
                or exists (select 1 from segment_checks where due_ms <= $1)
                or exists (select 1 from automations where fires_ms is not null and fires_ms <= $1)",
        )
        .bind(now_ms)
        .bind(stuck_ms)
        .fetch_one(&self.pool)
        .await
        .map_err(failed)
    }
}

struct Tx {
    tx: Transaction<'static, Postgres>,
}

#[async_trait]
impl AutomationsTx for Tx {
    async fn statuses(&mut self, ids: &[Uuid]) -> Result<HashMap<Uuid, AutomationStatus>, StoreError> {
        let rows: Vec<(Uuid, String)> =
            sqlx::query_as("select id, status from automations where id = any($1) order by id for share")
                .bind(ids)
                .fetch_all(&mut *self.tx)
                .await
                .map_err(failed)?;
        rows.into_iter()
            .map(|(id, status)| {
                let status = AutomationStatus::parse(&status).ok_or_else(|| unknown("status", &status))?;
                Ok((id, status))
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
        let mut all: HashMap<ProfileId, ProfileId> = HashMap::new();
        let mut asked: BTreeMap<Uuid, Vec<ProfileId>> = ids.iter().map(|id| (id.0, vec![*id])).collect();
        // a signpost leads on; its end is locked as well
        while !asked.is_empty() {
            let rows: Vec<(Uuid, Option<Uuid>)> = sqlx::query_as(
                "select id, merged_into from profiles where id = any($1) order by id for no key update",
            )
            .bind(asked.keys().copied().collect::<Vec<_>>())
            .fetch_all(&mut *self.tx)
            .await
            .map_err(failed)?;
            let mut further: BTreeMap<Uuid, Vec<ProfileId>> = BTreeMap::new();
            for (id, merged_into) in rows {
                let Some(from) = asked.remove(&id) else { continue };
                match merged_into {
                    Some(into) => further.entry(into).or_default().extend(from),
                    None => all.extend(from.into_iter().map(|asked| (asked, ProfileId(id)))),
                }
            }
            asked = further;
        }
        Ok(all)
    }

    async fn facts(
        &mut self,
        ids: &[ProfileId],
        events: bool,
    ) -> Result<HashMap<ProfileId, Facts>, StoreError> {
        let ids = uuids(ids);
        let rows = sqlx::query(
            "select id, brand_id, first_seen, last_seen, events_count, traits::text as traits, merged_into, counts, merges,
                limited, related, known, trusted
            from profiles where id = any($1)",
        )
        .bind(&ids)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        let mut all: HashMap<ProfileId, Facts> = HashMap::with_capacity(rows.len());
        for row in &rows {
            let facts = Facts::of(profile(row)?);
            all.insert(facts.profile.id, facts);
        }
        let rows: Vec<(Uuid, String, String, bool)> = sqlx::query_as(
            "select profile_id, kind, value, source > 0 from identifiers where profile_id = any($1)",
        )
        .bind(&ids)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        for (id, kind, value, trusted) in rows {
            if let (Some(facts), Some(kind)) = (all.get_mut(&ProfileId(id)), IdentifierKind::parse(&kind)) {
                facts.own(Identifier { kind, value }, trusted);
            }
        }
        let rows = sqlx::query(
            "select profile_id, currency, count(*) as count, sum(revenue) as total, sum(refunded) as refunded,
                min(ordered_at) as first_ordered_at, max(ordered_at) as last_ordered_at
            from orders where profile_id = any($1) and counts group by profile_id, currency order by currency",
        )
        .bind(&ids)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        for row in &rows {
            let (id, totals) = totals(row).map_err(failed)?;
            if let Some(facts) = all.get_mut(&id) {
                facts.totals.push(totals);
            }
        }
        let rows = sqlx::query(
            "select p.id as profile_id, c.* from unnest($1::uuid[]) as p (id) cross join lateral (
                select * from (
                    select distinct on (channel, address, source > 0) channel, state, level, at, sequence, message_id,
                    address, source from consents where profile_id = p.id
                    order by channel, address, source > 0, at desc, sequence desc, message_id desc) newest
                order by source > 0 desc, at desc, sequence desc, message_id desc limit $2) c",
        )
        .bind(&ids)
        .bind(CONSENTS_SEEN as i64)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        for row in &rows {
            let id = ProfileId(row.try_get("profile_id").map_err(failed)?);
            if let Some(facts) = all.get_mut(&id) {
                facts.consents.push(consent(row).map_err(failed)?);
            }
        }
        let rows: Vec<(Uuid, String, i64)> = sqlx::query_as(
            "select profile_id, segment, since_ms from segment_members where profile_id = any($1)",
        )
        .bind(&ids)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        for (id, segment, since_ms) in rows {
            if let Some(facts) = all.get_mut(&ProfileId(id)) {
                facts.segments.insert(segment, since_ms);
            }
        }
        if events {
            // One after the other: in full, the messages of a page of customers would be too much to hold.
            let mut rows = sqlx::query(
                "select p.id as profile_id, e.* from unnest($1::uuid[]) as p (id) cross join lateral (
                    select message_id, kind, name, \"timestamp\", body::text as body, active, source, received_at from events
                    where profile_id = p.id order by \"timestamp\" desc, message_id desc limit $2) e",
            )
            .bind(&ids)
            .bind(EVENTS_SEEN as i64)
            .fetch(&mut *self.tx);
            while let Some(row) = rows.try_next().await.map_err(failed)? {
                let id = ProfileId(row.try_get("profile_id").map_err(failed)?);
                if let Some(facts) = all.get_mut(&id) {
                    facts.saw(stored_event(&row).map_err(failed)?);
                }
            }
        }
        for facts in all.values_mut() {
            facts.identifiers.sort();
            facts.trusted.sort();
        }
        Ok(all)
    }

    async fn events(
        &mut self,
        ids: &[(BrandId, String)],
    ) -> Result<HashMap<(BrandId, String), StoredEvent>, StoreError> {
        let rows = sqlx::query(
            "select e.brand_id, message_id, kind, name, \"timestamp\", body::text as body, active, source, received_at
            from unnest($1::bigint[], $2::text[]) as asked (b, m) join events e on e.brand_id = b and message_id = m",
        )
        .bind(ids.iter().map(|(brand, _)| brand.0).collect::<Vec<_>>())
        .bind(ids.iter().map(|(_, id)| id.as_str()).collect::<Vec<_>>())
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
        let rows = sqlx::query(
            "select profile_id, message_id, kind, name, \"timestamp\", body::text as body, active, source, received_at
            from unnest($1::uuid[], $2::timestamptz[]) as asked (p, s)
            join events on profile_id = p and \"timestamp\" >= s
            where name = any($3) order by \"timestamp\", message_id",
        )
        .bind(of.iter().map(|(id, _)| id.0).collect::<Vec<_>>())
        .bind(of.iter().map(|(_, since)| from_ms(*since)).collect::<Vec<_>>())
        .bind(names)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        let mut all: HashMap<ProfileId, Vec<StoredEvent>> = HashMap::new();
        for row in &rows {
            let id = ProfileId(row.try_get("profile_id").map_err(failed)?);
            all.entry(id).or_default().push(stored_event(row).map_err(failed)?);
        }
        Ok(all)
    }

    async fn change_members(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        for statement in [
            "insert into segment_changes (id, brand_id, segment, profile_id, entered, at_ms)
            select * from unnest($1::uuid[], $2::bigint[], $3::text[], $4::uuid[], $5::boolean[], $6::bigint[])",
            "insert into segment_members (brand_id, segment, profile_id, since_ms)
            select b, s, p, at from unnest($1::uuid[], $2::bigint[], $3::text[], $4::uuid[], $5::boolean[], $6::bigint[])
                as given (i, b, s, p, entered, at) where entered on conflict do nothing",
            "delete from segment_members using
                unnest($1::uuid[], $2::bigint[], $3::text[], $4::uuid[], $5::boolean[], $6::bigint[])
                as given (i, b, s, p, entered, at)
            where not given.entered and brand_id = b and segment = s and profile_id = p",
            // Customer360 lists them: an answer from before is old
            "update profiles set revision = revision + 1 where id in (
                select p from unnest($1::uuid[], $2::bigint[], $3::text[], $4::uuid[], $5::boolean[], $6::bigint[])
                    as given (i, b, s, p, entered, at))",
        ] {
            sqlx::query(statement)
                .bind(changes.iter().map(|c| c.id).collect::<Vec<_>>())
                .bind(changes.iter().map(|c| c.brand.0).collect::<Vec<_>>())
                .bind(changes.iter().map(|c| c.segment.as_str()).collect::<Vec<_>>())
                .bind(changes.iter().map(|c| c.profile.0).collect::<Vec<_>>())
                .bind(changes.iter().map(|c| c.entered).collect::<Vec<_>>())
                .bind(changes.iter().map(|c| c.at_ms).collect::<Vec<_>>())
                .execute(&mut *self.tx)
                .await
                .map_err(failed)?;
        }
        Ok(())
    }

    async fn set_checks(&mut self, checks: &[Check]) -> Result<(), StoreError> {
        let due = || checks.iter().filter_map(|(brand, id, due)| Some((brand.0, id.0, (*due)?)));
        sqlx::query(
            "insert into segment_checks (profile_id, brand_id, due_ms)
            select * from unnest($1::uuid[], $2::bigint[], $3::bigint[])
            on conflict (profile_id) do update set due_ms = excluded.due_ms",
        )
        .bind(due().map(|(_, id, _)| id).collect::<Vec<_>>())
        .bind(due().map(|(brand, ..)| brand).collect::<Vec<_>>())
        .bind(due().map(|(.., due)| due).collect::<Vec<_>>())
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        let never: Vec<Uuid> =
            checks.iter().filter(|(.., due)| due.is_none()).map(|(_, id, _)| id.0).collect();
        if never.is_empty() {
            return Ok(());
        }
        sqlx::query("delete from segment_checks where profile_id = any($1)")
            .bind(never)
            .execute(&mut *self.tx)
            .await
            .map_err(failed)?;
        Ok(())
    }

    async fn save_segment(&mut self, row: &SegmentRow) -> Result<(), StoreError> {
        sqlx::query(
            "insert into segments (brand_id, name, expression, description, created_ms, updated_ms)
            values ($1, $2, $3, $4, $5, $6)
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
            "select {RUN} from automation_runs where profile_id = any($1) and status in ('queued', 'waiting')
            order by id for update"
        )))
        .bind(uuids(profiles))
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.iter().map(run).collect::<Result<_, _>>().map_err(failed)
    }

    async fn lock_runs(&mut self, ids: &[Uuid]) -> Result<Vec<Run>, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {RUN} from automation_runs where id = any($1) order by id for update"
        )))
        .bind(ids)
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
        let rows: Vec<(Uuid, Uuid, String, i64)> = sqlx::query_as(
            "select automation_id, profile_id, status, started_ms from automation_runs
            where profile_id = any($1) and automation_id = any($2)",
        )
        .bind(uuids(profiles))
        .bind(automations)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        let mut all: HashMap<_, Vec<Past>> = HashMap::new();
        for (automation, id, status, started_ms) in rows {
            let status = status_of(&status).map_err(failed)?;
            all.entry((automation, ProfileId(id))).or_default().push(Past { status, started_ms });
        }
        Ok(all)
    }

    async fn add_runs(&mut self, runs: &[Run]) -> Result<Vec<Uuid>, StoreError> {
        sqlx::query_scalar(AssertSqlSafe(format!(
            "insert into automation_runs ({RUN})
            select * from unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::int[], $5::uuid[], $6::text[], $7::text[],
                $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::text[])
            on conflict (automation_id, trigger_key) do nothing returning id"
        )))
        .bind(runs.iter().map(|r| r.id).collect::<Vec<_>>())
        .bind(runs.iter().map(|r| r.brand.0).collect::<Vec<_>>())
        .bind(runs.iter().map(|r| r.automation).collect::<Vec<_>>())
        .bind(runs.iter().map(|r| r.version).collect::<Vec<_>>())
        .bind(runs.iter().map(|r| r.profile.0).collect::<Vec<_>>())
        .bind(runs.iter().map(|r| r.trigger_key.as_str()).collect::<Vec<_>>())
        .bind(runs.iter().map(|r| r.status.as_str()).collect::<Vec<_>>())
        .bind(runs.iter().map(|r| r.revision).collect::<Vec<_>>())
        .bind(runs.iter().map(|r| r.due_ms).collect::<Vec<_>>())
        .bind(runs.iter().map(|r| r.started_ms).collect::<Vec<_>>())
        .bind(runs.iter().map(|r| r.updated_ms).collect::<Vec<_>>())
        .bind(runs.iter().map(|r| json!(r.state).to_string()).collect::<Vec<_>>())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)
    }

    async fn save_runs(&mut self, runs: &[Run]) -> Result<(), StoreError> {
        sqlx::query(
            "update automation_runs r set status = s, revision = v, due_ms = d, updated_ms = u, state = t
            from unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[])
                as given (i, s, v, d, u, t) where r.id = i",
        )
        .bind(runs.iter().map(|r| r.id).collect::<Vec<_>>())
        .bind(runs.iter().map(|r| r.status.as_str()).collect::<Vec<_>>())
        .bind(runs.iter().map(|r| r.revision).collect::<Vec<_>>())
        .bind(runs.iter().map(|r| r.due_ms).collect::<Vec<_>>())
        .bind(runs.iter().map(|r| r.updated_ms).collect::<Vec<_>>())
        .bind(runs.iter().map(|r| json!(r.state).to_string()).collect::<Vec<_>>())
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn actions(&mut self, runs: &[Uuid]) -> Result<Vec<ActionRow>, StoreError> {
        actions(&mut self.tx, runs).await
    }

    async fn save_actions(&mut self, rows: &[ActionRow]) -> Result<(), StoreError> {
        let small = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
        sqlx::query(AssertSqlSafe(format!(
            "insert into automation_actions ({ACTION})
            select * from unnest($1::uuid[], $2::int[], $3::bigint[], $4::uuid[], $5::uuid[], $6::text[], $7::text[],
                $8::boolean[], $9::text[], $10::int[], $11::bigint[], $12::bigint[], $13::text[])
            on conflict (run_id, node) do update set status = excluded.status, attempts = excluded.attempts,
                last_ms = excluded.last_ms, error = excluded.error, destination = excluded.destination"
        )))
        .bind(rows.iter().map(|r| r.run).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| small(r.node)).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.brand.0).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.automation).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.profile.0).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.kind.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.destination.as_deref()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.marketing).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.status.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| small(r.attempts as usize)).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.first_ms).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.last_ms).collect::<Vec<_>>())
        .bind(rows.iter().map(|r| r.error.as_deref()).collect::<Vec<_>>())
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn sent(&mut self, profiles: &[ProfileId], since_ms: i64) -> Result<Vec<ActionRow>, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {ACTION} from automation_actions where profile_id = any($1) and first_ms > $2
                and marketing and status in ('started', 'done')"
        )))
        .bind(uuids(profiles))
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
        // those that another process takes at this moment are left to it
        let rows: Vec<(i64, Uuid, i64)> = sqlx::query_as(
            "update automation_runs set status = 'queued', due_ms = null, revision = revision + 1, updated_ms = $1
            where id in (select id from automation_runs where status = 'waiting' and due_ms <= $1
                order by due_ms limit $2 for update skip locked)
                or id in (select id from automation_runs where status = 'queued' and updated_ms < $3
                order by updated_ms limit $2 for update skip locked)
            returning brand_id, id, revision",
        )
        .bind(now_ms)
        .bind(limit)
        .bind(stuck_ms)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        Ok(rows.into_iter().map(|(brand, id, revision)| (BrandId(brand), id, revision)).collect())
    }

    async fn take_due_checks(
        &mut self,
        now_ms: i64,
        limit: i64,
    ) -> Result<Vec<(BrandId, ProfileId)>, StoreError> {
        let rows: Vec<(i64, Uuid)> = sqlx::query_as(
            "delete from segment_checks where profile_id in (
                select profile_id from segment_checks where due_ms <= $1 order by due_ms limit $2 for update skip locked)
            returning brand_id, profile_id",
        )
        .bind(now_ms)
        .bind(limit)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        Ok(rows.into_iter().map(|(brand, id)| (BrandId(brand), ProfileId(id))).collect())
    }

    async fn due_schedules(&mut self, now_ms: i64, limit: i64) -> Result<Vec<AutomationRow>, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {AUTOMATION} from automations where fires_ms is not null and fires_ms <= $1 order by id limit $2
            for update skip locked"
        )))
        .bind(now_ms)
        .bind(limit)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.iter().map(automation).collect::<Result<_, _>>().map_err(failed)
    }

    async fn set_fires(&mut self, id: Uuid, fires_ms: Option<i64>) -> Result<(), StoreError> {
        sqlx::query("update automations set fires_ms = $2 where id = $1")
            .bind(id)
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

fn totals(row: &PgRow) -> Result<(ProfileId, OrderTotals), sqlx::Error> {
    let totals = OrderTotals {
        currency: row.try_get("currency")?,
        count: u64::try_from(row.try_get::<i64, _>("count")?).unwrap_or_default(),
        total: row.try_get::<Decimal, _>("total")?,
        refunded: row.try_get::<Decimal, _>("refunded")?,
        first_ordered_at: row.try_get("first_ordered_at")?,
        last_ordered_at: row.try_get("last_ordered_at")?,
    };
    Ok((ProfileId(row.try_get("profile_id")?), totals))
}

async fn actions(tx: &mut PgConnection, runs: &[Uuid]) -> Result<Vec<ActionRow>, StoreError> {
    let rows = sqlx::query(AssertSqlSafe(format!(
        "select {ACTION} from automation_actions where run_id = any($1) order by run_id, first_ms, node desc"
    )))
    .bind(runs)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    rows.iter().map(action).collect::<Result<_, _>>().map_err(failed)
}

fn unknown(what: &str, name: &str) -> sqlx::Error {
    sqlx::Error::Decode(format!("the {what} {name:?}").into())
}

fn status_of(name: &str) -> Result<Status, sqlx::Error> {
    Status::parse(name).ok_or_else(|| unknown("status", name))
}

fn segment(row: &PgRow) -> Result<SegmentRow, sqlx::Error> {
    Ok(SegmentRow {
        brand: BrandId(row.try_get("brand_id")?),
        name: row.try_get("name")?,
        expression: row.try_get("expression")?,
        description: row.try_get("description")?,
        created_ms: row.try_get("created_ms")?,
        updated_ms: row.try_get("updated_ms")?,
    })
}

fn change(row: &PgRow) -> Result<Change, sqlx::Error> {
    Ok(Change {
        id: row.try_get("id")?,
        brand: BrandId(row.try_get("brand_id")?),
        segment: row.try_get("segment")?,
        profile: ProfileId(row.try_get("profile_id")?),
        entered: row.try_get("entered")?,
        at_ms: row.try_get("at_ms")?,
    })
}

fn automation(row: &PgRow) -> Result<AutomationRow, sqlx::Error> {
    let status: &str = row.try_get("status")?;
    Ok(AutomationRow {
        id: row.try_get("id")?,
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

fn run(row: &PgRow) -> Result<Run, sqlx::Error> {
    let state: &str = row.try_get("state")?;
    let state: State = serde_json::from_str(state).map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(Run {
        id: row.try_get("id")?,
        brand: BrandId(row.try_get("brand_id")?),
        automation: row.try_get("automation_id")?,
        version: row.try_get("version")?,
        profile: ProfileId(row.try_get("profile_id")?),
        trigger_key: row.try_get("trigger_key")?,
        status: status_of(row.try_get("status")?)?,
        revision: row.try_get("revision")?,
        due_ms: row.try_get("due_ms")?,
        started_ms: row.try_get("started_ms")?,
        updated_ms: row.try_get("updated_ms")?,
        state,
    })
}

fn action(row: &PgRow) -> Result<ActionRow, sqlx::Error> {
    let status: &str = row.try_get("status")?;
    Ok(ActionRow {
        run: row.try_get("run_id")?,
        node: usize::try_from(row.try_get::<i32, _>("node")?).unwrap_or_default(),
        brand: BrandId(row.try_get("brand_id")?),
        automation: row.try_get("automation_id")?,
        profile: ProfileId(row.try_get("profile_id")?),
        kind: row.try_get("kind")?,
        destination: row.try_get("destination")?,
        marketing: row.try_get("marketing")?,
        status: ActionStatus::parse(status).ok_or_else(|| unknown("status", status))?,
        attempts: u32::try_from(row.try_get::<i32, _>("attempts")?).unwrap_or_default(),
        first_ms: row.try_get("first_ms")?,
        last_ms: row.try_get("last_ms")?,
        error: row.try_get("error")?,
    })
}
