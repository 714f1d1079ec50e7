//! Batches of a queue's items: together where that works, in halves where one item fails, each item with what becomes of it.

use std::ops::Range;

use async_trait::async_trait;

use crate::domain::backoff::{MAX_ATTEMPTS, full_jitter};
use crate::ports::queue::{Item, Then, Unfinished};
use crate::ports::store::StoreError;
use crate::ports::world::World;
use crate::sampled::Sampled;

static FAILED: Sampled = Sampled::new();

/// What becomes of a batch's items. Those that it does not name are done.
#[derive(Debug, Default)]
pub struct BatchOutcome {
    /// The items that are not done, for `ack`.
    pub unfinished: Vec<Unfinished>,
    /// Items that took effect.
    pub effective: usize,
    /// Items that had taken effect before.
    pub duplicates: usize,
    /// Why the store could not be reached: the worker fetches no more until it can.
    pub store_unavailable: Option<StoreError>,
}

impl BatchOutcome {
    /// Nothing was tried, because the store cannot be reached: all items are released.
    pub(crate) fn untried(items: &[Item], error: StoreError) -> Self {
        let mut outcome = Self { store_unavailable: Some(error), ..Self::default() };
        outcome.release(&items.iter().collect::<Vec<_>>());
        outcome
    }

    /// Gives items back as they were.
    pub(crate) fn release(&mut self, items: &[&Item]) {
        let released = items.iter().map(|item| Unfinished { item: (*item).clone(), then: Then::Release });
        self.unfinished.extend(released);
    }
}

/// Processes parts of a batch.
#[async_trait]
pub(crate) trait Process: Send + Sync {
    /// Processes the items of a part together, all or none, and adds what came of it to the outcome.
    async fn process(&self, outcome: &mut BatchOutcome, part: Range<usize>) -> Result<(), StoreError>;
}

/// Processes items together. Where the store refuses them, or races are lost over and over, it processes halves of them, until the one
/// item is found that is to blame: it fails alone. Where the store cannot be reached, what is left is released.
pub(crate) async fn in_halves(
    world: &World,
    outcome: &mut BatchOutcome,
    items: &[&Item],
    process: &dyn Process,
) {
    let whole = 0..items.len();
    let mut parts = Vec::from([whole]);
    while let Some(part) = parts.pop() {
        if part.is_empty() {
            continue;
        }
        if outcome.store_unavailable.is_some() {
            outcome.release(&items[part]);
            continue;
        }
        match process.process(outcome, part.clone()).await {
            Ok(()) => {}
            Err(error @ StoreError::Unavailable(_)) => {
                outcome.release(&items[part]);
                outcome.store_unavailable = Some(error);
            }
            Err(error) if part.len() == 1 => {
                outcome.unfinished.push(try_later(world, items[part.start], &error.to_string()));
            }
            Err(StoreError::Invalid(_) | StoreError::Conflict(_) | StoreError::Fenced(_)) => {
                let middle = part.start + part.len() / 2;
                parts.push(middle..part.end);
                parts.push(part.start..middle);
            }
        }
    }
}

/// Counts a panic that was caught. It counts as the data's fault, so that halves find the item that is to blame.
pub(crate) fn panicked(items: usize) -> StoreError {
    count_panic();
    tracing::error!(
        items,
        "processing items panicked; the batch is halved to find the item, the others are processed"
    );
    StoreError::Invalid("processing it panicked; see the log".to_owned())
}

pub(crate) fn count_panic() {
    metrics::counter!("tributary_worker_panics_total").increment(1);
}

/// What becomes of an item that failed: another try, as long as there is one.
pub fn try_later(world: &World, item: &Item, error: &str) -> Unfinished {
    let attempt = item.attempt + 1;
    let then = if attempt >= MAX_ATTEMPTS {
        Then::Bury { error: format!("failed {attempt} times, at last: {error}") }
    } else {
        // Why stands in its history, which ends with it: a store's words may quote a value.
        if let Some(times) = FAILED.happened(1) {
            tracing::warn!(
                times,
                item = item.id,
                attempt,
                "items failed and will be tried again; this is the last"
            );
        }
        Then::Retry { delay: full_jitter(attempt, world.fraction()), error: error.to_owned() }
    };
    Unfinished { item: item.clone(), then }
}
