//! The automation worker: [`tributary_core::services::automations`] decides what becomes of each job. Beside its lanes it looks for
//! what is due.

use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use tributary_core::context::Context;
use tributary_core::ports::queue::{Item, Queue};
use tributary_core::services::automations::handle::handle_batch;
use tributary_core::services::automations::preflight::{self, Abilities};
use tributary_core::services::automations::runs::Outbound;
use tributary_core::services::batches::BatchOutcome;

use crate::housekeeping;
use crate::lanes::{self, Consumer, Options};

/// Batches of a lane that may wait for slow receivers while it takes others.
const BESIDE: usize = 16;

struct Automations {
    outbound: Outbound,
}

#[async_trait]
impl Consumer for Automations {
    fn name(&self) -> &'static str {
        "automation"
    }

    fn queue<'c>(&self, context: &'c Context) -> &'c dyn Queue {
        &*context.automation_queue
    }

    fn beside(&self) -> usize {
        BESIDE
    }

    async fn handle(&self, context: &Context, items: &[Item]) -> BatchOutcome {
        handle_batch(context, &self.outbound, items).await
    }
}

/// Processes the automations queue, and fills it with what is due, until `stop`; then finishes what is under way within the grace,
/// gives back the rest.
pub async fn run(context: Context, outbound: Outbound, options: Options, stop: CancellationToken) {
    let queue = context.automation_queue.clone();
    let abilities = Abilities::of(&outbound);
    preflight::report_abilities(&context, abilities).await;
    let housekeeping =
        tokio::spawn(housekeeping::beside_automations(context.clone(), queue, abilities, stop.clone()));
    lanes::run(context, Arc::new(Automations { outbound }), options, stop).await;
    let _ = housekeeping.await;
}
