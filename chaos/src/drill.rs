//! The drill: a simulated day under repeated kills.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::{StreamExt, stream};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use simulator::ledger::Customer;
use simulator::{Plan, simulate};
use stack::client::Client;
use stack::system::{Options, Profile, System};
use stack::verify::{Verdict, verify};
use tokio::sync::Mutex;

/// A short lease, so that a drill need not wait long for a dead worker's items.
const LEASE: Duration = Duration::from_secs(2);
/// Deliveries under way at once.
const AT_ONCE: usize = 8;
/// How long the system may take to come right after the last fault.
const LIVENESS: Duration = Duration::from_secs(120);
/// How much later than its lease a batch comes to another worker, at the latest.
const RECLAIMED_WITHIN: Duration = Duration::from_secs(1);
/// How long connections hold on a flapping network.
const BREAK_EVERY_MS: std::ops::Range<u64> = 3..60;
/// So many breaks, and there is no network for a while.
const BREAKS_TO_A_CUT: usize = 60;
/// Between two rounds of asking for all customers.
const ASKED_EVERY: Duration = Duration::from_millis(20);
/// How long a killed process stays away.
const AWAY_MS: std::ops::Range<u64> = 50..600;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Victim {
    /// The embedded server, and with it its workers and its queue.
    EmbeddedServer,
    /// One of two workers on Redis and PostgreSQL.
    Worker,
    /// One of two workers, by SIGTERM: it must finish or give back what it holds.
    StoppedWorker,
    /// The server on Redis and PostgreSQL.
    Server,
    /// Redis, which must have forgotten nothing when it is back.
    Redis,
    /// PostgreSQL.
    Postgres,
    /// The network between the workers, and Redis and PostgreSQL: all connections break many times a second, and now and then there is
    /// none for longer than a lease.
    Network,
    /// The disk of the embedded server: it takes no more for a while.
    Disk,
    /// One of two workers is not killed but stopped, for longer than its lease, and then goes on as if nothing had been.
    FrozenWorker,
}

/// A process ends itself at a named point of its work (tributary_core::failpoint), in a build that has them.
#[derive(Clone, Debug)]
pub struct Failpoint {
    pub name: String,
    /// How often it is passed before.
    pub passes: u32,
    /// Whose process: `server` or `workers`.
    pub role: &'static str,
    /// Redis goes away for a while, so that the outbox has something to do.
    pub redis_away: bool,
}

#[derive(Clone, Debug)]
pub struct Drill {
    /// The binary that plays the roles.
    pub binary: PathBuf,
    pub victim: Victim,
    pub kills: usize,
    /// Instead of killing the victim, a point at which it ends itself, once.
    pub failpoint: Option<Failpoint>,
    /// How the queue lies in Redis: `lists` or `streams`.
    pub queue: String,
    /// Events of the day.
    pub events: usize,
    /// The day's seed and the faults'.
    pub seed: u64,
    /// Over how long the day is sent.
    pub over: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// The comparison with the ledger.
    pub verdict: Verdict,
    pub kills: usize,
    /// Deliveries that their senders gave up: not taken, so nothing is owed.
    pub given_up: usize,
    /// How long the queue took to be empty after the last fault.
    pub recovered_in: Duration,
    /// Dead letters at the end.
    pub dead: u64,
}

impl Outcome {
    /// Nothing lost, doubled, unexpected, buried, and every customer as the ledger says.
    pub fn is_clean(&self) -> bool {
        let ledger = &self.verdict.ledger;
        self.verdict.customers_different == 0
            && (ledger.lost, ledger.duplicated, ledger.unexpected, self.dead) == (0, 0, 0, 0)
            && self.verdict.customers > 0
    }
}

/// Runs a drill.
///
/// # Errors
/// When the system cannot be brought up again, or does not come right in time.
pub async fn run(drill: &Drill) -> anyhow::Result<Outcome> {
    let embedded = matches!(drill.victim, Victim::EmbeddedServer | Victim::Disk);
    let profile = if embedded { Profile::Embedded } else { Profile::Services };
    let mut options = Options::new(profile, drill.binary.clone());
    options.lease = LEASE;
    options.workers = 2;
    options.cuttable = drill.victim == Victim::Network;
    options.fillable = drill.victim == Victim::Disk;
    options.queue.clone_from(&drill.queue);
    options.failpoints = drill
        .failpoint
        .as_ref()
        .map(|point| (point.role, format!("{}={}*off->return", point.name, point.passes)));
    let system = System::start(options).await?;
    let client = Client::new(system.access.clone())?;
    let day = simulate(&Plan { seed: drill.seed, events: drill.events, ..Plan::default() });
    let system = Arc::new(Mutex::new(system));
    let sending = Arc::new(AtomicBool::new(true));
    let faults = match drill.failpoint.clone() {
        Some(point) => tokio::spawn(ends_itself(point, system.clone())),
        None if drill.victim == Victim::Network => {
            tokio::spawn(flapping(drill.seed, system.clone(), sending.clone()))
        }
        None => tokio::spawn(faults(drill.clone(), system.clone(), sending.clone())),
    };

    let began = tokio::time::Instant::now();
    let span = day.deliveries.last().map_or(1, |last| last.send_ms.max(1));
    let mut taken = vec![false; day.deliveries.len()];
    let mut answers = stream::iter(day.deliveries.iter().enumerate())
        .map(|(at, delivery)| {
            let client = client.clone();
            let due = began + drill.over.mul_f64(delivery.send_ms as f64 / span as f64);
            async move {
                tokio::time::sleep_until(due).await;
                client.send(delivery).await.map(|taken| (at, taken))
            }
        })
        .buffer_unordered(AT_ONCE);
    // Customers are asked for all the while: what is remembered of an answer must not be given once it is old.
    let asking = tokio::spawn(ask(client.clone(), day.ledger.customers.clone(), sending.clone()));
    while let Some(answer) = answers.next().await {
        let (at, was_taken) = answer?;
        taken[at] = was_taken;
    }
    drop(answers);
    sending.store(false, Ordering::Relaxed);
    asking.await?;
    let kills = faults.await??;

    let last_fault = Instant::now();
    let mut dead = 0;
    client.drain(LIVENESS, |numbers| dead = numbers.dead).await?;
    let recovered_in = last_fault.elapsed();
    let verdict = verify(&client, &day, &taken, Some(0), || {}).await?;
    system.lock().await.stop()?;
    let given_up = taken.iter().filter(|taken| !**taken).count();
    Ok(Outcome { verdict, kills, given_up, recovered_in, dead })
}

