//! Automations.

use std::collections::HashMap;

use async_trait::async_trait;
use sqlx_macros::FromRow;
use uuid::Uuid;

use super::codec::Id;
use super::database::{BrandTx, Database, Tx};
use super::{audit, outbox, read_as};
use crate::domain::ids::BrandId;
use crate::ports::automations::{
    AutomationRow, AutomationStatus, AutomationVersion, Automations, AutomationsTx,
};
use crate::ports::outbox::Stage;
use crate::ports::privacy::AuditEntry;
use crate::ports::store::StoreError;

/// The columns of an automation, as it is read.
const AUTOMATION: &str = "id, brand_id, name, status, version, definition, fires_ms, created_ms, updated_ms";

#[derive(FromRow)]
struct StoredAutomationRow {
    id: Id,
    brand_id: BrandId,
    name: String,
    status: AutomationStatus,
    version: i32,
    definition: String,
    fires_ms: Option<i64>,
    created_ms: i64,
    updated_ms: i64,
}

read_as!(AutomationRow: StoredAutomationRow);

impl From<StoredAutomationRow> for AutomationRow {
    fn from(row: StoredAutomationRow) -> Self {
        Self {
            id: row.id.0,
            brand: row.brand_id,
            name: row.name,
            status: row.status,
            version: row.version,
            definition: row.definition,
            fires_ms: row.fires_ms,
            created_ms: row.created_ms,
            updated_ms: row.updated_ms,
        }
    }
}

/// Automations, their runs, and segments.
pub struct SqlAutomations {
    pub(super) db: Database,
}

impl SqlAutomations {
    /// Those in an open database.
    pub fn new(db: Database) -> Self {
        Self { db }
    }
}

#[async_trait]
impl Automations for SqlAutomations {
    async fn begin(&self) -> Result<Box<dyn AutomationsTx>, StoreError> {
        Ok(Box::new(SqlAutomationsTx { tx: self.db.every_brand().await? }))
    }

    async fn begin_for(&self, brand: BrandId) -> Result<Box<dyn AutomationsTx>, StoreError> {
        Ok(Box::new(SqlAutomationsTx { tx: self.db.brand(brand).await?.into_tx() }))
    }

    async fn begin_reading(&self, brand: BrandId) -> Result<Box<dyn AutomationsTx>, StoreError> {
        Ok(Box::new(SqlAutomationsTx { tx: self.db.reading(brand).await?.into_tx() }))
    }

    async fn automations(&self, brand: BrandId) -> Result<Vec<AutomationRow>, StoreError> {
        let automations = format!("select {AUTOMATION} from automations where brand_id = $1 order by id");
        self.db.looking_at(brand).await?.sql(automations).bind(brand).all().await
    }

    async fn automation(&self, brand: BrandId, id: Uuid) -> Result<Option<AutomationRow>, StoreError> {
        let automation = format!("select {AUTOMATION} from automations where brand_id = $1 and id = $2");
        self.db.looking_at(brand).await?.sql(automation).bind(brand).bind(id).optional().await
    }

    async fn version(
        &self,
        brand: BrandId,
        automation: Uuid,
        version: i32,
    ) -> Result<Option<String>, StoreError> {
        let definition = "select definition from automation_versions
            where brand_id = $1 and automation_id = $2 and version = $3";
        let mut tx = self.db.looking_at(brand).await?;
        tx.sql(definition).bind(brand).bind(automation).bind(version).scalar().await
    }

    async fn versions(&self, brand: BrandId, each: i32) -> Result<Vec<AutomationVersion>, StoreError> {
        let versions = "select v.automation_id, v.version, v.definition from automations a join automation_versions v
            on v.automation_id = a.id and v.version > a.version - $2 where a.brand_id = $1 and a.status = 'active'";
        let rows: Vec<(Id, i32, String)> =
            self.db.looking_at(brand).await?.sql(versions).bind(brand).bind(each).all().await?;
        let version = |(id, version, definition): (Id, i32, String)| AutomationVersion {
            automation: id.0,
            version,
            definition,
        };
        Ok(rows.into_iter().map(version).collect())
    }

    async fn add_automation(&self, row: &AutomationRow) -> Result<(), StoreError> {
        let mut tx = self.db.brand(row.brand).await?;
        tx.sql(format!("insert into automations ({AUTOMATION}) values ($1, $2, $3, $4, $5, $6, $7, $8, $9)"))
            .bind(row.id)
            .bind(row.brand)
            .bind(&row.name)
            .bind(row.status)
            .bind(row.version)
            .bind(&row.definition)
            .bind(row.fires_ms)
            .bind(row.created_ms)
            .bind(row.updated_ms)
            .run()
            .await?;
        add_version(&mut tx, row).await?;
        tx.commit().await
    }

