//! Runs go on: what is to be done is recorded, done, and recorded again.
//!
//! A batch goes in rounds. In each, one transaction takes in what parcels came to, lets their runs go on as far as they can, and
//! records the parcels that are to be carried next; then they are carried, all at once. A round takes in what has come to its end by
//! then: nobody's next step waits for another's slow receiver. Who dies in between
//! leaves records of what was begun, and whoever gets the jobs next carries those parcels again, under the same keys. What is done
//! within the store - tags, traits, events - is part of the transaction, and happens once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::context::{Context, EVENTS_QUEUE};
use crate::domain::addresses::Reach;
use crate::domain::automation::definition::Action;
use crate::domain::automation::emitted;
use crate::domain::automation::facts::{Facts, Trigger};
use crate::domain::automation::meter::{self, CUSTOMER};
use crate::domain::automation::plan::{Op, Plan};
use crate::domain::automation::run::{
    ActionRow, ActionStatus, Cause, Doing, Run, Situation, Status, action_key,
};
use crate::domain::automation::template;
use crate::domain::backoff::{MAX_ATTEMPTS, full_jitter};
use crate::domain::customer360::StoredEvent;
use crate::domain::event::{Channel, UNDELIVERABLE};
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::time::{self, Timestamp};
use crate::failpoint;
use crate::ports::automations::AutomationStatus;
use crate::ports::courier::{Content, Courier, Delivery, Email, Parcel};
use crate::ports::outbox::Stage;
use crate::ports::queue::NewItem;
use crate::ports::store::StoreError;
use crate::ports::tenants::BrandSecrets;
use crate::sampled::Sampled;
use crate::services::automations::destinations::{Destinations, Permit};
use crate::services::automations::playbook::Playbook;
use crate::services::automations::signals::{Playbooks, playbooks};
use crate::services::automations::{confirm, signing, unsubscribe};

/// Destinations that gave no answer.
static UNREACHED: Sampled = Sampled::new();
/// Parcels of a batch that are carried at once.
const AT_ONCE: usize = 200;
/// How long what has come to its end waits for others, to be recorded with them.
const TOGETHER: Duration = Duration::from_millis(50);
/// The longest wait that a receiver's Retry-After is heeded for.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// E-mail is one destination, whoever it is for: it leaves by one relay.
const SMTP: &str = "smtp";
/// How often it is tried to record what was done.
const RECORD_TRIES: u32 = 20;
/// How long a store that is away is waited for between two tries.
const RECORD_WAIT: Duration = Duration::from_millis(500);
/// How long a run waits that this program cannot read: a newer one wrote it.
const UNREADABLE_WAIT: Duration = Duration::from_secs(60);
const DAY_MS: i64 = 86_400_000;

/// What carries parcels, and what is known of where they go.
#[derive(Clone)]
pub struct Outside {
    /// The carrier.
    pub courier: Arc<dyn Courier>,
    /// Where parcels go.
    pub destinations: Arc<Destinations>,
    /// Where customers reach this system: links to unsubscribe begin with it.
    pub public_url: Option<String>,
    /// Whether e-mails can leave.
    pub sends_mail: bool,
    /// Where webhooks and chats may go.
    pub reach: Reach,
}

/// A run that is to go on, at a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Whose.
    pub brand: BrandId,
    /// Which.
    pub run: Uuid,
    /// At which revision.
    pub revision: i64,
    /// Its job was a dead letter that somebody has put back.
    pub put_back: bool,
}

/// What becomes of a run's job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is done: the run waits, or has ended, or was elsewhere.
    Done,
    /// An action is to be tried again.
    Retry {
        /// When.
        delay: Duration,
        /// Why.
        error: String,
    },
    /// An action cannot be done.
    Bury {
        /// Why.
        error: String,
    },
}

/// A parcel on its way.
struct Sending {
    run: Uuid,
    node: usize,
    permit: Permit,
    parcel: Parcel,
}

/// What a batch knows besides the runs.
struct Known {
    playbooks: Playbooks,
    plans: HashMap<Uuid, Option<Arc<Plan>>>,
    profiles: HashMap<Uuid, ProfileId>,
    automations: Vec<Uuid>,
    secrets: HashMap<BrandId, BrandSecrets>,
}

