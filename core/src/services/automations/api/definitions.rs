//! Automations: made, edited, activated, deleted.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{AutomationError, compile, segments};
use crate::context::Context;
use crate::domain::automation::definition::{Definition, Trigger as Starts};
use crate::domain::automation::plan::Plan;
use crate::domain::event::Rejection;
use crate::domain::ids::BrandId;
use crate::domain::settings::BrandSettings;
use crate::domain::time::{self, Timestamp, from_ms};
use crate::ports::automations::{AutomationRow, AutomationStatus};
use crate::ports::store::StoreError;
use crate::services::automations::preflight;
use crate::services::automations::scheduler::fires;
use crate::services::brand_cache::sender_problem;

/// How often an edit is tried that others were faster than.
const MAX_TRIES: u32 = 5;
/// Most automations of a brand.
pub const MAX_AUTOMATIONS: usize = 200;

/// Puts schedules to where the brand's hours are now.
///
/// # Errors
/// When the store is unavailable.
pub async fn reschedule(context: &Context, brand: BrandId) -> Result<(), AutomationError> {
    for row in context.automations.automations(brand).await? {
        if row.fires_ms.is_some() {
            set_status(context, brand, row.id, row.status).await?;
        }
    }
    Ok(())
}

/// An automation, as people see it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct AutomationAnswer {
    /// The id, as paths name it.
    pub id: Uuid,
    /// Whether it starts runs.
    pub status: AutomationStatus,
    /// Counts up with each edit. Runs that are under way finish on theirs.
    pub version: i32,
    /// The definition of the newest version.
    pub definition: Definition,
    /// When its schedule next comes up, if it has one and is active.
    pub fires_at: Option<String>,
    /// When it was made.
    pub created_at: String,
    /// When it was last changed.
    pub updated_at: String,
    /// How many runs stand how; only where one automation is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs: Option<BTreeMap<String, i64>>,
    /// What could not be looked at when it was activated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

pub(super) fn answer(row: AutomationRow) -> Result<AutomationAnswer, AutomationError> {
    let definition = serde_json::from_str(&row.definition)
        .map_err(|error| StoreError::Invalid(format!("the automation {}: {error}", row.id)))?;
    let at = |ms| time::format(from_ms(ms));
    Ok(AutomationAnswer {
        id: row.id,
        status: row.status,
        version: row.version,
        definition,
        fires_at: row.fires_ms.map(at),
        created_at: at(row.created_ms),
        updated_at: at(row.updated_ms),
        runs: None,
        warning: None,
    })
}

/// The brand's automations, the oldest first.
///
/// # Errors
/// When the store is unavailable.
pub async fn automations(
    context: &Context,
    brand: BrandId,
) -> Result<Vec<AutomationAnswer>, AutomationError> {
    context.automations.automations(brand).await?.into_iter().map(answer).collect()
}

/// One of them, with how its runs stand.
///
/// # Errors
/// When there is none, or the store is unavailable.
pub async fn automation(
    context: &Context,
    brand: BrandId,
    id: Uuid,
) -> Result<AutomationAnswer, AutomationError> {
    let row = found(context, brand, id).await?;
    let counts = context.automations.run_counts(brand, id).await?;
    let runs = counts.into_iter().map(|(status, count)| (status.as_str().to_owned(), count)).collect();
    Ok(AutomationAnswer { runs: Some(runs), ..answer(row)? })
}

pub(super) async fn found(
    context: &Context,
    brand: BrandId,
    id: Uuid,
) -> Result<AutomationRow, AutomationError> {
    context.automations.automation(brand, id).await?.ok_or(AutomationError::NotFound("automation"))
}

/// What would make steps fail, as far as the workers have said what they can; and what is not known of that.
pub(super) async fn unready(
    context: &Context,
    brand: BrandId,
    plan: &Plan,
) -> Result<(Vec<String>, Option<String>), StoreError> {
    if !preflight::goes_outside(plan) {
        return Ok((Vec::new(), None));
    }
    let abilities = preflight::reported_abilities(context).await;
    let unknown = abilities.is_none().then(|| {
        "no automation worker has reported for a minute: whether e-mails and webhooks can be sent is unknown"
            .to_owned()
    });
    let sender = match context.brand_ports.brands.settings(brand).await? {
        BrandSettings { email_from: None, .. } => {
            Err("the brand's setting email_from is not set: PATCH /api/settings".to_owned())
        }
        set => match sender_problem(&context.brand_ports, brand, &set).await? {
            Some(wrong) => Err(wrong.message),
            None => Ok(()),
        },
    };
    let sender = sender.as_ref().copied().map_err(String::as_str);
    Ok((preflight::problems(plan, sender, abilities), unknown))
}

/// Refuses an automation whose steps would fail for every customer.
async fn ready(context: &Context, brand: BrandId, plan: &Plan) -> Result<Option<String>, AutomationError> {
    let (problems, unknown) = unready(context, brand, plan).await?;
    if problems.is_empty() {
        return Ok(unknown);
    }
    Err(AutomationError::Refused(format!("the automation cannot run yet: {}", problems.join("; "))))
}

/// Whether a definition makes sense for this brand.
async fn checked(
    context: &Context,
    brand: BrandId,
    definition: &Definition,
) -> Result<Plan, AutomationError> {
    let plan = compile(context, brand, definition).await?;
    if let Some(name) = segment_of(definition)
        && !segments::list(context, brand).await?.iter().any(|segment| segment.name == name)
    {
        let message = format!("trigger.segment is {name:?}, and the brand has no such segment");
        return Err(Rejection::new("invalid_automation", message).into());
    }
    Ok(plan)
}

