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
//! [`Queue::claim`]; [`Queue::audit`] finds what no step of the protocol would find again.

use std::collections::{BTreeMap, HashSet};
use std::sync::LazyLock;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::domain::ids::BrandId;

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
/// Dead letters that one call lists, retries or discards.
pub const MAX_DEAD_PAGE: usize = 100;
/// Failures that an item's history holds; the oldest go first.
pub const MAX_HISTORY: usize = 16;
/// Characters of an error that are kept.
pub const MAX_ERROR_CHARS: usize = 500;

/// How many times the room that stays free a brand may hold: alone, four fifths of the queue.
pub const SHARE: u64 = 4;
/// The same, of what a public key sent: its flood leaves room for what the brand's other sources send.
pub const PUBLIC_SHARE: u64 = 1;

/// Whether a brand that would hold so much, of so much that all would hold, would hold more than so many `times` the room that then
/// stays free of `most` (0: any number).
pub(crate) fn is_over_share(times: u64, would: u64, all: u64, most: u64) -> bool {
    most > 0 && would > times.saturating_mul(most.saturating_sub(all))
}

/// Which items are fetched first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
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
    /// Whose share of the queue it takes up; of nobody's where it is of no brand.
    pub brand: Option<BrandId>,
    /// A public key sent it: see [`PUBLIC_SHARE`].
    pub public: bool,
    /// How to know it when it comes again; `None` for items that need no such check.
    pub idempotency: Option<Idempotency>,
}

impl NewItem {
    /// How many times the room that stays free its brand may hold for it to be taken.
    pub(crate) fn share(&self) -> u64 {
        if self.public { PUBLIC_SHARE } else { SHARE }
    }
}

/// How an item is known when it comes again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// Names under which it may come: one that was seen makes it a duplicate, or a conflict.
    pub keys: Vec<String>,
    /// What its body is: the same key with another digest is a conflict. No spaces.
    pub digest: String,
    /// How long it is remembered; `None` for the queue's setting.
    pub ttl: Option<Duration>,
}

impl Idempotency {
    /// Known by `keys`; `body` is what makes two of them the same.
    pub fn new(keys: Vec<String>, body: &[u8]) -> Self {
        Self { keys, digest: short_hash(body), ttl: None }
    }

    /// The keys as the adapters store them: hashed.
    pub fn names(&self) -> Vec<String> {
        self.keys.iter().map(|key| claim_name(key)).collect()
    }
}

/// A key as the adapters store it: a hash, because keys are made from what senders write, of any length. The outbox's own key stays
/// readable: who ends an item finds its row by it.
pub(crate) fn claim_name(key: &str) -> String {
    if is_staged(key) { key.to_owned() } else { short_hash(key.as_bytes()) }
}

/// What the outbox's own keys begin with.
const STAGED: &str = "outbox:";

/// The key under which an item of the outbox is known.
pub(crate) fn staged_key(id: Uuid) -> String {
    format!("{STAGED}{id}")
}

/// How long the outbox's own key is remembered while its item is in the queue: longer than any item waits there.
pub(crate) const STAGED_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How long the outbox's own key is remembered of an item that has ended: longer than anybody needs who died between enqueue and the
/// note of it.
pub(crate) const STAGED_TTL: Duration = Duration::from_secs(60 * 60);

/// Whether a key is one of the outbox's own.
pub(crate) fn is_staged(key: &str) -> bool {
    staged_id(key).is_some()
}

/// Which item of the outbox has this key, if it is one of the outbox's own.
fn staged_id(key: &str) -> Option<Uuid> {
    key.strip_prefix(STAGED)?.parse().ok()
}

/// The first 128 bits of SHA-256, in hex.
fn short_hash(bytes: &[u8]) -> String {
    hex::encode(&Sha256::digest(bytes)[..16])
}

/// What became of an item that was enqueued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enqueued {
    /// It is durable.
    Accepted,
    /// One of its idempotency keys was taken before; nothing was added.
    Duplicate,
    /// One of its idempotency keys was taken before, by another body; nothing was added.
    Conflict,
    /// Its brand holds as much as it may; nothing was added. Try again later.
    OverShare,
}

