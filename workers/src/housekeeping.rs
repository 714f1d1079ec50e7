//! What every worker process does beside its lanes. Any number of them may do it at once.
//!
//! Each loop is a task of its own: what one panics over, waits for or never ends with keeps no other from its rounds.
//! [`tributary_core::services::rounds`] remembers when each last came round, for health.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tributary_core::context::Context;
use tributary_core::ports::queue::Queue;
use tributary_core::ports::world::World;
use tributary_core::services::automations::preflight::{self, Abilities};
use tributary_core::services::automations::scheduler::{enqueue_due, fill_once};
use tributary_core::services::locks::{Granted, acquire};
use tributary_core::services::outbox::{check, drain};
use tributary_core::services::privacy::{self, carry_out};
use tributary_core::services::rounds::panicked;

/// How often leases that ran out are looked for. Part of the promise: a dead worker's items return within lease + 1 s.
const RECLAIM_EVERY: Duration = Duration::from_millis(500);
/// How often the outbox is looked into.
const DRAIN_EVERY: Duration = Duration::from_millis(500);
/// How often queues are asked whether they have what the outbox gave them.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// How often what is due is looked for: three looks at the beginning of an index.
const WAKE_EVERY: Duration = Duration::from_millis(200);
/// How often requests in the name of privacy are looked for.
const PRIVACY_EVERY: Duration = Duration::from_secs(1);
/// How long one process keeps the others from carrying them out.
const PRIVACY_LOCK: Duration = Duration::from_secs(30);
/// About how often events are looked for that are older than their brand keeps them.
const RETAIN_EVERY: Duration = Duration::from_secs(60 * 60);
/// How often strays are looked for.
const AUDIT_EVERY: Duration = Duration::from_secs(60);

/// How long a loop rests that has panicked.
const AFTER_PANIC: Duration = Duration::from_secs(1);
/// After so many of its periods without a completed round, and [`LATE_BESIDES`], a loop is late.
const LATE_PERIODS: u32 = 4;
/// What a round may take besides.
const LATE_BESIDES: Duration = Duration::from_secs(60);

/// Does what belongs to the events queue and to the store, until `stop`.
pub async fn beside_events(context: Context, queue: Arc<dyn Queue>, stop: CancellationToken) {
    let mut loops = Loops { context, stop, tasks: JoinSet::new() };
    let own = queue.clone();
    loops.begin(Pace::even("reclaim", RECLAIM_EVERY), move |_| reclaim(own.clone()));
    loops.begin(Pace::spread("audit", AUDIT_EVERY), move |context| audit(context, queue.clone(), "audit"));
    loops.begin(Pace::even("outbox", DRAIN_EVERY), drain_outbox);
    loops.begin(Pace::spread("outbox_check", CHECK_EVERY), look_after);
    loops.begin(Pace::even("privacy", PRIVACY_EVERY), carry);
    loops.begin(Pace::spread("retention", RETAIN_EVERY), retain);
    loops.ended().await;
}

/// Does what belongs to the automations queue, until `stop`: and puts into it what is due.
pub async fn beside_automations(
    context: Context,
    queue: Arc<dyn Queue>,
    abilities: Abilities,
    stop: CancellationToken,
) {
    let mut loops = Loops { context, stop, tasks: JoinSet::new() };
    let (own, filled) = (queue.clone(), Arc::new(AtomicBool::new(false)));
    loops.begin(Pace::even("reclaim_automations", RECLAIM_EVERY), move |_| reclaim(own.clone()));
    loops.begin(Pace::spread("audit_automations", AUDIT_EVERY), move |context| {
        audit(context, queue.clone(), "audit-automations")
    });
    loops.begin(Pace::even("outbox_automations", DRAIN_EVERY), drain_outbox);
    loops.begin(Pace::spread("outbox_check_automations", CHECK_EVERY), look_after);
    loops.begin(Pace::even("fill", PRIVACY_EVERY), move |context| fill(context, filled.clone()));
    loops.begin(Pace::even("wake", WAKE_EVERY), enqueue_due_runs);
    loops.begin(Pace::even("preflight", preflight::SAID_EVERY), move |context| say(context, abilities));
    loops.ended().await;
}

/// What a loop is called, and how often it comes round.
#[derive(Clone, Copy)]
struct Pace {
    name: &'static str,
    every: Duration,
    /// Not all processes in the same moment, and not at the start of a process.
    spread: bool,
}

impl Pace {
    fn even(name: &'static str, every: Duration) -> Self {
        Self { name, every, spread: false }
    }

    fn spread(name: &'static str, every: Duration) -> Self {
        Self { name, every, spread: true }
    }

    async fn pause(self, world: &World) {
        let part = if self.spread { world.fraction() + 0.5 } else { 1.0 };
        world.sleep(self.every.mul_f64(part)).await;
    }
}

/// The loops of one kind of worker.
struct Loops {
    context: Context,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Loops {
    /// Begins a loop: `round` after `round`, until `stop`. A round that fails or panics is followed by the next.
    fn begin<F, R>(&mut self, pace: Pace, round: F)
    where
        F: Fn(Context) -> R + Send + Sync + 'static,
        R: Future<Output = anyhow::Result<()>> + Send,
    {
        let (context, stop) = (self.context.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            context.rounds.begin(pace.name, pace.every * LATE_PERIODS + LATE_BESIDES);
            tokio::select! {
                () = come_round(&context, pace, &round) => {}
                () = stop.cancelled() => {}
            }
            context.rounds.end(pace.name);
        });
    }

