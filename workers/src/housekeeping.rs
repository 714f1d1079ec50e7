//! What every worker process does beside its lanes. Any number of them may do it at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tributary_core::context::Context;
use tributary_core::ports::locks::Acquired;
use tributary_core::ports::queue::Queue;
use tributary_core::services::automations::waker::{fill_once, wake};
use tributary_core::services::locks::acquire;
use tributary_core::services::outbox::drain;
use tributary_core::services::privacy::{self, carry_out};

/// How often leases that ran out are looked for. Part of the promise: a dead worker's items return within lease + 1 s.
const RECLAIM_EVERY: Duration = Duration::from_millis(500);
/// How often the outbox is looked into.
const DRAIN_EVERY: Duration = Duration::from_millis(500);
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

/// Does what belongs to the events queue and to the store, until `stop`.
pub async fn beside_events(context: Context, queue: Arc<dyn Queue>, stop: CancellationToken) {
    let work = async {
        let own = async { tokio::join!(reclaim(&*queue), audit(&context, &*queue, "audit")) };
        tokio::join!(own, bring(&context), carry(&context), retain(&context))
    };
    tokio::select! {
        _ = work => {}
        () = stop.cancelled() => {}
    }
}

/// Does what belongs to the automations queue, until `stop`: and puts into it what is due.
pub async fn beside_automations(context: Context, queue: Arc<dyn Queue>, stop: CancellationToken) {
    let work = async {
        let own = async { tokio::join!(reclaim(&*queue), audit(&context, &*queue, "audit-automations")) };
        tokio::join!(own, bring(&context), wake_up(&context))
    };
    tokio::select! {
        _ = work => {}
        () = stop.cancelled() => {}
    }
}

/// What is due goes to its queue.
async fn wake_up(context: &Context) {
    while let Err(error) = fill_once(context).await {
        tracing::debug!(%error, "asking customers what they belong to waits for the store");
        sleep(PRIVACY_EVERY).await;
    }
    loop {
        if let Err(error) = wake(context).await {
            tracing::debug!(%error, "looking for what is due failed; it is tried again");
        }
        sleep(WAKE_EVERY).await;
    }
}

async fn reclaim(queue: &dyn Queue) {
    loop {
        match queue.reclaim().await {
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

/// Requests in the name of privacy are carried out.
async fn carry(context: &Context) {
    loop {
        sleep(PRIVACY_EVERY).await;
        // Nearly always nothing waits: then there is nothing to lock.
        if context.privacy.open_requests(context.clock.now(), 1).await.is_ok_and(|open| open.is_empty()) {
            continue;
        }
        // One process at a time will do; without locks all do, which changes nothing.
        let names = [String::from("privacy")];
        let locked = acquire(&*context.locks, &*context.store, &names, PRIVACY_LOCK, None).await;
        let lock = match locked {
            Ok(Ok(Acquired::Busy)) => continue,
            Ok(Ok(Acquired::Held(lock))) => Some(lock),
            _ => None,
        };
        if let Err(error) = carry_out(context).await {
            tracing::warn!(%error, "a privacy request waits; it is tried again");
        }
        if let Some(lock) = lock {
            let _ = context.locks.release(&lock).await;
        }
    }
}

/// What is older than its brand keeps events is deleted.
async fn retain(context: &Context) {
    loop {
        sleep(RETAIN_EVERY.mul_f64(rand::random::<f64>() + 0.5)).await;
        match privacy::retain(context).await {
            Ok(0) => {}
            Ok(events) => tracing::info!(events, "deleted events older than their brand keeps them"),
            Err(error) => tracing::warn!(%error, "deleting old events failed; it is tried again"),
        }
    }
}

async fn audit(context: &Context, queue: &dyn Queue, lock: &str) {
    let mut next = Instant::now() + AUDIT_EVERY;
    loop {
        tokio::time::sleep_until(next).await;
        // Not all processes in the same moment.
        next = Instant::now() + AUDIT_EVERY.mul_f64(rand::random::<f64>() + 0.5);
        // One process at a time will do: it looks at every key.
        let names = [lock.to_owned()];
        let locked = acquire(&*context.locks, &*context.store, &names, AUDIT_EVERY / 2, None).await;
        if matches!(locked, Ok(Ok(Acquired::Busy))) {
            continue;
        }
        match queue.audit().await {
            Ok(found) if found.strays + found.repaired > 0 => {
                metrics::counter!("tributary_queue_strays_total").increment(found.strays + found.repaired);
                tracing::error!(found.strays, found.repaired, "an audit found strays, and repaired them");
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "an audit failed"),
        }
    }
}