/// What is remembered of the first item that came under an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Claim {
    /// The item.
    pub item: String,
    /// Its body's.
    pub digest: String,
    /// When it was enqueued, in milliseconds since 1970.
    pub claimed_ms: i64,
    /// How it ended; `None` while it waits or is worked on.
    pub finished: Option<Finished>,
}

/// What was answered, where the share of no brand is full.
///
/// # Errors
/// [`QueueError::OverShare`], if one item was refused for it.
pub fn within_share(results: Vec<Enqueued>) -> Result<Vec<Enqueued>, QueueError> {
    match results.contains(&Enqueued::OverShare) {
        true => Err(QueueError::OverShare),
        false => Ok(results),
    }
}

/// How an item ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finished {
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// What became of it.
    pub outcome: Outcome,
    /// The process that ended it: host and process id.
    pub by: String,
}

/// What became of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was worked off.
    Done,
    /// It is, or was last, among the dead letters.
    Dead,
    /// Somebody discarded its dead letter.
    Discarded,
}

impl Outcome {
    /// Its name in the adapters and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Discarded => "discarded",
        }
    }

    /// The outcome of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Done, Self::Dead, Self::Discarded].into_iter().find(|outcome| outcome.as_str() == name)
    }
}

/// Something that went wrong with an item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// What, for people.
    pub error: String,
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
    /// Losses suffered alone, but those whose workers had come back by the last of them.
    pub losses: u32,
    /// Where it waits.
    pub priority: Priority,
    /// Whose it is.
    pub brand: Option<BrandId>,
    /// The names of its idempotency keys, as the adapter stores them.
    pub claims: Vec<String>,
    /// What went wrong with it so far, oldest first; at most [`MAX_HISTORY`].
    pub history: Vec<Failure>,
    /// What was enqueued.
    pub payload: Bytes,
}

impl Item {
    /// Its id in the outbox, where it came out of the outbox.
    pub fn staged(&self) -> Option<Uuid> {
        self.claims.iter().find_map(|name| staged_id(name))
    }

    /// The history with one failure more, within its limits.
    pub(crate) fn history_with(&self, at_ms: i64, error: &str) -> Vec<Failure> {
        let mut history = self.history.clone();
        history.push(Failure { at_ms, error: error.chars().take(MAX_ERROR_CHARS).collect() });
        let over = history.len().saturating_sub(MAX_HISTORY);
        history.split_off(over)
    }
}

/// The token of a fetched batch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BatchId(pub String);

/// What one `fetch` took.
#[derive(Clone, Debug, PartialEq, Eq)]
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
        /// What went wrong, for the history.
        error: String,
    },
    /// To the dead letters.
    Bury {
        /// Why, for people.
        error: String,
    },
    /// Back to pending as it was: the worker stops, or something it needs is away. Costs no attempt.
    Release,
    /// As it was, and not before `delay` is over: its turn has not come. Costs no attempt.
    Defer {
        /// The wait.
        delay: Duration,
    },
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
    /// The item; the last of its history says why it was buried.
    pub item: Item,
    /// When, in milliseconds since 1970.
    pub buried_ms: i64,
}

/// Whose dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everybody's.
    All,
    /// One brand's.
    Brand(BrandId),
    /// Those of no brand: what cannot be read, or was enqueued by a version that did not say a brand.
    Nobody,
}

/// A place among the dead letters. It stays one when its letter is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadPlace {
    /// When the letter at it was buried.
    pub buried_ms: i64,
    /// Its item's id.
    pub id: String,
}

impl std::fmt::Display for DeadPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.buried_ms, self.id)
    }
}

impl DeadPlace {
    /// Reads what [`std::fmt::Display`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let (buried_ms, id) = text.split_once('-')?;
        Some(Self { buried_ms: buried_ms.parse().ok()?, id: id.to_owned() })
    }
}

impl DeadLetter {
    /// Its place.
    pub fn place(&self) -> DeadPlace {
        DeadPlace { buried_ms: self.buried_ms, id: self.item.id.clone() }
    }

    /// Why it was buried.
    pub fn error(&self) -> &str {
        self.item.history.last().map_or("unknown", |failure| &failure.error)
    }
}

/// What `audit` found: things that no step of the protocol leaves behind, so a defect, a hand in the data, or lost data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audited {
    /// Items under a batch without a lease; they are under one now that ends at once.
    pub strays: u64,
    /// Dead letters that stood in some of their indexes only; repaired.
    pub repaired: u64,
}