/// Lets runs go on. Answers what becomes of each job, in order.
///
/// # Errors
/// The store's own: what was done outside is recorded as begun, and is done again under the same key.
pub async fn go_on(context: &Context, outside: &Outside, wanted: &[Wanted]) -> Result<Vec<Next>, StoreError> {
    let mut results: HashMap<Uuid, (usize, Delivery)> = HashMap::new();
    let mut next: HashMap<Uuid, Next> = HashMap::new();
    let at_once = Semaphore::new(AT_ONCE);
    let batch = outside.destinations.batch();
    let mut under_way = FuturesUnordered::new();
    let mut of_round = wanted.to_vec();
    loop {
        let sending = recorded(context, (outside, batch), &of_round, &results, &mut next).await?;
        if !sending.is_empty() {
            failpoint::reached("action_recorded_before_done");
        }
        under_way.extend(sending.into_iter().map(|one| carry(context, outside, &at_once, one)));
        results = ended(&mut under_way).await;
        if results.is_empty() {
            break;
        }
        failpoint::reached("action_done_before_recorded");
        // Those whose parcels are under way still have nothing to be recorded.
        of_round = wanted.iter().filter(|one| results.contains_key(&one.run)).copied().collect();
    }
    Ok(wanted.iter().map(|one| next.get(&one.run).cloned().unwrap_or(Next::Done)).collect())
}

/// One round, tried again where a race was lost or the store is away for a moment: what was carried must be recorded, or it is
/// carried again. Where the store refuses, run by run, so that one that cannot be recorded takes no other along.
async fn recorded(
    context: &Context,
    outside: (&Outside, u64),
    wanted: &[Wanted],
    results: &HashMap<Uuid, (usize, Delivery)>,
    next: &mut HashMap<Uuid, Next>,
) -> Result<Vec<Sending>, StoreError> {
    let patience = if results.is_empty() { 1 } else { RECORD_TRIES };
    let mut tries = 0;
    loop {
        tries += 1;
        let mut told = next.clone();
        let tried = async {
            let known = known(context, wanted).await?;
            round(context, outside, wanted, &known, results, &mut told).await
        };
        match tried.await {
            Ok(sending) => {
                *next = told;
                return Ok(sending);
            }
            Err(StoreError::Invalid(why)) if !results.is_empty() && wanted.len() == 1 => {
                next.insert(
                    wanted[0].run,
                    Next::Bury { error: format!("it was done, and cannot be recorded: {why}") },
                );
                return Ok(Vec::new());
            }
            Err(StoreError::Invalid(_)) if !results.is_empty() => {
                let mut sending = Vec::new();
                for one in wanted {
                    let one = std::slice::from_ref(one);
                    sending.extend(Box::pin(recorded(context, outside, one, results, next)).await?);
                }
                return Ok(sending);
            }
            Err(error) if tries >= patience => return Err(error),
            Err(StoreError::Unavailable(_)) => tokio::time::sleep(RECORD_WAIT).await,
            Err(_) => tokio::time::sleep(RECORD_WAIT.mul_f64(rand::random::<f64>() / 10.0)).await,
        }
    }
}

/// What can be asked before the transaction.
async fn known(context: &Context, wanted: &[Wanted]) -> Result<Known, StoreError> {
    let brands: BTreeSet<BrandId> = wanted.iter().map(|one| one.brand).collect();
    let playbooks = playbooks(context, brands.clone()).await?;
    let mut secrets = HashMap::new();
    for brand in brands {
        secrets.insert(brand, signing::secrets(context, brand).await?);
    }
    let of: HashMap<Uuid, BrandId> = wanted.iter().map(|one| (one.run, one.brand)).collect();
    let (mut plans, mut profiles, mut automations) = (HashMap::new(), HashMap::new(), BTreeSet::new());
    for peek in context.automations.peek(&of.keys().copied().collect::<Vec<_>>()).await? {
        let Some(book) = of.get(&peek.run).and_then(|brand| playbooks.get(brand)) else { continue };
        plans.insert(
            peek.run,
            book.plan(&*context.automations, peek.brand, peek.automation, peek.version).await?,
        );
        profiles.insert(peek.run, peek.profile);
        automations.insert(peek.automation);
    }
    Ok(Known { playbooks, plans, profiles, automations: automations.into_iter().collect(), secrets })
}

