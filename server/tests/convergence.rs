//! Order does not matter: the same day, sent in any order and twice, on either profile, ends in the same customers.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use serde_json::Value;
use simulator::delivery::Delivery;
use simulator::{Plan, doubled_and_shuffled, simulate};
use stack::client::Client;
use stack::verify::verify;
use support::{On, SHOP, TestApp};
use tributary_core::ports::queue::QueueSettings;

/// Senders at once; lanes that process meanwhile.
const AT_ONCE: usize = 8;
const LANES: usize = 3;
const DRAIN: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_shuffled_and_doubled_ends_in_the_same_customers_on_both_profiles() {
    let seed = std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    println!("SIMULATION_SEED={seed}");
    let plan = Plan { seed, events: 2500, shop: SHOP, ..Plan::default() };
    let day = simulate(&plan);
    let shuffled = doubled_and_shuffled(&day.deliveries, seed + 1);

    let mut ends: Vec<(String, BTreeMap<String, Value>)> = Vec::new();
    for (on, name, deliveries) in [
        (On::Embedded, "embedded, in order", &day.deliveries),
        (On::Embedded, "embedded, shuffled and doubled", &shuffled),
        (On::Services, "services, in order", &day.deliveries),
        (On::Services, "services, shuffled and doubled", &shuffled),
    ] {
        let app = TestApp::start_with(on, LANES, QueueSettings::default()).await;
        let client = app.client();
        send(&client, deliveries).await;
        client.drain(DRAIN, |_| {}).await.unwrap();
        let all_taken = vec![true; day.deliveries.len()];
        let verdict = verify(&client, &day, &all_taken, Some(0), || {}).await.unwrap();
        assert_eq!(verdict.customers_different, 0, "{name}: {:#?}", verdict.differences);
        let ledger = &verdict.ledger;
        assert_eq!((ledger.lost, ledger.duplicated, ledger.unexpected), (0, 0, 0), "{name}");
        assert_eq!(ledger.effective, day.ledger.events() as u64, "{name}");
        ends.push((name.to_owned(), customers(&client, &day.ledger).await));
        app.stop().await;
    }
    let (first, rest) = ends.split_first().unwrap();
    for (name, customers) in rest {
        for (who, customer) in &first.1 {
            assert_eq!(&customers[who], customer, "{who}: {name} differs from {}", first.0);
        }
    }
}

async fn send(client: &Client, deliveries: &[Delivery]) {
    stream::iter(deliveries)
        .map(Ok)
        .try_for_each_concurrent(AT_ONCE, async |delivery| match client.send(delivery).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(anyhow::anyhow!("given up")),
            Err(error) => Err(error),
        })
        .await
        .unwrap();
}

/// Customer360 of every customer, without what may differ: the id, which is drawn when the profile is made, and times at
/// which events without a time of their own were received - the simulator's all have one - and what depends on when it is
/// asked: days since then, and the stage that follows from them.
async fn customers(client: &Client, ledger: &simulator::ledger::Ledger) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for customer in &ledger.customers {
        let (kind, value) = customer.identifiers.first().unwrap();
        let mut answer = client.read_customer(kind, value).await.unwrap().unwrap();
        for asked_when in ["id", "lifecycle"] {
            answer.as_object_mut().unwrap().remove(asked_when);
        }
        answer["computed"].as_object_mut().unwrap().retain(|name, _| !name.starts_with("days_since"));
        found.insert(format!("{kind} {value}"), answer);
    }
    found
}
