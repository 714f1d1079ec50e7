//! The event queue: at-least-once delivery under leases, a batch at a time.
//!
//! The protocol, on every adapter:
//! - `enqueue` is durable when it returns. An item with idempotency keys is taken only if none of them was seen; taking it
//!   and remembering the keys is one step. A key that was seen with another body is a conflict, not a duplicate.
//! - `fetch` moves items from pending under a lease, in one step. The batch's id is the token for all that follows.
//! - `ack` ends a batch: what is not named as a failure is done. It answers [`Acked::Lost`], and changes nothing, when the
//!   lease went to somebody else.
//! - `beat` extends leases. A holder that hears its batch is lost must stop working on it.
//! - `reclaim` gives batches whose lease ran out back to pending. Any worker may call it at any time.
//!
//! An item that was lost with others is fetched alone from then on; only losses suffered alone count against it, and
//! [`MAX_LOSSES`] of them bury it: so an item that kills its worker takes no neighbour along. A worker that was only cut off says so by
//! asking for its batch again, by `beat` or `ack`: that loss counts no more, and an item that was buried for it comes back. Up to
//! [`MAX_SURVIVED`] losses: an item that keeps its worker from beating does not go round for ever.
//!
//! The order: within a priority, what was released comes first, then the rest as it went in; delayed items and retries go
//! in when their time has come. Suspects come before all. Every [`FAIR_EVERY`]th fetch turns this round - the lowest priority
//! first, suspects last - so that neither high ones nor suspects that go round and round starve the others.
//!
//! Brands share a queue. Each item is of one, or of none. A brand may hold [`SHARE`] times the room that stays free, in items and in
//! bytes, so that no number of brands fills it; what a public key sent, as much as is free. Beyond a backlog, what comes of a brand has
//! low priority, and what has low priority is fetched by itself, in small batches where brands share the queue. Dead letters have bounds
//! of their own for each brand: the oldest go.
//!
//! People look after a queue by [`Queue::dead`], [`Queue::retry_dead`], [`Queue::discard_dead`], [`Queue::set_paused`] and
//! [`Queue::claim`]; [`Queue::repair`] finds what no step of the protocol would find again.

mod batch;
mod dead;
mod item;
mod stats;

use std::error::Error;
use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

use async_trait::async_trait;

pub use self::batch::{Acked, Batch, BatchId, Reclaimed, Then, Unfinished};
pub use self::dead::{DeadLetter, DeadPlace, MAX_DEAD_PAGE, Scope};
pub use self::item::*;
pub use self::stats::{Holding, PUBLIC_SHARE, QueueStats, Repaired, SHARE, within_share};
pub(crate) use self::stats::{is_over_share, leaving};
use crate::domain::ids::BrandId;
use crate::ports::fault::Fault;

/// Losses suffered alone after which an item goes to the dead letters.
pub const MAX_LOSSES: u32 = 3;
/// Losses suffered alone after which it goes there although its workers have come back since.
pub const MAX_SURVIVED: u32 = 30;
/// The most items that one `fetch` takes.
pub const MAX_FETCH: usize = 1000;
/// The longest that `fetch` waits without looking again.
pub const POLL: Duration = Duration::from_secs(1);
/// Delayed items that one `fetch` makes pending.
pub const MAX_PROMOTE: usize = 200;
/// Batches that one `reclaim` returns: no step may hold the queue up for long.
pub const MAX_RECLAIM: usize = 10;
/// Items of low priority that are taken before a look at how many bytes they are.
pub const LOW_STEP: usize = 8;
/// Every so many fetches, the last are first: the lowest priority, and suspects after all.
pub const FAIR_EVERY: u64 = 8;

/// Why a queue did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// It cannot be reached, or did not answer in time: whether it acted is unknown. Try again later.
    Unavailable(Fault),
    /// It holds as much as it may; nothing was taken.
    Full {
        /// How much it holds: pending, delayed and in flight.
        holds: u64,
        limit: u64,
        unit: &'static str,
    },
    /// The brand holds as much of it as it may; nothing was taken. Try again later.
    OverShare,
    /// It answered something that this program cannot have asked for. A defect.
    Unexpected(String),
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(fault) => write!(f, "the queue cannot be reached: {fault}"),
            Self::Full { holds, limit, unit } => {
                write!(f, "the queue is full: it holds {holds} {unit}, and {limit} are allowed")
            }
            Self::OverShare => {
                f.write_str("the brand's share of the queue is full until earlier items are processed")
            }
            Self::Unexpected(answer) => write!(f, "the queue answered unexpectedly: {answer}"),
        }
    }
}

impl Error for QueueError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unavailable(fault) => fault.source(),
            _ => None,
        }
    }
}