/// One transaction: takes in results, lets runs go on, records what is to be sent.
async fn round(
    context: &Context,
    (outside, batch): (&Outside, u64),
    wanted: &[Wanted],
    known: &Known,
    results: &HashMap<Uuid, (usize, Delivery)>,
    next: &mut HashMap<Uuid, Next>,
) -> Result<Vec<Sending>, StoreError> {
    let now = context.clock.now();
    let now_ms = now.timestamp_millis();
    let mut tx = context.automations.begin().await?;
    let statuses = tx.statuses(&known.automations).await?;
    let profiles: BTreeSet<ProfileId> = known.profiles.values().copied().collect();
    let locked = tx.lock(&profiles.into_iter().collect::<Vec<_>>()).await?;
    let revisions: BTreeMap<Uuid, &Wanted> = wanted.iter().map(|one| (one.run, one)).collect();
    let mut runs = tx.lock_runs(&revisions.keys().copied().collect::<Vec<_>>()).await?;
    let mut rows: HashMap<(Uuid, usize), ActionRow> = tx
        .actions(&runs.iter().map(|run| run.id).collect::<Vec<_>>())
        .await?
        .into_iter()
        .map(|row| ((row.run, row.node), row))
        .collect();
    let mut changed: Vec<(Uuid, usize)> = Vec::new();
    // Those that have gone on, or ended, since the job was made, are not this job's; and what waits for its next try is left.
    runs.retain(|run| {
        let job =
            revisions.get(&run.id).filter(|job| job.revision == run.revision && !next.contains_key(&run.id));
        let wanted = job.is_some_and(|job| match run.status {
            Status::Queued => true,
            // One whose dead letter was put back is tried again; else its worker died before it buried the job.
            Status::Failed if results.is_empty() && job.put_back => true,
            Status::Failed if results.is_empty() => {
                let error = run.state.log.last().and_then(|last| last.why.clone());
                next.insert(
                    run.id,
                    Next::Bury { error: error.unwrap_or_else(|| "the run has failed".to_owned()) },
                );
                false
            }
            _ => false,
        });
        // What was done for a run that somebody has cancelled meanwhile was done; what was not, is not any more.
        let told = results.get(&run.id).filter(|_| !wanted);
        if let Some((row, (_, delivery))) = told.and_then(|told| {
            Some((rows.get_mut(&(run.id, told.0)).filter(|r| r.status == ActionStatus::Started)?, told))
        }) {
            row.status =
                if matches!(delivery, Delivery::Done(_)) { ActionStatus::Done } else { ActionStatus::Failed };
            row.last_ms = now_ms;
            changed.push((row.run, row.node));
        }
        wanted
    });
    if runs.is_empty() {
        let records: Vec<ActionRow> = changed.iter().filter_map(|key| rows.get(key).cloned()).collect();
        if !records.is_empty() {
            tx.save_actions(&records).await?;
            tx.commit().await?;
        }
        return Ok(Vec::new());
    }
    let elsewhere = |run: &Run| locked.get(&run.profile).is_none_or(|id| *id != run.profile);
    if runs.iter().any(elsewhere) {
        return Err(StoreError::Conflict("a customer was merged meanwhile".into()));
    }
    let ids: BTreeSet<ProfileId> = runs.iter().map(|run| run.profile).collect();
    let ids: Vec<ProfileId> = ids.into_iter().collect();
    let plan_of = |run: &Run| known.plans.get(&run.id).and_then(Clone::clone);
    let sees_events = runs
        .iter()
        .filter_map(plan_of)
        .any(|plan| plan.expressions().any(|expression| expression.speaks_of("events")));
    let facts = tx.facts(&ids, sees_events).await?;
    let triggers: Vec<(BrandId, String)> =
        runs.iter().filter_map(|run| Some((run.brand, run.state.message_id.clone()?))).collect();
    let triggers = if triggers.is_empty() { HashMap::new() } else { tx.events(&triggers).await? };
    let mut names: BTreeSet<String> = BTreeSet::new();
    let mut since: HashMap<ProfileId, i64> = HashMap::new();
    for (run, plan) in runs.iter().filter_map(|run| Some((run, plan_of(run)?))) {
        let heard: Vec<String> = plan.cancelling().chain(plan.awaited()).map(str::to_owned).collect();
        if !heard.is_empty() {
            names.extend(heard);
            let from = since.entry(run.profile).or_insert(run.state.triggered_ms);
            *from = (*from).min(run.state.triggered_ms);
        }
    }
    let names: Vec<String> = names.into_iter().collect();
    let since: Vec<(ProfileId, i64)> = since.into_iter().collect();
    let heard = if since.is_empty() { HashMap::new() } else { tx.events_since(&since, &names).await? };
    let days = runs.iter().filter_map(|run| cap_days(run, plan_of(run).as_deref(), known)).max();
    let mut sent: Vec<ActionRow> = match days {
        Some(days) => tx.sent(&ids, now_ms - i64::from(days) * DAY_MS).await?,
        None => Vec::new(),
    };
    let (mut sending, mut stages) = (Vec::new(), Vec::new());
    for run in &mut runs {
        run.updated_ms = now_ms;
        let (Some(plan), Some(facts), Some(book)) =
            (plan_of(run), facts.get(&run.profile), known.playbooks.get(&run.brand))
        else {
            if statuses.contains_key(&run.automation) {
                let error = "this program cannot read the automation".to_owned();
                next.insert(run.id, Next::Retry { delay: UNREADABLE_WAIT, error });
            } else {
                run.end(Status::Cancelled, now_ms, "cancelled", Some("the automation is gone".to_owned()));
            }
            continue;
        };
        if let Some((node, delivery)) = results.get(&run.id) {
            let row = rows.get_mut(&(run.id, *node));
            if let Some(row) = row.filter(|_| run.state.at == Some(*node)) {
                let becomes = taken_in(run, &plan, row, delivery, now_ms);
                stages.extend(bounced(run, row, delivery, now_ms));
                changed.push((row.run, row.node));
                if becomes != Next::Done {
                    next.insert(run.id, becomes);
                    continue;
                }
            }
        }
        if run.status == Status::Failed {
            run.status = Status::Queued;
            if let Some(row) = run.state.at.and_then(|node| rows.get_mut(&(run.id, node))) {
                row.attempts = 0;
            }
            run.note(now_ms, None, "retried", Some("its dead letter was put back".to_owned()));
        }
        // As the store has it: what is remembered may be old, and nobody would wake a run that was parked in error.
        let status = statuses.get(&run.automation);
        if status.is_none() {
            run.end(Status::Cancelled, now_ms, "cancelled", Some("the automation is gone".to_owned()));
            continue;
        }
        if status != Some(&AutomationStatus::Active) && results.is_empty() {
            // It stands still, and goes on when the automation does.
            run.status = Status::Waiting;
            run.due_ms = None;
            run.note(now_ms, None, "postponed", Some("the automation is paused".to_owned()));
            continue;
        }
        let trigger = run.state.message_id.as_ref();
        let trigger = trigger.and_then(|id| triggers.get(&(run.brand, id.clone()))).cloned().map(Trigger);
        let events: Vec<StoredEvent> = heard.get(&run.profile).map_or_else(Vec::new, |all| {
            let from = run.state.triggered_ms;
            all.iter().filter(|event| event.timestamp.timestamp_millis() >= from).cloned().collect()
        });
        loop {
            // What this run has begun itself does not stand in its own way.
            let of_others: Vec<(Uuid, i64)> = sent
                .iter()
                .filter(|row| {
                    row.profile == run.profile && (row.run != run.id || Some(row.node) != run.state.at)
                })
                .map(|row| (row.automation, row.first_ms))
                .collect();
            let situation = Situation {
                plan: &plan,
                facts,
                trigger: trigger.as_ref(),
                events: &events,
                settings: &book.settings,
                sent: &of_others,
                now,
            };
            let brand = run.brand;
            let advanced =
                context.languages.work(brand, || meter::within(CUSTOMER, || run.advance(&situation)).0);
            let Some(doing) = advanced.map_err(|error| StoreError::Invalid(error.to_string()))? else {
                break;
            };
            let key = (run.id, doing.node);
            let mut row = rows.get(&key).cloned().unwrap_or_else(|| record(run, &doing, now_ms));
            let ready = Ready { outside, known, book, facts, trigger: trigger.as_ref(), now, instead: None };
            let prepare = || prepared(&ready, run, &doing).unwrap_or_else(Prepared::Fail);
            let prepared = context.languages.work(run.brand, prepare);
            match prepared.unwrap_or_else(|error| Prepared::Fail(error.to_string())) {
                Prepared::Inside(stage) => {
                    stages.extend(stage);
                    row.status = ActionStatus::Done;
                    row.last_ms = now_ms;
                    run.done(&plan, doing.node, now_ms, now_ms, None);
                }
                Prepared::Skip(why) => {
                    row.status = ActionStatus::Skipped;
                    row.last_ms = now_ms;
                    row.error = Some(why.clone());
                    run.skipped(&plan, doing.node, now_ms, why);
                }
                Prepared::Fail(why) => {
                    row.status = ActionStatus::Failed;
                    row.last_ms = now_ms;
                    row.error = Some(why.clone());
                    run.failed(&plan, doing.node, now_ms, why.clone());
                    next.insert(run.id, Next::Bury { error: why });
                    rows.insert(key, row);
                    changed.push(key);
                    break;
                }
                Prepared::Outside { destination, content } => {
                    let permit = match outside.destinations.go(batch, run.brand, &destination, now_ms) {
                        Ok(permit) => permit,
                        Err(later) => {
                            let wait = i64::try_from(later.wait.as_millis()).unwrap_or(i64::MAX / 2);
                            let until = now_ms.saturating_add(wait).saturating_add(1);
                            run.postponed(&plan, doing.node, until, now_ms, later.why);
                            break;
                        }
                    };
                    row.status = ActionStatus::Started;
                    row.attempts += 1;
                    row.last_ms = now_ms;
                    row.destination = Some(destination.clone());
                    if row.marketing {
                        sent.push(row.clone());
                    }
                    let parcel = Parcel { key: row.key(), content };
                    sending.push(Sending { run: run.id, node: doing.node, permit, parcel });
                    rows.insert(key, row);
                    changed.push(key);
                    break;
                }
            }
            rows.insert(key, row);
            changed.push(key);
        }
    }
    changed.sort_unstable();
    changed.dedup();
    let records: Vec<ActionRow> = changed.iter().filter_map(|key| rows.get(key).cloned()).collect();
    if !records.is_empty() {
        tx.save_actions(&records).await?;
    }
    tx.save_runs(&runs).await?;
    if !stages.is_empty() {
        tx.stage(&stages, now_ms).await?;
    }
    tx.commit().await?;
    Ok(sending)
}

