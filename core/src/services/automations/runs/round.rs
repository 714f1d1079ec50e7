//! One transaction over the runs of a batch: outcomes are recorded, runs advance, messages that are to be sent are recorded.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use uuid::Uuid;

use super::render::{ActionContext, Rendered, render_action};
use super::send::{Outcomes, Sending, apply_outcome, bounce_event};
use super::{JobOutcome, Outbound, Rules, RunJob};
use crate::context::Context;
use crate::domain::automation::facts::{Facts, Trigger};
use crate::domain::automation::meter::{self, CUSTOMER};
use crate::domain::automation::plan::Plan;
use crate::domain::automation::run::{ActionRow, ActionStatus, Doing, Run, Situation, Status};
use crate::domain::customer360::StoredEvent;
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::time::Timestamp;
use crate::ports::automations::{AutomationStatus, AutomationsTx};
use crate::ports::outbox::Stage;
use crate::ports::sender::{OutboundMessage, SendOutcome};
use crate::ports::store::StoreError;
use crate::services::automations::compiled::CompiledBrand;

/// How long a run waits that this version cannot read: a newer one wrote it.
const UNREADABLE_WAIT: Duration = Duration::from_secs(60);

/// Runs one round. Returns the messages that are to be sent once it has committed.
pub(super) async fn run_round(
    context: &Context,
    outbound: (&Outbound, u64),
    jobs: &[RunJob],
    rules: &Rules,
    sent: &Outcomes,
    outcome_of: &mut HashMap<Uuid, JobOutcome>,
) -> Result<Vec<Sending>, StoreError> {
    let mut tx = context.automations.begin().await?;
    let statuses = tx.statuses(&rules.automations).await?;
    let profiles: BTreeSet<ProfileId> = rules.profiles.values().copied().collect();
    let locked = tx.lock(&profiles.into_iter().collect::<Vec<_>>()).await?;
    let jobs: BTreeMap<Uuid, &RunJob> = jobs.iter().map(|job| (job.run, job)).collect();
    let mut runs = tx.lock_runs(&jobs.keys().copied().collect::<Vec<_>>()).await?;
    let actions = tx.actions(&runs.iter().map(|run| run.id).collect::<Vec<_>>()).await?;
    let now = context.world.now();
    let mut round = Round {
        context,
        outbound,
        rules,
        sent,
        outcome_of,
        now,
        now_ms: now.timestamp_millis(),
        statuses,
        actions: actions.into_iter().map(|row| ((row.run, row.node), row)).collect(),
        changed: BTreeSet::new(),
        stages: Vec::new(),
        sending: Vec::new(),
    };
    runs.retain(|run| round.admit(run, jobs.get(&run.id).copied()));
    let absorbed = |run: &Run| locked.get(&run.profile).is_none_or(|id| *id != run.profile);
    if runs.iter().any(absorbed) {
        return Err(StoreError::Conflict("a customer was merged concurrently".into()));
    }
    if !runs.is_empty() {
        let mut seen = Seen::load(&mut *tx, &runs, rules, round.now_ms).await?;
        for run in &mut runs {
            round.advance(run, &mut seen)?;
        }
    }
    round.commit(tx, &runs).await
}

/// What runs see of their customers.
struct Seen {
    facts: HashMap<ProfileId, Facts>,
    triggers: HashMap<(BrandId, String), StoredEvent>,
    /// The events that runs wait for or end at, of each customer since the oldest of its runs began.
    events: HashMap<ProfileId, Vec<StoredEvent>>,
    /// Marketing that was sent within the time that frequency caps look back.
    marketing: Vec<ActionRow>,
}

