//! An automation's e-mails, sent to whoever writes it, before any customer gets them.
//!
//! The API asks, a worker sends: only workers reach the mail server. What was asked and what came of it are in the cache for a while, and
//! nowhere else: no queue and no store keeps the address.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::context::Context;
use crate::domain::automation::facts::{Facts, Trigger};
use crate::domain::event::Rejection;
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::{BrandId, ProfileId};
use crate::ports::sender::{MessageContent, OutboundMessage, SendOutcome};
use crate::ports::store::StoreError;
use crate::services::automations::api::{self, AutomationError};
use crate::services::automations::jobs::Job;
use crate::services::automations::preflight;
use crate::services::automations::runs::{self, Outbound};

/// How long a worker may take.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// Trials of a brand in an hour, for each server process: they go to whatever address is named, without its consent.
pub const MAX_AN_HOUR: u32 = 60;
/// How often it is looked whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long what was asked, and what came of it, is kept.
const KEPT: Duration = Duration::from_secs(600);
const HOUR: Duration = Duration::from_secs(60 * 60);

/// Whom to send an automation's e-mails to, and as if for whom.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// The e-mail address that gets them.
    pub to: String,
    /// The customer they speak of, by id; a made-up one, if absent.
    #[serde(default)]
    #[schema(nullable = false)]
    pub customer: Option<ProfileId>,
}

/// An e-mail of a trial.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Letter {
    /// The step, like `2.then.1`.
    pub step: String,
    /// Its subject, as it was sent.
    pub subject: Option<String>,
    /// Whether the mail server took it.
    pub sent: bool,
    /// What the mail server, or a template, said.
    pub answer: String,
}

/// What came of a trial.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TrialAnswer {
    /// Every e-mail of the automation, in the order of its steps.
    pub letters: Vec<Letter>,
}

/// What a worker is asked.
#[derive(Serialize, Deserialize)]
struct Asked {
    automation: Uuid,
    trial: Trial,
}

fn asked_key(brand: BrandId, id: Uuid) -> String {
    format!("{brand}:trial:{id}")
}

fn answer_key(brand: BrandId, id: Uuid) -> String {
    format!("{brand}:trial-answer:{id}")
}

/// Has an automation's e-mails sent to an address. No run begins, and no link in them works.
///
/// # Errors
/// When there is no such automation or customer, the address is none, the automation writes no e-mails, no worker is there, or none answers
/// in time; the store's own.
#[tracing::instrument(name = "ask_for_test", skip_all, fields(brand = brand.0))]
pub async fn ask(
    context: &Context,
    brand: BrandId,
    id: Uuid,
    trial: Trial,
) -> Result<TrialAnswer, AutomationError> {
    let plan = api::plan(context, brand, id).await?;
    if Identifier::new(IdentifierKind::Email, &trial.to).is_none() {
        let message = format!("to is {:?}; it must be an e-mail address", trial.to);
        return Err(Rejection::new("invalid_automation", message).into());
    }
    if !runs::sends_email(&plan) {
        return Err(AutomationError::Refused("the automation has no step that writes an e-mail".to_owned()));
    }
    if let Some(customer) = trial.customer {
        context.store.customer(brand, customer).await?.ok_or(AutomationError::NotFound("customer"))?;
    }
    let trials = &context.known.trials;
    let asked_before = trials.fresh(&brand).unwrap_or_else(|| {
        let none: Arc<AtomicU32> = Arc::default();
        trials.put(brand, none.clone(), HOUR, HOUR);
        none
    });
    if asked_before.fetch_add(1, Ordering::Relaxed) >= MAX_AN_HOUR {
        return Err(AutomationError::Busy(format!("a brand may ask for {MAX_AN_HOUR} tests an hour")));
    }
    if preflight::reported_abilities(context).await.is_none() {
        let why = "no automation worker has reported for a minute: start `workers automation`";
        return Err(AutomationError::Refused(why.to_owned()));
    }
    let trial_id = context.world.id();
    let asked = serde_json::to_vec(&Asked { automation: id, trial }).unwrap_or_default();
    let unavailable = |error| StoreError::Unavailable(format!("{error}").into());
    context.cache.put(&asked_key(brand, trial_id), asked.into(), KEPT).await.map_err(unavailable)?;
    let mut tx = context.automations.begin_for(brand).await?;
    tx.stage(&[Job::Trial { brand, trial: trial_id }.stage()], context.world.now_ms()).await?;
    tx.commit().await?;
    let looking = async {
        loop {
            if let Ok(Some(answer)) = context.cache.get(&answer_key(brand, trial_id)).await
                && let Ok(answer) = serde_json::from_slice(&answer)
            {
                return answer;
            }
            context.world.sleep(LOOK_EVERY).await;
        }
    };
    context.world.timeout(PATIENCE, looking).await.map_err(|_| {
        AutomationError::Refused(format!(
            "no automation worker has answered in {} s; the e-mails may be sent later",
            PATIENCE.as_secs()
        ))
    })
}

/// Sends what was asked for. Twice, where its worker dies in between.
///
/// # Errors
/// When the store cannot be reached.
#[tracing::instrument(name = "send_test", skip_all, fields(brand = brand.0))]
pub async fn send(
    context: &Context,
    outbound: &Outbound,
    brand: BrandId,
    id: Uuid,
) -> Result<(), StoreError> {
    let Ok(Some(asked)) = context.cache.get(&asked_key(brand, id)).await else { return Ok(()) };
    let Ok(Asked { automation, trial }) = serde_json::from_slice(&asked) else { return Ok(()) };
    let plan = match api::plan(context, brand, automation).await {
        Ok(plan) => plan,
        Err(AutomationError::Store(error)) => return Err(error),
        Err(_) => return Ok(()),
    };
    let facts = match trial.customer {
        Some(id) => {
            let facts = context.automations.begin_reading(brand).await?.facts(&[id], true).await?.remove(&id);
            let Some(facts) = facts else { return Ok(()) };
            facts
        }
        None => Facts::example(),
    };
    let trigger = Trigger::example();
    let mut letters = Vec::new();
    for (step, written) in
        runs::render_emails(context, outbound, (brand, automation), &plan, (&facts, &trigger), &trial.to)
            .await?
    {
        let (subject, sent, answer) = match written {
            Err(why) => (None, false, why),
            Ok(email) => {
                let subject = Some(email.subject.clone());
                let message =
                    OutboundMessage { key: format!("{id}-{step}"), content: MessageContent::Email(email) };
                match outbound.sender.send(&message).await {
                    SendOutcome::Done(how) => (subject, true, how),
                    SendOutcome::Later { error, .. }
                    | SendOutcome::Refused(error)
                    | SendOutcome::Bounced { error, .. } => (subject, false, error),
                }
            }
        };
        letters.push(Letter { step, subject, sent, answer });
    }
    let answer = serde_json::to_vec(&TrialAnswer { letters }).unwrap_or_default();
    let _ = context.cache.put(&answer_key(brand, id), answer.into(), KEPT).await;
    let _ = context.cache.remove(&[asked_key(brand, id)]).await;
    Ok(())
}