/// The longest time that a frequency cap looks back, if one holds.
fn cap_days(run: &Run, plan: Option<&Plan>, known: &Known) -> Option<u32> {
    let own = plan.and_then(|plan| plan.definition.frequency_cap);
    let brands = known.playbooks.get(&run.brand).and_then(|book| book.settings.frequency_cap);
    [own, brands].into_iter().flatten().map(|cap| cap.days).max()
}

fn record(run: &Run, doing: &Doing, now_ms: i64) -> ActionRow {
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

/// What a parcel came to, for the run and the record.
fn taken_in(run: &mut Run, plan: &Plan, row: &mut ActionRow, delivery: &Delivery, now_ms: i64) -> Next {
    row.last_ms = now_ms;
    match delivery {
        Delivery::Done(how) => {
            row.status = ActionStatus::Done;
            row.error = None;
            run.done(plan, row.node, row.first_ms, now_ms, Some(how.clone()));
            Next::Done
        }
        Delivery::Later { error, after } if row.attempts < MAX_ATTEMPTS => {
            row.error = Some(error.clone());
            let after = after.unwrap_or_default().min(MAX_RETRY_AFTER);
            Next::Retry { delay: full_jitter(row.attempts, rand::random()).max(after), error: error.clone() }
        }
        Delivery::Later { error, .. } => {
            let error = format!("failed {} times, at last: {error}", row.attempts);
            row.status = ActionStatus::Failed;
            row.error = Some(error.clone());
            run.failed(plan, row.node, now_ms, error.clone());
            Next::Bury { error }
        }
        Delivery::Refused(error) | Delivery::Bounced { error, .. } => {
            row.status = ActionStatus::Failed;
            row.error = Some(error.clone());
            run.failed(plan, row.node, now_ms, error.clone());
            Next::Bury { error: error.clone() }
        }
    }
}

/// The event by which an address that takes no mail is written to no more.
fn bounced(run: &Run, row: &ActionRow, delivery: &Delivery, now_ms: i64) -> Option<Stage> {
    let Delivery::Bounced { to, .. } = delivery else { return None };
    let address = Identifier { kind: IdentifierKind::Email, value: to.clone() };
    let key = format!("{}-bounced", action_key(run.id, row.node));
    let payload = emitted::envelope(run.brand, &key, &address, &emitted::bounced(to), now_ms)?;
    let item = NewItem { payload: payload.into(), brand: Some(run.brand), ..NewItem::default() };
    Some(Stage { queue: EVENTS_QUEUE.to_owned(), item })
}

/// Carries a parcel; tells what became of it.
async fn carry(
    context: &Context,
    outside: &Outside,
    at_once: &Semaphore,
    Sending { run, node, permit, parcel }: Sending,
) -> (Uuid, (usize, Delivery)) {
    // Never closed: there is always one to be had.
    let _turn = at_once.acquire().await;
    let delivery = readable(outside.courier.carry(&parcel).await);
    // A refusal is an answer, and so is to be told when to come again: the destination is there.
    let was_there = !matches!(delivery, Delivery::Later { after: None, .. });
    if let (Delivery::Later { error, .. }, false) = (&delivery, was_there)
        && let Some(times) = UNREACHED.happened(1)
    {
        let destination = permit.destination();
        tracing::warn!(
            times,
            destination,
            error,
            "what automations send does not arrive, and is tried again; this is the last"
        );
    }
    permit.tell(was_there, context.clock.now_ms());
    let outcome = match delivery {
        Delivery::Done(_) => "done",
        Delivery::Later { .. } => "later",
        Delivery::Refused(_) => "refused",
        Delivery::Bounced { .. } => "bounced",
    };
    metrics::counter!("tributary_actions_total", "outcome" => outcome).increment(1);
    (run, (node, delivery))
}

/// What has come to its end: the first, and what else does within [`TOGETHER`]. Nothing where nothing is under way.
async fn ended(
    under_way: &mut FuturesUnordered<impl Future<Output = (Uuid, (usize, Delivery))>>,
) -> HashMap<Uuid, (usize, Delivery)> {
    let mut results: HashMap<Uuid, (usize, Delivery)> = under_way.next().await.into_iter().collect();
    let _ = tokio::time::timeout(TOGETHER, async {
        while let Some((run, result)) = under_way.next().await {
            results.insert(run, result);
        }
    })
    .await;
    results
}

/// Without what PostgreSQL does not keep: the words are the receiver's.
fn readable(delivery: Delivery) -> Delivery {
    let clean = |text: String| text.replace('\0', "");
    match delivery {
        Delivery::Done(how) => Delivery::Done(clean(how)),
        Delivery::Later { error, after } => Delivery::Later { error: clean(error), after },
        Delivery::Refused(error) => Delivery::Refused(clean(error)),
        Delivery::Bounced { to, error } => Delivery::Bounced { to, error: clean(error) },
    }
}

/// What preparing an action needs.
struct Ready<'a> {
    outside: &'a Outside,
    known: &'a Known,
    book: &'a Playbook,
    facts: &'a Facts,
    trigger: Option<&'a Trigger>,
    now: Timestamp,
    /// Who gets e-mails in place of the customer.
    instead: Option<&'a str>,
}

