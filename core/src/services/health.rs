//! Whether Tributary is well. A socket that is open says little: what counts is whether events come through in time.

use std::time::Duration;

use serde::Serialize;

use crate::context::Context;
use crate::ports::clock::TimedOut;
use crate::ports::outbox::OutboxStats;
use crate::ports::queue::QueueStats;
use crate::services::rounds::Rounds;

/// How long one check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// A verdict, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = HealthStatus)]
pub enum Status {
    /// All that it needs works.
    Ok,
    /// Works, but late, or without something it can do without.
    Degraded,
    /// Events cannot be accepted.
    Down,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Check {
    /// The verdict on this part.
    pub status: Status,
    /// Why, where it is not ok.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Check {
    fn of<T, E: std::fmt::Display>(outcome: &Result<Result<T, E>, TimedOut>, worst: Status) -> Self {
        match outcome {
            Ok(Ok(_)) => Self { status: Status::Ok, detail: None },
            Ok(Err(error)) => {
                // The driver's words may name hosts and users: they are for the log.
                tracing::warn!(%error, "a health check failed");
                Self { status: worst, detail: Some("it cannot be reached; see the log".into()) }
            }
            Err(_) => {
                Self { status: worst, detail: Some(format!("no answer in {} s", CHECK_TIMEOUT.as_secs())) }
            }
        }
    }
}

/// The verdict on the system, and on each of its parts.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Health {
    /// The worst of the checks.
    pub status: Status,
    /// The store of profiles, events and orders.
    pub store: Check,
    /// The events queue. While it is unavailable and the store is there, events are taken into the outbox.
    pub queue: Check,
    /// Cached answers: Tributary works without.
    pub cache: Check,
    /// Whether events are processed in time.
    pub lag: Check,
    /// Whether what waits in the store for a queue gets there in time, and was refused by none.
    pub outbox: Check,
    /// Whether the dead letters are few. A brand keeps its newest, for a while.
    pub dead: Check,
    /// Whether the jobs of segments and automations are processed in time, and few of them are dead.
    pub automations: Check,
    /// Whether every loop of this process's housekeeping comes round; workers answer for their own.
    pub housekeeping: Check,
    /// How long the oldest event has waited, in milliseconds.
    pub lag_ms: Option<u64>,
}

/// What turns the verdict to degraded.
#[derive(Clone, Copy, Debug)]
pub struct Alarms {
    /// The age of the oldest waiting event.
    pub max_lag: Duration,
    /// So many dead letters; 0 for never.
    pub dead: u64,
}

pub async fn check(context: &Context, alarms: Alarms) -> Health {
    let (store, stats, jobs, cache, outbox) = tokio::join!(
        context.world.timeout(CHECK_TIMEOUT, context.store.ping()),
        context.world.timeout(CHECK_TIMEOUT, context.queue.stats()),
        context.world.timeout(CHECK_TIMEOUT, context.automation_queue.stats()),
        context.world.timeout(CHECK_TIMEOUT, context.cache.ping()),
        context.world.timeout(CHECK_TIMEOUT, context.outbox.stats()),
    );
    let queue = Check::of(&stats, Status::Down);
    let stats = stats.ok().and_then(Result::ok);
    let lag = lag(stats.as_ref(), alarms.max_lag);
    let (store, cache) = (Check::of(&store, Status::Down), Check::of(&cache, Status::Degraded));
    let dead = dead(stats.as_ref(), alarms.dead);
    let outbox = staged(outbox.ok().and_then(Result::ok), context.world.now_ms(), alarms.max_lag);
    let jobs = jobs.ok().and_then(Result::ok);
    let automations = of_jobs(jobs.as_ref(), alarms);
    let housekeeping = came_round(&context.rounds);
    let worst = [&store, &queue, &cache, &lag, &dead, &outbox, &automations, &housekeeping]
        .map(|check| check.status)
        .into_iter()
        .max()
        .unwrap_or(Status::Ok);
    // Events can be taken in as long as the queue is there, or the store in its stead.
    let takes_in = queue.status == Status::Ok || (context.spools && store.status == Status::Ok);
    let status = if takes_in { worst.min(Status::Degraded) } else { Status::Down };
    Health {
        status,
        automations,
        housekeeping,
        dead,
        outbox,
        store,
        queue,
        cache,
        lag,
        lag_ms: stats.map(|s| s.oldest_age_ms),
    }
}

