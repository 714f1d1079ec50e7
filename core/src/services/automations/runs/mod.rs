//! Advancing runs: an action is recorded, done, and recorded as done.
//!
//! A batch is processed in rounds. Each round is one transaction (`round`): it records the outcomes of messages that were sent, advances
//! their runs as far as they can go, and records the messages that are to be sent next. Then those are sent (`send`), all at once. A
//! round takes the outcomes that are there by then: no run waits for another run's slow receiver.
//!
//! Whoever dies in between leaves records of what was begun. Whoever gets the jobs next sends those messages again, under the same keys.
//! What is done within the store - tags, traits, events - is part of the transaction, and happens once.

mod describe;
mod render;
mod round;
mod send;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use tokio::sync::Semaphore;
use uuid::Uuid;

pub use self::describe::Effect;
pub(super) use self::describe::describe;
pub(super) use self::render::{render_emails, sends_email};
use self::round::run_round;
use self::send::{Outcomes, Sending, outcomes, send};
use crate::context::Context;
use crate::domain::addresses::Reach;
use crate::domain::automation::plan::Plan;
use crate::domain::ids::{BrandId, ProfileId};
use crate::failpoint;
use crate::ports::brands::BrandSecrets;
use crate::ports::sender::Sender;
use crate::ports::store::StoreError;
use crate::services::automations::destinations::Destinations;
use crate::services::automations::signals::{CompiledBrands, compiled_brands};
use crate::services::automations::signing;

/// Messages of a batch that are sent at once.
const AT_ONCE: usize = 200;
/// How often it is tried to record what was done.
const RECORD_TRIES: u32 = 20;
/// How long a store that is unavailable is waited for between two tries.
const RECORD_WAIT: Duration = Duration::from_millis(500);

/// What sends messages, and what is known of where they go.
#[derive(Clone)]
pub struct Outbound {
    pub sender: Arc<dyn Sender>,
    /// The state of each destination: how fast it may be sent to, and whether it answers.
    pub destinations: Arc<Destinations>,
    /// Where customers reach this system: links to unsubscribe begin with it. Without it, marketing e-mails fail.
    pub public_url: Option<String>,
    /// Whether an SMTP server is set.
    pub sends_mail: bool,
    /// Where webhooks and chats may go.
    pub reach: Reach,
}

/// A job: a run that is to be advanced, at a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunJob {
    pub brand: BrandId,
    pub run: Uuid,
    /// The revision that the job was made for: where the run has another by now, the job does nothing.
    pub revision: i64,
    /// Whether the job was a dead letter that somebody has retried.
    pub put_back: bool,
}

/// What becomes of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobOutcome {
    /// It is done: the run waits, or has ended, or is at another revision.
    Done,
    /// An action is to be tried again.
    Retry {
        delay: Duration,
        /// What went wrong, for people.
        error: String,
    },
    /// An action has failed for good.
    Bury {
        /// What went wrong, for people.
        error: String,
    },
}

/// What a batch needs to know before its transaction.
struct Rules {
    compiled_brands: CompiledBrands,
    plans: HashMap<Uuid, Option<Arc<Plan>>>,
    profiles: HashMap<Uuid, ProfileId>,
    automations: Vec<Uuid>,
    secrets: HashMap<BrandId, BrandSecrets>,
}

impl Rules {
    async fn load(context: &Context, jobs: &[RunJob]) -> Result<Self, StoreError> {
        let brands: BTreeSet<BrandId> = jobs.iter().map(|job| job.brand).collect();
        let mut rules = Self::of_brands(context, brands).await?;
        let of: HashMap<Uuid, BrandId> = jobs.iter().map(|job| (job.run, job.brand)).collect();
        let mut automations = BTreeSet::new();
        for peek in context.automations.peek(&of.keys().copied().collect::<Vec<_>>()).await? {
            let Some(of_brand) = of.get(&peek.run).and_then(|brand| rules.compiled_brands.get(brand)) else {
                continue;
            };
            let plan =
                of_brand.plan(&*context.automations, peek.brand, peek.automation, peek.version).await?;
            rules.plans.insert(peek.run, plan);
            rules.profiles.insert(peek.run, peek.profile);
            automations.insert(peek.automation);
        }
        rules.automations = automations.into_iter().collect();
        Ok(rules)
    }

