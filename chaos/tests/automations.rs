//! Automations under kills: what the ledger says must fire fires, once, not too early, and nothing else does.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::time::Duration;

use simulator::actions::campaign;
use stack::campaign;
use stack::client::Client;
use stack::receiver::Receiver;
use stack::system::{Options, Profile, System};
use tokio::sync::Mutex;

/// Customers of the campaign.
const CUSTOMERS: usize = 120;
/// Over how long they act.
const OVER_MS: i64 = 8000;
/// Between one kill and the next.
const PAUSE: Duration = Duration::from_millis(2500);

#[derive(Clone, Copy, PartialEq)]
enum Victim {
    AutomationWorker,
    Everything,
    /// Redis forgets all jobs.
    Jobs,
}

async fn fires_what_it_must(profile: Profile, victim: Victim, failpoint: Option<&str>) {
    let seed = std::env::var("CHAOS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(5);
    println!("CHAOS_SEED={seed}");
    let receiver = Receiver::start(true).await.unwrap();
    let mut options = Options::new(profile, env!("CARGO_BIN_EXE_chaos").into());
    options.lease = Duration::from_secs(2);
    options.automation_workers = 2;
    options.outside_args =
        vec!["--allow-private-destinations".into(), "--destination-rate".into(), "1000".into()];
    let role = if profile == Profile::Embedded { "server" } else { "automation" };
    options.failpoints = failpoint.map(|name| (role, format!("{name}=2*off->return")));
    let system = System::start(options).await.unwrap();
    let client = Client::new(system.access.clone()).unwrap();
    campaign::set_up(&client, &receiver).await.unwrap();

    let plan = campaign(seed, CUSTOMERS, OVER_MS);
    let system = Arc::new(Mutex::new(system));
    let killing = tokio::spawn(kill_now_and_then(system.clone(), profile, victim, failpoint.is_some()));
    let began = campaign::act(&client, &plan).await.unwrap();
    let kills = killing.await.unwrap();
    let verdict = campaign::verdict(&client, &plan, &receiver, began).await.unwrap();
    println!("{kills} kills: {verdict:?}");
    assert!(kills > 0);
    assert!(verdict.is_clean(), "{verdict:#?}");
    client.drain(Duration::from_secs(30), |_| {}).await.unwrap();
    assert_eq!(client.automations_queue().await.unwrap().1, 0, "no dead letters");
    system.lock().await.stop().unwrap();
}

/// For as long as the campaign's carts wait and are told of.
async fn kill_now_and_then(
    system: Arc<Mutex<System>>,
    profile: Profile,
    victim: Victim,
    by_itself: bool,
) -> usize {
    let mut kills = 0;
    for _ in 0..11 {
        tokio::time::sleep(PAUSE).await;
        let mut system = system.lock().await;
        if by_itself {
            let dead = system.count_dead();
            kills += dead;
            if !system.server_runs() {
                system.restart_server().unwrap();
            }
            system.start_workers().unwrap();
            continue;
        }
        match (profile, victim) {
            (Profile::Embedded, _) => {
                system.kill_server().unwrap();
                system.restart_server().unwrap();
            }
            (Profile::Services, Victim::AutomationWorker) => system.kill_automation_worker().unwrap(),
            (Profile::Services, Victim::Jobs) => system.forget_jobs().await.unwrap(),
            (Profile::Services, Victim::Everything) => {
                system.kill_automation_worker().unwrap();
                system.kill_worker().unwrap();
                let redis = system.redis.as_mut().unwrap();
                redis.kill().unwrap();
                redis.restart().await.unwrap();
            }
        }
        system.start_workers().unwrap();
        kills += 1;
    }
    kills
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_automation_workers_fire_what_they_must() {
    fires_what_it_must(Profile::Services, Victim::AutomationWorker, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_workers_and_redis_fire_what_they_must() {
    fires_what_it_must(Profile::Services, Victim::Everything, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_that_redis_has_forgotten_are_done_all_the_same() {
    fires_what_it_must(Profile::Services, Victim::Jobs, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_embedded_server_fires_what_it_must() {
    fires_what_it_must(Profile::Embedded, Victim::Everything, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_before_it_sends_sends_later() {
    fires_what_it_must(Profile::Services, Victim::AutomationWorker, Some("action_recorded_before_done"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_after_it_sent_repeats_itself_under_the_same_key() {
    fires_what_it_must(Profile::Services, Victim::AutomationWorker, Some("action_done_before_recorded"))
        .await;
}
