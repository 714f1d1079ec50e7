//! `/api/queues/…`: what a brand's engineers see of a queue, and what they can do to it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{On, SHOP, TestApp, answer};
use tributary_core::ports::brands::KeyKind;
use tributary_core::ports::queue::QueueSettings;
use tributary_core::services::keys::new_key;

on_both_profiles!(
    dead_letters_are_seen_put_back_and_discarded_by_their_brand_alone,
    a_lone_brand_may_pause_its_queue_and_others_may_not,
    a_webhook_is_remembered_with_its_outcome_and_another_body_is_a_conflict,
    an_order_takes_effect_once_also_when_the_claims_are_forgotten,
    numbers_and_refusals,
);

/// Two messages that can never be read, in a batch with a sound one: accepted, then buried.
async fn bury_two(app: &TestApp) {
    let batch = json!({"batch": [
        {"type": "track", "userId": "u", "messageId": "bad-1"},
        {"type": "track", "userId": "u", "event": "E", "messageId": "good"},
        {"type": "track", "userId": "u", "messageId": "bad-2"},
    ]});
    assert_eq!(answer(app.post("/v1/batch", batch.to_string())).await.0, 200);
    app.drain().await;
}

async fn letters(app: &TestApp, query: &str) -> Value {
    let (status, page) = answer(app.get(&format!("/api/queues/events/dead{query}"))).await;
    assert_eq!(status, 200, "{page}");
    page
}

fn send(app: &TestApp, method: reqwest::Method, path: &str, key: &str) -> reqwest::RequestBuilder {
    app.http.request(method, format!("{}/api/queues/events{path}", app.url)).bearer_auth(key)
}

async fn dead_letters_are_seen_put_back_and_discarded_by_their_brand_alone(on: On) {
    let app = TestApp::start(on).await;
    bury_two(&app).await;
    let other = app.context.brand_ports.brands.add_brand("other").await.unwrap();
    let stranger =
        new_key(&app.context.brand_ports, &app.context.world, other, KeyKind::Secret).await.unwrap();

    let first = letters(&app, "?limit=1").await;
    assert_eq!(first["letters"].as_array().unwrap().len(), 1);
    let next = first["next"].as_str().unwrap();
    let second = letters(&app, &format!("?limit=5&after={next}")).await;
    assert_eq!((second["letters"].as_array().unwrap().len(), &second["next"]), (1, &Value::Null));
    let letter = &second["letters"][0];
    assert!(letter["error"].as_str().unwrap().contains("no_event"), "{letter}");
    assert_eq!(letter["item"]["body"]["userId"], "u");
    assert_eq!(letter["history"].as_array().unwrap().len(), 1);
    let id = letter["id"].as_str().unwrap();
    assert_eq!(answer(app.get(&format!("/api/queues/events/dead/{id}"))).await.1["id"], id);

    use reqwest::Method;
    let path = format!("/dead/{id}");
    assert_eq!(answer(send(&app, Method::GET, "/dead", &stranger)).await.1["letters"], json!([]));
    for (method, path) in
        [(Method::GET, path.clone()), (Method::POST, format!("{path}/retry")), (Method::DELETE, path.clone())]
    {
        assert_eq!(answer(send(&app, method, &path, &stranger)).await.0, 404, "another brand's");
    }
    assert_eq!(answer(send(&app, Method::DELETE, "/dead", &stranger)).await.1["discarded"], 0);

    let retry = send(&app, Method::POST, &format!("{path}/retry"), &app.secret_key);
    assert_eq!(answer(retry).await, (200, json!({"retried": 1})));
    app.drain().await;
    let again = letters(&app, "").await;
    assert_eq!(again["letters"][0]["history"].as_array().unwrap().len(), 3, "failed, put back, failed");
    assert_eq!(answer(send(&app, Method::DELETE, &path, &app.secret_key)).await.1["discarded"], 1);
    assert_eq!(answer(send(&app, Method::DELETE, &path, &app.secret_key)).await.0, 404);
    assert_eq!(answer(send(&app, Method::POST, "/dead/retry", &app.secret_key)).await.1["retried"], 1);
    app.drain().await;
    assert_eq!(answer(send(&app, Method::DELETE, "/dead", &app.secret_key)).await.1["discarded"], 1);
    assert_eq!(letters(&app, "").await["letters"], json!([]));
}

