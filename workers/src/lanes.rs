//! Lanes: each fetches a batch, has it processed and acknowledges it; a worker runs several lanes over one queue.
//!
//! A [`Consumer`] processes the items; a lane extends the lease while it does, stops when it has lost the lease, and gives back what it
//! cannot finish. A batch that is processed but cannot be acknowledged is redelivered, and has no second effect.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use tokio::sync::{RwLock, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use tributary_core::context::Context;
use tributary_core::domain::backoff::jittered;
use tributary_core::failpoint;
use tributary_core::ports::queue::{Acked, Batch, Item, POLL, Queue, Then, Unfinished};
use tributary_core::ports::world::World;
use tributary_core::services::batches::{BatchOutcome, try_later};
use tributary_core::services::outbox;
use tributary_core::stopwatch::Stopwatch;

use crate::traces;

/// The first wait when a service is unavailable; it doubles up to [`RETRY_CAP`].
const RETRY_BASE: Duration = Duration::from_millis(100);
/// See [`RETRY_BASE`].
const RETRY_CAP: Duration = Duration::from_secs(2);
/// After which a lane leaves a batch to go on by itself, and takes the next, where its consumer lets it.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long a queue that cannot be reached is to be told that the worker of a lost batch lives.
const SURVIVES: Duration = Duration::from_secs(60 * 60);
/// The part of a batch that a lane fetches first after the store was unavailable; it doubles with each batch that works.
const RAMP: usize = 16;

/// How the loop runs.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Lanes: batches processed concurrently.
    pub concurrency: usize,
    /// Most items per batch.
    pub batch: usize,
    /// How long a batch may take to finish after `stop`.
    pub grace: Duration,
}

/// A queue, and what is done with its items.
#[async_trait]
pub trait Consumer: Send + Sync {
    /// What it is called in logs and metrics.
    fn name(&self) -> &'static str;

    fn queue<'c>(&self, context: &'c Context) -> &'c dyn Queue;

    /// How many batches of a lane may go on beside it that take long: those of a consumer that waits for others
    /// than the store.
    fn beside(&self) -> usize {
        0
    }

    /// Processes items. Never fails as a whole; what could not be done is in the outcome.
    async fn handle(&self, context: &Context, items: &[Item]) -> BatchOutcome;
}

/// Processes a consumer's queue until `stop`; then finishes what is under way within the grace, gives back the rest.
pub async fn run(context: Context, consumer: Arc<dyn Consumer>, options: Options, stop: CancellationToken) {
    // Cancelled when the grace is over: lanes give back what they hold.
    let give_back = CancellationToken::new();
    // Held shared by lanes at work, and alone by the one that works on a suspect.
    let quarantine = Arc::new(RwLock::new(()));
    let name = consumer.name();
    let mut lanes = JoinSet::new();
    for _ in 0..options.concurrency {
        let at = Lane {
            context: context.clone(),
            consumer: consumer.clone(),
            stop: stop.clone(),
            give_back: give_back.clone(),
        };
        lanes.spawn(at.go(options, quarantine.clone()));
    }
    tracing::info!(lanes = options.concurrency, batch = options.batch, "{name} worker started");
    stop.cancelled().await;
    let finish = async { while lanes.join_next().await.is_some() {} };
    if context.world.timeout(options.grace, finish).await.is_err() {
        give_back.cancel();
        while lanes.join_next().await.is_some() {}
    }
    tracing::info!("{name} worker stopped");
}

struct Lane {
    context: Context,
    consumer: Arc<dyn Consumer>,
    stop: CancellationToken,
    give_back: CancellationToken,
}

impl Lane {
    fn queue(&self) -> &dyn Queue {
        self.consumer.queue(&self.context)
    }

    async fn go(self, options: Options, quarantine: Arc<RwLock<()>>) {
        let this = Arc::new(self);
        let mut under_way = JoinSet::new();
        this.take_batches(options, &quarantine, &mut under_way).await;
        while under_way.join_next().await.is_some() {}
    }

