//! Something happened to customers: who evaluate_segments to what now, which runs begin, which are woken.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use uuid::Uuid;

use crate::context::Context;
use crate::domain::automation::definition::Trigger as Starts;
use crate::domain::automation::facts::{Facts, Trigger};
use crate::domain::automation::meter::{self, CUSTOMER};
use crate::domain::automation::plan::Plan;
use crate::domain::automation::run::RunOf;
use crate::domain::automation::run::{Cause, MAX_TRIGGER_AGE_MS, Past, Run, Status, may_enter};
use crate::domain::automation::segment::Change;
use crate::domain::customer360::StoredEvent;
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::time::Timestamp;
use crate::ports::automations::{AutomationStatus, AutomationsTx, Check};
use crate::ports::outbox::Stage;
use crate::ports::store::StoreError;
use crate::ports::world::World;
use crate::services::automations::compiled::{CompiledAutomation, CompiledBrand};
use crate::services::automations::jobs::{Job, Signal};

/// Customers of a page of a schedule, or of all customers.
pub const PAGE: i64 = 100;

/// What a brand has set up, by brand.
pub(super) type CompiledBrands = HashMap<BrandId, Arc<CompiledBrand>>;

pub(super) async fn compiled_brands(
    context: &Context,
    brands: BTreeSet<BrandId>,
) -> Result<CompiledBrands, StoreError> {
    let mut all = HashMap::new();
    for brand in brands {
        all.insert(brand, context.brand_cache.compiled(brand).await?);
    }
    Ok(all)
}

/// Processes signals, in one transaction. Who comes into a segment of `quiet`, or goes out of it, starts no run by that.
///
/// # Errors
/// The store's own. Nothing has changed then.
#[tracing::instrument(name = "process_signals", skip_all, fields(signals = signals.len()))]
pub async fn process_signals(
    context: &Context,
    signals: &[Signal],
    quiet: &[String],
) -> Result<(), StoreError> {
    let compiled_brands =
        compiled_brands(context, signals.iter().map(|signal| signal.brand).collect()).await?;
    let now = context.world.now();
    let now_ms = now.timestamp_millis();
    let mut tx = context.automations.begin().await?;
    let starting = starting(&compiled_brands);
    let statuses = if starting.is_empty() { HashMap::new() } else { tx.statuses(&starting).await? };
    let asked: BTreeSet<ProfileId> = signals.iter().map(|signal| signal.profile).collect();
    let moved = tx.lock(&asked.into_iter().collect::<Vec<_>>()).await?;
    let signalled = by_survivor(signals, &moved);
    let profiles: Vec<ProfileId> = signalled.keys().copied().collect();
    let mut facts = tx.facts(&profiles, compiled_brands.values().any(needs_events)).await?;
    let ids: Vec<(BrandId, String)> =
        signalled.values().flat_map(|(brand, ids)| ids.iter().map(|id| (*brand, id.clone()))).collect();
    let events = if ids.is_empty() { HashMap::new() } else { tx.events(&ids).await? };

    let mut changes: Vec<Change> = Vec::new();
    let mut checks: Vec<Check> = Vec::new();
    let mut entering = Entering::new(&context.world, now);
    for (id, (brand, message_ids)) in &signalled {
        let (Some(of_brand), Some(facts)) = (compiled_brands.get(brand), facts.get_mut(id)) else { continue };
        let mut ask = || {
            let from = changes.len();
            let next = evaluate_segments(&context.world, of_brand, *brand, facts, now, &mut changes);
            checks.push(Check { brand: *brand, profile: *id, due_ms: next.map(|at| at.timestamp_millis()) });
            let counted_changes: Vec<Change> =
                changes[from..].iter().filter(|change| !quiet.contains(&change.segment)).cloned().collect();
            let mut happened: Vec<&StoredEvent> =
                message_ids.iter().filter_map(|id| events.get(&(*brand, id.clone()))).collect();
            happened.sort_by(|a, b| (a.timestamp, &a.message_id).cmp(&(b.timestamp, &b.message_id)));
            // As the store has it: what is remembered may be old.
            let active = |own: &&CompiledAutomation| statuses.get(&own.id) == Some(&AutomationStatus::Active);
            for compiled in of_brand.automations.values().filter(active) {
                for (cause, event) in starting_causes(compiled, &happened, &counted_changes, now) {
                    let trigger = event.cloned().map(Trigger);
                    entering.consider(of_brand, compiled, *brand, facts, cause, trigger.as_ref());
                }
            }
        };
        let asked = context.languages.work(*brand, || meter::within(CUSTOMER, &mut ask).1);
        let over = asked.map_err(|error| StoreError::Invalid(format!("the customer {id}: {error}")))?;
        if let Some(over) = over {
            metrics::counter!("tributary_expressions_overrun_total").increment(1);
            tracing::warn!(%brand, %over, "the expressions that a brand asks of a customer are cancelled");
        }
    }
    // Nothing to write where nobody came or went.
    if !changes.is_empty() {
        tx.change_members(&changes).await?;
    }
    tx.set_checks(&checks).await?;
    let mut stages = entering.enter(&mut *tx).await?;
    if quiet.is_empty() {
        stages.extend(
            wake_waiting_runs(context, &mut *tx, &compiled_brands, &signalled, &events, now_ms).await?,
        );
    }
    if !stages.is_empty() {
        tx.stage(&stages, now_ms).await?;
    }
    tx.commit().await?;
    count_changes(&changes);
    Ok(())
}