    async fn ended(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn come_round<F, R>(context: &Context, pace: Pace, round: &F)
where
    F: Fn(Context) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    if pace.spread {
        pace.pause(&context.world).await;
    }
    loop {
        // Called within, too: what panics before its first await is caught as well.
        let once = async { round(context.clone()).await };
        match AssertUnwindSafe(once).catch_unwind().await {
            Ok(Ok(())) => {
                context.rounds.done(pace.name);
                #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
                metrics::gauge!("tributary_housekeeping_last_round_timestamp_seconds", "loop" => pace.name)
                    .set(context.world.now_ms() as f64 / 1000.0);
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, name = pace.name, "a round of the housekeeping failed; the next one tries again");
            }
            Err(_) => {
                panicked(pace.name);
                tracing::error!(name = pace.name, "a round of the housekeeping panicked; the loop continues");
                context.world.sleep(AFTER_PANIC).await;
            }
        }
        pace.pause(&context.world).await;
    }
}

/// What this worker can do is known to those who activate automations.
async fn say(context: Context, abilities: Abilities) -> anyhow::Result<()> {
    preflight::report_abilities(&context, abilities).await;
    Ok(())
}

/// What is due goes to its queue.
async fn enqueue_due_runs(context: Context) -> anyhow::Result<()> {
    enqueue_due(&context).await?;
    Ok(())
}

/// Once in a process: customers who were there before there were segments are asked what they belong to.
async fn fill(context: Context, filled: Arc<AtomicBool>) -> anyhow::Result<()> {
    if !filled.load(Ordering::Relaxed) {
        fill_once(&context).await?;
        filled.store(true, Ordering::Relaxed);
    }
    Ok(())
}

async fn reclaim(queue: Arc<dyn Queue>) -> anyhow::Result<()> {
    loop {
        let reclaimed = queue.reclaim().await?;
        if reclaimed.returned + reclaimed.buried == 0 {
            return Ok(());
        }
        // There may be more than one call takes.
        tracing::warn!(reclaimed.returned, reclaimed.buried, "took over from a lost worker");
    }
}

/// What waits in the outbox goes to its queue. While it waits, health says for how long.
async fn drain_outbox(context: Context) -> anyhow::Result<()> {
    let items = drain(&context).await?;
    if items > 0 {
        tracing::debug!(items, "brought items from the outbox to their queue");
    }
    Ok(())
}

/// What a queue has forgotten waits in the outbox again.
async fn look_after(context: Context) -> anyhow::Result<()> {
    check(&context).await?;
    Ok(())
}

/// Requests in the name of privacy are carried out.
async fn carry(context: Context) -> anyhow::Result<()> {
    // Nearly always nothing waits: then there is nothing to lock.
    if context.privacy.open_requests(context.world.now(), 1).await?.is_empty() {
        return Ok(());
    }
    // One process at a time will do; without locks all do, which changes nothing.
    let names = [String::from("privacy")];
    let locked = acquire(&*context.locks, Some(&*context.store), &names, PRIVACY_LOCK, None).await;
    let lock = match locked {
        Ok(Granted::Busy) => return Ok(()),
        Ok(Granted::Held(lock)) => Some(lock),
        _ => None,
    };
    // Also where it panics: the lock is given back, not left to run out.
    let carried = AssertUnwindSafe(carry_out(&context)).catch_unwind().await;
    if let Some(lock) = lock {
        let _ = context.locks.release(&lock).await;
    }
    match carried {
        Ok(carried) => {
            if let Err(error) = &carried {
                tracing::warn!(%error, "a privacy request waits; it is tried again");
            }
            carried?;
            Ok(())
        }
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// What is older than its brand keeps events is deleted.
async fn retain(context: Context) -> anyhow::Result<()> {
    let events = privacy::retain(&context).await?;
    if events > 0 {
        tracing::info!(events, "deleted events older than their brand keeps them");
    }
    Ok(())
}

async fn audit(context: Context, queue: Arc<dyn Queue>, lock: &'static str) -> anyhow::Result<()> {
    // One process at a time will do: it looks at every key.
    let names = [lock.to_owned()];
    let locked = acquire(&*context.locks, Some(&*context.store), &names, AUDIT_EVERY / 2, None).await;
    if matches!(locked, Ok(Granted::Busy)) {
        return Ok(());
    }
    let found = queue.repair().await?;
    if found.strays + found.repaired > 0 {
        metrics::counter!("tributary_queue_strays_total").increment(found.strays + found.repaired);
        tracing::error!(found.strays, found.repaired, "a queue audit found stray items and repaired them");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use tributary_core::context::Backend;
    use tributary_core::ports::queue::QueueSettings;

    use super::*;

    #[tokio::test]
    async fn a_loop_that_panics_begins_again_and_ends_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let backend = Backend::Embedded { data: folder.path().to_owned() };
        let context = Context::open(&backend, QueueSettings::default()).await.unwrap();
        let stop = CancellationToken::new();
        let mut loops = Loops { context: context.clone(), stop: stop.clone(), tasks: JoinSet::new() };
        let panics = Arc::new(AtomicU32::new(0));
        let (seen, done) = (panics.clone(), stop.clone());
        loops.begin(Pace::even("panics", Duration::from_millis(1)), move |_| {
            let (seen, done) = (seen.clone(), done.clone());
            async move {
                if seen.fetch_add(1, Ordering::Relaxed) == 1 {
                    done.cancel();
                }
                panic!("as a number of a brand's might make it");
            }
        });
        let (rounds, well) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let beside = rounds.clone();
        loops.begin(Pace::even("well", Duration::from_millis(1)), move |_| {
            beside.fetch_add(1, Ordering::Relaxed);
            let well = well.clone();
            async move {
                well.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        });
        loops.ended().await;
        assert!(panics.load(Ordering::Relaxed) >= 2, "it was begun again");
        assert!(rounds.load(Ordering::Relaxed) > 100, "the other went on meanwhile");
        context.close().await;
    }
}