async fn a_lone_brand_may_pause_its_queue_and_others_may_not(on: On) {
    let app = TestApp::start(on).await;
    let post = |path: &str| send(&app, reqwest::Method::POST, path, &app.secret_key);
    assert_eq!(answer(post("/pause")).await, (200, json!({"paused": true})));
    let event = json!({"event": "E", "userId": "u", "messageId": "m"}).to_string();
    assert_eq!(answer(app.post("/v1/track", event)).await.0, 200, "a pause holds nobody up at the door");
    app.drain().await;
    let (_, numbers) = answer(app.get("/api/queues/events")).await;
    assert_eq!((&numbers["paused"], &numbers["pending"]), (&json!(true), &json!(1)));
    assert_eq!(answer(post("/resume")).await, (200, json!({"paused": false})));
    app.drain().await;
    assert_eq!(app.context.queue.stats().await.unwrap().acked, 1);

    app.context.brand_ports.brands.add_brand("other").await.unwrap();
    let (status, refusal) = answer(post("/pause")).await;
    assert_eq!(json!([status, refusal["code"]]), json!([403, "shared_queue"]));
    assert!(!app.context.queue.stats().await.unwrap().paused);
}

async fn a_webhook_is_remembered_with_its_outcome_and_another_body_is_a_conflict(on: On) {
    let app = TestApp::start(on).await;
    let client = app.client();
    let webhook = |id: &str, body: &str| client.webhook(&app.http, "customers/create", id, body.to_owned());
    let body = r#"{"id": 7, "email": "ada@example.com"}"#;
    assert_eq!(answer(webhook("w1", body)).await, (200, json!({"success": true, "duplicate": false})));
    let asked = format!("/api/queues/events/claims?shop={SHOP}&webhook_id=w1");
    let (status, open) = answer(app.get(&asked)).await;
    assert_eq!((status, &open["finished"]), (200, &Value::Null));
    app.drain().await;
    let (_, ended) = answer(app.get(&asked)).await;
    assert_eq!(ended["finished"]["outcome"], "done");
    assert!(ended["finished"]["by"].as_str().unwrap().contains(':'), "host and process: {ended}");
    assert_eq!(answer(webhook("w1", body)).await, (200, json!({"success": true, "duplicate": true})));

    let (status, conflict) = answer(webhook("w1", r#"{"id": 8, "email": null}"#)).await;
    assert_eq!(json!([status, conflict["code"]]), json!([409, "idempotency_conflict"]));
    assert_eq!(app.context.queue.stats().await.unwrap().pending, 0);
    assert_eq!(answer(app.get("/api/queues/events/claims?shop=a.b&webhook_id=w1")).await.0, 404);
    let (status, missing) = answer(app.get(&format!("/api/queues/events/claims?shop={SHOP}"))).await;
    assert_eq!(json!([status, missing["code"]]), json!([400, "invalid_query"]));
}

async fn an_order_takes_effect_once_also_when_the_claims_are_forgotten(on: On) {
    let claim_ttl = Duration::from_millis(50);
    let app = TestApp::start_with(on, 0, QueueSettings { claim_ttl, ..QueueSettings::default() }).await;
    let client = app.client();
    let order = json!({"id": 1, "currency": "USD", "total_price": "10.00", "customer": {"id": 7},
        "updated_at": "2026-01-01T00:00:00Z"});
    for (webhook_id, duplicate) in [("w1", false), ("w1", true), ("w2", true)] {
        let webhook = client.webhook(&app.http, "orders/create", webhook_id, order.to_string());
        let sent = webhook.header("X-Shopify-Event-Id", "e1");
        assert_eq!(
            answer(sent).await,
            (200, json!({"success": true, "duplicate": duplicate})),
            "the queue forgets, and the store remembers"
        );
        app.drain().await;
        tokio::time::sleep(claim_ttl * 2).await;
    }
    let (_, found) = answer(app.get("/api/customers/by/shopify_customer_id/7/360")).await;
    assert_eq!(
        (&found["events_count"], &found["orders_count"], &found["revenue"]),
        (&json!(1), &json!(1), &json!({"USD": "10.00"}))
    );
}

async fn numbers_and_refusals(on: On) {
    let app = TestApp::start(on).await;
    let (status, all) = answer(app.get("/api/queues")).await;
    assert_eq!((status, &all["events"]["pending"]), (200, &json!(0)));
    assert!(all["events"]["rates"]["acked_per_s"].is_number(), "{all}");
    assert_eq!(answer(app.get("/api/queues/nobody")).await.0, 404);
    assert_eq!(answer(app.get("/api/queues/events/dead?limit=0")).await.1["code"], "invalid_limit");
    for query in ["dead?limit=x", "claims?webhook_id=w1", "dead?after=x"] {
        let (status, refused) = answer(app.get(&format!("/api/queues/events/{query}"))).await;
        assert_eq!(status, 400, "{query}");
        assert!(refused["code"].as_str().unwrap().starts_with("invalid_"), "{query}: {refused}");
    }
    let write = app.http.get(format!("{}/api/queues", app.url)).bearer_auth(&app.write_key);
    assert_eq!(answer(write).await.0, 403, "a write key is public");
    assert_eq!(answer(app.http.get(format!("{}/api/queues", app.url))).await.0, 401);
}
