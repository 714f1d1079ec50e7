//! Events and webhooks' bodies that have taken effect.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;

use super::StoreError;
use crate::domain::customer360::EventKey;
use crate::domain::event::Event;
use crate::domain::history::Retold;
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::time::Timestamp;

/// An event with the profile it belongs to, if to any.
#[derive(Clone, Copy, Debug)]
pub struct EventRow<'a> {
    pub event: &'a Event,
    pub profile: Option<ProfileId>,
}

/// A webhook's body that took effect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BodyRow<'e> {
    pub brand: BrandId,
    pub shop: &'e str,
    /// The SHA-256 of the canonical body, by which a replay is known.
    pub digest: [u8; 32],
    pub topic: &'e str,
    pub message_id: &'e str,
}

/// Which event of which brand.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    pub brand: BrandId,
    pub message_id: String,
}

impl EventId {
    pub fn of(event: &Event) -> Self {
        Self { brand: event.brand, message_id: event.message_id.clone() }
    }
}

/// Events that have taken effect, with the profile they belong to now, if to any.
pub type KnownEvents = HashMap<EventId, Option<ProfileId>>;

/// Events, in a transaction.
#[async_trait]
pub trait EventsTx: Send {
    /// Which of these events have taken effect before, and on whom.
    async fn known_events(&mut self, events: &[Event]) -> Result<KnownEvents, StoreError>;

    /// Adds events; answers those that were not there yet. `rows` must be sorted by message id.
    async fn add_events(&mut self, rows: &[EventRow<'_>]) -> Result<HashSet<EventId>, StoreError>;

    /// For each of these bodies, the topics under which it has taken effect; until this transaction ends, no other one is told of them.
    async fn body_topics(&mut self, rows: &[BodyRow<'_>]) -> Result<Vec<Vec<String>>, StoreError>;

    /// Notes that bodies take effect. `rows` must be sorted. [`StoreError::Conflict`] when one did meanwhile, by another transaction.
    async fn claim_bodies(&mut self, rows: &[BodyRow<'_>], at: Timestamp) -> Result<(), StoreError>;

    /// Empties events that must not say anything: they are about somebody who was erased.
    async fn blank_events(&mut self, events: &[(BrandId, String)]) -> Result<(), StoreError>;

    /// The events of a profile after that key, oldest first, at most `limit`.
    async fn events_of(
        &mut self,
        id: ProfileId,
        after: Option<&EventKey>,
        limit: i64,
    ) -> Result<Vec<Retold>, StoreError>;
}