/// The automations that start runs, as they are remembered.
fn starting(compiled_brands: &CompiledBrands) -> Vec<Uuid> {
    let all = compiled_brands.values().flat_map(|of_brand| of_brand.automations.values());
    all.filter(|own| own.status == AutomationStatus::Active).map(|own| own.id).collect()
}

/// The message ids of signals, by the customer that each is about now. Who was erased is left out.
fn by_survivor(
    signals: &[Signal],
    moved: &HashMap<ProfileId, ProfileId>,
) -> BTreeMap<ProfileId, (BrandId, BTreeSet<String>)> {
    let mut signalled: BTreeMap<ProfileId, (BrandId, BTreeSet<String>)> = BTreeMap::new();
    for signal in signals {
        let Some(id) = moved.get(&signal.profile) else { continue };
        let (_, events) = signalled.entry(*id).or_insert_with(|| (signal.brand, BTreeSet::new()));
        events.extend(signal.events.iter().cloned());
    }
    signalled
}

/// Whether any of a brand's expressions looks at events.
fn needs_events(of_brand: &Arc<CompiledBrand>) -> bool {
    let of_plans = of_brand.automations.values().flat_map(|compiled| compiled.plan.condition.as_ref());
    let of_segments = of_brand.segments.iter().map(|segment| &segment.expression);
    of_segments.chain(of_plans).any(|expression| expression.references("events"))
}

fn count_changes(changes: &[Change]) {
    let count = |entered: bool| changes.iter().filter(|change| change.entered == entered).count() as u64;
    metrics::counter!("tributary_segments_entered_total").increment(count(true));
    metrics::counter!("tributary_segments_left_total").increment(count(false));
}

/// What a customer evaluate_segments to now: changes are added, and the facts say so from then on. Answers when time may next change it.
fn evaluate_segments(
    world: &World,
    of_brand: &CompiledBrand,
    brand: BrandId,
    facts: &mut Facts,
    now: Timestamp,
    changes: &mut Vec<Change>,
) -> Option<Timestamp> {
    let mut next: Option<Timestamp> = None;
    let mut of: Vec<(&str, bool)> = Vec::new();
    for segment in &of_brand.segments {
        let verdict = segment.expression.holds(facts, None, &of_brand.settings, now);
        next = [next, verdict.next].into_iter().flatten().min();
        // What could not be answered because it took too much stays as it was.
        if !verdict.overrun {
            of.push((&segment.name, verdict.holds));
        }
    }
    let at_ms = now.timestamp_millis();
    for (name, holds) in of {
        if holds == facts.segments.contains_key(name) {
            continue;
        }
        if holds {
            facts.segments.insert(name.to_owned(), at_ms);
        } else {
            facts.segments.remove(name);
        }
        changes.push(Change {
            id: world.id(),
            brand,
            segment: name.to_owned(),
            profile: facts.profile.id,
            entered: holds,
            at_ms,
        });
    }
    next
}

