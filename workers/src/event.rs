//! The event worker: [`tributary_core::services::events::handle`] decides what becomes of each event. Beside its lanes run the
//! [`crate::housekeeping`] tasks.

use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tributary_core::context::Context;
use tributary_core::ports::queue::{Item, Queue};
use tributary_core::services::batches::BatchOutcome;
use tributary_core::services::events::handle::handle_batch;

use crate::housekeeping;
pub use crate::lanes::Options;
use crate::lanes::{self, Consumer};

struct Events;

#[async_trait]
impl Consumer for Events {
    fn name(&self) -> &'static str {
        "event"
    }

    fn queue<'c>(&self, context: &'c Context) -> &'c dyn Queue {
        &*context.queue
    }

    async fn handle(&self, context: &Context, items: &[Item]) -> BatchOutcome {
        handle_batch(context, items).await
    }
}

/// Processes the events queue until `stop`; then finishes what is under way within the grace, gives back the rest.
pub async fn run(context: Context, options: Options, stop: CancellationToken) {
    let queue = context.queue.clone();
    let housekeeping = tokio::spawn(housekeeping::beside_events(context.clone(), queue, stop.clone()));
    lanes::run(context, Arc::new(Events), options, stop).await;
    let _ = housekeeping.await;
}
