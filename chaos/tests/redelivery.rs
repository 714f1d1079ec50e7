//! A worker that dies delays, never loses: how soon its items are with another one, and what becomes of an item that kills.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stack::client::Client;
use stack::system::{Options, Profile, System};

const LEASE: Duration = Duration::from_secs(2);
/// The promise: lease + 1 s; and what this test's own looking costs.
const WITHIN: Duration = Duration::from_millis(3000 + 300);

async fn start(failpoint: &str, again: bool) -> (System, Client) {
    let mut options = Options::new(Profile::Services, env!("CARGO_BIN_EXE_chaos").into());
    options.lease = LEASE;
    options.failpoints = Some(("workers", failpoint.into()));
    options.failpoints_again = again;
    let system = System::start(options).await.unwrap();
    let client = Client::new(system.access.clone()).unwrap();
    (system, client)
}

async fn track(client: &Client, id: &str) {
    let access = client.access();
    let event = json!({"event": "E", "userId": id, "messageId": id}).to_string();
    let post = client.http().post(format!("{}/v1/track", access.url)).basic_auth(&access.write_key, Some(""));
    assert_eq!(post.body(event).send().await.unwrap().status(), 200);
}

async fn get(client: &Client, path: &str) -> Value {
    let access = client.access();
    let get = client.http().get(format!("{}{path}", access.url)).bearer_auth(&access.secret_key);
    get.send().await.unwrap().json().await.unwrap()
}

async fn until_dead(system: &mut System) {
    let end = Instant::now() + Duration::from_secs(30);
    while system.count_dead() == 0 {
        assert!(Instant::now() < end, "the worker did not die");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_workers_items_are_with_another_within_the_lease_and_a_second() {
    let (mut system, client) = start("fetched_before_handler=return", false).await;
    track(&client, "m1").await;
    until_dead(&mut system).await;
    let died = Instant::now();
    system.start_workers().unwrap();
    while get(&client, "/api/monitoring/queues").await["events"]["reclaimed"] == 0 {
        assert!(died.elapsed() < WITHIN, "not within {WITHIN:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    client.drain(Duration::from_secs(5), |_| {}).await.unwrap();
    assert_eq!(client.brand_events().await.unwrap(), 1);
    system.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_kills_its_worker_is_buried_alone() {
    let (mut system, client) = start("poison_item=return(poison-1)", true).await;
    for n in 0..40 {
        track(&client, &format!("good-{n}")).await;
        if n == 20 {
            track(&client, "poison-1").await;
        }
    }
    // Whoever holds it dies: once in company, three times alone.
    let mut deaths = 0;
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        deaths += system.count_dead();
        system.start_workers().unwrap();
        let events = get(&client, "/api/monitoring/queues").await["events"].clone();
        if events["dead"] == 1 && events["pending"] == 0 && events["in_flight"] == 0 {
            break;
        }
        assert!(Instant::now() < end, "{events}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let letters = get(&client, "/api/queues/events/dead").await["letters"].clone();
    assert_eq!(letters.as_array().unwrap().len(), 1);
    assert_eq!(
        (&letters[0]["losses"], &letters[0]["item"]["body"]["userId"]),
        (&json!(3), &json!("poison-1"))
    );
    assert!((3..=4).contains(&deaths), "{deaths}");
    assert_eq!(client.brand_events().await.unwrap(), 40, "its neighbours are unharmed");
    system.stop().unwrap();
}
