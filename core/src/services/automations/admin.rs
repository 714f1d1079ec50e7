//! What a brand does with its segments and automations: write them, try them, look at what they did, step in.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::context::Context;
use crate::domain::automation::definition::{Definition, Trigger as Starts};
use crate::domain::automation::expression::{Expression, Scope};
use crate::domain::automation::facts::{Facts, Trigger};
use crate::domain::automation::meter::{self, PAGE as PAGE_EFFORT};
use crate::domain::automation::plan::Plan;
use crate::domain::automation::run::{
    ActionRow, ActionStatus, Cause, Entry, Past, Run, Situation, Status, may_enter,
};
use crate::domain::automation::segment::{self, MAX_SEGMENTS, RFM, SegmentInput, SegmentRow};
use crate::domain::customer360::StoredEvent;
use crate::domain::event::{Rejection, Source};
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::settings::BrandSettings;
use crate::domain::time::{self, Timestamp, from_ms};
use crate::ports::automations::{AutomationRow, AutomationStatus, RunFilter};
use crate::ports::store::StoreError;
use crate::services::automations::jobs::Job;
use crate::services::automations::languages::LanguageError;
use crate::services::automations::preflight;
use crate::services::automations::runs::{Effect, described};
use crate::services::automations::waker::fires;
use crate::services::brands::check_sender;
use crate::services::privacy::{Action, entry};

