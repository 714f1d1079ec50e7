//! Handling a batch of the automations queue: what becomes of each item.

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;

use crate::context::Context;
use crate::ports::queue::{Item, PUT_BACK, Then, Unfinished};
use crate::ports::store::StoreError;
use crate::sampled::Sampled;
use crate::services::automations::jobs::{Job, Signal};
use crate::services::automations::runs::{self, JobOutcome, Outbound, RunJob};
use crate::services::automations::{signals, trial};
use crate::services::batches::{BatchOutcome, Process, in_halves, panicked};

/// How often a transaction is run again that lost a race.
const MAX_RUNS: u32 = 5;
/// The longest wait before it is.
const RERUN_WAIT: Duration = Duration::from_millis(40);
/// Jobs that cannot be read.
static UNREADABLE: Sampled = Sampled::new();
/// Actions that cannot be done.
static UNDONE: Sampled = Sampled::new();

/// Handles `items`. Never fails as a whole: what could not be done is in the outcome.
pub async fn handle_batch(context: &Context, outbound: &Outbound, items: &[Item]) -> BatchOutcome {
    let mut outcome = BatchOutcome::default();
    let (mut signalled, mut run_jobs, mut pages) = (Vec::new(), Vec::new(), Vec::new());
    for item in items {
        let job = Job::read(&item.payload);
        if let Some(delay) = job.as_ref().ok().and_then(|job| context.languages.wait(job.brand())) {
            // A brand whose expressions take more than their share waits, and nobody waits for it.
            metrics::counter!("tributary_jobs_over_share_total").increment(1);
            outcome.unfinished.push(Unfinished { item: item.clone(), then: Then::Defer { delay } });
            continue;
        }
        match job {
            Ok(Job::Signal(signal)) => signalled.push((item, signal)),
            Ok(Job::Run { brand, run, revision }) => {
                let put_back = item.history.last().is_some_and(|last| last.error == PUT_BACK);
                run_jobs.push((item, RunJob { brand, run, revision, put_back }));
            }
            Ok(page) => pages.push((item, page)),
            Err(error) => {
                if let Some(times) = UNREADABLE.happened(1) {
                    tracing::warn!(
                        times,
                        item = item.id,
                        "jobs cannot be read and go to the dead letters; this is the last"
                    );
                }
                outcome.unfinished.push(Unfinished { item: item.clone(), then: Then::Bury { error } });
            }
        }
    }
    let signals: Vec<Signal> = signalled.iter().map(|(_, signal)| signal.clone()).collect();
    let items: Vec<&Item> = signalled.iter().map(|(item, _)| *item).collect();
    handle(context, outbound, &mut outcome, &items, Jobs::Signals(&signals)).await;

    // A run may have two jobs in one batch: the later one finds it gone on.
    run_jobs.sort_by_key(|(_, one)| (one.run, one.revision));
    let mut again = Vec::new();
    for at in (1..run_jobs.len()).rev() {
        if run_jobs[at].1.run == run_jobs[at - 1].1.run {
            again.push(run_jobs.remove(at - 1));
        }
    }
    for run_jobs in [run_jobs, again] {
        let of: Vec<RunJob> = run_jobs.iter().map(|(_, one)| *one).collect();
        let items: Vec<&Item> = run_jobs.iter().map(|(item, _)| *item).collect();
        handle(context, outbound, &mut outcome, &items, Jobs::Runs(&of)).await;
    }
    for (item, page) in &pages {
        handle(context, outbound, &mut outcome, &[item], Jobs::Page(page)).await;
    }
    outcome
}

/// Jobs of a kind.
#[derive(Clone, Copy)]
enum Jobs<'j> {
    Signals(&'j [Signal]),
    Runs(&'j [RunJob]),
    Page(&'j Job),
}

impl Jobs<'_> {
    /// Runs those of a part, together.
    async fn attempt(
        self,
        context: &Context,
        outbound: &Outbound,
        part: Range<usize>,
    ) -> Result<Vec<JobOutcome>, StoreError> {
        let all_done = vec![JobOutcome::Done; part.len()];
        match self {
            Self::Signals(signals) => {
                signals::process_signals(context, &signals[part], &[]).await.map(|()| all_done)
            }
            Self::Runs(run_jobs) => runs::advance_runs(context, outbound, &run_jobs[part]).await,
            Self::Page(Job::Schedule { brand, automation, at_ms, after }) => {
                signals::schedule(context, *brand, *automation, *at_ms, *after).await.map(|()| all_done)
            }
            Self::Page(Job::Fill { brand, segments, after }) => {
                signals::fill(context, *brand, segments, *after).await.map(|()| all_done)
            }
            Self::Page(Job::Trial { brand, trial }) => {
                trial::send(context, outbound, *brand, *trial).await.map(|()| all_done)
            }
            Self::Page(Job::Signal(_) | Job::Run { .. }) => Ok(all_done),
        }
    }
}

/// Jobs of a kind, with their items.
struct Handling<'b> {
    context: &'b Context,
    outbound: &'b Outbound,
    items: &'b [&'b Item],
    jobs: Jobs<'b>,
}

#[async_trait]
impl Process for Handling<'_> {
    async fn process(&self, outcome: &mut BatchOutcome, part: Range<usize>) -> Result<(), StoreError> {
        let outcomes = patiently(self.context, self.outbound, self.jobs, &part).await?;
        outcome.effective += part.len();
        for (item, of_job) in self.items[part].iter().zip(outcomes) {
            let then = match of_job {
                JobOutcome::Done => continue,
                JobOutcome::Retry { delay, error } => Then::Retry { delay, error },
                JobOutcome::Bury { error } => {
                    if let Some(times) = UNDONE.happened(1) {
                        tracing::warn!(
                            times,
                            job = %String::from_utf8_lossy(&item.payload),
                            "actions cannot be done: their runs have failed, and their dead letters say why; this is the last"
                        );
                    }
                    Then::Bury { error }
                }
            };
            outcome.unfinished.push(Unfinished { item: (*item).clone(), then });
        }
        Ok(())
    }
}

/// Handles jobs of a kind.
async fn handle(
    context: &Context,
    outbound: &Outbound,
    outcome: &mut BatchOutcome,
    items: &[&Item],
    jobs: Jobs<'_>,
) {
    in_halves(&context.world, outcome, items, &Handling { context, outbound, items, jobs }).await;
}

/// Tries again where a race was lost.
async fn patiently(
    context: &Context,
    outbound: &Outbound,
    jobs: Jobs<'_>,
    part: &Range<usize>,
) -> Result<Vec<JobOutcome>, StoreError> {
    let mut run = 1;
    loop {
        let attempt = AssertUnwindSafe(jobs.attempt(context, outbound, part.clone())).catch_unwind();
        match attempt.await.unwrap_or_else(|_| Err(panicked(part.len()))) {
            Err(StoreError::Conflict(_)) if run < MAX_RUNS => {
                context.world.sleep(RERUN_WAIT.mul_f64(context.world.fraction()) * run).await;
                run += 1;
            }
            done => return done,
        }
    }
}