    /// Those of brands, without any run's.
    async fn of_brands(context: &Context, brands: BTreeSet<BrandId>) -> Result<Self, StoreError> {
        let mut secrets = HashMap::new();
        for brand in &brands {
            secrets.insert(*brand, signing::secrets(context, *brand).await?);
        }
        Ok(Self {
            compiled_brands: compiled_brands(context, brands).await?,
            plans: HashMap::new(),
            profiles: HashMap::new(),
            automations: Vec::new(),
            secrets,
        })
    }

    fn plan(&self, run: Uuid) -> Option<Arc<Plan>> {
        self.plans.get(&run).and_then(Clone::clone)
    }
}

/// Advances runs. Returns what becomes of each job, in their order.
///
/// # Errors
/// The store's. What was sent by then is recorded as begun, and is sent again under the same key.
#[tracing::instrument(name = "advance_runs", skip_all)]
pub async fn advance_runs(
    context: &Context,
    outbound: &Outbound,
    jobs: &[RunJob],
) -> Result<Vec<JobOutcome>, StoreError> {
    let mut sent = Outcomes::new();
    let mut outcome_of: HashMap<Uuid, JobOutcome> = HashMap::new();
    let at_once = Semaphore::new(AT_ONCE);
    let batch = outbound.destinations.batch();
    let mut under_way = FuturesUnordered::new();
    let mut of_round = jobs.to_vec();
    loop {
        let sending = record(context, (outbound, batch), &of_round, &sent, &mut outcome_of).await?;
        if !sending.is_empty() {
            failpoint::reached("action_recorded_before_done");
        }
        under_way.extend(sending.into_iter().map(|one| send(context, outbound, &at_once, one)));
        sent = outcomes(&context.world, &mut under_way).await;
        if sent.is_empty() {
            break;
        }
        failpoint::reached("action_done_before_recorded");
        // Runs whose messages are under way still have nothing to be recorded.
        of_round = jobs.iter().filter(|job| sent.contains_key(&job.run)).copied().collect();
    }
    Ok(jobs.iter().map(|job| outcome_of.get(&job.run).cloned().unwrap_or(JobOutcome::Done)).collect())
}

/// Runs one round, and again where a race was lost or the store is unavailable for a moment: a message that was sent must be recorded, or
/// it is sent again. Where the store refuses, run by run, so that one that cannot be recorded does not keep the others from it.
async fn record(
    context: &Context,
    outbound: (&Outbound, u64),
    jobs: &[RunJob],
    sent: &Outcomes,
    outcome_of: &mut HashMap<Uuid, JobOutcome>,
) -> Result<Vec<Sending>, StoreError> {
    let most = if sent.is_empty() { 1 } else { RECORD_TRIES };
    let mut tries = 0;
    loop {
        tries += 1;
        let mut of_try = outcome_of.clone();
        let tried = async {
            let rules = Rules::load(context, jobs).await?;
            run_round(context, outbound, jobs, &rules, sent, &mut of_try).await
        };
        match tried.await {
            Ok(sending) => {
                *outcome_of = of_try;
                return Ok(sending);
            }
            Err(StoreError::Invalid(why)) if !sent.is_empty() && jobs.len() == 1 => {
                let error = format!("it was done, and cannot be recorded: {why}");
                outcome_of.insert(jobs[0].run, JobOutcome::Bury { error });
                return Ok(Vec::new());
            }
            Err(StoreError::Invalid(_)) if !sent.is_empty() => {
                let mut sending = Vec::new();
                for job in jobs {
                    let job = std::slice::from_ref(job);
                    sending.extend(Box::pin(record(context, outbound, job, sent, outcome_of)).await?);
                }
                return Ok(sending);
            }
            Err(error) if tries >= most => return Err(error),
            Err(StoreError::Unavailable(_)) => context.world.sleep(RECORD_WAIT).await,
            Err(_) => context.world.sleep(RECORD_WAIT.mul_f64(context.world.fraction() / 10.0)).await,
        }
    }
}