/// Most automations of a brand.
pub const MAX_AUTOMATIONS: usize = 200;
/// Customers that a preview looks at.
pub const PREVIEWED: i64 = 2000;
/// Those of them that it lists.
pub const PREVIEW_LISTED: usize = 20;
/// Customers that are read at once.
const PAGE: i64 = 500;
/// How often a dry run waits before it is given up: more than an automation has steps.
const DRY_WAITS: usize = 60;
/// How often an edit is tried that others were faster than.
const MAX_TRIES: u32 = 5;

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// What was sent makes no sense.
    #[error(transparent)]
    Wrong(#[from] Rejection),
    /// There is no such thing.
    #[error("there is no such {0}")]
    Unknown(&'static str),
    /// It cannot be done, and why.
    #[error("{0}")]
    Refused(String),
    /// Not now: the brand has something worked out already.
    #[error("{0}")]
    Busy(String),
    /// The store's own.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Has something in a user's language worked out; `code` says what is wrong where that takes too long.
async fn worked_out<T: Send + 'static>(
    context: &Context,
    brand: BrandId,
    code: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, AdminError> {
    context.languages.ask(brand, work).await.map_err(|error| match error {
        LanguageError::Busy => AdminError::Busy(error.to_string()),
        LanguageError::Overdue | LanguageError::Panicked(_) => Rejection::new(code, error.to_string()).into(),
    })
}

/// An expression of a segment, read.
async fn read(context: &Context, brand: BrandId, text: &str) -> Result<Arc<Expression>, AdminError> {
    let text = text.to_owned();
    let code = "invalid_expression";
    Ok(worked_out(context, brand, code, move || Expression::parse(&text, Scope::Segment)).await??)
}

/// A definition, read.
async fn planned(context: &Context, brand: BrandId, definition: &Definition) -> Result<Plan, AdminError> {
    let definition = definition.clone();
    Ok(worked_out(context, brand, "invalid_automation", move || Plan::of(&definition)).await??)
}

/// A segment, as people see it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SegmentAnswer {
    /// What it is called.
    pub name: String,
    /// Who belongs to it: a CEL expression.
    pub expression: String,
    /// For people.
    pub description: Option<String>,
    /// Whether every brand has it: then it cannot be changed.
    pub own: bool,
    /// How many customers belong to it.
    pub members: i64,
    /// When it was last changed; null for one that every brand has.
    pub updated_at: Option<String>,
}

/// All segments of a brand: those that every brand has first.
///
/// # Errors
/// When the store is away.
pub async fn segments(context: &Context, brand: BrandId) -> Result<Vec<SegmentAnswer>, StoreError> {
    let counts = context.automations.member_counts(brand).await?;
    let members = |name: &str| counts.get(name).copied().unwrap_or_default();
    let own = RFM.iter().map(|(name, expression, description)| SegmentAnswer {
        name: (*name).to_owned(),
        expression: (*expression).to_owned(),
        description: Some((*description).to_owned()),
        own: true,
        members: members(name),
        updated_at: None,
    });
    let rows = context.automations.segments(brand).await?;
    let written = rows.into_iter().map(|row| SegmentAnswer {
        members: members(&row.name),
        name: row.name,
        expression: row.expression,
        description: row.description,
        own: false,
        updated_at: Some(time::format(from_ms(row.updated_ms))),
    });
    Ok(own.chain(written).collect())
}

/// One of them.
///
/// # Errors
/// When there is none, or the store is away.
pub async fn segment(context: &Context, brand: BrandId, name: &str) -> Result<SegmentAnswer, AdminError> {
    let found = segments(context, brand).await?.into_iter().find(|segment| segment.name == name);
    found.ok_or(AdminError::Unknown("segment"))
}

/// Writes a segment, new or changed. Who belongs to it is found from now on, in the background; no runs begin by that.
///
/// # Errors
/// When the name or the expression makes no sense, there are too many, or the store is away.
pub async fn put_segment(
    context: &Context,
    brand: BrandId,
    name: &str,
    input: SegmentInput,
) -> Result<SegmentAnswer, AdminError> {
    segment::check_name(name)?;
    read(context, brand, &input.expression).await?;
    let rows = context.automations.segments(brand).await?;
    let old = rows.iter().find(|row| row.name == name);
    if old.is_none() && rows.len() >= MAX_SEGMENTS {
        return Err(AdminError::Refused(format!("a brand has at most {MAX_SEGMENTS} segments")));
    }
    let now_ms = context.clock.now_ms();
    let row = SegmentRow {
        brand,
        name: name.to_owned(),
        expression: input.expression,
        description: input.description,
        created_ms: old.map_or(now_ms, |old| old.created_ms),
        updated_ms: now_ms,
    };
    let mut tx = context.automations.begin_for(brand).await?;
    tx.save_segment(&row).await?;
    let fill = Job::Fill { brand, segments: vec![name.to_owned()], after: None };
    tx.stage(&[fill.stage()], now_ms).await?;
    tx.commit().await?;
    context.brands.forget(brand);
    segment(context, brand, name).await
}

/// Asks all customers anew which of the segments they belong to that every brand has: their bounds are others.
///
/// # Errors
/// When the store is away.
pub async fn refill(context: &Context, brand: BrandId) -> Result<(), StoreError> {
    let mut tx = context.automations.begin_for(brand).await?;
    let fill = Job::Fill { brand, segments: segment::own_names(), after: None };
    tx.stage(&[fill.stage()], context.clock.now_ms()).await?;
    tx.commit().await
}

/// Puts schedules to where the brand's hours are now.
///
/// # Errors
/// When the store is away.
pub async fn reschedule(context: &Context, brand: BrandId) -> Result<(), AdminError> {
    for row in context.automations.automations(brand).await? {
        if row.fires_ms.is_some() {
            set_status(context, brand, row.id, row.status).await?;
        }
    }
    Ok(())
}

/// Takes a segment out.
///
/// # Errors
/// When there is none, an automation needs it, or the store is away.
pub async fn delete_segment(context: &Context, brand: BrandId, name: &str) -> Result<(), AdminError> {
    if name.starts_with(segment::OWN) {
        return Err(AdminError::Refused("every brand has this segment".to_owned()));
    }
    for row in context.automations.automations(brand).await? {
        let definition: Option<Definition> = serde_json::from_str(&row.definition).ok();
        if definition.is_some_and(|definition| segment_of(&definition) == Some(name)) {
            return Err(AdminError::Refused(format!("the automation {:?} is started by it", row.name)));
        }
    }
    if !context.automations.delete_segment(brand, name).await? {
        return Err(AdminError::Unknown("segment"));
    }
    context.brands.forget(brand);
    Ok(())
}

/// Who would belong to a segment.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
#[schema(as = SegmentPreview)]
pub struct Preview {
    /// How many customers were looked at: at most 2000.
    pub examined: usize,
    /// How many of them would belong.
    pub matched: usize,
    /// Some of those.
    pub customers: Vec<Value>,
    /// How many could not be answered for: a field that they have not got, for example.
    pub unanswered: usize,
    /// Why one of these could not.
    pub why: Option<String>,
}

/// Who would belong to a segment of that expression. Nothing is changed.
///
/// # Errors
/// When the expression makes no sense, or the store is away.
pub async fn preview(context: &Context, brand: BrandId, text: &str) -> Result<Preview, AdminError> {
    let expression = read(context, brand, text).await?;
    let settings = context.brands.settings(brand).await?;
    let now = context.clock.now();
    let mut preview = Preview::default();
    let mut after = None;
    while (preview.examined as i64) < PREVIEWED {
        let ids = context.automations.profiles(brand, after, PAGE).await?;
        after = ids.last().copied();
        // The connection is given back before anything is evaluated.
        let sees = expression.speaks_of("events");
        let facts = context.automations.begin_reading(brand).await?.facts(&ids, sees).await?;
        let (expression, settings) = (expression.clone(), settings.clone());
        let full = ids.len() as i64 == PAGE;
        preview = worked_out(context, brand, "invalid_expression", move || {
            meter::within(PAGE_EFFORT, || {
                for facts in ids.iter().filter_map(|id| facts.get(id)) {
                    preview.look_at(facts, &expression, &settings, now);
                }
                preview
            })
            .0
        })
        .await?;
        if !full {
            break;
        }
    }
    Ok(preview)
}

impl Preview {
    fn look_at(&mut self, facts: &Facts, expression: &Expression, settings: &BrandSettings, now: Timestamp) {
        self.examined += 1;
        let verdict = expression.holds(facts, None, settings, now);
        if verdict.holds {
            self.matched += 1;
            if self.customers.len() < PREVIEW_LISTED {
                self.customers.push(json!({"id": facts.profile.id, "email": facts.email()}));
            }
        }
        if let Some(why) = verdict.why {
            self.unanswered += 1;
            self.why.get_or_insert(why);
        }
    }
}

/// An automation, as people see it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct AutomationAnswer {
    /// Its id.
    pub id: Uuid,
    /// Whether it runs.
    pub status: AutomationStatus,
    /// Counts up with each edit. Runs that are under way finish on theirs.
    pub version: i32,
    /// What it does.
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

fn answer(row: AutomationRow) -> Result<AutomationAnswer, AdminError> {
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
/// When the store is away.
pub async fn automations(context: &Context, brand: BrandId) -> Result<Vec<AutomationAnswer>, AdminError> {
    context.automations.automations(brand).await?.into_iter().map(answer).collect()
}

/// One of them, with how its runs stand.
///
/// # Errors
/// When there is none, or the store is away.
pub async fn automation(context: &Context, brand: BrandId, id: Uuid) -> Result<AutomationAnswer, AdminError> {
    let row = found(context, brand, id).await?;
    let counts = context.automations.run_counts(brand, id).await?;
    let runs = counts.into_iter().map(|(status, count)| (status.as_str().to_owned(), count)).collect();
    Ok(AutomationAnswer { runs: Some(runs), ..answer(row)? })
}

async fn found(context: &Context, brand: BrandId, id: Uuid) -> Result<AutomationRow, AdminError> {
    context.automations.automation(brand, id).await?.ok_or(AdminError::Unknown("automation"))
}

fn segment_of(definition: &Definition) -> Option<&str> {
    match &definition.trigger {
        Starts::SegmentEnter { segment }
        | Starts::SegmentLeave { segment }
        | Starts::Schedule { segment, .. } => Some(segment),
        Starts::Event { .. } => None,
    }
}

/// What an automation does, as it stands.
///
/// # Errors
/// When there is none, an older program wrote it otherwise, or the store is away.
pub(super) async fn plan(context: &Context, brand: BrandId, id: Uuid) -> Result<Plan, AdminError> {
    let definition = answer(found(context, brand, id).await?)?.definition;
    planned(context, brand, &definition).await
}

/// What would make steps fail, as far as the workers have said what they can; and what is not known of that.
async fn unready(
    context: &Context,
    brand: BrandId,
    plan: &Plan,
) -> Result<(Vec<String>, Option<String>), StoreError> {
    if !preflight::goes_outside(plan) {
        return Ok((Vec::new(), None));
    }
    let abilities = preflight::heard(context).await;
    let unknown = abilities.is_none().then(|| {
        "no automation worker has been there for a minute: whether e-mails and webhooks can leave is not known"
            .to_owned()
    });
    let sender = match context.tenants.brands.settings(brand).await? {
        BrandSettings { email_from: None, .. } => {
            Err("the brand's setting email_from is not set: PATCH /api/settings".to_owned())
        }
        set => check_sender(&context.tenants, brand, &set).await?.map_err(|wrong| wrong.message),
    };
    let sender = sender.as_ref().copied().map_err(String::as_str);
    Ok((preflight::problems(plan, sender, abilities), unknown))
}

/// Refuses an automation whose steps would fail for every customer.
async fn ready(context: &Context, brand: BrandId, plan: &Plan) -> Result<Option<String>, AdminError> {
    let (problems, unknown) = unready(context, brand, plan).await?;
    if problems.is_empty() {
        return Ok(unknown);
    }
    Err(AdminError::Refused(format!("the automation cannot run yet: {}", problems.join("; "))))
}

/// Whether a definition makes sense for this brand.
async fn checked(context: &Context, brand: BrandId, definition: &Definition) -> Result<Plan, AdminError> {
    let plan = planned(context, brand, definition).await?;
    if let Some(name) = segment_of(definition)
        && !segments(context, brand).await?.iter().any(|segment| segment.name == name)
    {
        let message = format!("trigger.segment is {name:?}, and the brand has no such segment");
        return Err(Rejection::new("invalid_automation", message).into());
    }
    Ok(plan)
}

/// Makes an automation: a draft.
///
/// # Errors
/// When the definition makes no sense, there are too many, or the store is away.
pub async fn create(
    context: &Context,
    brand: BrandId,
    definition: &Definition,
) -> Result<AutomationAnswer, AdminError> {
    checked(context, brand, definition).await?;
    if context.automations.automations(brand).await?.len() >= MAX_AUTOMATIONS {
        return Err(AdminError::Refused(format!("a brand has at most {MAX_AUTOMATIONS} automations")));
    }
    let now_ms = context.clock.now_ms();
    let row = AutomationRow {
        id: Uuid::now_v7(),
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
    context.brands.forget(brand);
    answer(row)
}

/// Edits an automation: runs that begin from now on are of the new version, those under way finish on theirs.
///
/// # Errors
/// When there is none, the definition makes no sense, or the store is away.
pub async fn edit(
    context: &Context,
    brand: BrandId,
    id: Uuid,
    definition: &Definition,
) -> Result<AutomationAnswer, AdminError> {
    let plan = checked(context, brand, definition).await?;
    let text = json!(definition).to_string();
    for _ in 0..MAX_TRIES {
        let row = found(context, brand, id).await?;
        if row.status == AutomationStatus::Active {
            ready(context, brand, &plan).await?;
        }
        let old = row.version;
        let version = if text == row.definition { old } else { old + 1 };
        let now = context.clock.now();
        let before = answer(row.clone())?.definition;
        // What has come up and was not worked off yet still comes up.
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
            context.brands.forget(brand);
            return automation(context, brand, id).await;
        }
    }
    Err(AdminError::Refused("others edit it at this moment; try again".to_owned()))
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
    let settings = context.brands.settings(brand).await?;
    Ok(fires(definition, &settings, now).map(|at| at.timestamp_millis()))
}

/// Lets an automation run, or stops it. What it began before stands still while it does not run.
///
/// # Errors
/// When there is none, or the store is away.
pub async fn set_status(
    context: &Context,
    brand: BrandId,
    id: Uuid,
    status: AutomationStatus,
) -> Result<AutomationAnswer, AdminError> {
    let row = found(context, brand, id).await?;
    let definition = answer(row.clone())?.definition;
    let mut warning = None;
    if status == AutomationStatus::Active {
        // It may have been written by an older program, or its segment is gone.
        let plan = checked(context, brand, &definition).await?;
        warning = ready(context, brand, &plan).await?;
    }
    let now = context.clock.now();
    let due = row.fires_ms.filter(|at| *at <= now.timestamp_millis() && status == AutomationStatus::Active);
    let fires_ms = match due {
        Some(at) => Some(at),
        None => next_fire(context, brand, &definition, status, now).await?,
    };
    if !context.automations.set_status(brand, id, status, fires_ms, now.timestamp_millis()).await? {
        return Err(AdminError::Unknown("automation"));
    }
    context.brands.forget(brand);
    Ok(AutomationAnswer { warning, ..automation(context, brand, id).await? })
}

/// Takes an automation out. Its live runs are cancelled; the others stay to be looked at.
///
/// # Errors
/// When there is none, or the store is away.
pub async fn delete(context: &Context, brand: BrandId, id: Uuid) -> Result<(), AdminError> {
    if !context.automations.delete_automation(brand, id, context.clock.now_ms()).await? {
        return Err(AdminError::Unknown("automation"));
    }
    context.brands.forget(brand);
    Ok(())
}

/// A run, as people see it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct RunAnswer {
    /// Its id.
    pub id: Uuid,
    /// Of which automation.
    pub automation: Uuid,
    /// Of which version of it.
    pub version: i32,
    /// For whom.
    pub customer: ProfileId,
    /// Where it stands.
    pub status: Status,
    /// What started it.
    pub trigger: String,
    /// When it goes on, if it waits for a time.
    pub due_at: Option<String>,
    /// When it began.
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
    /// When.
    pub at: String,
    /// Which step, like `2.then.1`.
    pub step: Option<String>,
    /// What became of it.
    pub what: String,
    /// Why.
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
    /// What.
    pub kind: String,
    /// Where it goes.
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
/// When there is none, or the store is away.
pub async fn run(context: &Context, brand: BrandId, id: Uuid) -> Result<RunAnswer, AdminError> {
    let (run, actions) = context.automations.run(brand, id).await?.ok_or(AdminError::Unknown("run"))?;
    Ok(RunAnswer { actions: Some(actions.iter().map(ActionAnswer::from).collect()), ..RunAnswer::from(&run) })
}

/// Ends a run.
///
/// # Errors
/// When there is none, it has ended already, or the store is away.
pub async fn cancel(context: &Context, brand: BrandId, id: Uuid, who: &str) -> Result<RunAnswer, AdminError> {
    change(context, brand, id, ("run_cancelled", who), |run, _, now_ms| {
        if !run.status.is_live() && run.status != Status::Failed {
            return Err(AdminError::Refused(format!("the run has ended: it is {}", run.status.as_str())));
        }
        run.end(Status::Cancelled, now_ms, "cancelled", Some(format!("by {who}")));
        Ok(false)
    })
    .await
}

/// Tries a failed run's action again.
///
/// # Errors
/// When there is none, it has not failed, or the store is away.
pub async fn retry(context: &Context, brand: BrandId, id: Uuid, who: &str) -> Result<RunAnswer, AdminError> {
    change(context, brand, id, ("run_retried", who), |run, actions, now_ms| {
        // A queued one may have lost its job: another at a new revision does no harm.
        if ![Status::Failed, Status::Queued].contains(&run.status) {
            return Err(AdminError::Refused(format!(
                "only a failed run is tried again; it is {}",
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
    how: impl FnOnce(&mut Run, &mut Vec<ActionRow>, i64) -> Result<bool, AdminError>,
) -> Result<RunAnswer, AdminError> {
    let now_ms = context.clock.now_ms();
    let mut tx = context.automations.begin_for(brand).await?;
    let held = tx.lock_runs(&[id]).await?.into_iter().find(|run| run.brand == brand);
    let mut held = held.ok_or(AdminError::Unknown("run"))?;
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
    tx.note(&entry(context, brand, who, action)).await?;
    tx.commit().await?;
    run(context, brand, id).await
}

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

/// What would happen.
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
async fn meant(context: &Context, brand: BrandId, asked: &DryRun) -> Result<ProfileId, AdminError> {
    let wrong = |message: &str| AdminError::from(Rejection::new("invalid_automation", message.to_owned()));
    match (asked.customer, &asked.email) {
        (Some(id), None) => Ok(id),
        (None, Some(email)) => {
            let email = Identifier::new(IdentifierKind::Email, email);
            let email = email.ok_or_else(|| wrong("email is no e-mail address"))?;
            context.store.owner(brand, &email).await?.ok_or(AdminError::Unknown("customer"))
        }
        _ => Err(wrong("either customer (an id) or email is needed")),
    }
}

/// What an automation would do for a customer, by what is known of them now. Nothing is done.
///
/// # Errors
/// When there is no such automation or customer, or the store is away.
pub async fn dry_run(
    context: &Context,
    brand: BrandId,
    id: Uuid,
    asked: &DryRun,
) -> Result<DryAnswer, AdminError> {
    let definition = answer(found(context, brand, id).await?)?.definition;
    let plan = planned(context, brand, &definition).await?;
    let (mut problems, unknown) = unready(context, brand, &plan).await?;
    problems.extend(unknown);
    let customer = meant(context, brand, asked).await?;
    let record = context.store.customer(brand, customer).await?.ok_or(AdminError::Unknown("customer"))?;
    let profile = record.profile.id;
    let settings = context.brands.settings(brand).await?;
    let now = context.clock.now();
    let mut tx = context.automations.begin_reading(brand).await?;
    let facts = tx.facts(&[profile], true).await?.remove(&profile).ok_or(AdminError::Unknown("customer"))?;
    let trigger = match (&definition.trigger, &asked.message_id) {
        (Starts::Event { .. }, Some(id)) => {
            let key = (brand, id.clone());
            let held = tx.events(std::slice::from_ref(&key)).await?.remove(&key);
            Some(held.ok_or(AdminError::Unknown("event"))?)
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
    let days = [plan.definition.frequency_cap, settings.frequency_cap]
        .into_iter()
        .flatten()
        .map(|cap| cap.days)
        .max();
    let sent = tx
        .sent(&[profile], now.timestamp_millis() - i64::from(days.unwrap_or_default()) * 86_400_000)
        .await?;
    let sent: Vec<(Uuid, i64)> = sent.iter().map(|row| (row.automation, row.first_ms)).collect();
    drop(tx);
    let past = past.get(&(id, profile)).cloned().unwrap_or_default();
    let tried = Tried { brand, id, plan, facts, trigger, past, events, sent, settings, at_ms, now, problems };
    worked_out(context, brand, "invalid_automation", move || meter::within(PAGE_EFFORT, || tried.answer()).0)
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
        let profile = facts.profile.id;
        let mut run = Run::new(self.brand, self.id, 0, plan, profile, &cause, now.timestamp_millis());
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
                    let (what, effect) = described(&doing.action, facts, trigger.as_ref());
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

/// What is held on a customer here, for an export.
pub(crate) struct Held {
    pub(crate) segments: Value,
    pub(crate) runs: Value,
    pub(crate) actions: Value,
}

/// All of it, at most [`HELD`] of each.
pub(crate) async fn held(context: &Context, brand: BrandId, id: ProfileId) -> Result<Held, StoreError> {
    let changes = context.automations.changes(brand, None, Some(id), None, HELD).await?;
    let runs =
        context.automations.runs(brand, RunFilter { profile: Some(id), ..RunFilter::default() }, None, HELD);
    let runs: Vec<RunAnswer> = runs.await?.iter().map(RunAnswer::from).collect();
    let actions = context.automations.actions_of(brand, id, HELD).await?;
    let actions: Vec<ActionAnswer> = actions.iter().map(ActionAnswer::from).collect();
    let changes: Vec<Value> = changes
        .iter()
        .map(|c| json!({"segment": c.segment, "entered": c.entered, "at": time::format(from_ms(c.at_ms))}))
        .collect();
    Ok(Held { segments: json!(changes), runs: json!(runs), actions: json!(actions) })
}

/// Most runs, actions and changes of segments that an export has.
const HELD: i64 = 10_000;