impl Ready<'_> {
    /// Who is written to, or why nobody is.
    fn reader(&self) -> Result<String, String> {
        self.instead.map_or_else(|| reachable(self.facts), |to| Ok(to.to_owned()))
    }
}

/// Whether an automation writes e-mails.
pub(super) fn writes(plan: &Plan) -> bool {
    plan.nodes.iter().any(|node| matches!(&node.op, Op::Act(Action::Email { .. } | Action::Confirm { .. })))
}

/// An automation's e-mails as a customer would get them, written to another address: each with its step, or why it cannot be written.
/// Their links are for nobody.
pub(super) async fn letters(
    context: &Context,
    outside: &Outside,
    (brand, automation): (BrandId, Uuid),
    plan: &Plan,
    (facts, trigger): (&Facts, &Trigger),
    to: &str,
) -> Result<Vec<(String, Result<Email, String>)>, StoreError> {
    let now = context.clock.now();
    let known = Known {
        playbooks: playbooks(context, BTreeSet::from([brand])).await?,
        plans: HashMap::new(),
        profiles: HashMap::new(),
        automations: Vec::new(),
        secrets: HashMap::from([(brand, signing::secrets(context, brand).await?)]),
    };
    let Some(book) = known.playbooks.get(&brand) else { return Ok(Vec::new()) };
    let ready = Ready { outside, known: &known, book, facts, trigger: Some(trigger), now, instead: Some(to) };
    let cause = Cause { key: "trial".to_owned(), message_id: None, at_ms: 0, why: "a trial".to_owned() };
    let run = Run::new(brand, automation, 0, plan, ProfileId::new(0), &cause, now.timestamp_millis());
    let mut letters = Vec::new();
    for (node, laid) in plan.nodes.iter().enumerate().rev() {
        let Op::Act(action @ (Action::Email { .. } | Action::Confirm { .. })) = &laid.op else { continue };
        let doing = Doing { node, action: action.clone() };
        let prepared = context.languages.work(brand, || prepared(&ready, &run, &doing));
        let written = match prepared.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(Prepared::Outside { content: Content::Email(email), .. }) => Ok(email),
            Ok(Prepared::Skip(why) | Prepared::Fail(why)) | Err(why) => Err(why),
            Ok(_) => continue,
        };
        letters.push((laid.path.clone(), written));
    }
    Ok(letters)
}

