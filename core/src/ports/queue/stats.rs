//! A queue in numbers, and how its room is shared.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

use super::{Batch, Enqueued, QueueError, Then, Unfinished};
use crate::domain::ids::BrandId;

/// How many times the room that stays free a brand may hold: alone, four fifths of the queue.
pub const SHARE: u64 = 4;

/// The same, of what a public key sent: its flood leaves room for what the brand's other sources send.
pub const PUBLIC_SHARE: u64 = 1;

/// Whether a brand that would hold so much, of so much that all would hold, would hold more than so many `times` the room that then
/// stays free of `most` (0: any number).
pub(crate) fn is_over_share(times: u64, would: u64, all: u64, most: u64) -> bool {
    most > 0 && would > times.saturating_mul(most.saturating_sub(all))
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

/// What `audit` found: things that no step of the protocol leaves behind, so a defect, a hand in the data, or lost data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Items under a batch without a lease; they are under one now that ends at once.
    pub strays: u64,
    /// Dead letters that stood in some of their indexes only; repaired.
    pub repaired: u64,
}

/// The queue in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct QueueStats {
    /// Items that wait, suspects among them.
    pub pending: u64,
    /// Items under a lease (on lists, of the first 10,000 leases).
    pub in_flight: u64,
    /// Items that wait for a time.
    pub delayed: u64,
    /// Bytes of all of those: what was enqueued.
    pub bytes: u64,
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
    pub acked: u64,
    /// Failed tries ever that were put up for another.
    pub retried: u64,
    /// Items ever given back after their worker was lost.
    pub reclaimed: u64,
    pub buried: u64,
    /// Dead letters ever discarded.
    pub discarded: u64,
    /// Dead letters ever that gave way to newer ones of their brand, or were too old.
    pub dropped: u64,
    /// Items and dead letters that an audit had to repair.
    pub strays: u64,
}

/// What a brand has in a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Holding {
    /// Items pending, delayed and in flight.
    pub items: u64,
    /// Their bytes: what was enqueued.
    pub bytes: u64,
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
