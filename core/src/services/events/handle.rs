//! Handling a batch of the events queue: what becomes of each item.
//!
//! A message that cannot be decoded is buried at once, alone. The rest is processed together, or in halves ([`crate::services::batches`]).

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;

use crate::context::Context;
use crate::domain::envelope::Envelope;
use crate::domain::event::{Event, Rejection};
use crate::domain::shopify::APP_UNINSTALLED;
use crate::failpoint;
use crate::ports::queue::{Item, Then, Unfinished};
use crate::ports::store::StoreError;
use crate::priority::others_first;
use crate::sampled::Sampled;
use crate::services::batches::{BatchOutcome, Process, count_panic, in_halves, panicked};
use crate::services::brand_cache::BrandRules;
use crate::services::events;

/// How long a batch's transaction may take, its reruns included. A connection that died in silence answers nothing, ever.
const PROCESS_TIMEOUT: Duration = Duration::from_secs(60);

/// Items that cannot be read.
static UNREADABLE: Sampled = Sampled::new();
/// How long the store may take to say that it is there.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Handles `items`. Never fails as a whole: what could not be done is in the outcome.
pub async fn handle_batch(context: &Context, items: &[Item]) -> BatchOutcome {
    let mut outcome = BatchOutcome::default();
    let decoded = match decode(context, items, &mut outcome).await {
        Ok(decoded) => decoded,
        Err(error) => return BatchOutcome::untried(items, error),
    };
    in_halves(&context.world, &mut outcome, &decoded.items, &Events { context, decoded: &decoded }).await;
    outcome
}

struct Events<'b> {
    context: &'b Context,
    decoded: &'b Decoded<'b>,
}

#[async_trait]
impl Process for Events<'_> {
    async fn process(&self, outcome: &mut BatchOutcome, part: Range<usize>) -> Result<(), StoreError> {
        let events = &self.decoded.events[part];
        let done = process(self.context, &self.decoded.rules, events).await?;
        outcome.effective += done.effective;
        outcome.duplicates += done.duplicates;
        failpoint::reached("committed_in_part");
        note_uninstalled(self.context, events).await;
        Ok(())
    }
}

/// A batch's events, each with its item.
struct Decoded<'i> {
    rules: BrandRules,
    items: Vec<&'i Item>,
    events: Vec<Event>,
}

/// Decodes items; those that cannot be decoded are buried. Events that nobody wants any more are left out.
async fn decode<'i>(
    context: &Context,
    items: &'i [Item],
    outcome: &mut BatchOutcome,
) -> Result<Decoded<'i>, StoreError> {
    let envelopes: Vec<(&Item, Result<Envelope<'_>, Rejection>)> =
        items.iter().map(|item| (item, Envelope::read(&item.payload))).collect();
    let brands = envelopes.iter().filter_map(|(_, envelope)| Some(envelope.as_ref().ok()?.brand));
    let (of_brands, identity) = context.brand_cache.of(brands.collect()).await?;
    let mut decoded = Decoded {
        rules: of_brands,
        items: Vec::with_capacity(items.len()),
        events: Vec::with_capacity(items.len()),
    };
    for (at, (item, envelope)) in envelopes.into_iter().enumerate() {
        others_first(at).await;
        let event = catch_unwind(AssertUnwindSafe(|| {
            envelope.and_then(|envelope| envelope.decode(&identity[&envelope.brand]))
        }));
        // It will panic whenever it is decoded.
        let event = event.unwrap_or_else(|_| {
            count_panic();
            Err(Rejection::new("panicked", "decoding it panicked; see the log"))
        });
        match event {
            Ok(event) => {
                if !is_unwanted(context, &event).await? {
                    decoded.items.push(item);
                    decoded.events.push(event);
                }
            }
            Err(rejection) => {
                // The code alone: the message may quote what the sender said.
                if let Some(times) = UNREADABLE.happened(1) {
                    let (item, code) = (&item.id, rejection.code);
                    tracing::warn!(
                        times,
                        item,
                        code,
                        "items cannot be decoded and are buried; this is the last"
                    );
                }
                let then = Then::Bury { error: rejection.to_string() };
                outcome.unfinished.push(Unfinished { item: item.clone(), then });
            }
        }
    }
    Ok(decoded)
}

async fn process(
    context: &Context,
    rules: &BrandRules,
    events: &[Event],
) -> Result<events::Processed, StoreError> {
    let processing = events::process(&*context.store, &*context.locks, &context.world, rules, events);
    // An item that makes it panic is to blame like one that the store refuses: its neighbours are processed without it.
    let processing = AssertUnwindSafe(processing).catch_unwind();
    match context.world.timeout(PROCESS_TIMEOUT, processing).await {
        Ok(done) => done.unwrap_or_else(|_| Err(panicked(events.len()))),
        Err(_) => Err(timed_out(context).await),
    }
}

/// Whether an event comes from a shop whose customers were erased: it was in the queue by then, and is dropped.
async fn is_unwanted(context: &Context, event: &Event) -> Result<bool, StoreError> {
    match &event.shop {
        Some(shop) if event.ask.is_none() => context.brand_cache.redacted(shop).await,
        _ => Ok(false),
    }
}

/// What it means that a batch did not end in time: the store does not answer, or the batch is too much for it.
async fn timed_out(context: &Context) -> StoreError {
    let why = format!("it did not end in {} s", PROCESS_TIMEOUT.as_secs());
    match context.world.timeout(PING_TIMEOUT, context.store.ping()).await {
        Ok(Ok(())) => StoreError::Conflict(why),
        _ => StoreError::Unavailable(why.into()),
    }
}

/// A shop that has uninstalled the app sends nothing more: its record says so. Best effort: it changes no customer.
async fn note_uninstalled(context: &Context, events: &[Event]) {
    let gone = events.iter().filter(|event| event.name.as_deref() == Some(APP_UNINSTALLED));
    for (event, shop) in gone.filter_map(|event| Some((event, event.shop.as_deref()?))) {
        tracing::warn!(shop, "the app was uninstalled");
        if let Err(error) = context.brand_ports.shops.shop_uninstalled(shop, event.timestamp).await {
            tracing::warn!(%error, shop, "that the app was uninstalled could not be recorded");
        }
    }
}
