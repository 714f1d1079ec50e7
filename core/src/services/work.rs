//! Working off a batch of the events queue: what becomes of each item.
//!
//! A message that cannot be decoded is buried at once, alone. When the store refuses a batch's data, the batch is halved
//! until the one item is found, so that it fails alone; likewise when the batch loses its races over and over. When the store is away, everything goes back untried.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use futures::FutureExt;

use crate::context::Context;
use crate::domain::backoff::{MAX_ATTEMPTS, full_jitter};
use crate::domain::envelope::Envelope;
use crate::domain::event::{Event, Rejection};
use crate::domain::shopify::APP_UNINSTALLED;
use crate::failpoint;
use crate::ports::queue::{Item, Then, Unfinished};
use crate::ports::store::StoreError;
use crate::priority::others_first;
use crate::sampled::Sampled;
use crate::services::events;

/// How long a batch's transaction may take, its reruns included. A connection that died in silence answers nothing, ever.
const PROCESS_TIMEOUT: Duration = Duration::from_secs(60);

/// Items that cannot be read.
static UNREADABLE: Sampled = Sampled::new();
/// Items that failed.
static FAILED: Sampled = Sampled::new();

/// How long the store may take to say that it is there.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// What working off a batch came to.
#[derive(Debug, Default)]
pub struct Worked {
    /// The items that are not done, for `ack`.
    pub unfinished: Vec<Unfinished>,
    /// Events that took effect.
    pub effective: usize,
    /// Events that had taken effect before.
    pub duplicates: usize,
    /// The store could not be reached: fetch no more until it can.
    pub store_away: Option<StoreError>,
}

