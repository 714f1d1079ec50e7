//! Sending messages, and what their outcomes mean for a run.

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::{JobOutcome, Outbound};
use crate::context::{Context, EVENTS_QUEUE};
use crate::domain::automation::emitted;
use crate::domain::automation::plan::Plan;
use crate::domain::automation::run::{ActionRow, ActionStatus, Run, action_key};
use crate::domain::backoff::{MAX_ATTEMPTS, full_jitter};
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::ports::outbox::Stage;
use crate::ports::queue::NewItem;
use crate::ports::sender::{OutboundMessage, SendOutcome};
use crate::ports::world::World;
use crate::sampled::Sampled;
use crate::services::automations::destinations::Permit;

/// Destinations that gave no answer.
static UNREACHED: Sampled = Sampled::new();
/// How long an outcome waits for others, to be recorded with them.
const TOGETHER: Duration = Duration::from_millis(50);
/// The longest wait that a receiver's Retry-After is heeded for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Outcomes of messages by their run, with the node that each is of.
pub(super) type Outcomes = HashMap<Uuid, (usize, SendOutcome)>;

/// A message that is to be sent.
pub(super) struct Sending {
    pub(super) run: Uuid,
    pub(super) node: usize,
    pub(super) permit: Permit,
    pub(super) message: OutboundMessage,
}

/// Sends a message, and tells its destination's state what came of it.
pub(super) async fn send(
    context: &Context,
    outbound: &Outbound,
    at_once: &Semaphore,
    Sending { run, node, permit, message }: Sending,
) -> (Uuid, (usize, SendOutcome)) {
    // The semaphore is never closed, so there is always a turn.
    let _turn = at_once.acquire().await;
    let outcome = strip_nul(outbound.sender.send(&message).await);
    // A refusal is an answer, and so is a Retry-After: the destination is reachable.
    let reachable = !matches!(outcome, SendOutcome::Later { after: None, .. });
    if let (SendOutcome::Later { error, .. }, false) = (&outcome, reachable)
        && let Some(times) = UNREACHED.happened(1)
    {
        let destination = permit.destination();
        tracing::warn!(
            times,
            destination,
            error,
            "messages of automations do not reach their destination and are retried; this is the last"
        );
    }
    permit.tell(reachable, context.world.uptime_ms());
    let label = match outcome {
        SendOutcome::Done(_) => "done",
        SendOutcome::Later { .. } => "later",
        SendOutcome::Refused(_) => "refused",
        SendOutcome::Bounced { .. } => "bounced",
    };
    metrics::counter!("tributary_actions_total", "outcome" => label).increment(1);
    (run, (node, outcome))
}

/// The next outcome, and those that come within [`TOGETHER`]; none where nothing is under way.
pub(super) async fn outcomes(
    world: &World,
    under_way: &mut FuturesUnordered<impl Future<Output = (Uuid, (usize, SendOutcome))>>,
) -> Outcomes {
    let mut outcomes: Outcomes = under_way.next().await.into_iter().collect();
    let _ = world
        .timeout(TOGETHER, async {
            while let Some((run, outcome)) = under_way.next().await {
                outcomes.insert(run, outcome);
            }
        })
        .await;
    outcomes
}

/// PostgreSQL keeps no NUL in a text, and the words are the receiver's.
fn strip_nul(outcome: SendOutcome) -> SendOutcome {
    let clean = |text: String| text.replace('\0', "");
    match outcome {
        SendOutcome::Done(how) => SendOutcome::Done(clean(how)),
        SendOutcome::Later { error, after } => SendOutcome::Later { error: clean(error), after },
        SendOutcome::Refused(error) => SendOutcome::Refused(clean(error)),
        SendOutcome::Bounced { to, error } => SendOutcome::Bounced { to, error: clean(error) },
    }
}

/// Applies a message's outcome to its run and to the action's record.
pub(super) fn apply_outcome(
    world: &World,
    run: &mut Run,
    plan: &Plan,
    row: &mut ActionRow,
    outcome: &SendOutcome,
    now_ms: i64,
) -> JobOutcome {
    row.last_ms = now_ms;
    let error = match outcome {
        SendOutcome::Done(how) => {
            row.status = ActionStatus::Done;
            row.error = None;
            run.done(plan, row.node, row.first_ms, now_ms, Some(how.clone()));
            return JobOutcome::Done;
        }
        SendOutcome::Later { error, after } if row.attempts < MAX_ATTEMPTS => {
            row.error = Some(error.clone());
            let after = after.unwrap_or_default().min(MAX_RETRY_AFTER);
            let delay = full_jitter(row.attempts, world.fraction()).max(after);
            return JobOutcome::Retry { delay, error: error.clone() };
        }
        SendOutcome::Later { error, .. } => format!("failed {} times, at last: {error}", row.attempts),
        SendOutcome::Refused(error) | SendOutcome::Bounced { error, .. } => error.clone(),
    };
    row.status = ActionStatus::Failed;
    row.error = Some(error.clone());
    run.failed(plan, row.node, now_ms, error.clone());
    JobOutcome::Bury { error }
}

/// The event by which an address that takes no mail is written to no more.
pub(super) fn bounce_event(run: &Run, row: &ActionRow, outcome: &SendOutcome, now_ms: i64) -> Option<Stage> {
    let SendOutcome::Bounced { to, .. } = outcome else { return None };
    let address = Identifier { kind: IdentifierKind::Email, value: to.clone() };
    let key = format!("{}-bounced", action_key(run.id, row.node));
    let payload = emitted::envelope(run.brand, &key, &address, &emitted::bounced(to), now_ms)?;
    let item = NewItem { payload: payload.into(), brand: Some(run.brand), ..NewItem::default() };
    Some(Stage { queue: EVENTS_QUEUE.to_owned(), item })
}