/// What of all that happened starts a run of an automation.
fn starting_causes<'e>(
    compiled: &CompiledAutomation,
    happened: &[&'e StoredEvent],
    changes: &[Change],
    now: Timestamp,
) -> Vec<(Cause, Option<&'e StoredEvent>)> {
    let changed = |segment: &str, entered: bool| {
        let what = if entered { "came into" } else { "went out of" };
        let of = changes.iter().filter(move |change| change.segment == segment && change.entered == entered);
        of.map(move |change| {
            let why = format!("the customer {what} the segment {}", change.segment);
            (Cause { key: format!("change:{}", change.id), message_id: None, at_ms: change.at_ms, why }, None)
        })
        .collect()
    };
    match &compiled.plan.definition.trigger {
        Starts::Event { event, trusted } => happened
            .iter()
            .filter(|happened| happened.name.as_deref() == Some(event))
            .filter(|happened| !trusted || happened.source.is_trusted())
            .filter(|happened| (now - happened.timestamp).num_milliseconds() <= MAX_TRIGGER_AGE_MS)
            .map(|happened| {
                let id = happened.message_id.clone();
                let why = format!("{event} ({id})");
                let at_ms = happened.timestamp.timestamp_millis();
                (Cause { key: format!("event:{id}"), message_id: Some(id), at_ms, why }, Some(*happened))
            })
            .collect(),
        Starts::SegmentEnter { segment } => changed(segment, true),
        Starts::SegmentLeave { segment } => changed(segment, false),
        Starts::Schedule { .. } => Vec::new(),
    }
}

/// Runs that may begin.
struct Entering<'w> {
    world: &'w World,
    now: Timestamp,
    candidates: Vec<Run>,
    plans: HashMap<Uuid, Arc<Plan>>,
}

impl<'w> Entering<'w> {
    fn new(world: &'w World, now: Timestamp) -> Self {
        Self { world, now, candidates: Vec::new(), plans: HashMap::new() }
    }

    /// Notes a run, if the condition holds.
    fn consider(
        &mut self,
        of_brand: &CompiledBrand,
        compiled: &CompiledAutomation,
        brand: BrandId,
        facts: &Facts,
        cause: Cause,
        trigger: Option<&Trigger>,
    ) {
        let condition = compiled.plan.condition.as_ref();
        if condition
            .is_some_and(|condition| !condition.holds(facts, trigger, &of_brand.settings, self.now).holds)
        {
            return;
        }
        let now_ms = self.now.timestamp_millis();
        let of = RunOf {
            id: self.world.id(),
            brand,
            automation: compiled.id,
            version: compiled.version,
            profile: facts.profile.id,
        };
        self.candidates.push(Run::new(of, &compiled.plan, &cause, now_ms));
        self.plans.insert(compiled.id, compiled.plan.clone());
    }

    /// Begins those that the rule of re-entry lets in; answers their jobs. The customers are locked.
    async fn enter(self, tx: &mut dyn AutomationsTx) -> Result<Vec<Stage>, StoreError> {
        if self.candidates.is_empty() {
            return Ok(Vec::new());
        }
        let automations: BTreeSet<Uuid> = self.candidates.iter().map(|run| run.automation).collect();
        let profiles: BTreeSet<ProfileId> = self.candidates.iter().map(|run| run.profile).collect();
        let (automations, profiles): (Vec<_>, Vec<_>) =
            (automations.into_iter().collect(), profiles.into_iter().collect());
        let mut past = tx.past(&automations, &profiles).await?;
        let mut runs = Vec::new();
        for run in self.candidates {
            let before = past.entry((run.automation, run.profile)).or_default();
            let Some(plan) = self.plans.get(&run.automation) else { continue };
            if may_enter(plan, before, self.now).is_err() {
                continue;
            }
            before.push(Past { status: run.status, started_ms: run.started_ms });
            runs.push(run);
        }
        if runs.is_empty() {
            return Ok(Vec::new());
        }
        let added: BTreeSet<Uuid> = tx.add_runs(&runs).await?.into_iter().collect();
        metrics::counter!("tributary_runs_started_total").increment(added.len() as u64);
        Ok(runs.iter().filter(|run| added.contains(&run.id)).map(|run| Job::of(run).stage()).collect())
    }
}

