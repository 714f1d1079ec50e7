//! Dry runs: what an automation would do for a customer.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::definitions::{answer, found, unready};
use super::{AutomationError, EntryAnswer, compile, within_limits};
use crate::context::Context;
use crate::domain::automation::definition::Trigger as Starts;
use crate::domain::automation::facts::{Facts, Trigger};
use crate::domain::automation::meter::{self, PAGE as PAGE_EFFORT};
use crate::domain::automation::plan::Plan;
use crate::domain::automation::run::RunOf;
use crate::domain::automation::run::{Cause, Past, Run, Situation, may_enter};
use crate::domain::customer360::StoredEvent;
use crate::domain::event::{Rejection, Source};
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::settings::BrandSettings;
use crate::domain::time::{Timestamp, from_ms};
use crate::services::automations::runs::{Effect, describe};

/// How often a dry run waits before it is given up: more than an automation has steps.
const DRY_WAITS: usize = 60;

/// What to try an automation with.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DryRun {
    /// The customer's id. One of `customer` and `email` is needed.
    #[serde(default)]
    #[schema(nullable = false)]
    pub customer: Option<ProfileId>,
    /// The customer's e-mail address.
    #[serde(default)]
    #[schema(nullable = false)]
    pub email: Option<String>,
    /// The event that starts it, by its message id: the customer's newest of that name, if absent; a made-up one, if there is none.
    #[serde(default)]
    pub message_id: Option<String>,
}

/// What a run would do that began now, step by step.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct DryAnswer {
    /// Whether a run would begin.
    pub starts: bool,
    /// Why not, if it would not.
    pub why: Option<String>,
    /// Every step and why it would be taken or skipped, as if every wait were over and nothing were to come.
    pub log: Vec<EntryAnswer>,
    /// What the actions in the log would send or change, in the same order.
    pub effects: Vec<DryEffect>,
    /// What would make steps fail for every customer, with the step and what would be right.
    pub problems: Vec<String>,
}

/// What an action would send or change.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct DryEffect {
    /// Which step, like `2.then.1`.
    pub step: String,
    /// Its kind, like `email`.
    pub kind: &'static str,
    /// What it comes to.
    #[serde(flatten)]
    pub effect: Effect,
}

/// Whom a dry run is for.
async fn meant(context: &Context, brand: BrandId, asked: &DryRun) -> Result<ProfileId, AutomationError> {
    let wrong =
        |message: &str| AutomationError::from(Rejection::new("invalid_automation", message.to_owned()));
    match (asked.customer, &asked.email) {
        (Some(id), None) => Ok(id),
        (None, Some(email)) => {
            let email = Identifier::new(IdentifierKind::Email, email);
            let email = email.ok_or_else(|| wrong("email is no e-mail address"))?;
            context.store.owner(brand, &email).await?.ok_or(AutomationError::NotFound("customer"))
        }
        _ => Err(wrong("either customer (an id) or email is needed")),
    }
}

/// What an automation would do for a customer, by what is known of them now. Nothing is done.
///
/// # Errors
/// When there is no such automation or customer, or the store is unavailable.
#[tracing::instrument(name = "dry_run", skip_all, fields(brand = brand.0))]
pub async fn dry_run(
    context: &Context,
    brand: BrandId,
    id: Uuid,
    asked: &DryRun,
) -> Result<DryAnswer, AutomationError> {
    let definition = answer(found(context, brand, id).await?)?.definition;
    let plan = compile(context, brand, &definition).await?;
    let (mut problems, unknown) = unready(context, brand, &plan).await?;
    problems.extend(unknown);
    let customer = meant(context, brand, asked).await?;
    let record =
        context.store.customer(brand, customer).await?.ok_or(AutomationError::NotFound("customer"))?;
    let profile = record.profile.id;
    let settings = context.brand_cache.settings(brand).await?;
    let now = context.world.now();
    let mut tx = context.automations.begin_reading(brand).await?;
    let facts =
        tx.facts(&[profile], true).await?.remove(&profile).ok_or(AutomationError::NotFound("customer"))?;
    let trigger = match (&definition.trigger, &asked.message_id) {
        (Starts::Event { .. }, Some(id)) => {
            let key = (brand, id.clone());
            let held = tx.events(std::slice::from_ref(&key)).await?.remove(&key);
            Some(held.ok_or(AutomationError::NotFound("event"))?)
        }
        (Starts::Event { event, .. }, None) => {
            let newest = facts.events.iter().find(|held| held.name.as_deref() == Some(event));
            Some(newest.cloned().unwrap_or_else(|| made_up(event, now)))
        }
        _ => None,
    };
    let trigger = trigger.map(Trigger);
    let past = tx.past(&[id], &[profile]).await?;
    let names: Vec<String> = plan.cancelling().chain(plan.awaited()).map(str::to_owned).collect();
    let at_ms = trigger.as_ref().map_or(now.timestamp_millis(), |t| t.0.timestamp.timestamp_millis());
    let events = tx.events_since(&[(profile, at_ms)], &names).await?.remove(&profile).unwrap_or_default();
    let sent = match plan.counts_since(&settings, now.timestamp_millis()) {
        Some(since) => tx.sent(&[profile], since).await?,
        None => Vec::new(),
    };
    let sent: Vec<(Uuid, i64)> = sent.iter().map(|row| (row.automation, row.first_ms)).collect();
    drop(tx);
    let past = past.get(&(id, profile)).cloned().unwrap_or_default();
    let tried = Tried { brand, id, plan, facts, trigger, past, events, sent, settings, at_ms, now, problems };
    within_limits(context, brand, "invalid_automation", move || {
        meter::within(PAGE_EFFORT, || tried.answer()).0
    })
    .await
}

