//! The store of segments and automations: what brands have set up, who belongs to what, and how far every run has come.
//!
//! [`AutomationsTx`] offers the steps of [`crate::services::automations`], each one statement over the whole batch. The order of
//! locks is the order of the customers' store: profiles first, sorted, then runs.

use std::collections::HashMap;

use async_trait::async_trait;
use uuid::Uuid;

use super::outbox::Stage;
use super::store::StoreError;
use crate::domain::automation::facts::Facts;
use crate::domain::automation::run::{ActionRow, Past, Run, Status};
use crate::domain::automation::segment::{Change, SegmentRow};
use crate::domain::customer360::StoredEvent;
use crate::domain::ids::{BrandId, ProfileId};
use crate::ports::privacy::AuditEntry;

/// Whether an automation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AutomationStatus {
    /// It is being written.
    Draft,
    /// It runs.
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
    /// Its id.
    pub id: Uuid,
    /// Whose.
    pub brand: BrandId,
    /// What it is called.
    pub name: String,
    /// Whether it runs.
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

/// Somebody who belongs to a segment, since when (milliseconds since 1970).
pub type Member = (ProfileId, i64);

/// What a list of runs is to have.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunFilter {
    /// Of this automation.
    pub automation: Option<Uuid>,
    /// Of this customer.
    pub profile: Option<ProfileId>,
    /// That stand so.
    pub status: Option<Status>,
}

/// A run whose time has come, and its revision.
pub type DueRun = (BrandId, Uuid, i64);

/// What a run goes through, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peek {
    /// The run.
    pub run: Uuid,
    /// Of which automation.
    pub automation: Uuid,
    /// Of which version of it.
    pub version: i32,
    /// For whom.
    pub profile: ProfileId,
}

/// A customer whose segments time may change.
pub type Check = (BrandId, ProfileId, Option<i64>);

/// The port.
#[async_trait]
pub trait Automations: Send + Sync {
    /// Opens a transaction. Dropping it undoes it.
    async fn begin(&self) -> Result<Box<dyn AutomationsTx>, StoreError>;

    /// Opens a transaction that reads one brand's rows in one state, and holds up nobody who writes. What it would write is refused.
    async fn begin_reading(&self, brand: BrandId) -> Result<Box<dyn AutomationsTx>, StoreError>;

    /// The brand's own segments, by name.
    async fn segments(&self, brand: BrandId) -> Result<Vec<SegmentRow>, StoreError>;

    /// Takes a segment out, with its members. Answers whether it was there.
    async fn delete_segment(&self, brand: BrandId, name: &str) -> Result<bool, StoreError>;

    /// Who belongs to a segment, by id: those after `after`.
    async fn members(
        &self,
        brand: BrandId,
        segment: &str,
        after: Option<ProfileId>,
        limit: i64,
    ) -> Result<Vec<Member>, StoreError>;

    /// How many belong to each segment that anybody belongs to.
    async fn member_counts(&self, brand: BrandId) -> Result<HashMap<String, i64>, StoreError>;