/// An action, ready to be done.
enum Prepared {
    /// Within the store.
    Inside(Option<Stage>),
    /// By a courier.
    Outside { destination: String, content: Content },
    /// Not for this customer.
    Skip(String),
    /// Not at all.
    Fail(String),
}

fn prepared(ready: &Ready<'_>, run: &Run, doing: &Doing) -> Result<Prepared, String> {
    let Ready { facts, trigger, now, book, .. } = ready;
    let values = spoken_of(&doing.action, facts, *trigger);
    let text = |template: &str| template::render(template, &values, false);
    let inside = |body: &serde_json::Value| -> Result<Prepared, String> {
        let Some(identifier) = facts.identifiers.first() else {
            return Ok(Prepared::Skip("the customer has no identifier left".to_owned()));
        };
        let key = action_key(run.id, doing.node);
        let payload = emitted::envelope(run.brand, &key, identifier, body, now.timestamp_millis())
            .ok_or("the event cannot be written")?;
        let item = NewItem { payload: payload.into(), brand: Some(run.brand), ..NewItem::default() };
        Ok(Prepared::Inside(Some(Stage { queue: EVENTS_QUEUE.to_owned(), item })))
    };
    let secrets = || ready.known.secrets.get(&run.brand).ok_or("the brand is gone");
    Ok(match &doing.action {
        Action::SetTrait { name, value } => {
            inside(&emitted::set_trait(name, &template::render_json(value, &values)?))?
        }
        Action::AddTag { tag } => inside(&emitted::add_tag(tag))?,
        Action::EmitEvent { event, properties } => {
            inside(&emitted::event(event, &template::render_json(properties, &values)?))?
        }
        Action::Webhook { url, data, .. } => {
            let custom = data.as_ref().map(|data| template::render_json(data, &values)).transpose()?;
            let name = book.automations.get(&run.automation).map(|own| own.plan.definition.name.clone());
            let body = json!({
                "type": "automation.action",
                "timestamp": time::format(*now),
                "data": {
                    "automation": {"id": run.automation, "name": name, "version": run.version},
                    "run": run.id,
                    "trigger": run.trigger_key,
                    "customer": values["customer"],
                    "event": values["event"],
                    "custom": custom,
                },
            });
            let secrets = secrets()?.signing_at(*now);
            let content = Content::Webhook { url: url.clone(), body: body.to_string(), secrets, at: *now };
            Prepared::Outside { destination: host(url)?, content }
        }
        Action::Chat { url, text: template } => {
            let body = json!({"text": text(template)?}).to_string();
            Prepared::Outside { destination: host(url)?, content: Content::Chat { url: url.clone(), body } }
        }
        Action::Confirm { subject, text, html } => {
            let to = match ready.reader() {
                Ok(to) => to,
                Err(why) => return Ok(Prepared::Skip(why)),
            };
            let url = ready.outside.public_url.as_deref();
            let url = url.ok_or("a link to confirm needs TRIBUTARY_PUBLIC_URL, which is not set")?;
            let mut values = values.clone();
            // Of a trial, a link that nobody's secret has signed: whoever reads it is no customer.
            let secret = match ready.instead {
                Some(_) => Uuid::new_v4().to_string(),
                None => secrets()?.link.clone(),
            };
            values["confirm_url"] = confirm::link(url, &secret, run.brand, &to).into();
            written(book, to, (subject, text, html.as_deref()), &values, None, facts, run)?
        }
        Action::Email { subject, text, html, marketing } => {
            let to = match ready.reader() {
                Ok(to) => to,
                Err(why) => return Ok(Prepared::Skip(why)),
            };
            let unsubscribe = match (marketing, &ready.outside.public_url) {
                (false, _) => None,
                (true, Some(url)) => Some(unsubscribe::link(url, &secrets()?.link, run.brand, run.profile)),
                (true, None) => {
                    return Err(
                        "marketing needs a link to unsubscribe: TRIBUTARY_PUBLIC_URL is not set".to_owned()
                    );
                }
            };
            written(book, to, (subject, text, html.as_deref()), &values, unsubscribe, facts, run)?
        }
    })
}

