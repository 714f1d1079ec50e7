//! Items that stay in the store until their job has ended.
//!
//! Two ways lead here: jobs that are born in a store's transaction ([`crate::ports::store::StoreTx::stage`]: they are there
//! if and only if it commits), and items that come while the queue cannot be reached ([`Outbox::add`]).
//! [`crate::services::outbox`] enqueues both, in the order they came, each once. An item stays in the outbox while it is in the queue: a
//! queue that has forgotten it gets it again.

use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;
use uuid::Uuid;

use super::queue::{Enqueued, NewItem, Queue};
use super::store::StoreError;
use crate::domain::ids::BrandId;

/// An item with the queue it is for.
#[derive(Clone, Debug)]
pub struct Stage {
    pub queue: String,
    pub item: NewItem,
}

/// An item that waits.
#[derive(Clone, Debug)]
pub struct Staged {
    /// Drawn when it was staged; unique for ever.
    pub id: Uuid,
    pub queue: String,
    /// The item; its delay is counted from [`Staged::staged_ms`].
    pub item: NewItem,
    /// When it was staged, in milliseconds since 1970.
    pub staged_ms: i64,
}

/// An item that was enqueued, and whose job has not ended as far as the store knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// [`Staged::id`].
    pub id: Uuid,
    pub queue: String,
    /// When it was staged, in milliseconds since 1970.
    pub staged_ms: i64,
}

/// The outbox in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct OutboxStats {
    pub waiting: u64,
    /// Items that their queue refused: a key of theirs was another body's. They stay for people to look at.
    pub refused: u64,
    /// When the oldest that waits was staged, in milliseconds since 1970.
    pub oldest_ms: Option<i64>,
}

#[async_trait]
pub trait Outbox: Send + Sync {
    /// Adds items for a queue, durable on return, with the same check of idempotency keys among those that wait that the
    /// queue would make. Answers one result an item, in order.
    async fn add(&self, queue: &str, items: &[NewItem], now_ms: i64) -> Result<Vec<Enqueued>, StoreError>;

    /// The oldest items that wait for one of these queues, oldest first, but those of some brands. What is for another queue is for
    /// another process, of a newer version perhaps.
    async fn oldest(&self, queues: &[&str], but: &[BrandId], limit: usize)
    -> Result<Vec<Staged>, StoreError>;

    /// How many of a brand's items wait.
    async fn waiting_of(&self, brand: BrandId) -> Result<u64, StoreError>;

    /// Notes that a queue has these items, and when to ask it whether it still does (milliseconds since 1970).
    async fn sent(&self, ids: &[Uuid], check_ms: i64) -> Result<(), StoreError>;

    /// Items that a queue was to have, and that are to be asked for by now: at most `limit`.
    async fn to_check(&self, now_ms: i64, limit: usize) -> Result<Vec<Sent>, StoreError>;

    /// Notes that the queue has forgotten these items: they wait again.
    async fn forgotten(&self, ids: &[Uuid]) -> Result<(), StoreError>;

    /// Removes items: their jobs have ended.
    async fn remove(&self, ids: &[Uuid]) -> Result<(), StoreError>;

    /// Sets items aside that their queue refused; what was remembered of their keys is forgotten.
    async fn refuse(&self, ids: &[Uuid], why: &str) -> Result<(), StoreError>;

    /// Items that were set aside, after one of them, at most `limit`.
    async fn refused(&self, after: Option<Uuid>, limit: usize) -> Result<Vec<Staged>, StoreError>;

    /// The outbox in numbers.
    async fn stats(&self) -> Result<OutboxStats, StoreError>;
}

/// The queues that items of the outbox are for, by name: not through a decorator that would put items back into it.
#[derive(Clone)]
pub struct OutboxTargets(pub Vec<(&'static str, Arc<dyn Queue>)>);

impl OutboxTargets {
    pub fn names(&self) -> Vec<&'static str> {
        self.0.iter().map(|(name, _)| *name).collect()
    }

    /// The queue of that name, if there is one.
    pub fn named(&self, name: &str) -> Option<&Arc<dyn Queue>> {
        self.0.iter().find(|(queue, _)| *queue == name).map(|(_, queue)| queue)
    }
}
