//! What a brand, a key, an address and a stranger may take of what all share; on both profiles.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeSet;

use reqwest::RequestBuilder;
use serde_json::{Value, json};
use support::{On, TestApp, answer, key_with};
use tributary_core::ports::brands::{KeyGrant, KeyKind};
use tributary_core::ports::clock::{Clock, ManualClock, SystemClock};
use tributary_core::ports::queue::QueueSettings;

on_both_profiles!(
    a_limit_counts_events_and_bytes_not_requests,
    unknown_keys_of_an_address_are_limited_and_known_ones_are_not,
    strangers_are_told_nothing_that_concerns_all_brands,
    a_brand_over_its_share_is_told_so_and_others_are_not,
    a_flood_of_bad_messages_leaves_few_dead_letters_and_holds_up_nobody,
);

async fn limited(app: &TestApp, limit: u32) -> String {
    let grant = KeyGrant { rate_limit: Some(limit), ..KeyGrant::new(app.brand, KeyKind::Write) };
    key_with(&app.context, grant).await
}

fn batch(app: &TestApp, key: &str, messages: Vec<Value>) -> RequestBuilder {
    let body = json!({"batch": messages}).to_string();
    app.http.post(format!("{}/v1/batch", app.url)).basic_auth(key, Some("")).body(body)
}

fn track(text: &str) -> Value {
    json!({"type": "track", "event": "E", "userId": "u", "properties": {"text": text}})
}

async fn a_limit_counts_events_and_bytes_not_requests(on: On) {
    let app = TestApp::start(on).await;
    let key = limited(&app, 10).await;
    assert_eq!(answer(batch(&app, &key, vec![track("x"); 100])).await.0, 200, "let in, and paid for");
    let response = batch(&app, &key, vec![track("x")]).send().await.unwrap();
    assert_eq!(response.status(), 429);
    let wait: u32 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((8..=10).contains(&wait), "{wait} s");
    assert_eq!(response.json::<Value>().await.unwrap()["code"], "rate_limited");

    let key = limited(&app, 10).await;
    assert_eq!(answer(batch(&app, &key, vec![track(&"z".repeat(30_000))])).await.0, 200);
    assert_eq!(answer(batch(&app, &key, vec![track("x")])).await.0, 429, "15 of 2 KiB each");

    // What is copied into each event counts as often.
    let key = limited(&app, 100).await;
    let context = json!({"batch": vec![track("x"); 200], "context": {"text": "c".repeat(8000)}});
    let send = || {
        app.http.post(format!("{}/v1/batch", app.url)).basic_auth(&key, Some("")).body(context.to_string())
    };
    assert_eq!(answer(send()).await.0, 200);
    let response = send().send().await.unwrap();
    assert_eq!(response.status(), 429);
    assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u32>().unwrap() >= 6);
    app.stop().await;
}

async fn unknown_keys_of_an_address_are_limited_and_known_ones_are_not(on: On) {
    let clock = ManualClock::at(SystemClock.now_ms());
    let app = TestApp::start_at(on, &clock).await;
    assert_eq!(answer(app.get("/api/customers")).await.0, 200);
    let mut seen = BTreeSet::new();
    for n in 0..200 {
        let request = app.http.get(format!("{}/api/customers", app.url)).bearer_auth(format!("sk_{n}"));
        seen.insert(answer(request).await.0);
    }
    assert_eq!(seen, BTreeSet::from([401, 429]));
    assert_eq!(answer(app.get("/api/customers")).await.0, 200);
    // One that is tried again and again is not asked for each time, and is no new key.
    clock.advance(1500);
    for _ in 0..200 {
        let request = app.http.get(format!("{}/api/customers", app.url)).bearer_auth("sk_same");
        assert_eq!(answer(request).await.0, 401);
    }
    app.stop().await;
}

