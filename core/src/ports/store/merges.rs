//! What becomes of two profiles: merges, splits, relations.

use std::collections::BTreeSet;

use async_trait::async_trait;

use super::StoreError;
use crate::domain::history::{Merge, Snapshot};
use crate::domain::identity::Identifier;
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::profile::Profile;
use crate::domain::time::Timestamp;

/// A merge, as it is recorded before it is done.
#[derive(Clone, Debug)]
pub struct MergeRow {
    pub id: uuid::Uuid,
    pub brand: BrandId,
    pub moved: Move,
    pub at: Timestamp,
    /// The event that linked the two.
    pub message_id: String,
    /// The profile that is given up, as it was.
    pub state: Snapshot,
}

impl MergeRow {
    /// `absorbed`, as it is now, goes into `survivor`.
    pub fn new(
        id: uuid::Uuid,
        absorbed: &Profile,
        survivor: ProfileId,
        message_id: String,
        at: Timestamp,
    ) -> Self {
        Self {
            id,
            brand: absorbed.brand,
            moved: Move { from: absorbed.id, into: survivor },
            at,
            message_id,
            state: Snapshot::of(absorbed),
        }
    }
}

/// How two profiles are related that are not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RelationKind {
    /// A split took them apart: no event joins them again.
    Split,
    /// A link between them was refused by a limit.
    Refused,
}

impl RelationKind {
    /// The name in the stores and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Split => "split",
            Self::Refused => "refused",
        }
    }

    /// The kind of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Split, Self::Refused].into_iter().find(|kind| kind.as_str() == name)
    }
}

/// Two profiles that are related and not one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    pub brand: BrandId,
    pub a: ProfileId,
    pub b: ProfileId,
    pub kind: RelationKind,
    pub reason: String,
    pub at: Timestamp,
}

/// What a split gave back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GivenBack {
    pub identifiers: Vec<Identifier>,
    pub events: u64,
    pub orders: u64,
}

/// All that a profile owns goes from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Move {
    /// The profile that gives.
    pub from: ProfileId,
    /// The profile that takes.
    pub into: ProfileId,
}

/// Merges, splits and relations, in a transaction.
#[async_trait]
pub trait MergesTx: Send {
    /// The relations that speak of any of these profiles.
    async fn relations(
        &mut self,
        ids: &[ProfileId],
    ) -> Result<BTreeSet<(ProfileId, ProfileId, RelationKind)>, StoreError>;

    /// Adds relations. The profiles are locked, and are saved as related.
    async fn relate(&mut self, relations: &[Relation]) -> Result<(), StoreError>;

    /// Records merges with what is about to move: before `move_owned`.
    async fn record_merges(&mut self, merges: &[MergeRow]) -> Result<(), StoreError>;

    /// Moves identifiers, events, orders and consents between profiles; where `related`, relations too.
    async fn move_owned(&mut self, moves: &[Move], related: bool) -> Result<(), StoreError>;

    /// Takes out of a recorded merge what a split below it has taken out of its profile.
    async fn rewrite_merge(&mut self, merge: &Merge) -> Result<(), StoreError>;

    /// Gives back to `to` what came first to it, or to a profile merged into it, and belongs to `from` now. Both are locked.
    async fn give_back(&mut self, from: ProfileId, to: ProfileId) -> Result<GivenBack, StoreError>;

    /// Marks a merge as undone. [`StoreError::Conflict`] when it is already.
    async fn undo_merge(&mut self, id: uuid::Uuid, at: Timestamp) -> Result<(), StoreError>;
}
