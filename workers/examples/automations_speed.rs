//! How late what is due begins, with 100,000 runs waiting: `cargo run --release -p workers --example automations_speed [due a second]`.
//!
//! On each profile, 100,000 runs wait in the store; of these, so many a second come due for ten seconds. A worker runs as it does
//! in production, but what it sends goes nowhere: it is noted how long after its time each action began. Before that it is counted
//! how many transactions the store sees while all of them wait and nothing is due.

#![allow(clippy::unwrap_used, reason = "a measurement may panic")]

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use backends::services::Services;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio_util::sync::CancellationToken;
use tributary_core::context::{Backend, Context, Layout};
use tributary_core::domain::addresses::Reach;
use tributary_core::domain::automation::definition::Definition;
use tributary_core::domain::automation::plan::Plan;
use tributary_core::domain::automation::run::RunOf;
use tributary_core::domain::automation::run::{Cause, Run, Status};
use tributary_core::domain::event::{Event, EventKind};
use tributary_core::domain::identity::{Identifier, IdentifierKind};
use tributary_core::domain::ids::{BrandId, ProfileId};
use tributary_core::ports::automations::AutomationStatus;
use tributary_core::ports::queue::QueueSettings;
use tributary_core::ports::sender::{MessageContent, OutboundMessage, SendOutcome, Sender};
use tributary_core::ports::world::World;
use tributary_core::services::automations::api;
use tributary_core::services::automations::destinations::Destinations;
use tributary_core::services::automations::runs::Outbound;
use tributary_core::services::brand_cache::BrandRules;
use tributary_core::services::events::process;
use tributary_core::services::seal::{SecretKey, SecretKeys};
use uuid::Uuid;
use workers::automation;
use workers::lanes::Options;

const WAITING: usize = 100_000;
const SECONDS: usize = 10;
/// How long nothing is due, for counting what waiting costs.
const IDLE: Duration = Duration::from_secs(10);
const MONTH_MS: i64 = 30 * 86_400_000;

/// Notes when each run's action begins.
struct Notes {
    context: Context,
    due: HashMap<Uuid, i64>,
    late_ms: Mutex<Vec<i64>>,
}

#[async_trait]
impl Sender for Notes {
    async fn send(&self, message: &OutboundMessage) -> SendOutcome {
        let MessageContent::Webhook { body, .. } = &message.content else {
            return SendOutcome::Refused("not a webhook".into());
        };
        let now = self.context.world.now_ms();
        let body: Value = serde_json::from_str(body).unwrap();
        let run: Uuid = body["data"]["run"].as_str().unwrap().parse().unwrap();
        self.late_ms.lock().unwrap().push(now - self.due[&run]);
        SendOutcome::Done("noted".into())
    }
}

fn main() {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(run());
}

async fn run() {
    let rate: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1000);
    println!("{WAITING} runs wait, {rate} a second come due for {SECONDS} s\n");
    println!(
        "{:<10}{:>10}{:>12}{:>12}{:>12}{:>22}",
        "", "begun", "late p50", "p99", "most", "idle transactions/s"
    );
    let folder = tempfile::tempdir().unwrap();
    let embedded = Backend::Embedded { data: folder.path().to_owned() };
    measure("embedded", &embedded, None, rate).await;
    let services = Services::start().await.unwrap_or_else(|error| panic!("{error:#}"));
    let url = services.fresh_database().await.unwrap();
    let backend = Backend::Services {
        database_url: url.clone(),
        redis_url: services.redis_url.clone(),
        key_space: Services::fresh_key_space(),
        connections: 10,
        layout: Layout::Lists,
        keys: SecretKeys::new(SecretKey::random(&World::real()), Vec::new()),
    };
    measure("services", &backend, Some(&url), rate).await;
}

