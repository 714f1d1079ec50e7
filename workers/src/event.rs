//! The event worker: fetch, work off, ack, in a few lanes at once.
//!
//! Who does what: [`tributary_core::services::work`] decides what becomes of each item; this loop keeps the lease alive
//! meanwhile, stops a lane that has lost it, and gives back what it cannot finish. A batch that is worked off but cannot
//! be acked comes again, and has no effect the second time.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tributary_core::context::Context;
use tributary_core::domain::backoff::jittered;
use tributary_core::ports::queue::{Acked, Batch, POLL, Then, Unfinished};
use tributary_core::services::work::{Worked, work};

/// How often leases that ran out are looked for. Part of the promise: a dead worker's items return within lease + 1 s.
const RECLAIM_EVERY: Duration = Duration::from_millis(500);
/// The first wait when something is away, and the longest.
const AWAY_BASE: Duration = Duration::from_millis(100);
/// See [`AWAY_BASE`].
const AWAY_CAP: Duration = Duration::from_secs(2);
/// How often an ack is tried: later than the lease it would come in vain.
const ACK_TRIES: u32 = 5;

/// How the loop runs.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Lanes: batches worked off at once.
    pub concurrency: usize,
    /// Most items a batch.
    pub batch: usize,
    /// How long a batch under way may go on after `stop`.
    pub grace: Duration,
}

/// Works off the events queue until `stop`; then finishes what is under way within the grace, gives back the rest.
pub async fn run(context: Context, options: Options, stop: CancellationToken) {
    // Cancelled when the grace is over: lanes give back what they hold.
    let give_back = CancellationToken::new();
    let mut lanes = JoinSet::new();
    for _ in 0..options.concurrency {
        lanes.spawn(lane(context.clone(), options, stop.clone(), give_back.clone()));
    }
    let reclaimer = tokio::spawn(reclaim(context, stop.clone()));
    tracing::info!(lanes = options.concurrency, batch = options.batch, "event worker started");
    stop.cancelled().await;
    let finish = async { while lanes.join_next().await.is_some() {} };
    if tokio::time::timeout(options.grace, finish).await.is_err() {
        give_back.cancel();
        while lanes.join_next().await.is_some() {}
    }
    let _ = reclaimer.await;
    tracing::info!("event worker stopped");
}

async fn lane(context: Context, options: Options, stop: CancellationToken, give_back: CancellationToken) {
    let mut failures = 0;
    while !stop.is_cancelled() {
        // Not dropped half-way when `stop` comes: a batch fetched for nobody would wait for its lease to end.
        match context.queue.fetch(options.batch, POLL).await {
            Ok(None) => failures = 0,
            Ok(Some(batch)) => {
                failures = 0;
                run_batch(&context, batch, &stop, &give_back).await;
            }
            Err(error) => {
                failures += 1;
                if failures == 1 {
                    tracing::warn!(%error, "fetching failed; trying again until it works");
                }
                pause(failures, &stop).await;
            }
        }
    }
}

/// Works off one batch: fetched, so it must be acked, given back, or lost.
async fn run_batch(context: &Context, batch: Batch, stop: &CancellationToken, give_back: &CancellationToken) {
    let started = Instant::now();
    let worked = tokio::select! {
        worked = AssertUnwindSafe(work(context, &batch.items)).catch_unwind() => match worked {
            Ok(worked) => worked,
            Err(_) => {
                // As if the process had died: the lease ends, each item comes alone, and the one that does this is buried.
                metrics::counter!("tributary_worker_panics_total").increment(1);
                tracing::error!(items = batch.items.len(), "working off a batch panicked; its items will come again, alone");
                return;
            }
        },
        () = lease_lost(context, &batch) => {
            metrics::counter!("tributary_worker_leases_lost_total").increment(1);
            tracing::warn!(items = batch.items.len(), "the lease was lost; somebody else works on this batch now");
            return;
        }
        () = give_back.cancelled() => given_back(&batch),
    };
    record(&worked, batch.items.len(), started.elapsed());
    ack(context, &batch, &worked.unfinished).await;
    if let Some(error) = worked.store_away {
        tracing::warn!(%error, "waiting for the store");
        wait_for_store(context, stop).await;
    }
}

/// Returns when the lease is lost; keeps it alive until then.
async fn lease_lost(context: &Context, batch: &Batch) {
    let third = context.queue.lease() / 3;
    let mut held_until = Instant::now() + context.queue.lease();
    loop {
        sleep(third).await;
        let asked = Instant::now();
        match context.queue.beat(std::slice::from_ref(&batch.id)).await {
            Ok(lost) if lost.is_empty() => held_until = asked + context.queue.lease(),
            Ok(_) => return,
            // Whether the beat arrived is unknown: what is known is how long the last one holds.
            Err(_) if Instant::now() >= held_until => return,
            Err(error) => tracing::debug!(%error, "a beat failed"),
        }
    }
}

fn given_back(batch: &Batch) -> Worked {
    let back = |item: &_| Unfinished { item: Clone::clone(item), then: Then::Release };
    Worked { unfinished: batch.items.iter().map(back).collect(), ..Worked::default() }
}

async fn ack(context: &Context, batch: &Batch, unfinished: &[Unfinished]) {
    for attempt in 1..=ACK_TRIES {
        match context.queue.ack(batch, unfinished).await {
            Ok(Acked::Done) => return,
            // Also when an earlier try of this loop arrived and only its answer was lost.
            Ok(Acked::Lost) => {
                tracing::debug!(attempt, "the batch was no longer ours to ack");
                return;
            }
            Err(error) => {
                tracing::debug!(%error, attempt, "an ack failed");
                sleep(jittered(AWAY_BASE, AWAY_CAP, attempt, rand::random())).await;
            }
        }
    }
    tracing::warn!(
        items = batch.items.len(),
        "a batch could not be acked; it will come again, without effect"
    );
}

async fn wait_for_store(context: &Context, stop: &CancellationToken) {
    let mut failures = 0;
    while !stop.is_cancelled() && context.store.ping().await.is_err() {
        failures += 1;
        pause(failures, stop).await;
    }
    // All lanes come back at once otherwise.
    pause(1, stop).await;
}

async fn pause(failures: u32, stop: &CancellationToken) {
    let wait = jittered(AWAY_BASE, AWAY_CAP, failures, rand::random::<f64>().max(0.1));
    tokio::select! {
        () = sleep(wait) => {}
        () = stop.cancelled() => {}
    }
}

async fn reclaim(context: Context, stop: CancellationToken) {
    while !stop.is_cancelled() {
        match context.queue.reclaim().await {
            Ok(reclaimed) if reclaimed.returned + reclaimed.buried > 0 => {
                tracing::warn!(reclaimed.returned, reclaimed.buried, "took over from a lost worker");
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "reclaiming failed"),
        }
        tokio::select! {
            () = sleep(RECLAIM_EVERY) => {}
            () = stop.cancelled() => {}
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
fn record(worked: &Worked, items: usize, took: Duration) {
    metrics::counter!("tributary_events_effective_total").increment(worked.effective as u64);
    metrics::counter!("tributary_events_duplicate_total").increment(worked.duplicates as u64);
    let buried = worked.unfinished.iter().filter(|u| matches!(u.then, Then::Bury { .. })).count();
    metrics::counter!("tributary_events_buried_total").increment(buried as u64);
    metrics::histogram!("tributary_batch_seconds").record(took.as_secs_f64());
    metrics::histogram!("tributary_batch_items").record(items as f64);
}
