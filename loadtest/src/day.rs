//! The main job: a shop's day of 50,000 events in about a minute, with goose as the crowd.
//!
//! Two kinds of users: the shop's visitors and Shopify, who send the day's deliveries at their times, and retry as the SDKs
//! do; and dashboard users, who read Customer360 of customers of that day all the while.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use goose::config::GooseConfiguration;
use goose::goose::{GooseMethod, GooseUser};
use goose::metrics::GooseRequestMetricAggregate;
use goose::prelude::{
    GooseAttack, GooseRequest, Scenario, Transaction, TransactionFunction, TransactionResult, scenario,
};
use indicatif::ProgressBar;
use rand::RngExt;
use simulator::{Day, Plan};
use stack::client::{Client, QueueNumbers, TRIES, wait};
use stack::verify::verify;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::report::{Latency, Report, Sample};
use crate::target::{DRAIN_TIMEOUT, Target, TargetArgs};
use crate::{html, progress, report, speed};

/// How often the queue is looked at, for the charts.
const SAMPLE_EVERY: Duration = Duration::from_millis(500);
/// How long a dashboard user looks at one customer.
const LOOK: std::ops::Range<u64> = 20..80;
/// The newest deliveries, whose customers no worker may have seen yet.
const JUST_SENT: usize = 100;
const INGEST: &str = "ingestion";
const CUSTOMER360: &str = "Customer360";

/// The day.
#[derive(Args, Debug)]
pub(crate) struct DayArgs {
    /// Events of the day
    #[arg(long, default_value_t = 50_000)]
    events: usize,
    /// Seconds that the day is compressed into
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The day's seed: the same seed, the same bytes
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Visitors and webhook senders at once
    #[arg(long, default_value_t = 20)]
    senders: usize,
    /// For how many seconds, after the day, as much is sent as the system takes, to measure its capacity; 0 for not at all
    #[arg(long, default_value_t = 10)]
    capacity_seconds: u64,
    /// Dashboard users at once
    #[arg(long, default_value_t = 4)]
    readers: usize,
}

/// What the users share.
struct Stage {
    client: Client,
    day: Day,
    seconds: u64,
    started: Instant,
    next: AtomicUsize,
    sent: AtomicUsize,
    /// For each delivery, whether it was taken.
    taken: Vec<AtomicBool>,
    over: AtomicBool,
    bar: ProgressBar,
}

/// Runs the day; `true` when every KPI that exists passes.
pub(crate) async fn run(target: &TargetArgs, args: &DayArgs, out: &Path) -> anyhow::Result<bool> {
    let target = Target::open(target).await?;
    let client = Client::new(target.access.clone())?;
    let shop: &'static str = Box::leak(target.access.shop_domain.clone().into_boxed_str());
    let day = simulator::simulate(&Plan { seed: args.seed, events: args.events, shop, ..Plan::default() });
    let brand_events_before = client.brand_events().await?;
    let stage = Arc::new(Stage {
        client: client.clone(),
        seconds: args.seconds,
        started: Instant::now(),
        next: AtomicUsize::new(0),
        sent: AtomicUsize::new(0),
        taken: day.deliveries.iter().map(|_| AtomicBool::new(false)).collect(),
        over: AtomicBool::new(false),
        bar: progress::bar("sending the day", day.deliveries.len()),
        day,
    });
    let samples = Arc::new(Mutex::new(Vec::new()));
    let sampler = tokio::spawn(sample(stage.clone(), samples.clone()));
    let metrics = Box::pin(crowd(args, &stage)).await?;
    stage.bar.finish();
    let sent_in = stage.started.elapsed();

    let bar = progress::bar("draining the queue", 1);
    let mut last = QueueNumbers::default();
    client.drain(DRAIN_TIMEOUT, |numbers| last = numbers).await?;
    bar.finish();
    let drained_in = stage.started.elapsed();
    sampler.abort();

    let taken: Vec<bool> = stage.taken.iter().map(|taken| taken.load(Ordering::Relaxed)).collect();
    let bar = progress::bar("comparing with the ledger", stage.day.ledger.customers.len());
    let before = target.own.then_some(brand_events_before);
    let verdict = verify(&client, &stage.day, &taken, before, || bar.inc(1)).await?;
    bar.finish();
    let capacity = match args.capacity_seconds {
        0 => None,
        seconds => {
            let bar = progress::bar("measuring the capacity", 1);
            // Other customers than the day's.
            let measured =
                speed::sustained(&target.access, args.seed + 1, Duration::from_secs(seconds)).await?;
            bar.finish();
            Some(measured)
        }
    };
    let report = Report::of_day(report::Facts {
        capacity,
        target: target.name.clone(),
        seed: args.seed,
        sent_in,
        drained_in,
        dead: last.dead,
        ingestion: metrics.ingestion,
        customer360: metrics.customer360,
        verdict,
        samples: samples.lock().await.clone(),
    });
    report.write(out, html::page(&report))?;
    println!("{}", report.text());
    println!("Reports: {0}/report.html and {0}/report.json", out.display());
    target.close()?;
    Ok(report.passed())
}

struct Measured {
    ingestion: Latency,
    customer360: Latency,
}