async fn measure(name: &str, backend: &Backend, database: Option<&str>, rate: usize) {
    let context = Context::open(backend, QueueSettings::default()).await.unwrap();
    let brand = context.brand_ports.brands.add_brand("b").await.unwrap();
    let definition: Definition = serde_json::from_value(json!({
        "name": "n", "trigger": {"on": "event", "event": "E"},
        "steps": [{"do": "wait", "for": {"days": 30}}, {"do": "webhook", "url": "https://r.example/"}],
    }))
    .unwrap();
    let made = api::create(&context, brand, &definition).await.unwrap();
    api::set_status(&context, brand, made.id, AutomationStatus::Active).await.unwrap();
    let customers = customers(&context, brand, rate * SECONDS).await;
    let idle_from = context.world.now_ms() + 8000;
    let first_due = idle_from + i64::try_from(IDLE.as_millis()).unwrap() + 1000;
    let due = wait(&context, brand, made.id, &definition, &customers, rate, first_due).await;
    let notes = Arc::new(Notes { context: context.clone(), due, late_ms: Mutex::default() });
    let outbound = Outbound {
        sender: notes.clone(),
        destinations: Arc::new(Destinations::new(NonZeroU32::MAX, context.world.clone())),
        public_url: None,
        sends_mail: true,
        reach: Reach { private: true, http: true },
    };
    let stop = CancellationToken::new();
    let options = Options { concurrency: 2, batch: 500, grace: Duration::from_secs(5) };
    let worker = tokio::spawn(automation::run(context.clone(), outbound, options, stop.clone()));
    let until =
        |at: i64| Duration::from_millis(u64::try_from(at - context.world.now_ms()).unwrap_or_default());
    tokio::time::sleep(until(idle_from)).await;
    let before = transactions(database).await;
    tokio::time::sleep(IDLE).await;
    let after = transactions(database).await;
    let end = first_due + i64::try_from(SECONDS).unwrap() * 1000 + 20_000;
    while notes.late_ms.lock().unwrap().len() < rate * SECONDS && context.world.now_ms() < end {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.cancel();
    worker.await.unwrap();
    let mut late = notes.late_ms.lock().unwrap().clone();
    late.sort_unstable();
    let at = |percent: usize| format!("{} ms", late[(late.len() - 1) * percent / 100]);
    let idle = match (before, after) {
        (Some(before), Some(after)) => {
            format!("{}", (after - before) / i64::try_from(IDLE.as_secs()).unwrap())
        }
        _ => "-".to_owned(),
    };
    println!("{name:<10}{:>10}{:>12}{:>12}{:>12}{idle:>22}", late.len(), at(50), at(99), at(100));
    assert!(late[0] >= 0, "none began before its time");
    context.close().await;
}

async fn customers(context: &Context, brand: BrandId, count: usize) -> Vec<ProfileId> {
    let now = context.world.now();
    let events: Vec<Event> = (0..count)
        .map(|n| {
            let mut event = Event::new(brand, format!("m{n}"), EventKind::Track, now);
            event.identifiers = vec![Identifier::new(IdentifierKind::UserId, &format!("u{n}")).unwrap()];
            event
        })
        .collect();
    for batch in events.chunks(500) {
        process(&*context.store, &*context.locks, &context.world, &BrandRules::default(), batch)
            .await
            .unwrap();
    }
    let mut ids = Vec::new();
    while ids.len() < count {
        let page = context.automations.profiles(brand, ids.last().copied(), 5000).await.unwrap();
        ids.extend(page);
    }
    ids
}

/// Puts waiting runs into the store; answers when those come due that do.
async fn wait(
    context: &Context,
    brand: BrandId,
    automation: Uuid,
    definition: &Definition,
    customers: &[ProfileId],
    rate: usize,
    first_due: i64,
) -> HashMap<Uuid, i64> {
    let plan = Plan::of(definition).unwrap();
    let mut due = HashMap::new();
    let numbers: Vec<usize> = (0..WAITING).collect();
    for chunk in numbers.chunks(5000) {
        let runs: Vec<Run> = chunk
            .iter()
            .map(|n| {
                let at = match *n < rate * SECONDS {
                    true => first_due + i64::try_from(n * 1000 / rate).unwrap(),
                    false => first_due + MONTH_MS,
                };
                let at_ms = at - MONTH_MS;
                let cause = Cause { key: format!("k{n}"), message_id: None, at_ms, why: "measured".into() };
                let customer = customers[n % customers.len()];
                let of = RunOf { id: context.world.id(), brand, automation, version: 1, profile: customer };
                let mut run = Run::new(of, &plan, &cause, context.world.now_ms());
                run.status = Status::Waiting;
                run.due_ms = Some(at);
                due.insert(run.id, at);
                run
            })
            .collect();
        let mut tx = context.automations.begin().await.unwrap();
        assert_eq!(tx.add_runs(&runs).await.unwrap().len(), runs.len());
        tx.commit().await.unwrap();
    }
    due
}

/// Transactions that PostgreSQL has seen; nothing for SQLite, which does not count them.
async fn transactions(database: Option<&str>) -> Option<i64> {
    let mut connection = PgConnection::connect(database?).await.unwrap();
    // The counters are told now and then.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let count: i64 =
        sqlx::query_scalar("select xact_commit from pg_stat_database where datname = current_database()")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    Some(count)
}
