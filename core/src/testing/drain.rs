use std::time::Duration;

use crate::context::Context;
use crate::ports::queue::Unfinished;
use crate::services::automations::runs::Outbound;
use crate::services::automations::{handle as jobs, scheduler};
use crate::services::events::handle::handle_batch;
use crate::services::outbox;

/// Most items of a batch.
const BATCH: usize = 100;

/// What was not done at first: it was retried, released or buried since.
#[derive(Debug, Default)]
pub struct Undone {
    /// Items of the events queue.
    pub events: Vec<Unfinished>,
    /// Items of the automations queue.
    pub jobs: Vec<Unfinished>,
}

/// Processes what is due - both queues, the outbox, runs of automations - in the caller's own task, until nothing is left.
///
/// # Panics
/// When a queue or the store fails.
pub async fn drain(context: &Context, outbound: &Outbound) -> Undone {
    let mut undone = Undone::default();
    loop {
        let mut done = 0;
        while let Some(batch) = context.queue.fetch(BATCH, Duration::ZERO).await.unwrap() {
            let outcome = handle_batch(context, &batch.items).await;
            assert!(outcome.store_unavailable.is_none(), "{:?}", outcome.store_unavailable);
            context.queue.ack(&batch, &outcome.unfinished).await.unwrap();
            undone.events.extend(outcome.unfinished);
            done += batch.items.len();
        }
        done += scheduler::enqueue_due(context).await.unwrap();
        done += outbox::drain(context).await.unwrap();
        while let Some(batch) = context.automation_queue.fetch(BATCH, Duration::ZERO).await.unwrap() {
            let outcome = jobs::handle_batch(context, outbound, &batch.items).await;
            assert!(outcome.store_unavailable.is_none(), "{:?}", outcome.store_unavailable);
            context.automation_queue.ack(&batch, &outcome.unfinished).await.unwrap();
            undone.jobs.extend(outcome.unfinished);
            done += batch.items.len();
        }
        if done == 0 {
            return undone;
        }
    }
}