    async fn take_batches(
        self: &Arc<Self>,
        options: Options,
        quarantine: &Arc<RwLock<()>>,
        under_way: &mut JoinSet<()>,
    ) {
        let mut failures = 0;
        let mut want = options.batch;
        while !self.stop.is_cancelled() {
            while under_way.try_join_next().is_some() {}
            // Nothing is taken while another lane works on a suspect.
            drop(quarantine.read().await);
            // Not dropped half-way when `stop` comes: a batch fetched for nobody would wait for its lease to end.
            match self.queue().fetch(want, POLL).await {
                Ok(None) => failures = 0,
                Ok(Some(batch)) => {
                    failures = 0;
                    let store_was_there = if batch.items.iter().any(|item| item.suspect) {
                        self.run_suspect(batch, quarantine).await
                    } else {
                        self.run_beside(batch, quarantine, under_way).await
                    };
                    want = ramp(want, options.batch, store_was_there);
                }
                Err(error) => {
                    failures += 1;
                    if failures == 1 {
                        tracing::warn!(%error, "fetching failed; trying again until it works");
                    }
                    self.pause(failures).await;
                }
            }
        }
    }

    /// Processes a batch; one that takes long, because somebody is slow to answer, goes on by itself, so that the lane has time for
    /// others.
    async fn run_beside(
        self: &Arc<Self>,
        batch: Batch,
        quarantine: &Arc<RwLock<()>>,
        under_way: &mut JoinSet<()>,
    ) -> bool {
        let with_others = quarantine.clone().read_owned().await;
        if self.consumer.beside() == 0 {
            return self.run_batch(batch).await;
        }
        let (what_failed, done) = oneshot::channel();
        let this = self.clone();
        let others = under_way.len();
        under_way.spawn(async move {
            let _ = what_failed.send(this.run_batch(batch).await);
            drop(with_others);
        });
        tokio::select! {
            store_was_there = done => store_was_there.unwrap_or(true),
            () = self.context.world.sleep(PATIENCE), if others < self.consumer.beside() => true,
        }
    }

    /// Processes a suspect while no other lane holds anything: if it kills this process, nobody else's loss counts. One that
    /// was fetched while others are at work goes back first, so that it is not lost with them either.
    async fn run_suspect(&self, batch: Batch, quarantine: &RwLock<()>) -> bool {
        if let Ok(_alone) = quarantine.try_write() {
            return self.run_batch(batch).await;
        }
        self.ack(&batch, &given_back(&batch).unfinished).await;
        let _alone = quarantine.write().await;
        if self.stop.is_cancelled() {
            return true;
        }
        match self.queue().fetch(1, Duration::ZERO).await {
            Ok(Some(batch)) => self.run_batch(batch).await,
            // Somebody else has it, or the queue is unavailable: the lane finds out.
            Ok(None) | Err(_) => true,
        }
    }

    /// Processes one batch: fetched, so it must be acked, given back, or lost. Answers whether the store was there.
    async fn run_batch(&self, batch: Batch) -> bool {
        let span = tracing::info_span!("batch", queue = self.consumer.name(), items = batch.items.len());
        let _processed = traces::received(&span, &batch.items);
        self.process(batch).instrument(span).await
    }

    async fn process(&self, batch: Batch) -> bool {
        let started = Stopwatch::start();
        failpoint::reached("fetched_before_handler");
        batch.items.iter().for_each(|item| failpoint::held(&item.payload));
        let outcome = tokio::select! {
            outcome = AssertUnwindSafe(self.consumer.handle(&self.context, &batch.items)).catch_unwind() => match outcome {
                Ok(outcome) => outcome,
                Err(_) => {
                    metrics::counter!("tributary_worker_panics_total").increment(1);
                    tracing::error!(items = batch.items.len(), "processing a batch panicked; its items are redelivered one by one");
                    to_blame(&self.context.world, &batch)
                }
            },
            () = self.lease_lost(&batch) => {
                metrics::counter!("tributary_worker_leases_lost_total").increment(1);
                tracing::warn!(items = batch.items.len(), "the lease was lost; somebody else works on this batch now");
                return true;
            }
            () = self.give_back.cancelled() => given_back(&batch),
        };
        record(self.consumer.name(), &outcome, batch.items.len(), started.elapsed());
        failpoint::reached("committed_before_ack");
        let ending = async {
            if let Err(error) = outbox::ended(&self.context, &batch.items, &outcome.unfinished).await {
                tracing::debug!(%error, "jobs that have ended stay in the outbox until a look at it");
            }
            self.ack(&batch, &outcome.unfinished).await;
        };
        tokio::select! {
            () = ending => {}
            // The lease is extended: what is committed must not be redelivered only because the queue was unavailable for a moment.
            () = self.lease_lost(&batch) => {
                tracing::warn!(items = batch.items.len(), "a batch could not be acknowledged; it is redelivered, without a second effect");
            }
        }
        failpoint::reached("acked_before_next");
        let Some(error) = outcome.store_unavailable else { return true };
        tracing::warn!(%error, "waiting for the store");
        self.wait_for_store().await;
        false
    }