/// How a queue behaves.
#[derive(Clone, Copy, Debug)]
pub struct QueueSettings {
    /// How long a lease lasts without a beat.
    pub lease: Duration,
    /// How long an idempotency key is remembered.
    pub claim_ttl: Duration,
    /// Most items pending, delayed and in flight; 0 for no limit.
    pub max_depth: u64,
    /// Most bytes of them; 0 for no limit. On Redis no more than a quarter of its `maxmemory`.
    pub max_bytes: u64,
    /// So many items of a brand in the queue, and what else comes of it waits at low priority: others need not wait for its backlog.
    /// 0 for never.
    pub backlog: u64,
    /// Most items of low priority in a batch, where more than one brand has used the queue since it was last found empty: nobody waits
    /// for a long batch of somebody else's backlog.
    pub low_batch: usize,
    /// Bytes of payload after which such a batch takes at most [`LOW_STEP`] items more.
    pub low_bytes: usize,
    /// Most dead letters of a brand: beyond, the oldest go.
    pub max_dead: u64,
    /// Most bytes of them, history included. On Redis no more than 1/32 of its `maxmemory`. The newest letter stays in any case.
    pub max_dead_bytes: u64,
}

impl QueueSettings {
    /// What fits a memory of that many bytes, if there is such a bound (0: none). There are two queues, and what is kept of an item
    /// beside its payload.
    pub(crate) fn within(self, memory: u64) -> Self {
        if memory == 0 {
            return self;
        }
        let at_most = |bytes: u64, most: u64| if bytes == 0 { most } else { bytes.min(most) };
        Self {
            max_bytes: at_most(self.max_bytes, memory / 4),
            max_dead_bytes: self.max_dead_bytes.min(memory / 32),
            ..self
        }
    }
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            claim_ttl: Duration::from_secs(24 * 60 * 60),
            max_depth: 1_000_000,
            max_bytes: 1 << 30,
            backlog: 100,
            low_batch: 100,
            low_bytes: 128 << 10,
            max_dead: 10_000,
            max_dead_bytes: 16 << 20,
        }
    }
}

/// Host and process id of this process, for the records of what it ended.
pub fn this_process() -> &'static str {
    static NAME: LazyLock<String> = LazyLock::new(|| {
        let host = std::env::var("HOSTNAME")
            .ok()
            .or_else(|| std::fs::read_to_string("/etc/hostname").ok())
            .map(|name| name.split_whitespace().collect::<String>())
            .filter(|name| !name.is_empty());
        format!("{}:{}", host.as_deref().unwrap_or("localhost"), std::process::id())
    });
    &NAME
}

/// The queue port. See the module's text for the protocol.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Takes items in: all in one step, durable on return. Answers one result an item, in order.
    async fn enqueue(&self, items: &[NewItem]) -> Result<Vec<Enqueued>, QueueError>;

    /// Takes at most `want` items (capped at [`MAX_FETCH`]) under a lease; waits up to `wait` for the first.
    async fn fetch(&self, want: usize, wait: Duration) -> Result<Option<Batch>, QueueError>;

    /// Ends a batch, as it was fetched; `unfinished` names the items that are not done.
    async fn ack(&self, batch: &Batch, unfinished: &[Unfinished]) -> Result<Acked, QueueError>;

    /// Extends the leases; answers those that are lost.
    async fn beat(&self, batches: &[BatchId]) -> Result<Vec<BatchId>, QueueError>;

    /// Gives batches back whose lease ran out.
    async fn reclaim(&self) -> Result<Reclaimed, QueueError>;

    /// The queue in numbers.
    async fn stats(&self) -> Result<QueueStats, QueueError>;

    /// At most [`MAX_DEAD_PAGE`] dead letters, newest first: the newest, or those after that place.
    async fn dead(
        &self,
        of: Scope,
        after: Option<&DeadPlace>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, QueueError>;

    /// The dead letter of that id.
    async fn dead_letter(&self, id: &str) -> Result<Option<DeadLetter>, QueueError>;

    /// Puts dead letters back to pending, with all attempts and losses forgiven; answers how many of them were there. An
    /// item that had been lost is still fetched alone. At most [`MAX_DEAD_PAGE`] ids a call.
    async fn retry_dead(&self, ids: &[String]) -> Result<u64, QueueError>;

    /// Discards dead letters; answers how many of them were there. At most [`MAX_DEAD_PAGE`] ids a call.
    async fn discard_dead(&self, ids: &[String]) -> Result<u64, QueueError>;

    /// Drops dead letters of a brand, or of none, that were buried before; answers how many, at most [`MAX_DEAD_PAGE`] a call.
    async fn drop_dead(&self, of: Option<BrandId>, before_ms: i64) -> Result<u64, QueueError>;

    /// What a brand holds.
    async fn held_by(&self, brand: BrandId) -> Result<Holding, QueueError>;

    /// Pauses: nobody fetches, all else goes on. Or resumes.
    async fn set_paused(&self, paused: bool) -> Result<(), QueueError>;

    /// What is remembered of an idempotency key.
    async fn claim(&self, key: &str) -> Result<Option<Claim>, QueueError>;

    /// Looks for strays and repairs them. Any worker may call it at any time.
    async fn repair(&self) -> Result<Repaired, QueueError>;

    /// How long a lease lasts without a beat.
    fn lease(&self) -> Duration;
}