/// The queue in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct QueueStats {
    /// Items that wait, suspects among them.
    pub pending: u64,
    /// Items under a lease (on lists, of the first 10,000 leases).
    pub in_flight: u64,
    /// Items that wait for a time.
    pub delayed: u64,
    /// Bytes of all of those: what was enqueued.
    pub bytes: u64,
    /// Dead letters.
    pub dead: u64,
    /// Nobody fetches until it is resumed.
    pub paused: bool,
    /// How long the oldest pending item has waited, in milliseconds; 0 when none waits.
    pub oldest_age_ms: u64,
    /// Items ever taken in.
    pub enqueued: u64,
    /// Items ever refused as duplicates.
    pub duplicates: u64,
    /// Items ever refused because their key was another body's.
    pub conflicts: u64,
    /// Items ever done.
    pub acked: u64,
    /// Failed tries ever that were put up for another.
    pub retried: u64,
    /// Items ever given back after their worker was lost.
    pub reclaimed: u64,
    /// Items ever buried.
    pub buried: u64,
    /// Dead letters ever discarded.
    pub discarded: u64,
    /// Dead letters ever that gave way to newer ones of their brand, or were too old.
    pub dropped: u64,
    /// Items and dead letters that an audit had to repair.
    pub strays: u64,
}

/// What a brand has in a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Holding {
    /// Items pending, delayed and in flight.
    pub items: u64,
    /// Their bytes: what was enqueued.
    pub bytes: u64,
    /// Dead letters.
    pub dead: u64,
    /// Their bytes, history included.
    pub dead_bytes: u64,
}

impl QueueStats {
    /// Sets the counters from their names in the adapters.
    pub(crate) fn count(&mut self, ever: impl Fn(&str) -> u64) {
        self.enqueued = ever("enqueued");
        self.duplicates = ever("duplicates");
        self.conflicts = ever("conflicts");
        self.acked = ever("acked");
        self.retried = ever("retried");
        self.reclaimed = ever("reclaimed");
        self.buried = ever("buried");
        self.discarded = ever("discarded");
        self.dropped = ever("dropped");
        self.strays = ever("strays");
    }
}

/// Why a queue did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// It cannot be reached, or did not answer in time: whether it acted is unknown. Try again later.
    #[error("the queue cannot be reached: {0}")]
    Unavailable(String),
    /// It holds as much as it may; nothing was taken.
    #[error("the queue is full: it holds {holds} {unit}, and {limit} are allowed")]
    Full {
        /// How much it holds: pending, delayed and in flight.
        holds: u64,
        /// The setting.
        limit: u64,
        /// `items` or `bytes`.
        unit: &'static str,
    },
    /// The brand holds as much of it as it may; nothing was taken. Try again later.
    #[error("the brand's share of the queue is full: what it sent before has to be worked off first")]
    OverShare,
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

/// What leaves the queue when a batch ends, by brand: items, and bytes of what was enqueued.
pub(crate) fn leaving(batch: &Batch, unfinished: &[Unfinished]) -> BTreeMap<Option<BrandId>, (u64, u64)> {
    let stays: HashSet<&str> = unfinished
        .iter()
        .filter(|other| !matches!(other.then, Then::Bury { .. }))
        .map(|other| other.item.id.as_str())
        .collect();
    let mut leave = BTreeMap::<_, (u64, u64)>::new();
    for item in batch.items.iter().filter(|item| !stays.contains(item.id.as_str())) {
        let (items, bytes) = leave.entry(item.brand).or_default();
        *items += 1;
        *bytes += item.payload.len() as u64;
    }
    leave
}

/// What an item's history says of a loss.
pub(crate) const LOST: &str = "its worker was lost";

/// What a dead letter says of an item that took its worker along too often.
pub(crate) fn lost_alone() -> String {
    format!("its worker was lost {MAX_LOSSES} times while it worked on this item alone")
}

/// What an item's history says of a loss that counts no more.
pub(crate) const SURVIVED: &str = "its worker was cut off, and has come back: that loss does not count";

/// What the history says of an item that somebody put back from the dead letters.
pub(crate) const PUT_BACK: &str = "put back from the dead letters";

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
    async fn audit(&self) -> Result<Audited, QueueError>;

    /// How long a lease lasts without a beat.
    fn lease(&self) -> Duration;
}