    /// Who came into a segment and who went, newest first: those before `before`. Of all segments, if none is named; of all
    /// customers, if none is.
    async fn changes(
        &self,
        brand: BrandId,
        segment: Option<&str>,
        profile: Option<ProfileId>,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<Change>, StoreError>;

    /// Customers by id: those after `after`. Not those who were merged away.
    async fn profiles(
        &self,
        brand: BrandId,
        after: Option<ProfileId>,
        limit: i64,
    ) -> Result<Vec<ProfileId>, StoreError>;

    /// The brand's automations, the oldest first.
    async fn automations(&self, brand: BrandId) -> Result<Vec<AutomationRow>, StoreError>;

    /// One of them.
    async fn automation(&self, brand: BrandId, id: Uuid) -> Result<Option<AutomationRow>, StoreError>;

    /// The definition of a version.
    async fn version(&self, automation: Uuid, version: i32) -> Result<Option<String>, StoreError>;

    /// The newest definitions of each of the brand's active automations, the present one among them: `(automation, version,
    /// definition)`, at most `each` of one.
    async fn versions(&self, brand: BrandId, each: i32) -> Result<Vec<(Uuid, i32, String)>, StoreError>;

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

    /// Runs, newest first: those before `before`.
    async fn runs(
        &self,
        brand: BrandId,
        filter: RunFilter,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<Run>, StoreError>;

    /// One of them, with its actions.
    async fn run(&self, brand: BrandId, id: Uuid) -> Result<Option<(Run, Vec<ActionRow>)>, StoreError>;

    /// What these runs go through and for whom, without locking anything.
    async fn peek(&self, runs: &[Uuid]) -> Result<Vec<Peek>, StoreError>;

    /// How many of an automation's runs stand how.
    async fn run_counts(&self, brand: BrandId, automation: Uuid) -> Result<HashMap<Status, i64>, StoreError>;

    /// A customer's actions, newest first, at most `limit`.
    async fn actions_of(
        &self,
        brand: BrandId,
        id: ProfileId,
        limit: i64,
    ) -> Result<Vec<ActionRow>, StoreError>;

    /// Whether anything is due: a run, a check, a schedule, or a queued run that nobody has touched since `stuck_ms`.
    async fn is_due(&self, now_ms: i64, stuck_ms: i64) -> Result<bool, StoreError>;
}

/// The steps of one transaction. Each is one statement or a few, whatever the batch's size.
#[async_trait]
pub trait AutomationsTx: Send {
    /// How automations stand; they stay so until the transaction ends. Before any other lock. Who is deleted is not among them.
    async fn statuses(&mut self, ids: &[Uuid]) -> Result<HashMap<Uuid, AutomationStatus>, StoreError>;

    /// Brands whose customers have never been asked what they belong to: they count as asked from now on.
    async fn take_unfilled(&mut self) -> Result<Vec<BrandId>, StoreError>;

    /// Locks profiles, and answers which those are that they were merged into. Who is gone is not among them. `ids` must be sorted.
    async fn lock(&mut self, ids: &[ProfileId]) -> Result<HashMap<ProfileId, ProfileId>, StoreError>;

    /// What is known of profiles; with their newest events only where `events`.
    async fn facts(
        &mut self,
        ids: &[ProfileId],
        events: bool,
    ) -> Result<HashMap<ProfileId, Facts>, StoreError>;

    /// Those of these events that are there, by brand and message id.
    async fn events(
        &mut self,
        ids: &[(BrandId, String)],
    ) -> Result<HashMap<(BrandId, String), StoredEvent>, StoreError>;

    /// The events of these names, of each profile from a time on (milliseconds since 1970), oldest first.
    async fn events_since(
        &mut self,
        of: &[(ProfileId, i64)],
        names: &[String],
    ) -> Result<HashMap<ProfileId, Vec<StoredEvent>>, StoreError>;

    /// Writes who came into segments and who went.
    async fn change_members(&mut self, changes: &[Change]) -> Result<(), StoreError>;

    /// Writes when time may next change somebody's segments; `None`: never.
    async fn set_checks(&mut self, checks: &[Check]) -> Result<(), StoreError>;

    /// Writes a segment, new or changed.
    async fn save_segment(&mut self, row: &SegmentRow) -> Result<(), StoreError>;

    /// The live runs of profiles.
    async fn live_runs(&mut self, profiles: &[ProfileId]) -> Result<Vec<Run>, StoreError>;

    /// Locks runs. `ids` must be sorted.
    async fn lock_runs(&mut self, ids: &[Uuid]) -> Result<Vec<Run>, StoreError>;

    /// Earlier runs of these automations by these profiles.
    async fn past(
        &mut self,
        automations: &[Uuid],
        profiles: &[ProfileId],
    ) -> Result<HashMap<(Uuid, ProfileId), Vec<Past>>, StoreError>;

    /// Adds runs whose trigger has not started one before; answers the ids of those.
    async fn add_runs(&mut self, runs: &[Run]) -> Result<Vec<Uuid>, StoreError>;

    /// Writes runs.
    async fn save_runs(&mut self, runs: &[Run]) -> Result<(), StoreError>;

    /// The records of these runs' actions.
    async fn actions(&mut self, runs: &[Uuid]) -> Result<Vec<ActionRow>, StoreError>;

    /// Writes records of actions.
    async fn save_actions(&mut self, rows: &[ActionRow]) -> Result<(), StoreError>;

    /// Marketing actions of profiles since a time that were done or are being done.
    async fn sent(&mut self, profiles: &[ProfileId], since_ms: i64) -> Result<Vec<ActionRow>, StoreError>;

    /// Takes waiting runs whose time has come, and queued ones that nobody has touched since `stuck_ms`: they are queued from now on.
    /// Answers them with their revisions.
    async fn take_due_runs(
        &mut self,
        now_ms: i64,
        stuck_ms: i64,
        limit: i64,
    ) -> Result<Vec<DueRun>, StoreError>;

    /// Takes customers whose segments time may have changed.
    async fn take_due_checks(
        &mut self,
        now_ms: i64,
        limit: i64,
    ) -> Result<Vec<(BrandId, ProfileId)>, StoreError>;

    /// Locks automations whose schedule has come up.
    async fn due_schedules(&mut self, now_ms: i64, limit: i64) -> Result<Vec<AutomationRow>, StoreError>;

    /// Writes when an automation's schedule next comes up.
    async fn set_fires(&mut self, id: Uuid, fires_ms: Option<i64>) -> Result<(), StoreError>;

    /// Adds jobs to the outbox: they are there if and only if the transaction commits.
    async fn stage(&mut self, stages: &[Stage], now_ms: i64) -> Result<(), StoreError>;

    /// Adds to the audit log what the transaction does: it stands there if and only if that is done.
    async fn note(&mut self, entry: &AuditEntry) -> Result<(), StoreError>;

    /// Makes all of it durable, or none.
    async fn commit(self: Box<Self>) -> Result<(), StoreError>;
}