/// What a dry run knows.
struct Tried {
    brand: BrandId,
    id: Uuid,
    plan: Plan,
    facts: Facts,
    trigger: Option<Trigger>,
    past: Vec<Past>,
    events: Vec<StoredEvent>,
    sent: Vec<(Uuid, i64)>,
    settings: Arc<BrandSettings>,
    at_ms: i64,
    now: Timestamp,
    problems: Vec<String>,
}

impl Tried {
    fn answer(&self) -> DryAnswer {
        let Self { plan, facts, trigger, settings, now, .. } = self;
        let refused = |why: String| DryAnswer {
            starts: false,
            why: Some(why),
            log: Vec::new(),
            effects: Vec::new(),
            problems: self.problems.clone(),
        };
        if let Some(condition) = &plan.condition {
            let verdict = condition.holds(facts, trigger.as_ref(), settings, *now);
            if !verdict.holds {
                return refused(verdict.why.map_or("the condition does not hold".to_owned(), |why| {
                    format!("the condition does not hold: {why}")
                }));
            }
        }
        if let Err(why) = may_enter(plan, &self.past, *now) {
            return refused(why);
        }
        let cause = Cause {
            key: "dry run".to_owned(),
            message_id: trigger.as_ref().map(|trigger| trigger.0.message_id.clone()),
            at_ms: self.at_ms,
            why: "a dry run".to_owned(),
        };
        // It is shown to nobody, and stored nowhere.
        let id = Uuid::nil();
        let of = RunOf { id, brand: self.brand, automation: self.id, version: 0, profile: facts.profile.id };
        let mut run = Run::new(of, plan, &cause, now.timestamp_millis());
        let mut then = *now;
        let mut effects = Vec::new();
        for _ in 0..DRY_WAITS {
            let situation = Situation {
                plan,
                facts,
                trigger: trigger.as_ref(),
                events: &self.events,
                settings,
                sent: &self.sent,
                now: then,
            };
            match run.advance(&situation) {
                Some(doing) => {
                    let (what, effect) = describe(&doing.action, facts, trigger.as_ref());
                    let step = plan.nodes[doing.node].path.clone();
                    effects.push(DryEffect { step, kind: doing.action.kind(), effect });
                    run.done(plan, doing.node, then.timestamp_millis(), then.timestamp_millis(), Some(what));
                }
                None => match run.due_ms {
                    Some(due) => then = from_ms(due),
                    None => break,
                },
            }
        }
        DryAnswer {
            starts: true,
            why: None,
            log: run.state.log.iter().map(EntryAnswer::from).collect(),
            effects,
            problems: self.problems.clone(),
        }
    }
}

fn made_up(name: &str, now: Timestamp) -> StoredEvent {
    let body = json!({"event": name, "properties": {}}).to_string();
    let name = Some(name.to_owned());
    StoredEvent {
        message_id: "made-up".to_owned(),
        kind: "track".to_owned(),
        name,
        timestamp: now,
        body,
        active: false,
        source: Source::Secret,
        received_at: now,
    }
}