/// The address that is written to.
fn reachable(facts: &Facts) -> Result<String, String> {
    let to = facts.email().ok_or("the customer has no e-mail address")?;
    match facts.consent(Channel::Email) {
        Some(said) if said.state == UNDELIVERABLE => Err(format!(
            "a mail server refused mail to the customer's address for good on {}",
            time::format(said.at)
        )),
        _ => Ok(to),
    }
}

/// An e-mail, from its templates.
fn written(
    book: &Playbook,
    to: String,
    (subject, text, html): (&str, &str, Option<&str>),
    values: &serde_json::Value,
    unsubscribe: Option<String>,
    facts: &Facts,
    run: &Run,
) -> Result<Prepared, String> {
    let from = book.settings.email_from.clone().ok_or(
        "the brand's setting email_from is not set, or of a domain that the operator does not let it send from",
    )?;
    let html = html.map(|html| template::render(html, values, true)).transpose()?;
    // A subject is one line.
    let subject = template::render(subject, values, false)?.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = template::render(text, values, false)?;
    let named = |name: &str| facts.known_trait(name).and_then(serde_json::Value::as_str);
    let name: Vec<&str> = match (named("firstName"), named("lastName")) {
        (None, None) => named("name").into_iter().collect(),
        (first, last) => [first, last].into_iter().flatten().collect(),
    };
    let name = Some(name.join(" ").trim().to_owned()).filter(|name| !name.is_empty());
    let campaign = run.automation.to_string();
    let email = Email { from, to, name, campaign, subject, text, html, unsubscribe };
    Ok(Prepared::Outside { destination: SMTP.to_owned(), content: Content::Email(email) })
}