impl Seen {
    async fn load(
        tx: &mut dyn AutomationsTx,
        runs: &[Run],
        rules: &Rules,
        now_ms: i64,
    ) -> Result<Self, StoreError> {
        let ids: BTreeSet<ProfileId> = runs.iter().map(|run| run.profile).collect();
        let ids: Vec<ProfileId> = ids.into_iter().collect();
        let needs_events = runs
            .iter()
            .filter_map(|run| rules.plan(run.id))
            .any(|plan| plan.expressions().any(|expression| expression.references("events")));
        let facts = tx.facts(&ids, needs_events).await?;
        let triggers: Vec<(BrandId, String)> =
            runs.iter().filter_map(|run| Some((run.brand, run.state.message_id.clone()?))).collect();
        let triggers = if triggers.is_empty() { HashMap::new() } else { tx.events(&triggers).await? };
        let events = Self::load_events(tx, runs, rules).await?;
        let counts_since = |run: &Run| {
            let settings = &rules.compiled_brands.get(&run.brand)?.settings;
            rules.plan(run.id)?.counts_since(settings, now_ms)
        };
        let marketing = match runs.iter().filter_map(counts_since).min() {
            Some(since) => tx.sent(&ids, since).await?,
            None => Vec::new(),
        };
        Ok(Self { facts, triggers, events, marketing })
    }

    async fn load_events(
        tx: &mut dyn AutomationsTx,
        runs: &[Run],
        rules: &Rules,
    ) -> Result<HashMap<ProfileId, Vec<StoredEvent>>, StoreError> {
        let mut names: BTreeSet<String> = BTreeSet::new();
        let mut since: HashMap<ProfileId, i64> = HashMap::new();
        for (run, plan) in runs.iter().filter_map(|run| Some((run, rules.plan(run.id)?))) {
            let awaited: Vec<String> = plan.cancelling().chain(plan.awaited()).map(str::to_owned).collect();
            if !awaited.is_empty() {
                names.extend(awaited);
                let from = since.entry(run.profile).or_insert(run.state.triggered_ms);
                *from = (*from).min(run.state.triggered_ms);
            }
        }
        if since.is_empty() {
            return Ok(HashMap::new());
        }
        let (names, since): (Vec<_>, Vec<_>) = (names.into_iter().collect(), since.into_iter().collect());
        tx.events_since(&since, &names).await
    }

    fn trigger(&self, run: &Run) -> Option<Trigger> {
        let id = run.state.message_id.clone()?;
        self.triggers.get(&(run.brand, id)).cloned().map(Trigger)
    }

    fn events_of(&self, run: &Run) -> Vec<StoredEvent> {
        let from = run.state.triggered_ms;
        let all = self.events.get(&run.profile).into_iter().flatten();
        all.filter(|event| event.timestamp.timestamp_millis() >= from).cloned().collect()
    }

    /// Automation and time of the marketing that counts against a run's next action: what it has begun itself does not.
    fn marketing_against(&self, run: &Run) -> Vec<(Uuid, i64)> {
        let counts = |row: &&ActionRow| {
            row.profile == run.profile && (row.run != run.id || Some(row.node) != run.state.at)
        };
        self.marketing.iter().filter(counts).map(|row| (row.automation, row.first_ms)).collect()
    }
}

struct Round<'r> {
    context: &'r Context,
    outbound: (&'r Outbound, u64),
    rules: &'r Rules,
    sent: &'r Outcomes,
    outcome_of: &'r mut HashMap<Uuid, JobOutcome>,
    now: Timestamp,
    now_ms: i64,
    statuses: HashMap<Uuid, AutomationStatus>,
    /// The records of the runs' actions, and those of them that are to be written.
    actions: HashMap<(Uuid, usize), ActionRow>,
    changed: BTreeSet<(Uuid, usize)>,
    stages: Vec<Stage>,
    sending: Vec<Sending>,
}

/// Whether a run can be advanced further within this round.
enum Step {
    Again,
    Stop,
}

