//! Batches: what is fetched together, and what becomes of it.

use std::time::Duration;

use super::Item;

/// The token of a fetched batch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BatchId(pub String);

/// What one `fetch` took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub id: BatchId,
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
        delay: Duration,
        /// What went wrong, for the history.
        error: String,
    },
    /// To the dead letters.
    Bury { error: String },
    /// Back to pending as it was: the worker stops, or something it needs is unavailable. Costs no attempt.
    Release,
    /// As it was, and not before `delay` is over: its turn has not come. Costs no attempt.
    Defer { delay: Duration },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acked {
    /// The batch is ended.
    Done,
    /// The lease had gone to somebody else: nothing was changed.
    Lost,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Items given back to pending.
    pub returned: u64,
    /// Items buried after [`super::MAX_LOSSES`].
    pub buried: u64,
}