    async fn edit_automation(&self, row: &AutomationRow, old: i32) -> Result<bool, StoreError> {
        let mut tx = self.db.brand(row.brand).await?;
        let edited = tx
            .sql(
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
            .run()
            .await?;
        if edited == 0 {
            return Ok(false);
        }
        if row.version != old {
            add_version(&mut tx, row).await?;
        }
        tx.commit().await?;
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
        let mut tx = self.db.brand(brand).await?;
        let set = "update automations set status = $3, fires_ms = $4, updated_ms = $5 where brand_id = $1 and id = $2";
        let set = tx.sql(set).bind(brand).bind(id).bind(status).bind(fires_ms).bind(now_ms).run().await?;
        if status == AutomationStatus::Active {
            let resume = "update automation_runs set due_ms = $2
                where automation_id = $1 and status = 'waiting' and due_ms is null";
            tx.sql(resume).bind(id).bind(now_ms).run().await?;
        }
        tx.commit().await?;
        Ok(set > 0)
    }

    async fn delete_automation(&self, brand: BrandId, id: Uuid, now_ms: i64) -> Result<bool, StoreError> {
        let mut tx = self.db.brand(brand).await?;
        let delete = "delete from automations where brand_id = $1 and id = $2";
        if tx.sql(delete).bind(brand).bind(id).run().await? == 0 {
            return Ok(false);
        }
        tx.sql("delete from automation_versions where automation_id = $1").bind(id).run().await?;
        let cancel = "update automation_runs set status = 'cancelled', due_ms = null, revision = revision + 1, updated_ms = $2
            where automation_id = $1 and status in ('queued', 'waiting')";
        tx.sql(cancel).bind(id).bind(now_ms).run().await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn is_due(&self, now_ms: i64, stuck_ms: i64) -> Result<bool, StoreError> {
        let due = "select exists (select 1 from automation_runs where status = 'waiting' and due_ms <= $1)
                or exists (select 1 from automation_runs where status = 'queued' and updated_ms < $2)
                or exists (select 1 from segment_checks where due_ms <= $1)
                or exists (select 1 from automations where fires_ms is not null and fires_ms <= $1)";
        let (due,) = self.db.looking().await?.sql(due).bind(now_ms).bind(stuck_ms).one().await?;
        Ok(due)
    }
}

async fn add_version(tx: &mut BrandTx, row: &AutomationRow) -> Result<(), StoreError> {
    tx.sql(
        "insert into automation_versions (automation_id, version, brand_id, definition, created_ms)
        values ($1, $2, $3, $4, $5)",
    )
    .bind(row.id)
    .bind(row.version)
    .bind(row.brand)
    .bind(&row.definition)
    .bind(row.updated_ms)
    .run()
    .await?;
    Ok(())
}

/// A transaction of the automation workers, or of a brand's API.
pub(super) struct SqlAutomationsTx {
    pub(super) tx: Tx,
}

#[async_trait]
impl AutomationsTx for SqlAutomationsTx {
    async fn statuses(&mut self, ids: &[Uuid]) -> Result<HashMap<Uuid, AutomationStatus>, StoreError> {
        let statuses = "select id, status from automations where id = any($1) order by id for share";
        let rows: Vec<(Id, AutomationStatus)> = self.tx.sql(statuses).list(ids).all().await?;
        Ok(rows.into_iter().map(|(id, status)| (id.0, status)).collect())
    }

    async fn due_schedules(&mut self, now_ms: i64, limit: i64) -> Result<Vec<AutomationRow>, StoreError> {
        let due = format!(
            "select {AUTOMATION} from automations where fires_ms is not null and fires_ms <= $1 order by id limit $2
            for update skip locked"
        );
        self.tx.sql(due).bind(now_ms).bind(limit).all().await
    }

    async fn set_fires(&mut self, id: Uuid, fires_ms: Option<i64>) -> Result<(), StoreError> {
        let set = "update automations set fires_ms = $2 where id = $1";
        self.tx.sql(set).bind(id).bind(fires_ms).run().await.map(drop)
    }

    async fn stage(&mut self, stages: &[Stage], now_ms: i64) -> Result<(), StoreError> {
        outbox::insert(&mut self.tx, stages, now_ms).await.map(drop)
    }

    async fn append_audit(&mut self, entry: &AuditEntry) -> Result<(), StoreError> {
        audit::add(&mut self.tx, entry).await
    }

    async fn commit(self: Box<Self>) -> Result<(), StoreError> {
        self.tx.commit().await
    }
}