/// Makes an automation: a draft.
///
/// # Errors
/// When the definition makes no sense, there are too many, or the store is unavailable.
pub async fn create(
    context: &Context,
    brand: BrandId,
    definition: &Definition,
) -> Result<AutomationAnswer, AutomationError> {
    checked(context, brand, definition).await?;
    if context.automations.automations(brand).await?.len() >= MAX_AUTOMATIONS {
        return Err(AutomationError::Refused(format!("a brand has at most {MAX_AUTOMATIONS} automations")));
    }
    let now_ms = context.world.now_ms();
    let row = AutomationRow {
        id: context.world.id(),
        brand,
        name: definition.name.clone(),
        status: AutomationStatus::Draft,
        version: 1,
        definition: json!(definition).to_string(),
        fires_ms: None,
        created_ms: now_ms,
        updated_ms: now_ms,
    };
    context.automations.add_automation(&row).await?;
    context.brand_cache.forget(brand);
    answer(row)
}

/// Edits an automation: runs that begin from now on are of the new version, those under way finish on theirs.
///
/// # Errors
/// When there is none, the definition makes no sense, or the store is unavailable.
pub async fn edit(
    context: &Context,
    brand: BrandId,
    id: Uuid,
    definition: &Definition,
) -> Result<AutomationAnswer, AutomationError> {
    let plan = checked(context, brand, definition).await?;
    let text = json!(definition).to_string();
    for _ in 0..MAX_TRIES {
        let row = found(context, brand, id).await?;
        if row.status == AutomationStatus::Active {
            ready(context, brand, &plan).await?;
        }
        let old = row.version;
        let version = if text == row.definition { old } else { old + 1 };
        let now = context.world.now();
        let before = answer(row.clone())?.definition;
        // What has come up and was not processed yet still comes up.
        let kept =
            row.fires_ms.filter(|at| *at <= now.timestamp_millis() && before.trigger == definition.trigger);
        let fires_ms = match kept {
            Some(at) => Some(at),
            None => next_fire(context, brand, definition, row.status, now).await?,
        };
        let row = AutomationRow {
            name: definition.name.clone(),
            version,
            definition: text.clone(),
            fires_ms,
            updated_ms: now.timestamp_millis(),
            ..row
        };
        if context.automations.edit_automation(&row, old).await? {
            context.brand_cache.forget(brand);
            return automation(context, brand, id).await;
        }
    }
    Err(AutomationError::Refused("the automation was edited concurrently; try again".to_owned()))
}

async fn next_fire(
    context: &Context,
    brand: BrandId,
    definition: &Definition,
    status: AutomationStatus,
    now: Timestamp,
) -> Result<Option<i64>, StoreError> {
    if status != AutomationStatus::Active {
        return Ok(None);
    }
    let settings = context.brand_cache.settings(brand).await?;
    Ok(fires(definition, &settings, now).map(|at| at.timestamp_millis()))
}

/// Lets an automation run, or stops it. What it began before stands still while it does not run.
///
/// # Errors
/// When there is none, or the store is unavailable.
pub async fn set_status(
    context: &Context,
    brand: BrandId,
    id: Uuid,
    status: AutomationStatus,
) -> Result<AutomationAnswer, AutomationError> {
    let row = found(context, brand, id).await?;
    let definition = answer(row.clone())?.definition;
    let mut warning = None;
    if status == AutomationStatus::Active {
        // It may have been written by an older program, or its segment is gone.
        let plan = checked(context, brand, &definition).await?;
        warning = ready(context, brand, &plan).await?;
    }
    let now = context.world.now();
    let due = row.fires_ms.filter(|at| *at <= now.timestamp_millis() && status == AutomationStatus::Active);
    let fires_ms = match due {
        Some(at) => Some(at),
        None => next_fire(context, brand, &definition, status, now).await?,
    };
    if !context.automations.set_status(brand, id, status, fires_ms, now.timestamp_millis()).await? {
        return Err(AutomationError::NotFound("automation"));
    }
    context.brand_cache.forget(brand);
    Ok(AutomationAnswer { warning, ..automation(context, brand, id).await? })
}

/// Takes an automation out. Its live runs are cancelled; the others stay to be looked at.
///
/// # Errors
/// When there is none, or the store is unavailable.
pub async fn delete(context: &Context, brand: BrandId, id: Uuid) -> Result<(), AutomationError> {
    if !context.automations.delete_automation(brand, id, context.world.now_ms()).await? {
        return Err(AutomationError::NotFound("automation"));
    }
    context.brand_cache.forget(brand);
    Ok(())
}

/// What an automation does, as it stands.
///
/// # Errors
/// When there is none, an older program wrote it otherwise, or the store is unavailable.
pub(in crate::services::automations) async fn plan(
    context: &Context,
    brand: BrandId,
    id: Uuid,
) -> Result<Plan, AutomationError> {
    let definition = answer(found(context, brand, id).await?)?.definition;
    compile(context, brand, &definition).await
}

pub(super) fn segment_of(definition: &Definition) -> Option<&str> {
    match &definition.trigger {
        Starts::SegmentEnter { segment }
        | Starts::SegmentLeave { segment }
        | Starts::Schedule { segment, .. } => Some(segment),
        Starts::Event { .. } => None,
    }
}