    /// Returns when the lease is lost; keeps it alive until then. Where the queue cannot be reached, it is told later that this worker
    /// lives: the loss is not its item's.
    async fn lease_lost(&self, batch: &Batch) {
        let third = self.queue().lease() / 3;
        let world = &self.context.world;
        let mut held_until = world.monotonic() + self.queue().lease();
        loop {
            world.sleep(third).await;
            let asked = world.monotonic();
            match self.queue().beat(std::slice::from_ref(&batch.id)).await {
                Ok(lost) if lost.is_empty() => held_until = asked + self.queue().lease(),
                Ok(_) => return,
                // Whether the beat arrived is unknown: what is known is how long the last one holds.
                Err(_) if world.monotonic() >= held_until => return self.survives(batch),
                Err(error) => tracing::debug!(%error, "a beat failed"),
            }
        }
    }

    /// Gives a batch back that is lost by now, until the queue answers: so it hears that this worker lives.
    fn survives(&self, batch: &Batch) {
        let (consumer, context, batch) = (self.consumer.clone(), self.context.clone(), batch.clone());
        tokio::spawn(async move {
            let until = context.world.monotonic() + SURVIVES;
            // Where nobody has reclaimed it yet, it goes back as it was.
            let back = given_back(&batch).unfinished;
            while consumer.queue(&context).ack(&batch, &back).await.is_err()
                && context.world.monotonic() < until
            {
                context.world.sleep(RETRY_CAP).await;
            }
        });
    }

    /// Tries until there is an answer; the caller gives up when the lease is lost.
    async fn ack(&self, batch: &Batch, unfinished: &[Unfinished]) {
        for attempt in 1.. {
            match self.queue().ack(batch, unfinished).await {
                Ok(Acked::Done) => return,
                // Also when an earlier try of this loop arrived and only its answer was lost.
                Ok(Acked::Lost) => {
                    tracing::debug!(attempt, "the batch was no longer ours to ack");
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, attempt, "an ack failed");
                    let wait = jittered(RETRY_BASE, RETRY_CAP, attempt, self.context.world.fraction());
                    self.context.world.sleep(wait).await;
                }
            }
        }
    }

    async fn wait_for_store(&self) {
        let mut failures = 0;
        while !self.stop.is_cancelled() && self.context.store.ping().await.is_err() {
            failures += 1;
            self.pause(failures).await;
        }
        // All lanes come back at once otherwise.
        self.pause(1).await;
    }

    async fn pause(&self, failures: u32) {
        let world = &self.context.world;
        let wait = jittered(RETRY_BASE, RETRY_CAP, failures, world.fraction().max(0.1));
        tokio::select! {
            () = world.sleep(wait) => {}
            () = self.stop.cancelled() => {}
        }
    }
}

/// How many items a lane fetches next: few after an outage, so that a store that has just come back is not met by all
/// that waited for it, then more and more.
fn ramp(want: usize, most: usize, store_was_there: bool) -> usize {
    if store_was_there { (want * 2).min(most) } else { most.div_ceil(RAMP) }
}

/// Each item is redelivered alone; the one that makes its worker panic has failed.
fn to_blame(world: &World, batch: &Batch) -> BatchOutcome {
    let unfinished = match &*batch.items {
        [item] => vec![try_later(world, item, "processing it panicked; see the log")],
        items => items
            .iter()
            .map(|item| Unfinished { item: Item { suspect: true, ..item.clone() }, then: Then::Release })
            .collect(),
    };
    BatchOutcome { unfinished, ..BatchOutcome::default() }
}

fn given_back(batch: &Batch) -> BatchOutcome {
    let back = |item: &_| Unfinished { item: Clone::clone(item), then: Then::Release };
    BatchOutcome { unfinished: batch.items.iter().map(back).collect(), ..BatchOutcome::default() }
}