fn host(url: &str) -> Result<String, String> {
    let parsed = url::Url::parse(url).map_err(|error| error.to_string())?;
    let host = parsed.host_str().ok_or("the URL has no host")?;
    Ok(format!("{host}:{}", parsed.port_or_known_default().unwrap_or_default()))
}

/// What an action's templates may speak of.
fn spoken_of(action: &Action, facts: &Facts, trigger: Option<&Trigger>) -> serde_json::Value {
    match action {
        Action::Email { .. } | Action::Confirm { .. } => template::mail_context(facts, trigger),
        _ => template::context(facts, trigger),
    }
}

/// What an action would send or change, with its texts as they would be.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Effect {
    /// Who gets the e-mail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The e-mail's subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The e-mail's text, or the chat's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The e-mail's HTML.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
    /// Where the webhook goes, or the chat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The webhook's `data.custom`, the trait's value, or the event's properties.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

/// What a dry run would do: in words, and in full.
pub(super) fn described(action: &Action, facts: &Facts, trigger: Option<&Trigger>) -> (String, Effect) {
    let mut values = spoken_of(action, facts, trigger);
    let failed = |error: String| format!("({error})");
    if matches!(action, Action::Confirm { .. }) {
        values["confirm_url"] = "(a link of its own)".into();
    }
    let text = |template: &str| template::render(template, &values, false).unwrap_or_else(failed);
    let html = |template: &Option<String>| {
        template.as_deref().map(|html| template::render(html, &values, true).unwrap_or_else(failed))
    };
    let data =
        |value: &Value| template::render_json(value, &values).unwrap_or_else(|error| failed(error).into());
    let to = || facts.email().unwrap_or_else(|| "nobody".to_owned());
    let letter = |subject: &str, body: &str, markup: &Option<String>| Effect {
        to: facts.email(),
        subject: Some(text(subject)),
        text: Some(text(body)),
        html: html(markup),
        ..Effect::default()
    };
    match action {
        Action::Webhook { url, data: custom, .. } => {
            let effect =
                Effect { url: Some(url.clone()), data: custom.as_ref().map(data), ..Effect::default() };
            (format!("would post to {url}"), effect)
        }
        Action::Chat { url, text: template } => {
            let said = text(template);
            let what = format!("would say {said:?} at {url}");
            (what, Effect { url: Some(url.clone()), text: Some(said), ..Effect::default() })
        }
        Action::Email { subject, text: body, html, .. } => {
            (format!("would write to {}: {:?}", to(), text(subject)), letter(subject, body, html))
        }
        Action::Confirm { subject, text: body, html } => {
            let what = format!("would ask {} to confirm the address: {:?}", to(), text(subject));
            (what, letter(subject, body, html))
        }
        Action::SetTrait { name, value } => {
            let value = data(value);
            (
                format!("would set the trait {name} to {value}"),
                Effect { data: Some(value), ..Effect::default() },
            )
        }
        Action::AddTag { tag } => (format!("would tag the customer {tag}"), Effect::default()),
        Action::EmitEvent { event, properties } => (
            format!("would make the event {event}"),
            Effect { data: Some(data(properties)), ..Effect::default() },
        ),
    }
}