fn came_round(rounds: &Rounds) -> Check {
    let late: Vec<String> = rounds
        .late()
        .into_iter()
        .map(|(name, since)| format!("{name} has completed no round for {} s", since.as_secs()))
        .collect();
    let detail = (!late.is_empty()).then(|| format!("{}: see the log", late.join("; ")));
    Check { status: if detail.is_some() { Status::Degraded } else { Status::Ok }, detail }
}

fn staged(stats: Option<OutboxStats>, now_ms: i64, max_lag: Duration) -> Check {
    let detail = match stats {
        None => Some("the outbox did not answer".into()),
        Some(stats) if stats.refused > 0 => Some(format!(
            "{} items of the outbox were refused by their queue: select * from outbox where refused is not null",
            stats.refused
        )),
        Some(stats) => stats
            .oldest_ms
            .map(|oldest| now_ms - oldest)
            .filter(|age| u128::try_from(*age).is_ok_and(|age| age > max_lag.as_millis()))
            .map(|age| {
                format!("the oldest item of the outbox has waited {} s: are workers running?", age / 1000)
            }),
    };
    Check { status: if detail.is_some() { Status::Degraded } else { Status::Ok }, detail }
}

fn of_jobs(stats: Option<&QueueStats>, alarms: Alarms) -> Check {
    let detail = match stats {
        None => Some("the automations queue did not answer".to_owned()),
        Some(stats) if stats.paused => Some(format!(
            "the automations queue is paused, and {} jobs wait: resume it with server queues --name automations resume",
            stats.pending
        )),
        Some(stats) if u128::from(stats.oldest_age_ms) > alarms.max_lag.as_millis() => Some(format!(
            "the oldest job of automations has waited {} s: does workers automation run?",
            stats.oldest_age_ms / 1000
        )),
        Some(stats) if alarms.dead > 0 && stats.dead >= alarms.dead => Some(format!(
            "{} dead letters of automations: look at them with server queues --name automations dead list",
            stats.dead
        )),
        Some(_) => None,
    };
    Check { status: if detail.is_some() { Status::Degraded } else { Status::Ok }, detail }
}

fn dead(stats: Option<&QueueStats>, most: u64) -> Check {
    match stats {
        Some(stats) if most > 0 && stats.dead >= most => Check {
            status: Status::Degraded,
            detail: Some(format!("{} dead letters: look at them with server queues dead list", stats.dead)),
        },
        Some(_) => Check { status: Status::Ok, detail: None },
        None => Check { status: Status::Degraded, detail: Some("the queue did not answer".into()) },
    }
}

fn lag(stats: Option<&QueueStats>, max_lag: Duration) -> Check {
    match stats {
        Some(stats) if stats.paused => Check {
            status: Status::Degraded,
            detail: Some(format!(
                "the queue is paused, and {} events wait: resume it with server queues resume",
                stats.pending
            )),
        },
        Some(stats) if u128::from(stats.oldest_age_ms) > max_lag.as_millis() => Check {
            status: Status::Degraded,
            detail: Some(format!(
                "the oldest event has waited {} s, more than {} s: are workers running?",
                stats.oldest_age_ms / 1000,
                max_lag.as_secs()
            )),
        },
        Some(_) => Check { status: Status::Ok, detail: None },
        None => Check { status: Status::Degraded, detail: Some("the queue did not answer".into()) },
    }
}
