//! The store of customers: one transaction a batch on the way in, one answer a customer on the way out.
//!
//! [`StoreTx`] offers the steps of [`crate::services::process`], each one statement over the whole batch. The steps' order
//! is the lock order: identifiers are claimed before profiles are locked, both sorted, so two workers never wait for each
//! other in a circle. Where a worker still loses a race, the store answers [`StoreError::Conflict`] and the batch is run again.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;

use crate::domain::customer360::CustomerRecord;
use crate::domain::event::Event;
use crate::domain::identity::Identifier;
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::order::Order;
use crate::domain::profile::Profile;
use crate::ports::outbox::Stage;

/// Why a store did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another transaction was faster. Nothing was changed; run the transaction again.
    #[error("another transaction was faster: {0}")]
    Conflict(String),
    /// A profile was merged under a fencing token as high as the transaction's, or higher. Nothing was changed; run it
    /// again under a token above [`Store::last_fence`].
    #[error("a fencing token is too old: {0}")]
    Fenced(i64),
    /// It cannot be reached, or did not answer in time. Try again later.
    #[error("the store cannot be reached: {0}")]
    Unavailable(String),
    /// It refused the data. Trying again will not help.
    #[error("the store refused the data: {0}")]
    Invalid(String),
}

/// An identifier of a brand.
pub type BrandIdentifier = (BrandId, Identifier);

/// An event with the profile it belongs to, if to any.
#[derive(Clone, Copy, Debug)]
pub struct EventRow<'a> {
    /// The event.
    pub event: &'a Event,
    /// Whose it is.
    pub profile: Option<ProfileId>,
}

/// An order with the profile it belongs to, if to any.
#[derive(Clone, Copy, Debug)]
pub struct OrderRow<'a> {
    /// Whose order.
    pub brand: BrandId,
    /// The delivery that reports it: decides between two of the same `updated_at`.
    pub message_id: &'a str,
    /// The order.
    pub order: &'a Order,
    /// Whose it is.
    pub profile: Option<ProfileId>,
}

/// All that a profile owns goes from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Move {
    /// The profile that gives.
    pub from: ProfileId,
    /// The profile that takes.
    pub into: ProfileId,
}

/// Events that have taken effect, by `(brand, message_id)`, with the profile they belong to now, if to any.
pub type KnownEvents = HashMap<(BrandId, String), Option<ProfileId>>;

/// The store in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct StoreStats {
    /// Profiles that are not merged away.
    pub profiles: i64,
    /// Events that took effect.
    pub events: i64,
    /// Orders, of any state.
    pub orders: i64,
}

/// The store port.
#[async_trait]
pub trait Store: Send + Sync {
    /// Opens a transaction. Dropping it undoes it.
    async fn begin(&self) -> Result<Box<dyn StoreTx>, StoreError>;

    /// The profile that owns an identifier.
    async fn owner(&self, brand: BrandId, identifier: &Identifier) -> Result<Option<ProfileId>, StoreError>;

    /// All of a customer; follows a merged-away profile to where it went. `None` for nobody of this brand.
    async fn customer(&self, brand: BrandId, id: ProfileId) -> Result<Option<CustomerRecord>, StoreError>;

    /// The highest fencing token that a profile was merged under; 0 where none was.
    async fn last_fence(&self) -> Result<i64, StoreError>;

    /// The brand in numbers.
    async fn stats(&self, brand: BrandId) -> Result<StoreStats, StoreError>;

    /// Whether it answers.
    async fn ping(&self) -> Result<(), StoreError>;
}

/// The steps of one transaction. Each is one statement, whatever the batch's size.
#[async_trait]
pub trait StoreTx: Send {
    /// Which of these `(brand, message_id)` have taken effect before, and on whom.
    async fn known_events(&mut self, events: &[Event]) -> Result<KnownEvents, StoreError>;

    /// The owners of those identifiers that have one.
    async fn owners(
        &mut self,
        identifiers: &[BrandIdentifier],
    ) -> Result<Vec<(BrandIdentifier, ProfileId)>, StoreError>;

    /// Gives identifiers that had no owner to profiles. Answers those it gave; the others were given away by another
    /// transaction meanwhile, for whose end it waited. `claims` must be sorted.
    async fn claim(
        &mut self,
        claims: &[(BrandIdentifier, ProfileId)],
    ) -> Result<Vec<BrandIdentifier>, StoreError>;

    /// Locks profiles and reads them. `ids` must be sorted.
    async fn lock(&mut self, ids: &[ProfileId]) -> Result<Vec<Profile>, StoreError>;

    /// Adds events; answers the message ids of those that were not there yet. `rows` must be sorted by message id.
    async fn add_events(&mut self, rows: &[EventRow<'_>]) -> Result<HashSet<(BrandId, String)>, StoreError>;

    /// Writes profiles, new and old.
    async fn save_profiles(&mut self, profiles: &[Profile]) -> Result<(), StoreError>;

    /// Moves identifiers, events and orders between profiles.
    async fn move_owned(&mut self, moves: &[Move]) -> Result<(), StoreError>;

    /// Writes orders where they are newer than what is there. `rows` holds each order once, sorted.
    async fn save_orders(&mut self, rows: &[OrderRow<'_>]) -> Result<(), StoreError>;

    /// Stamps profiles, which this transaction has locked, with a fencing token. [`StoreError::Fenced`] unless the token is
    /// strictly higher than each one's last; so one token commits once a profile. Without a token it draws the next one.
    async fn fence(&mut self, ids: &[ProfileId], token: Option<i64>) -> Result<(), StoreError>;

    /// Adds jobs to the outbox: they are there if and only if the transaction commits.
    async fn stage(&mut self, stages: &[Stage], now_ms: i64) -> Result<(), StoreError>;

    /// Makes all of it durable, or none.
    async fn commit(self: Box<Self>) -> Result<(), StoreError>;
}