impl Round<'_> {
    /// Whether a run is this job's: not where it has been advanced, or has ended, since the job was made, nor while it waits for a retry.
    fn admit(&mut self, run: &Run, job: Option<&RunJob>) -> bool {
        let job = job.filter(|job| job.revision == run.revision && !self.outcome_of.contains_key(&run.id));
        let admitted = match (job, run.status) {
            (Some(_), Status::Queued) => true,
            // One whose dead letter was retried is tried again; otherwise its worker died before it buried the job.
            (Some(job), Status::Failed) if self.sent.is_empty() && job.put_back => true,
            (Some(_), Status::Failed) if self.sent.is_empty() => {
                let error = run.state.log.last().and_then(|last| last.why.clone());
                let error = error.unwrap_or_else(|| "the run has failed".to_owned());
                self.outcome_of.insert(run.id, JobOutcome::Bury { error });
                false
            }
            _ => false,
        };
        if !admitted {
            self.record_late_outcome(run);
        }
        admitted
    }

    /// A message of a run that somebody has cancelled meanwhile was sent all the same: its record says so.
    fn record_late_outcome(&mut self, run: &Run) {
        let Some((node, outcome)) = self.sent.get(&run.id) else { return };
        let key = (run.id, *node);
        let Some(row) = self.actions.get_mut(&key).filter(|row| row.status == ActionStatus::Started) else {
            return;
        };
        let done = matches!(outcome, SendOutcome::Done(_));
        row.status = if done { ActionStatus::Done } else { ActionStatus::Failed };
        row.last_ms = self.now_ms;
        self.changed.insert(key);
    }

    /// Advances a run as far as it can go.
    fn advance(&mut self, run: &mut Run, seen: &mut Seen) -> Result<(), StoreError> {
        let now_ms = self.now_ms;
        run.updated_ms = now_ms;
        let plan = self.rules.plan(run.id);
        let (Some(plan), Some(of_brand), true) =
            (plan, self.rules.compiled_brands.get(&run.brand), seen.facts.contains_key(&run.profile))
        else {
            self.cannot_read(run);
            return Ok(());
        };
        if !self.apply_sent(run, &plan) {
            return Ok(());
        }
        if run.status == Status::Failed {
            self.retry_failed(run);
        }
        // As the store has it: a copy may be old, and nobody would wake a run that was parked because of it.
        match self.statuses.get(&run.automation) {
            None => {
                run.end(Status::Cancelled, now_ms, "cancelled", Some("the automation is gone".to_owned()))
            }
            Some(status) if *status != AutomationStatus::Active && self.sent.is_empty() => {
                // It waits until the automation is resumed.
                run.status = Status::Waiting;
                run.due_ms = None;
                run.note(now_ms, None, "postponed", Some("the automation is paused".to_owned()));
            }
            Some(_) => {
                let (trigger, events) = (seen.trigger(run), seen.events_of(run));
                while let Step::Again = self.step(run, (&plan, of_brand), seen, trigger.as_ref(), &events)? {}
            }
        }
        Ok(())
    }

    /// A run whose automation this version cannot read waits for a version that can; one whose automation is gone ends.
    fn cannot_read(&mut self, run: &mut Run) {
        if self.statuses.contains_key(&run.automation) {
            let error = "this version cannot read the automation".to_owned();
            self.outcome_of.insert(run.id, JobOutcome::Retry { delay: UNREADABLE_WAIT, error });
        } else {
            run.end(Status::Cancelled, self.now_ms, "cancelled", Some("the automation is gone".to_owned()));
        }
    }

    /// Applies the outcome of the run's message, if one was sent. Returns whether the run goes further.
    fn apply_sent(&mut self, run: &mut Run, plan: &Plan) -> bool {
        let Some((node, outcome)) = self.sent.get(&run.id) else { return true };
        let key = (run.id, *node);
        let Some(row) = self.actions.get_mut(&key).filter(|_| run.state.at == Some(*node)) else {
            return true;
        };
        let becomes = apply_outcome(&self.context.world, run, plan, row, outcome, self.now_ms);
        self.stages.extend(bounce_event(run, row, outcome, self.now_ms));
        self.changed.insert(key);
        let done = becomes == JobOutcome::Done;
        if !done {
            self.outcome_of.insert(run.id, becomes);
        }
        done
    }

    fn retry_failed(&mut self, run: &mut Run) {
        run.status = Status::Queued;
        if let Some(row) = run.state.at.and_then(|node| self.actions.get_mut(&(run.id, node))) {
            row.attempts = 0;
        }
        run.note(self.now_ms, None, "retried", Some("its dead letter was put back".to_owned()));
    }

    /// Advances a run to its next action, and does that where it is done within the store.
    fn step(
        &mut self,
        run: &mut Run,
        (plan, of_brand): (&Plan, &CompiledBrand),
        seen: &mut Seen,
        trigger: Option<&Trigger>,
        events: &[StoredEvent],
    ) -> Result<Step, StoreError> {
        let Some(facts) = seen.facts.get(&run.profile) else { return Ok(Step::Stop) };
        let marketing = seen.marketing_against(run);
        let situation = Situation {
            plan,
            facts,
            trigger,
            events,
            settings: &of_brand.settings,
            sent: &marketing,
            now: self.now,
        };
        let languages = &self.context.languages;
        let advanced = languages.work(run.brand, || meter::within(CUSTOMER, || run.advance(&situation)).0);
        let Some(doing) = advanced.map_err(|error| StoreError::Invalid(error.to_string()))? else {
            return Ok(Step::Stop);
        };
        let of_action = ActionContext {
            world: &self.context.world,
            outbound: self.outbound.0,
            rules: self.rules,
            of_brand,
            facts,
            trigger,
            now: self.now,
            instead: None,
        };
        let render = || render_action(&of_action, run, &doing).unwrap_or_else(Rendered::Fail);
        let rendered = languages.work(run.brand, render);
        let rendered = rendered.unwrap_or_else(|error| Rendered::Fail(error.to_string()));
        Ok(self.act(run, plan, &doing, rendered, &mut seen.marketing))
    }

    fn act(
        &mut self,
        run: &mut Run,
        plan: &Plan,
        doing: &Doing,
        rendered: Rendered,
        marketing: &mut Vec<ActionRow>,
    ) -> Step {
        let (key, now_ms) = ((run.id, doing.node), self.now_ms);
        let mut row = self.actions.get(&key).cloned().unwrap_or_else(|| new_record(run, doing, now_ms));
        row.last_ms = now_ms;
        let step = match rendered {
            Rendered::Inside(stage) => {
                self.stages.extend(stage);
                row.status = ActionStatus::Done;
                run.done(plan, doing.node, now_ms, now_ms, None);
                Step::Again
            }
            Rendered::Skip(why) => {
                row.status = ActionStatus::Skipped;
                row.error = Some(why.clone());
                run.skipped(plan, doing.node, now_ms, why);
                Step::Again
            }
            Rendered::Fail(why) => {
                row.status = ActionStatus::Failed;
                row.error = Some(why.clone());
                run.failed(plan, doing.node, now_ms, why.clone());
                self.outcome_of.insert(run.id, JobOutcome::Bury { error: why });
                Step::Stop
            }
            Rendered::Outside { destination, content } => {
                let (outbound, batch) = self.outbound;
                let permit = match outbound.destinations.go(
                    batch,
                    run.brand,
                    &destination,
                    self.context.world.uptime_ms(),
                ) {
                    Ok(permit) => permit,
                    Err(later) => {
                        let wait = i64::try_from(later.wait.as_millis()).unwrap_or(i64::MAX / 2);
                        let until = now_ms.saturating_add(wait).saturating_add(1);
                        run.postponed(plan, doing.node, until, now_ms, later.why);
                        return Step::Stop;
                    }
                };
                row.status = ActionStatus::Started;
                row.attempts += 1;
                row.destination = Some(destination);
                if row.marketing {
                    marketing.push(row.clone());
                }
                let message = OutboundMessage { key: row.key(), content };
                self.sending.push(Sending { run: run.id, node: doing.node, permit, message });
                Step::Stop
            }
        };
        self.actions.insert(key, row);
        self.changed.insert(key);
        step
    }

    async fn commit(self, mut tx: Box<dyn AutomationsTx>, runs: &[Run]) -> Result<Vec<Sending>, StoreError> {
        let records: Vec<ActionRow> =
            self.changed.iter().filter_map(|key| self.actions.get(key).cloned()).collect();
        if runs.is_empty() && records.is_empty() {
            return Ok(Vec::new());
        }
        if !records.is_empty() {
            tx.save_actions(&records).await?;
        }
        if !runs.is_empty() {
            tx.save_runs(runs).await?;
        }
        if !self.stages.is_empty() {
            tx.stage(&self.stages, self.now_ms).await?;
        }
        tx.commit().await?;
        Ok(self.sending)
    }
}

fn new_record(run: &Run, doing: &Doing, now_ms: i64) -> ActionRow {
    ActionRow {
        run: run.id,
        node: doing.node,
        brand: run.brand,
        automation: run.automation,
        profile: run.profile,
        kind: doing.action.kind().to_owned(),
        destination: None,
        marketing: doing.action.is_marketing(),
        status: ActionStatus::Started,
        attempts: 0,
        first_ms: now_ms,
        last_ms: now_ms,
        error: None,
    }
}
