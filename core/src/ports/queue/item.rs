//! Items, their idempotency keys, and what has happened to them.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{MAX_LOSSES, PUBLIC_SHARE, SHARE};
use crate::domain::ids::BrandId;

/// Failures that an item's history holds; the oldest go first.
pub const MAX_HISTORY: usize = 16;

/// Characters of an error that are kept.
pub const MAX_ERROR_CHARS: usize = 500;

/// Which items are fetched first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    High,
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
    /// How to recognise it when it is enqueued again; `None` for items that need no such check.
    pub idempotency: Option<Idempotency>,
}

impl NewItem {
    /// How many times the room that stays free its brand may hold for it to be taken.
    pub(crate) fn share(&self) -> u64 {
        if self.public { PUBLIC_SHARE } else { SHARE }
    }
}

/// How an item is recognised when it is enqueued again.
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
    Accepted,
    /// One of its idempotency keys was taken before; nothing was added.
    Duplicate,
    /// One of its idempotency keys was taken before, by another body; nothing was added.
    Conflict,
    /// Its brand holds as much as it may; nothing was added. Try again later.
    OverShare,
}

/// What is remembered of the first item that came under an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = RememberedDelivery)]
pub struct Claim {
    pub item: String,
    pub digest: String,
    /// When it was enqueued, in milliseconds since 1970.
    pub claimed_ms: i64,
    /// How it ended; `None` while it waits or is worked on.
    pub finished: Option<Finished>,
}

/// How an item ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = DeliveryFinished)]
pub struct Finished {
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// What became of it.
    pub outcome: Outcome,
    /// The process that ended it: host and process id.
    pub by: String,
}

/// What became of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = DeliveryOutcome)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = ItemFailure)]
pub struct Failure {
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
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
    pub priority: Priority,
    pub brand: Option<BrandId>,
    /// The names of its idempotency keys, as the adapter stores them.
    pub claims: Vec<String>,
    /// What went wrong with it so far, oldest first; at most [`MAX_HISTORY`].
    pub history: Vec<Failure>,
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

/// What an item's history says of a loss.
pub(crate) const LOST: &str = "its worker was lost";

/// What a dead letter says of an item that took its worker along too often.
pub(crate) fn lost_alone() -> String {
    format!("its worker was lost {MAX_LOSSES} times while it worked on this item alone")
}

/// What an item's history says of a loss that counts no more.
pub(crate) const SURVIVED: &str = "its worker was cut off and has reconnected: this loss does not count";

/// What the history says of an item that somebody put back from the dead letters.
pub(crate) const PUT_BACK: &str = "put back from the dead letters";