/// Wakes the runs that an event ends, or that wait for it; answers their jobs. What they make of it they see for themselves.
async fn wake_waiting_runs(
    context: &Context,
    tx: &mut dyn AutomationsTx,
    compiled_brands: &CompiledBrands,
    signalled: &BTreeMap<ProfileId, (BrandId, BTreeSet<String>)>,
    events: &HashMap<(BrandId, String), StoredEvent>,
    now_ms: i64,
) -> Result<Vec<Stage>, StoreError> {
    let profiles: Vec<ProfileId> = signalled.keys().copied().collect();
    let mut woken = Vec::new();
    for mut run in tx.live_runs(&profiles).await? {
        // A queued one looks for itself; one without a time stands still.
        if run.status != Status::Waiting || run.due_ms.is_none() {
            continue;
        }
        let (Some(of_brand), Some((brand, ids))) =
            (compiled_brands.get(&run.brand), signalled.get(&run.profile))
        else {
            continue;
        };
        let Some(plan) = of_brand.plan(&*context.automations, run.brand, run.automation, run.version).await?
        else {
            continue;
        };
        let names: BTreeSet<&str> = plan.cancelling().chain(plan.awaited()).collect();
        let mut happened = ids.iter().filter_map(|id| events.get(&(*brand, id.clone())));
        // After a merge nobody says which events are new to it.
        let by_merge = ids.is_empty() && !names.is_empty();
        if by_merge || happened.any(|event| event.name.as_deref().is_some_and(|name| names.contains(name))) {
            run.status = Status::Queued;
            run.due_ms = None;
            run.revision += 1;
            run.updated_ms = now_ms;
            woken.push(run);
        }
    }
    if woken.is_empty() {
        return Ok(Vec::new());
    }
    tx.save_runs(&woken).await?;
    Ok(woken.iter().map(|run| Job::of(run).stage()).collect())
}

/// A page of a schedule: runs begin for members of its segment, and the next page is staged.
///
/// # Errors
/// The store's own. Nothing has changed then.
#[tracing::instrument(name = "run_schedule", skip_all, fields(brand = brand.0))]
pub async fn schedule(
    context: &Context,
    brand: BrandId,
    automation: Uuid,
    at_ms: i64,
    after: Option<ProfileId>,
) -> Result<(), StoreError> {
    let of_brand = context.brand_cache.compiled(brand).await?;
    // As the store has it: what is remembered may be old.
    let Some(row) = context.automations.automation(brand, automation).await? else { return Ok(()) };
    let Some(plan) = of_brand.plan(&*context.automations, brand, automation, row.version).await? else {
        return Ok(());
    };
    let Starts::Schedule { segment, .. } = &plan.definition.trigger else { return Ok(()) };
    if row.status != AutomationStatus::Active {
        tracing::info!(%automation, "a schedule came up for an automation that does not run");
        return Ok(());
    }
    let compiled =
        &CompiledAutomation { id: automation, version: row.version, status: row.status, plan: plan.clone() };
    let members = context.automations.members(brand, segment, after, PAGE).await?;
    let now = context.world.now();
    let ids: Vec<ProfileId> = members.iter().map(|member| member.profile).collect();
    let mut tx = context.automations.begin_for(brand).await?;
    let there: BTreeSet<ProfileId> = tx.lock(&ids).await?.into_values().collect();
    let there: Vec<ProfileId> = there.into_iter().collect();
    let sees = compiled.plan.condition.as_ref().is_some_and(|condition| condition.references("events"));
    let facts = tx.facts(&there, sees).await?;
    let mut entering = Entering::new(&context.world, now);
    let consider = || {
        for id in &there {
            let Some(facts) = facts.get(id) else { continue };
            let why = format!("the schedule, in the segment {segment}");
            let cause = Cause { key: format!("schedule:{at_ms}:{id}"), message_id: None, at_ms, why };
            meter::within(CUSTOMER, || entering.consider(&of_brand, compiled, brand, facts, cause, None));
        }
    };
    let considered = context.languages.work(brand, consider);
    considered.map_err(|error| StoreError::Invalid(format!("the schedule of {automation}: {error}")))?;
    let mut stages = entering.enter(&mut *tx).await?;
    if members.len() as i64 == PAGE {
        let after = ids.last().copied();
        stages.push(Job::Schedule { brand, automation, at_ms, after }.stage());
    }
    tx.stage(&stages, now.timestamp_millis()).await?;
    tx.commit().await
}

/// A page of all customers: what they belong to is asked again, and the next page is staged.
///
/// # Errors
/// The store's own.
pub async fn fill(
    context: &Context,
    brand: BrandId,
    segments: &[String],
    after: Option<ProfileId>,
) -> Result<(), StoreError> {
    context.brand_cache.forget(brand);
    let ids = context.automations.profiles(brand, after, PAGE).await?;
    let signals: Vec<Signal> =
        ids.iter().map(|id| Signal { brand, profile: *id, events: Vec::new() }).collect();
    process_signals(context, &signals, segments).await?;
    if ids.len() as i64 == PAGE {
        let mut tx = context.automations.begin_for(brand).await?;
        let next = Job::Fill { brand, segments: segments.to_vec(), after: ids.last().copied() };
        tx.stage(&[next.stage()], context.world.now_ms()).await?;
        tx.commit().await?;
    }
    Ok(())
}