/// Asks for one customer after the other. What is unavailable meanwhile answers nothing, or something old that says so.
async fn ask(client: Client, customers: Vec<Customer>, sending: Arc<AtomicBool>) {
    while sending.load(Ordering::Relaxed) {
        for customer in &customers {
            if let Some((kind, value)) = customer.identifiers.first() {
                let _ = client.read_customer(kind, value).await;
            }
            if !sending.load(Ordering::Relaxed) {
                break;
            }
        }
        tokio::time::sleep(ASKED_EVERY).await;
    }
}

/// Kills and brings back, spread over the day's sending; always at least once, always brought back.
async fn faults(drill: Drill, system: Arc<Mutex<System>>, sending: Arc<AtomicBool>) -> anyhow::Result<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(drill.seed);
    let pause = drill.over.div_f64(drill.kills as f64 + 1.0);
    let mut kills = 0;
    while kills < drill.kills && (kills == 0 || sending.load(Ordering::Relaxed)) {
        tokio::time::sleep(pause.mul_f64(rng.random_range(0.5..1.0))).await;
        let mut away = Duration::from_millis(rng.random_range(AWAY_MS));
        if drill.victim == Victim::FrozenWorker {
            away += LEASE + RECLAIMED_WITHIN;
        }
        kill(drill.victim, &mut *system.lock().await)?;
        kills += 1;
        tokio::time::sleep(away).await;
        bring_back(drill.victim, &mut *system.lock().await).await?;
    }
    Ok(kills)
}

/// Breaks all connections of the workers again and again, while the day is sent. Answers how often.
async fn flapping(seed: u64, system: Arc<Mutex<System>>, sending: Arc<AtomicBool>) -> anyhow::Result<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut breaks = 0;
    while sending.load(Ordering::Relaxed) {
        system.lock().await.cut_network()?;
        if breaks % BREAKS_TO_A_CUT == 0 {
            tokio::time::sleep((LEASE + RECLAIMED_WITHIN).mul_f64(rng.random_range(0.8..1.2))).await;
        }
        system.lock().await.mend_network()?;
        breaks += 1;
        tokio::time::sleep(Duration::from_millis(rng.random_range(BREAK_EVERY_MS))).await;
    }
    Ok(breaks)
}

/// Waits until processes have ended at the failpoint, and starts them again. Answers how many did.
async fn ends_itself(point: Failpoint, system: Arc<Mutex<System>>) -> anyhow::Result<usize> {
    if point.redis_away {
        tokio::time::sleep(Duration::from_millis(AWAY_MS.end)).await;
        let mut system = system.lock().await;
        let redis = system.redis.as_mut().context("only services have a Redis")?;
        redis.kill()?;
        tokio::time::sleep(Duration::from_millis(AWAY_MS.end)).await;
        redis.restart().await?;
    }
    let end = Instant::now() + LIVENESS;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut system = system.lock().await;
        let dead = system.count_dead();
        if dead > 0 {
            // Both workers were armed: the other one may be about to end, too.
            tokio::time::sleep(Duration::from_millis(AWAY_MS.end)).await;
            let dead = dead + system.count_dead();
            if !system.server_runs() {
                system.restart_server()?;
            }
            system.start_workers()?;
            return Ok(dead);
        }
    }
    bail!("nobody came by the failpoint {}", point.name)
}

fn kill(victim: Victim, system: &mut System) -> anyhow::Result<()> {
    match (victim, &mut system.redis, &mut system.postgres) {
        (Victim::EmbeddedServer | Victim::Server, ..) => system.kill_server(),
        (Victim::StoppedWorker, ..) => system.stop_worker(),
        (Victim::FrozenWorker, ..) => system.freeze_worker(),
        (Victim::Disk, ..) => system.fill_disk(true),
        (Victim::Redis, Some(redis), _) => redis.kill(),
        (Victim::Postgres, _, Some(postgres)) => postgres.kill(),
        _ => system.kill_worker(),
    }
}

async fn bring_back(victim: Victim, system: &mut System) -> anyhow::Result<()> {
    match (victim, &mut system.redis, &mut system.postgres) {
        (Victim::EmbeddedServer | Victim::Server, ..) => system.restart_server(),
        (Victim::FrozenWorker, ..) => system.thaw_worker(),
        (Victim::Disk, ..) => system.fill_disk(false),
        (Victim::Redis, Some(redis), _) => redis.restart().await,
        (Victim::Postgres, _, Some(postgres)) => postgres.restart().await,
        _ => system.start_workers(),
    }
}