/// Works off `items`. Never fails as a whole; what could not be done is in the answer.
pub async fn work(context: &Context, items: &[Item]) -> Worked {
    let mut worked = Worked::default();
    let envelopes: Vec<(&Item, Result<Envelope<'_>, Rejection>)> =
        items.iter().map(|item| (item, Envelope::read(&item.payload))).collect();
    let brands = envelopes.iter().filter_map(|(_, envelope)| Some(envelope.as_ref().ok()?.brand));
    let (book, rules) = match context.brands.of(brands.collect()).await {
        Ok(known) => known,
        Err(away) => return untried(items, away),
    };
    let mut readable: Vec<&Item> = Vec::with_capacity(items.len());
    let mut events: Vec<Event> = Vec::with_capacity(items.len());
    for (at, (item, envelope)) in envelopes.into_iter().enumerate() {
        others_first(at).await;
        let decoded = catch_unwind(AssertUnwindSafe(|| {
            envelope.and_then(|envelope| envelope.decode(&rules[&envelope.brand]))
        }));
        // It will end so whenever it is read.
        let decoded = decoded.unwrap_or_else(|_| {
            count_panic();
            Err(Rejection::new("panicked", "reading it panicked; see the log"))
        });
        match decoded {
            Ok(event) => match unwanted(context, &event).await {
                Ok(true) => {}
                Ok(false) => {
                    readable.push(item);
                    events.push(event);
                }
                Err(away) => return untried(items, away),
            },
            Err(rejection) => {
                // The code alone: what is wrong may quote what the sender said.
                if let Some(times) = UNREADABLE.happened(1) {
                    tracing::warn!(
                        times,
                        item = item.id,
                        code = rejection.code,
                        "items cannot be read and go to the dead letters; this is the last"
                    );
                }
                worked.unfinished.push(Unfinished {
                    item: item.clone(),
                    then: Then::Bury { error: rejection.to_string() },
                });
            }
        }
    }
    // Halves that are still to be done; the first is the whole.
    let whole = 0..events.len();
    let mut parts = Vec::from([whole]);
    while let Some(part) = parts.pop() {
        if part.is_empty() {
            continue;
        }
        if worked.store_away.is_some() {
            release(&mut worked, &readable[part]);
            continue;
        }
        let processing =
            events::process(&*context.store, &*context.locks, &context.clock, &book, &events[part.clone()]);
        // What panics is to blame like what the store refuses: it takes no neighbour along.
        let processing = AssertUnwindSafe(processing).catch_unwind();
        let outcome = match tokio::time::timeout(PROCESS_TIMEOUT, processing).await {
            Ok(outcome) => outcome.unwrap_or_else(|_| Err(panicked(part.len()))),
            Err(_) => Err(too_long(context).await),
        };
        match outcome {
            Ok(done) => {
                worked.effective += done.effective;
                worked.duplicates += done.duplicates;
                failpoint::reached("committed_in_part");
                note_uninstalled(context, &events[part.clone()]).await;
            }
            Err(error) if part.len() == 1 && !matches!(error, StoreError::Unavailable(_)) => {
                worked.unfinished.push(try_later(readable[part.start], &error.to_string()));
            }
            // Also where races were lost over and over: what is in the way of one item is not to hold up the others.
            Err(StoreError::Invalid(_) | StoreError::Conflict(_) | StoreError::Fenced(_)) => {
                let middle = part.start + part.len() / 2;
                parts.push(middle..part.end);
                parts.push(part.start..middle);
            }
            Err(away @ StoreError::Unavailable(_)) => {
                release(&mut worked, &readable[part]);
                worked.store_away = Some(away);
            }
        }
    }
    worked
}

/// Counts a panic that was caught, and says what it is for whom it struck: something is wrong with the data.
pub(crate) fn panicked(items: usize) -> StoreError {
    count_panic();
    tracing::error!(items, "working off items panicked; the one to blame is looked for, the others go on");
    StoreError::Invalid("working it off panicked; see the log".to_owned())
}

fn count_panic() {
    metrics::counter!("tributary_worker_panics_total").increment(1);
}

/// Whether an event comes from a shop whose customers were erased: it was under way when that was asked for, and is dropped.
async fn unwanted(context: &Context, event: &Event) -> Result<bool, StoreError> {
    match &event.shop {
        Some(shop) if event.ask.is_none() => context.brands.redacted(shop).await,
        _ => Ok(false),
    }
}

/// What it means that a batch found no end: the store is away without a word, or the batch is too much for it.
async fn too_long(context: &Context) -> StoreError {
    let why = format!("no end in {} s", PROCESS_TIMEOUT.as_secs());
    match tokio::time::timeout(PING_TIMEOUT, context.store.ping()).await {
        Ok(Ok(())) => StoreError::Conflict(why),
        _ => StoreError::Unavailable(why),
    }
}

/// All of them go back: the store is away.
fn untried(items: &[Item], away: StoreError) -> Worked {
    let mut worked = Worked { store_away: Some(away), ..Worked::default() };
    release(&mut worked, &items.iter().collect::<Vec<_>>());
    worked
}

/// They go back as they were.
pub(crate) fn release(worked: &mut Worked, items: &[&Item]) {
    worked
        .unfinished
        .extend(items.iter().map(|item| Unfinished { item: (*item).clone(), then: Then::Release }));
}

/// What becomes of an item that failed: another try, as long as there is one.
pub fn try_later(item: &Item, error: &str) -> Unfinished {
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
        Then::Retry { delay: full_jitter(attempt, rand::random()), error: error.to_owned() }
    };
    Unfinished { item: item.clone(), then }
}

/// A shop that has taken the app out sends nothing more; who looks after it sees that. Best effort: it changes no customer.
async fn note_uninstalled(context: &Context, events: &[Event]) {
    let gone = events.iter().filter(|event| event.name.as_deref() == Some(APP_UNINSTALLED));
    for (event, shop) in gone.filter_map(|event| Some((event, event.shop.as_deref()?))) {
        tracing::warn!(shop, "the app was uninstalled");
        if let Err(error) = context.tenants.shops.shop_uninstalled(shop, event.timestamp).await {
            tracing::warn!(%error, shop, "that the app was uninstalled could not be noted");
        }
    }
}
