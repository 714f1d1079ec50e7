//! The store of segments and automations: what brands have set up, who belongs to what, and how far every run has come.
//!
//! [`AutomationsTx`] offers the steps of [`crate::services::automations`], each one statement over the whole batch. The order of
//! locks is the order of the customers' store: profiles first, sorted, then runs.

mod facts;
mod runs;
mod segments;

use std::collections::HashMap;

use async_trait::async_trait;
use uuid::Uuid;

pub use self::facts::FactsTx;
pub use self::runs::{DueRun, Peek, RunFilter, Runs, RunsTx};
pub use self::segments::{Check, Member, Segments, SegmentsTx};
use super::outbox::Stage;
use super::store::StoreError;
use crate::domain::ids::BrandId;
use crate::ports::privacy::AuditEntry;

/// Whether an automation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AutomationStatus {
    /// It is being written.
    Draft,
    /// It starts runs, and its runs go on.
    Active,
    /// It starts nothing, and its runs stand still.
    Paused,
}

impl AutomationStatus {
    /// The name in the stores and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Active => "active",
            Self::Paused => "paused",
        }
    }

    /// The status of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Draft, Self::Active, Self::Paused].into_iter().find(|status| status.as_str() == name)
    }
}

/// An automation as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AutomationRow {
    pub id: Uuid,
    pub brand: BrandId,
    /// What it is called.
    pub name: String,
    pub status: AutomationStatus,
    /// Counts up with each edit.
    pub version: i32,
    /// [`crate::domain::automation::definition::Definition`] as JSON.
    pub definition: String,
    /// When its schedule next comes up, in milliseconds since 1970.
    pub fires_ms: Option<i64>,
    /// When it was made.
    pub created_ms: i64,
    /// When it was last changed.
    pub updated_ms: i64,
}

/// A version of an automation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AutomationVersion {
    pub automation: Uuid,
    pub version: i32,
    /// [`crate::domain::automation::definition::Definition`] as JSON: as it was written, also where this program cannot read it.
    pub definition: String,
}

/// Automations, with their segments and runs.
#[async_trait]
pub trait Automations: Segments + Runs {
    /// Opens a transaction over the rows of every brand, for the workers. Dropping it undoes it.
    async fn begin(&self) -> Result<Box<dyn AutomationsTx>, StoreError>;

    /// Opens a transaction over one brand's rows. Dropping it undoes it.
    async fn begin_for(&self, brand: BrandId) -> Result<Box<dyn AutomationsTx>, StoreError>;

    /// Opens a transaction that reads one brand's rows in one state, and holds up nobody who writes. What it would write is refused.
    async fn begin_reading(&self, brand: BrandId) -> Result<Box<dyn AutomationsTx>, StoreError>;

    /// The brand's automations, the oldest first.
    async fn automations(&self, brand: BrandId) -> Result<Vec<AutomationRow>, StoreError>;

    async fn automation(&self, brand: BrandId, id: Uuid) -> Result<Option<AutomationRow>, StoreError>;

    /// The definition of a version.
    async fn version(
        &self,
        brand: BrandId,
        automation: Uuid,
        version: i32,
    ) -> Result<Option<String>, StoreError>;

    /// The newest definitions of each of the brand's active automations, the present one among them: at most `each` of one.
    async fn versions(&self, brand: BrandId, each: i32) -> Result<Vec<AutomationVersion>, StoreError>;

    /// Adds an automation with its first version.
    async fn add_automation(&self, row: &AutomationRow) -> Result<(), StoreError>;

    /// Writes an automation's new version, unless it stands at another than `old` by now: then `false`. Its status stays.
    async fn edit_automation(&self, row: &AutomationRow, old: i32) -> Result<bool, StoreError>;

    /// Sets whether an automation runs, and when its schedule next comes up. Where it runs, those of its runs go on that stood still,
    /// in the same transaction. Answers whether it is there.
    async fn set_status(
        &self,
        brand: BrandId,
        id: Uuid,
        status: AutomationStatus,
        fires_ms: Option<i64>,
        now_ms: i64,
    ) -> Result<bool, StoreError>;

    /// Takes an automation out, with its versions; its live runs are cancelled. Answers whether it was there.
    async fn delete_automation(&self, brand: BrandId, id: Uuid, now_ms: i64) -> Result<bool, StoreError>;

    /// Whether anything is due: a run, a check, a schedule, or a queued run that nobody has touched since `stuck_ms`.
    async fn is_due(&self, now_ms: i64, stuck_ms: i64) -> Result<bool, StoreError>;
}

/// The steps of one transaction. Each is one statement or a few, whatever the batch's size.
#[async_trait]
pub trait AutomationsTx: FactsTx + SegmentsTx + RunsTx {
    /// How automations stand; they stay so until the transaction ends. Before any other lock. Who is deleted is not among them.
    async fn statuses(&mut self, ids: &[Uuid]) -> Result<HashMap<Uuid, AutomationStatus>, StoreError>;

    /// Locks automations whose schedule has come up.
    async fn due_schedules(&mut self, now_ms: i64, limit: i64) -> Result<Vec<AutomationRow>, StoreError>;

    /// Writes when an automation's schedule next comes up.
    async fn set_fires(&mut self, id: Uuid, fires_ms: Option<i64>) -> Result<(), StoreError>;

    /// Adds jobs to the outbox: they are there if and only if the transaction commits.
    async fn stage(&mut self, stages: &[Stage], now_ms: i64) -> Result<(), StoreError>;

    /// Adds to the audit log what the transaction does: it stands there if and only if that is done.
    async fn append_audit(&mut self, entry: &AuditEntry) -> Result<(), StoreError>;

    /// Makes all of it durable, or none.
    async fn commit(self: Box<Self>) -> Result<(), StoreError>;
}