async fn crowd(args: &DayArgs, stage: &Arc<Stage>) -> anyhow::Result<Measured> {
    let mut config = GooseConfiguration::default();
    config.host = Some(stage.client.access().url.clone());
    config.users = Some(args.senders + args.readers);
    config.increase_rate = Some("1000".into());
    // Each user plays its part once: senders until the day is over, readers until the senders are done.
    config.iterations = Some(1);
    config.no_telnet = true;
    config.no_print_metrics = true;
    config.quiet = 2;
    let senders = part(stage, |stage, user| Box::pin(send_day(stage, user)));
    let readers = part(stage, |stage, user| Box::pin(read_customers(stage, user)));
    let metrics = GooseAttack::initialize_with_config(config)?
        .register_scenario(weighted(scenario!("Senders"), args.senders)?.register_transaction(senders))
        .register_scenario(weighted(scenario!("Dashboard"), args.readers)?.register_transaction(readers))
        .execute()
        .await?;
    let of = |name: &str| {
        let found = metrics.requests.values().find(|request| request.path == name);
        found.map(latency).with_context(|| format!("no {name} request was made"))
    };
    Ok(Measured { ingestion: of(INGEST)?, customer360: of(CUSTOMER360)? })
}

fn weighted(scenario: Scenario, weight: usize) -> anyhow::Result<Scenario> {
    Ok(scenario.set_weight(weight)?)
}

type Playing<'u> = std::pin::Pin<Box<dyn Future<Output = TransactionResult> + Send + 'u>>;

fn part(stage: &Arc<Stage>, play: for<'u> fn(Arc<Stage>, &'u mut GooseUser) -> Playing<'u>) -> Transaction {
    let stage = stage.clone();
    let function: TransactionFunction = Arc::new(move |user| play(stage.clone(), user));
    Transaction::new(function)
}

fn latency(request: &GooseRequestMetricAggregate) -> Latency {
    let times = &request.raw_data;
    Latency {
        count: request.success_count + request.fail_count,
        failed: request.fail_count,
        p50_us: times.percentile_us(0.5),
        p95_us: times.percentile_us(0.95),
        p99_us: times.percentile_us(0.99),
        max_us: times.maximum_time_us,
    }
}

/// Takes the next delivery of the day, waits for its time, sends it until it is taken; until there are no more.
async fn send_day(stage: Arc<Stage>, user: &mut GooseUser) -> TransactionResult {
    let deliveries = &stage.day.deliveries;
    let day_ms = deliveries.last().map_or(1, |last| last.send_ms.max(1));
    loop {
        let at = stage.next.fetch_add(1, Ordering::Relaxed);
        let Some(delivery) = deliveries.get(at) else { break };
        let due = Duration::from_millis(stage.seconds * 1000 * delivery.send_ms / day_ms);
        tokio::time::sleep_until(stage.started + due).await;
        for attempt in 0..TRIES {
            let request = stage.client.delivery(&user.client, delivery);
            let request =
                GooseRequest::builder().method(GooseMethod::Post).name(INGEST).set_request_builder(request);
            let taken = user.request(request.build()).await?.request.success;
            if taken {
                stage.taken[at].store(true, Ordering::Relaxed);
                break;
            }
            tokio::time::sleep(wait(attempt)).await;
        }
        if stage.sent.fetch_add(1, Ordering::Relaxed) + 1 == deliveries.len() {
            stage.over.store(true, Ordering::Relaxed);
        }
        stage.bar.inc(1);
    }
    Ok(())
}

/// Reads customers of the day, one after the other, until the day is over: those of whom something was sent, a little
/// while ago. One whom no worker has seen yet is nobody: an answer, too, but a rare one.
async fn read_customers(stage: Arc<Stage>, user: &mut GooseUser) -> TransactionResult {
    while !stage.over.load(Ordering::Relaxed) {
        let look = rand::rng().random_range(LOOK);
        tokio::time::sleep(Duration::from_millis(look)).await;
        let known = stage.sent.load(Ordering::Relaxed).saturating_sub(JUST_SENT);
        if known == 0 {
            continue;
        }
        let delivery = &stage.day.deliveries[rand::rng().random_range(0..known)];
        let Some((kind, value)) = delivery.facts.first().and_then(|fact| fact.identifiers.first()) else {
            continue;
        };
        let request = stage.client.customer(&user.client, kind, value);
        let request =
            GooseRequest::builder().method(GooseMethod::Get).name(CUSTOMER360).set_request_builder(request);
        let mut answered = user.request(request.build()).await?;
        if answered.request.status_code == 404 {
            user.set_success(&mut answered.request)?;
        }
    }
    Ok(())
}

/// Looks at the queue until it is stopped.
async fn sample(stage: Arc<Stage>, samples: Arc<Mutex<Vec<Sample>>>) {
    loop {
        if let Ok(numbers) = stage.client.queue().await {
            samples.lock().await.push(Sample {
                at_s: stage.started.elapsed().as_secs_f64(),
                deliveries_sent: stage.sent.load(Ordering::Relaxed),
                waiting: numbers.waiting,
                oldest_age_ms: numbers.oldest_age_ms,
            });
        }
        tokio::time::sleep(SAMPLE_EVERY).await;
    }
}