#[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
fn record(consumer: &'static str, outcome: &BatchOutcome, items: usize, took: Duration) {
    let buried = outcome.unfinished.iter().filter(|u| matches!(u.then, Then::Bury { .. })).count();
    // The events' counters came first, and have no label.
    if consumer == "event" {
        metrics::counter!("tributary_events_effective_total").increment(outcome.effective as u64);
        metrics::counter!("tributary_events_duplicate_total").increment(outcome.duplicates as u64);
        metrics::counter!("tributary_events_buried_total").increment(buried as u64);
        metrics::histogram!("tributary_batch_seconds").record(took.as_secs_f64());
        metrics::histogram!("tributary_batch_items").record(items as f64);
    } else {
        metrics::counter!("tributary_jobs_done_total").increment(outcome.effective as u64);
        metrics::counter!("tributary_jobs_buried_total").increment(buried as u64);
        metrics::histogram!("tributary_jobs_batch_seconds").record(took.as_secs_f64());
        metrics::histogram!("tributary_jobs_batch_items").record(items as f64);
    }
}

#[cfg(test)]
mod tests {
    use tributary_core::context::Backend;
    use tributary_core::ports::clock::ManualClock;
    use tributary_core::ports::queue::{NewItem, QueueSettings};

    use super::*;

    const SLOW: Duration = Duration::from_secs(3);

    /// Waits on items that say so, as for a receiver that does not answer.
    struct Waits(usize);

    #[async_trait]
    impl Consumer for Waits {
        fn name(&self) -> &'static str {
            "waits"
        }

        fn queue<'c>(&self, context: &'c Context) -> &'c dyn Queue {
            &*context.queue
        }

        fn beside(&self) -> usize {
            self.0
        }

        async fn handle(&self, context: &Context, items: &[Item]) -> BatchOutcome {
            if items.iter().any(|item| item.payload == "slow") {
                context.world.sleep(SLOW).await;
            }
            BatchOutcome::default()
        }
    }

    /// How many of one slow batch and three quick ones are done before the slow one is, and in the end.
    async fn done(consumer: Waits) -> (u64, u64) {
        let folder = tempfile::tempdir().unwrap();
        let backend = Backend::Embedded { data: folder.path().into() };
        let clock = ManualClock::at(1_800_000_000_000);
        let world = World::on(clock.clone());
        let context = Context::open_in(&backend, QueueSettings::default(), world).await.unwrap();
        for payload in ["slow", "a", "b", "c"] {
            context
                .queue
                .enqueue(&[NewItem { payload: payload.into(), ..NewItem::default() }])
                .await
                .unwrap();
        }
        let options = Options { concurrency: 1, batch: 1, grace: Duration::from_secs(10) };
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(context.clone(), Arc::new(consumer), options, stop.clone()));
        let acked = async || context.queue.stats().await.unwrap().acked;
        // As long as the clock does not reach the slow one's end, it may be moved as often as the lane needs.
        let mut early = 0;
        for _ in 0..SLOW.as_millis() / 100 - 1 {
            clock.advance(100);
            early = settled(&acked).await;
        }
        stop.cancel();
        while !running.is_finished() {
            clock.advance(100);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        running.await.unwrap();
        (early, context.queue.stats().await.unwrap().acked)
    }

    /// A number, once it has stayed the same for some looks.
    async fn settled(number: &impl AsyncFn() -> u64) -> u64 {
        let (mut last, mut same) = (number().await, 0);
        while same < 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let now = number().await;
            same = if now == last { same + 1 } else { 0 };
            last = now;
        }
        last
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_batch_that_waits_holds_up_no_other_and_is_finished() {
        assert_eq!(done(Waits(1)).await, (3, 4));
        assert_eq!(done(Waits(0)).await.0, 0, "where the consumer does not let it, the order is kept");
    }

    #[test]
    fn a_lane_comes_back_from_an_outage_step_by_step() {
        let mut want = ramp(500, 500, false);
        let mut steps = vec![want];
        while want < 500 {
            want = ramp(want, 500, true);
            steps.push(want);
        }
        assert_eq!(steps, [32, 64, 128, 256, 500]);
        assert_eq!((ramp(1, 1, false), ramp(1, 1, true), ramp(500, 500, true)), (1, 1, 500));
    }
}
