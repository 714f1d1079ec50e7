//! What clients see when a service is away, on a Redis and a PostgreSQL of the test's own.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::{Duration, Instant};

use serde_json::json;
use stack::postgres::Postgres;
use stack::redis::{Fsync, Redis};
use support::{On, TestApp, answer, services_backend};
use tributary_core::ports::queue::QueueSettings;

/// Shopify gives up after five seconds: an outage must be answered sooner.
const PATIENCE: Duration = Duration::from_secs(5);
const C360: &str = "/api/customers/by/user_id/u/360";

on_both_profiles!(a_full_queue_is_503_with_retry_after_and_takes_nothing);

async fn a_full_queue_is_503_with_retry_after_and_takes_nothing(on: On) {
    let app = TestApp::start_with(on, 0, QueueSettings { max_depth: 3, ..QueueSettings::default() }).await;
    let events = |count: usize| json!(vec![json!({"event": "E", "userId": "u"}); count]).to_string();
    assert_eq!(answer(app.post("/api/events", events(2))).await.0, 202);
    let response = app.post("/api/events", events(2)).send().await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u32>().unwrap() > 0);
    assert_eq!(response.json::<serde_json::Value>().await.unwrap()["code"], "queue_full");
    assert_eq!(app.context.queue.stats().await.unwrap().pending, 2);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_ingestion_is_503_and_customers_are_read_from_the_store() {
    let mut redis = Redis::start(Fsync::Always).await.unwrap();
    let postgres = Postgres::start().await.unwrap();
    let backend = services_backend(&postgres.url(), &redis.url());
    let app = TestApp::start_on(&backend, tempfile::tempdir().unwrap(), 1, QueueSettings::default()).await;
    let event =
        |id: &str| app.post("/v1/track", json!({"event": "E", "userId": "u", "messageId": id}).to_string());
    assert_eq!(answer(event("m1")).await.0, 200);
    app.client().drain(Duration::from_secs(20), |_| {}).await.unwrap();

    redis.kill().unwrap();
    let began = Instant::now();
    let response = event("m2").send().await.unwrap();
    assert_eq!(response.status(), 503, "never a 2xx without a durable copy");
    assert!(response.headers().contains_key("retry-after"));
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    let began = Instant::now();
    let (status, found) = answer(app.get(C360)).await;
    assert_eq!((status, &found["events_count"]), (200, &json!(1)));
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    assert_eq!(answer(app.get("/readyz")).await.0, 503);

    redis.restart().await.unwrap();
    let back = Instant::now();
    while answer(event("m2")).await.0 != 200 {
        assert!(back.elapsed() < Duration::from_secs(10), "ingestion did not come back");
    }
    app.client().drain(Duration::from_secs(10), |_| {}).await.expect("the worker comes back by itself");
    assert_eq!(answer(app.get(C360)).await.1["events_count"], 2);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_postgresql_ingestion_goes_on_and_customers_are_answered_from_the_last_copy() {
    let redis = Redis::start(Fsync::Always).await.unwrap();
    let mut postgres = Postgres::start().await.unwrap();
    let backend = services_backend(&postgres.url(), &redis.url());
    let app = TestApp::start_on(&backend, tempfile::tempdir().unwrap(), 1, QueueSettings::default()).await;
    let event =
        |id: &str| app.post("/v1/track", json!({"event": "E", "userId": "u", "messageId": id}).to_string());
    assert_eq!(answer(event("m1")).await.0, 200);
    app.client().drain(Duration::from_secs(20), |_| {}).await.unwrap();
    assert_eq!(app.get(C360).send().await.unwrap().headers()["x-cache"], "miss");

    postgres.kill().unwrap();
    assert_eq!(answer(event("m2")).await.0, 200, "the queue is there, and the key is known");
    let stale = app.get(C360).send().await.unwrap();
    assert_eq!((stale.status().as_u16(), stale.headers()["x-cache"].to_str().unwrap()), (200, "stale"));
    let (status, found) = answer(app.get("/api/customers/by/user_id/never-seen/360")).await;
    assert_eq!((status, found["code"].as_str()), (503, Some("store_unavailable")));

    postgres.restart().await.unwrap();
    app.client().drain(Duration::from_secs(30), |_| {}).await.expect("the worker goes on by itself");
    let stats = app.context.queue.stats().await.unwrap();
    assert_eq!((stats.dead, stats.retried), (0, 0), "an outage costs no attempt");
    assert_eq!(answer(app.get(C360)).await.1["events_count"], 2);
    app.stop().await;
}
