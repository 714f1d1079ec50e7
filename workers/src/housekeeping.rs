//! What every worker process does beside its lanes. Any number of them may do it at once.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tributary_core::context::Context;
use tributary_core::ports::locks::Acquired;
use tributary_core::services::locks::acquire;
use tributary_core::services::outbox::drain;

/// How often leases that ran out are looked for. Part of the promise: a dead worker's items return within lease + 1 s.
const RECLAIM_EVERY: Duration = Duration::from_millis(500);
/// How often the outbox is looked into.
const DRAIN_EVERY: Duration = Duration::from_millis(500);
/// How often strays are looked for.
const AUDIT_EVERY: Duration = Duration::from_secs(60);

/// Does it until `stop`.
pub async fn run(context: Context, stop: CancellationToken) {
    let work = async { tokio::join!(reclaim(&context), bring(&context), audit(&context)) };
    tokio::select! {
        _ = work => {}
        () = stop.cancelled() => {}
    }
}

async fn reclaim(context: &Context) {
    loop {
        match context.queue.reclaim().await {
            Ok(reclaimed) if reclaimed.returned + reclaimed.buried > 0 => {
                tracing::warn!(reclaimed.returned, reclaimed.buried, "took over from a lost worker");
                // There may be more than one call takes.
                continue;
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "reclaiming failed"),
        }
        sleep(RECLAIM_EVERY).await;
    }
}

/// What waits in the outbox goes to its queue.
async fn bring(context: &Context) {
    loop {
        match drain(context).await {
            Ok(0) => {}
            Ok(items) => tracing::info!(items, "brought items from the outbox to their queue"),
            Err(error) => tracing::debug!(%error, "the outbox waits; health says for how long"),
        }
        sleep(DRAIN_EVERY).await;
    }
}

async fn audit(context: &Context) {
    let mut next = Instant::now() + AUDIT_EVERY;
    loop {
        tokio::time::sleep_until(next).await;
        // Not all processes in the same moment.
        next = Instant::now() + AUDIT_EVERY.mul_f64(rand::random::<f64>() + 0.5);
        // One process at a time will do: it looks at every key.
        let names = [String::from("audit")];
        let locked = acquire(&*context.locks, &*context.store, &names, AUDIT_EVERY / 2, None).await;
        if matches!(locked, Ok(Ok(Acquired::Busy))) {
            continue;
        }
        match context.queue.audit().await {
            Ok(found) if found.strays + found.repaired > 0 => {
                metrics::counter!("tributary_queue_strays_total").increment(found.strays + found.repaired);
                tracing::error!(found.strays, found.repaired, "an audit found strays, and repaired them");
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "an audit failed"),
        }
    }
}
