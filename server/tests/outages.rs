//! What clients see when a service is unavailable, on a Redis and a PostgreSQL of the test's own.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::{Duration, Instant};

use backends::postgres::Postgres;
use backends::redis::{Fsync, Redis};
use serde_json::json;
use support::{On, TestApp, answer, services_backend};
use tributary_core::ports::queue::QueueSettings;

/// Shopify gives up after five seconds: an outage must be answered sooner.
const PATIENCE: Duration = Duration::from_secs(5);
const C360: &str = "/api/customers/by/user_id/u/360";

on_both_profiles!(a_full_queue_is_503_with_retry_after_and_takes_nothing);

async fn a_full_queue_is_503_with_retry_after_and_takes_nothing(on: On) {
    let app = TestApp::start_with(on, 0, QueueSettings { max_depth: 3, ..QueueSettings::default() }).await;
    let events = |count: usize| json!(vec![json!({"event": "E", "userId": "u"}); count]).to_string();
    let post = |count: usize| {
        let request = app.http.post(format!("{}/api/events", app.url)).bearer_auth(&app.secret_key);
        request.body(events(count))
    };
    assert_eq!(answer(post(2)).await.0, 202);
    let response = post(2).send().await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u32>().unwrap() > 0);
    assert_eq!(response.json::<serde_json::Value>().await.unwrap()["code"], "queue_full");
    assert_eq!(app.context.queue.stats().await.unwrap().pending, 2);
    app.stop().await;
}

fn event(app: &TestApp, id: &str) -> reqwest::RequestBuilder {
    app.post("/v1/track", json!({"event": "E", "userId": "u", "messageId": id}).to_string())
}

async fn count_of_events(app: &TestApp) -> serde_json::Value {
    answer(app.get(C360)).await.1["events_count"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_events_wait_in_the_store_and_come_through_once_when_it_is_back() {
    let mut redis = Redis::start(Fsync::Always).await.unwrap();
    let mut postgres = Postgres::start().await.unwrap();
    let backend = services_backend(&postgres.url(), &redis.url());
    let app = TestApp::start_on(&backend, tempfile::tempdir().unwrap(), 1, QueueSettings::default()).await;
    assert_eq!(answer(event(&app, "m0")).await.0, 200);
    app.client().drain(Duration::from_secs(20), |_| {}).await.unwrap();

    redis.kill().unwrap();
    for n in 1..=20 {
        let began = Instant::now();
        assert_eq!(answer(event(&app, &format!("m{n}"))).await.0, 200, "it waits in the store");
        assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    }
    let client = app.client();
    let webhook = |body: &str| client.webhook(&app.http, "customers/create", "w1", body.to_owned());
    let taken = |duplicate| (200, json!({"success": true, "duplicate": duplicate}));
    assert_eq!(answer(webhook(r#"{"id": 7, "email": null}"#)).await, taken(false));
    assert_eq!(
        answer(webhook(r#"{"id": 7, "email": null}"#)).await,
        taken(true),
        "known while Redis is unavailable"
    );
    assert_eq!(answer(webhook(r#"{"id": 8, "email": null}"#)).await.0, 409);
    assert_eq!(app.context.outbox.stats().await.unwrap().waiting, 21);
    let began = Instant::now();
    assert_eq!(count_of_events(&app).await, 1, "customers are read from the store");
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    assert_eq!(answer(app.get("/readyz")).await.0, 200, "it takes events in");
    let (status, health) = answer(app.get("/api/monitoring/health")).await;
    assert_eq!(json!([status, health["status"]]), json!([503, "degraded"]), "and says what is wrong");

    // Both away: nothing could keep an event, so none is accepted.
    postgres.kill().unwrap();
    let response = event(&app, "refused").send().await.unwrap();
    assert_eq!(response.status(), 503, "never a 2xx without a durable copy");
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(answer(app.get("/readyz")).await.0, 503);
    postgres.restart().await.unwrap();

    redis.restart().await.unwrap();
    let back = Instant::now();
    app.client().drain(Duration::from_secs(20), |_| {}).await.expect("all goes on by itself");
    assert!(back.elapsed() < Duration::from_secs(10), "{:?}", back.elapsed());
    assert_eq!(count_of_events(&app).await, 21);
    assert_eq!(answer(webhook(r#"{"id": 7, "email": null}"#)).await, taken(true), "the claim went along");
    let stats = app.context.queue.stats().await.unwrap();
    assert_eq!((stats.enqueued, stats.dead, stats.retried), (22, 0, 0), "each once");
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
    assert_eq!(json!([status, found["code"]]), json!([503, "store_unavailable"]));

    postgres.restart().await.unwrap();
    app.client().drain(Duration::from_secs(30), |_| {}).await.expect("the worker goes on by itself");
    let stats = app.context.queue.stats().await.unwrap();
    assert_eq!((stats.dead, stats.retried), (0, 0), "an outage costs no attempt");
    assert_eq!(answer(app.get(C360)).await.1["events_count"], 2);
    app.stop().await;
}

/// A key that has leaked is revoked whether Redis is there or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_looked_after_without_redis() {
    let postgres = Postgres::start().await.unwrap();
    let database = postgres.url();
    let admin = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_server"));
        command.env_remove("TRIBUTARY_EMBEDDED").env("TRIBUTARY_SECRET_KEY", stack::system::SECRET_KEY);
        command.args(["--database-url", &database, "--redis-url", "redis://127.0.0.1:1", "admin"]).args(args);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.contains("Redis at 127.0.0.1:1 cannot be reached"), "{said}");
        String::from_utf8(output.stdout).unwrap()
    };
    admin(&["brand", "add", "Acme"]);
    admin(&["key", "add", "--brand", "Acme", "--kind", "secret"]);
    let listed = admin(&["key", "list", "--brand", "Acme"]);
    let id = listed.split('\t').next().unwrap();
    admin(&["key", "revoke", "--brand", "Acme", id]);
    assert!(!admin(&["key", "list", "--brand", "Acme"]).contains("ends never"));
}