async fn strangers_are_told_nothing_that_concerns_all_brands(on: On) {
    let app = TestApp::start(on).await;
    let other = app.context.brand_ports.brands.add_brand("other").await.unwrap();
    assert_eq!(answer(app.post("/v1/track", track("x").to_string())).await.0, 200);
    // As a proxy hands a request on.
    let stranger =
        |path: &str| app.http.get(format!("{}{path}", app.url)).header("x-forwarded-for", "203.0.113.7");
    for path in ["/metrics", "/api/monitoring/health", "/api/monitoring/queues", "/api/monitoring/stats"] {
        let (status, body) = answer(stranger(path)).await;
        assert_eq!(json!([status, body["code"]]), json!([401, "no_key"]), "{path}");
        assert_eq!(answer(app.http.get(format!("{}{path}", app.url))).await.0, 200, "{path}, from here");
    }
    assert_eq!(answer(stranger("/readyz")).await, (200, json!("ready\n")));
    assert_eq!(answer(stranger("/healthz")).await.0, 200);
    let (_, stats) = answer(stranger("/api/monitoring/stats").bearer_auth(&app.secret_key)).await;
    assert!(stats["brand"].is_object() && stats.get("events").is_none(), "{stats}");
    // A brand among others sees what it holds itself.
    let theirs = key_with(&app.context, KeyGrant::new(other, KeyKind::Secret)).await;
    for (key, items) in [(&app.secret_key, 1), (&theirs, 0)] {
        let request = app.http.get(format!("{}/api/queues", app.url)).bearer_auth(key);
        let (_, queues) = answer(request).await;
        assert_eq!(queues["events"]["held"]["items"], items, "{queues}");
        assert!(queues["events"].get("pending").is_none() && queues.get("outbox").is_none(), "{queues}");
    }
    app.stop().await;
}

async fn a_brand_over_its_share_is_told_so_and_others_are_not(on: On) {
    let app = TestApp::start_with(on, 0, QueueSettings { max_depth: 100, ..QueueSettings::default() }).await;
    let other = app.context.brand_ports.brands.add_brand("other").await.unwrap();
    let other = key_with(&app.context, KeyGrant::new(other, KeyKind::Write)).await;
    let mut taken = 0;
    let refused = loop {
        let response = batch(&app, &app.write_key, vec![track("x"); 10]).send().await.unwrap();
        if response.status() != 200 {
            break response;
        }
        taken += 10;
        assert!(taken < 100, "never refused");
    };
    assert_eq!((taken, refused.status().as_u16()), (50, 429), "a public key: as much as stays free");
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(refused.json::<Value>().await.unwrap()["code"], "share_full");
    assert_eq!(answer(batch(&app, &other, vec![track("x"); 10])).await.0, 200);
    let secret = app.http.post(format!("{}/v1/track", app.url)).bearer_auth(&app.secret_key);
    assert_eq!(answer(secret.body(track("x").to_string())).await.0, 200, "its own servers still send");
    app.stop().await;
}

async fn a_flood_of_bad_messages_leaves_few_dead_letters_and_holds_up_nobody(on: On) {
    let settings = QueueSettings { max_dead: 20, ..QueueSettings::default() };
    let app = TestApp::start_with(on, 0, settings).await;
    let other = app.context.brand_ports.brands.add_brand("other").await.unwrap();
    let other = key_with(&app.context, KeyGrant::new(other, KeyKind::Write)).await;
    let bad = json!({"type": "track", "userId": "u", "properties": {"x": "z".repeat(3000)}});
    for _ in 0..10 {
        let messages = [vec![track("x")], vec![bad.clone(); 15]].concat();
        assert_eq!(answer(batch(&app, &app.write_key, messages)).await.0, 200);
    }
    app.drain().await;
    let stats = app.context.queue.stats().await.unwrap();
    assert_eq!((stats.dead, stats.buried, stats.dropped), (20, 150, 130));
    let (_, page) = answer(app.get("/api/queues/events/dead?limit=100")).await;
    assert_eq!(page["letters"].as_array().unwrap().len(), 20);
    assert_eq!(answer(batch(&app, &other, vec![track("x")])).await.0, 200);
    app.stop().await;
}
