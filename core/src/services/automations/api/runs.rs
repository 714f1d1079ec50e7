//! Runs: shown, cancelled, retried.

use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::AutomationError;
use crate::context::Context;
use crate::domain::automation::run::{ActionRow, ActionStatus, Entry, Run, Status};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::time::{self, from_ms};
use crate::services::automations::jobs::Job;
use crate::services::privacy::{Action, entry};

/// A run, as people see it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct RunAnswer {
    /// The id, as paths name it.
    pub id: Uuid,
    /// The id of the automation that it is a run of.
    pub automation: Uuid,
    /// Of which version of it.
    pub version: i32,
    /// The id of the customer that it is for.
    pub customer: ProfileId,
    /// Whether it waits, is being executed, or has ended and how.
    pub status: Status,
    /// What started it: an event, a segment or a schedule, with its id.
    pub trigger: String,
    /// When it goes on, if it waits for a time.
    pub due_at: Option<String>,
    /// When it began, as ISO 8601.
    pub started_at: String,
    /// When it last changed.
    pub updated_at: String,
    /// Every step, and why it was taken or skipped, oldest first.
    pub log: Vec<EntryAnswer>,
    /// What it did outside, and is doing; only where one run is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actions: Option<Vec<ActionAnswer>>,
}

/// An entry of a run's log.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct EntryAnswer {
    /// When that happened, as ISO 8601.
    pub at: String,
    /// Which step, like `2.then.1`.
    pub step: Option<String>,
    /// What became of it.
    pub what: String,
    /// Why, in a sentence; null where nothing needs a reason.
    pub why: Option<String>,
}

impl From<&Entry> for EntryAnswer {
    fn from(entry: &Entry) -> Self {
        let at = time::format(from_ms(entry.at_ms));
        Self { at, step: entry.step.clone(), what: entry.what.clone(), why: entry.why.clone() }
    }
}

/// An action of a run.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ActionAnswer {
    /// The same for every try: the receiver's `Idempotency-Key` and `webhook-id`.
    pub key: String,
    /// The kind of action, such as `email`.
    pub kind: String,
    /// The host or the address that it is sent to.
    pub destination: Option<String>,
    /// What became of it.
    pub status: ActionStatus,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was first tried.
    pub first_at: String,
    /// When it last changed.
    pub last_at: String,
    /// What went wrong last.
    pub error: Option<String>,
}

impl From<&ActionRow> for ActionAnswer {
    fn from(row: &ActionRow) -> Self {
        Self {
            key: row.key(),
            kind: row.kind.clone(),
            destination: row.destination.clone(),
            status: row.status,
            attempts: row.attempts,
            first_at: time::format(from_ms(row.first_ms)),
            last_at: time::format(from_ms(row.last_ms)),
            error: row.error.clone(),
        }
    }
}

impl From<&Run> for RunAnswer {
    fn from(run: &Run) -> Self {
        let at = |ms| time::format(from_ms(ms));
        Self {
            id: run.id,
            automation: run.automation,
            version: run.version,
            customer: run.profile,
            status: run.status,
            trigger: run.trigger_key.clone(),
            due_at: run.due_ms.map(at),
            started_at: at(run.started_ms),
            updated_at: at(run.updated_ms),
            log: run.state.log.iter().map(EntryAnswer::from).collect(),
            actions: None,
        }
    }
}

/// A run with its actions.
///
/// # Errors
/// When there is none, or the store is unavailable.
pub async fn run(context: &Context, brand: BrandId, id: Uuid) -> Result<RunAnswer, AutomationError> {
    let (run, actions) = context.automations.run(brand, id).await?.ok_or(AutomationError::NotFound("run"))?;
    Ok(RunAnswer { actions: Some(actions.iter().map(ActionAnswer::from).collect()), ..RunAnswer::from(&run) })
}

/// Ends a run.
///
/// # Errors
/// When there is none, it has ended already, or the store is unavailable.
pub async fn cancel(
    context: &Context,
    brand: BrandId,
    id: Uuid,
    who: &str,
) -> Result<RunAnswer, AutomationError> {
    change(context, brand, id, ("run_cancelled", who), |run, _, now_ms| {
        if !run.status.is_live() && run.status != Status::Failed {
            return Err(AutomationError::Refused(format!(
                "the run has ended: it is {}",
                run.status.as_str()
            )));
        }
        run.end(Status::Cancelled, now_ms, "cancelled", Some(format!("by {who}")));
        Ok(false)
    })
    .await
}

/// Tries a failed run's action again.
///
/// # Errors
/// When there is none, it has not failed, or the store is unavailable.
pub async fn retry(
    context: &Context,
    brand: BrandId,
    id: Uuid,
    who: &str,
) -> Result<RunAnswer, AutomationError> {
    change(context, brand, id, ("run_retried", who), |run, actions, now_ms| {
        // A queued one may have lost its job: another at a new revision does no harm.
        if ![Status::Failed, Status::Queued].contains(&run.status) {
            return Err(AutomationError::Refused(format!(
                "only a failed run can be retried; this one is {}",
                run.status.as_str()
            )));
        }
        run.status = Status::Queued;
        run.revision += 1;
        run.note(now_ms, None, "retried", Some(format!("by {who}")));
        for row in actions.iter_mut().filter(|row| Some(row.node) == run.state.at) {
            row.attempts = 0;
        }
        Ok(true)
    })
    .await
}

/// Changes a run under its lock, and notes who did what; queues it where that is asked for.
async fn change(
    context: &Context,
    brand: BrandId,
    id: Uuid,
    (what, who): (&'static str, &str),
    how: impl FnOnce(&mut Run, &mut Vec<ActionRow>, i64) -> Result<bool, AutomationError>,
) -> Result<RunAnswer, AutomationError> {
    let now_ms = context.world.now_ms();
    let mut tx = context.automations.begin_for(brand).await?;
    let held = tx.lock_runs(&[id]).await?.into_iter().find(|run| run.brand == brand);
    let mut held = held.ok_or(AutomationError::NotFound("run"))?;
    let mut actions = tx.actions(&[id]).await?;
    let queued = how(&mut held, &mut actions, now_ms)?;
    held.updated_ms = now_ms;
    tx.save_runs(std::slice::from_ref(&held)).await?;
    if !actions.is_empty() {
        tx.save_actions(&actions).await?;
    }
    if queued {
        tx.stage(&[Job::of(&held).stage()], now_ms).await?;
    }
    let action = Action { what, subject: Some(held.profile), details: json!({"run": id}) };
    tx.append_audit(&entry(context, brand, who, action)).await?;
    tx.commit().await?;
    run(context, brand, id).await
}
