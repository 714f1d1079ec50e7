//! Runs of automations, and what they have done.

use std::collections::HashMap;

use async_trait::async_trait;
use uuid::Uuid;

use crate::domain::automation::run::{ActionRow, Past, Run, Status};
use crate::domain::ids::{BrandId, ProfileId};
use crate::ports::store::StoreError;

/// What a list of runs is to have.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunFilter {
    pub automation: Option<Uuid>,
    pub profile: Option<ProfileId>,
    pub status: Option<Status>,
}

/// A run whose time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueRun {
    pub brand: BrandId,
    pub run: Uuid,
    /// That of the run as it is queued now.
    pub revision: i64,
}

/// What a run goes through, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peek {
    pub run: Uuid,
    pub brand: BrandId,
    pub automation: Uuid,
    /// Of which version of it.
    pub version: i32,
    pub profile: ProfileId,
}

#[async_trait]
pub trait Runs: Send + Sync {
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
}

/// Runs, in a transaction.
#[async_trait]
pub trait RunsTx: Send {
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

    async fn save_runs(&mut self, runs: &[Run]) -> Result<(), StoreError>;

    /// The records of these runs' actions.
    async fn actions(&mut self, runs: &[Uuid]) -> Result<Vec<ActionRow>, StoreError>;

    /// Writes records of actions.
    async fn save_actions(&mut self, rows: &[ActionRow]) -> Result<(), StoreError>;

    /// Marketing actions of profiles since a time that were done or are being done.
    async fn sent(&mut self, profiles: &[ProfileId], since_ms: i64) -> Result<Vec<ActionRow>, StoreError>;

    /// Takes waiting runs whose time has come, and queued ones that nobody has touched since `stuck_ms`: they are queued from now on.
    /// Answers them.
    async fn take_due_runs(
        &mut self,
        now_ms: i64,
        stuck_ms: i64,
        limit: i64,
    ) -> Result<Vec<DueRun>, StoreError>;
}
