//! The event queue: at-least-once delivery under leases, a batch at a time.
//!
//! The protocol, on every adapter:
//! - `enqueue` is durable when it returns. An item with idempotency keys is taken only if none of them was seen; taking it
//!   and remembering the keys is one step.
//! - `fetch` moves items from pending under a lease, in one step. The batch's id is the token for all that follows.
//! - `ack` ends a batch: what is not named as a failure is done. It answers [`Acked::Lost`], and changes nothing, when the
//!   lease went to somebody else.
//! - `beat` extends leases. A holder that hears its batch is lost must stop working on it.
//! - `reclaim` gives batches whose lease ran out back to pending. Any worker may call it at any time.
//!
//! An item that was lost with others is fetched alone from then on; only losses suffered alone count against it, and
//! [`MAX_LOSSES`] of them bury it: so an item that kills its worker takes no neighbour along.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

/// Losses suffered alone after which an item goes to the dead letters.
pub const MAX_LOSSES: u32 = 3;
/// The most items that one `fetch` takes.
pub const MAX_FETCH: usize = 1000;
/// The longest that `fetch` waits without looking again.
pub const POLL: Duration = Duration::from_secs(1);

/// Which items are fetched first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Before all others.
    High,
    /// The usual.
    #[default]
    Normal,
    /// When nothing else waits.
    Low,
}

impl Priority {
    /// Every priority, first to be fetched first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// Its place in [`Priority::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// The priority at that place; `Low` beyond the last.
    pub fn at(index: usize) -> Self {
        Self::ALL.get(index).copied().unwrap_or(Self::Low)
    }
}

/// An item to be enqueued.
#[derive(Clone, Debug, Default)]
pub struct NewItem {
    /// Its bytes, opaque to the queue.
    pub payload: Bytes,
    /// Which is fetched first.
    pub priority: Priority,
    /// Not before that long from now.
    pub delay: Duration,
    /// Names under which this may have come before; empty for items that need no such check.
    pub idempotency_keys: Vec<String>,
}

/// What became of an item that was enqueued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// It is durable.
    Accepted,
    /// One of its idempotency keys was taken before; nothing was added.
    Duplicate,
}

/// An item in a worker's hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Unique in the queue.
    pub id: String,
    /// When it was enqueued, in milliseconds since 1970.
    pub enqueued_ms: i64,
    /// Failed tries so far.
    pub attempt: u32,
    /// It was lost with its worker before: it is fetched alone.
    pub suspect: bool,
    /// Losses suffered alone.
    pub losses: u32,
    /// Where it waits.
    pub priority: Priority,
    /// What was enqueued.
    pub payload: Bytes,
}

/// The token of a fetched batch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BatchId(pub String);

/// What one `fetch` took.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The token.
    pub id: BatchId,
    /// Oldest first.
    pub items: Vec<Item>,
}

/// An item of a batch that is not done.
#[derive(Clone, Debug)]
pub struct Unfinished {
    /// The item, as fetched.
    pub item: Item,
    /// What is to become of it.
    pub then: Then,
}

/// What becomes of an item that is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Then {
    /// Try again after `delay`; one more attempt is used up.
    Retry {
        /// The wait.
        delay: Duration,
    },
    /// To the dead letters.
    Bury {
        /// Why, for people.
        error: String,
    },
    /// Back to pending as it was: the worker stops, or something it needs is away. Costs no attempt.
    Release,
}

/// What `ack` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acked {
    /// The batch is ended.
    Done,
    /// The lease had gone to somebody else: nothing was changed.
    Lost,
}

/// What `reclaim` did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Items given back to pending.
    pub returned: u64,
    /// Items buried after [`MAX_LOSSES`].
    pub buried: u64,
}

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The item as it was.
    pub item: Item,
    /// Why it was buried.
    pub error: String,
    /// When, in milliseconds since 1970.
    pub buried_ms: i64,
}

/// The queue in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct QueueStats {
    /// Items that wait, suspects among them.
    pub pending: u64,
    /// Items under a lease.
    pub in_flight: u64,
    /// Items that wait for a time.
    pub delayed: u64,
    /// Dead letters.
    pub dead: u64,
    /// How long the oldest pending item has waited, in milliseconds; 0 when none waits.
    pub oldest_age_ms: u64,
    /// Items ever taken in.
    pub enqueued: u64,
    /// Items ever refused as duplicates.
    pub duplicates: u64,
    /// Items ever done.
    pub acked: u64,
    /// Failed tries ever that were put up for another.
    pub retried: u64,
    /// Items ever given back after their worker was lost.
    pub reclaimed: u64,
    /// Items ever buried.
    pub buried: u64,
}

/// Why a queue did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// It cannot be reached, or did not answer in time: whether it acted is unknown. Try again later.
    #[error("the queue cannot be reached: {0}")]
    Unavailable(String),
    /// It holds as many items as it may; nothing of the batch was taken.
    #[error("the queue is full: it holds {depth} items, and {limit} are allowed")]
    Full {
        /// Items pending and delayed.
        depth: u64,
        /// The setting.
        limit: u64,
    },
    /// It answered something that this program cannot have asked for. A defect.
    #[error("the queue answered unexpectedly: {0}")]
    Unexpected(String),
}

/// How a queue behaves.
#[derive(Clone, Copy, Debug)]
pub struct QueueSettings {
    /// How long a lease lasts without a beat.
    pub lease: Duration,
    /// How long an idempotency key is remembered.
    pub claim_ttl: Duration,
    /// Most items pending and delayed; 0 for no limit.
    pub max_depth: u64,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            claim_ttl: Duration::from_secs(24 * 60 * 60),
            max_depth: 1_000_000,
        }
    }
}

/// What a dead letter says of an item that took its worker along too often.
pub(crate) fn lost_alone() -> String {
    format!("its worker was lost {MAX_LOSSES} times while it worked on this item alone")
}

/// The queue port. See the module's text for the protocol.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Takes items in: all in one step, durable on return. Answers one result an item, in order.
    async fn enqueue(&self, items: &[NewItem]) -> Result<Vec<Enqueued>, QueueError>;

    /// Takes at most `want` items (capped at [`MAX_FETCH`]) under a lease; waits up to `wait` for the first.
    async fn fetch(&self, want: usize, wait: Duration) -> Result<Option<Batch>, QueueError>;

    /// Ends a batch; `unfinished` names the items that are not done.
    async fn ack(&self, batch: &BatchId, unfinished: &[Unfinished]) -> Result<Acked, QueueError>;

    /// Extends the leases; answers those that are lost.
    async fn beat(&self, batches: &[BatchId]) -> Result<Vec<BatchId>, QueueError>;

    /// Gives batches back whose lease ran out.
    async fn reclaim(&self) -> Result<Reclaimed, QueueError>;

    /// The queue in numbers.
    async fn stats(&self) -> Result<QueueStats, QueueError>;

    /// The newest dead letters, newest first.
    async fn dead(&self, limit: usize) -> Result<Vec<DeadLetter>, QueueError>;

    /// How long a lease lasts without a beat.
    fn lease(&self) -> Duration;
}
