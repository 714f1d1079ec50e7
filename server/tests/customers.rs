//! Customer360 and monitoring.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{On, TestApp, answer};
use tributary_core::domain::ids::ProfileId;
use tributary_core::ports::brands::KeyKind;
use tributary_core::ports::clock::ManualClock;
use tributary_core::ports::queue::QueueSettings;
use tributary_core::services::customer360::answer_key;
use tributary_core::services::health::{self, Alarms, Status};
use tributary_core::services::keys::new_key;

on_both_profiles!(
    an_answer_has_every_field_and_is_found_by_id_and_identifier,
    an_answer_is_cached_until_the_customer_changes,
    no_hit_is_older_than_the_last_commit_whatever_the_cache_has_kept,
    an_old_id_answers_with_the_survivor_also_from_the_cache,
    nobody_is_404_and_a_write_key_reads_nobody,
    a_brand_sees_only_its_own_customers,
    monitoring_counts_and_judges,
    stopping_finishes_what_was_taken,
    an_export_takes_no_more_memory_than_its_pages,
);

async fn send(app: &TestApp, body: Value) {
    let (status, found) = answer(app.post("/api/events", body.to_string())).await;
    assert_eq!(status, 202, "{found}");
    app.drain().await;
}

async fn cached(app: &TestApp, path: &str) -> (String, Value) {
    let response = app.get(path).send().await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    (response.headers()["x-cache"].to_str().unwrap().to_owned(), response.json().await.unwrap())
}

async fn an_answer_has_every_field_and_is_found_by_id_and_identifier(on: On) {
    // The third of February 2026: what is counted in days is counted from there.
    let app = TestApp::start_at(on, &ManualClock::at(1_770_076_800_000)).await;
    let identify = json!({"type": "identify", "userId": "u1", "anonymousId": "a1", "messageId": "m1",
        "timestamp": "2026-01-01T10:00:00.123Z", "traits": {"email": "Ada@Example.com", "age": 36, "gone": null}});
    let view = json!({"type": "track", "event": "Product Viewed", "anonymousId": "a1", "messageId": "m2",
        "timestamp": "2026-01-01T09:00:00Z", "properties": {"sku": "x"}});
    send(&app, json!([identify, view])).await;
    let order = json!({"id": 5, "name": "#5", "currency": "USD", "total_price": "10.01", "email": "ada@example.com",
        "created_at": "2026-01-02T00:00:00Z", "updated_at": "2026-01-03T00:00:00Z", "financial_status": "partially_refunded",
        "refunds": [{"transactions": [{"kind": "refund", "status": "success", "amount": "4.00"}]}],
        "line_items": [{"title": "Mug", "quantity": 1, "price": "10.01", "sku": "mug-1"}]});
    let client = app.client();
    let delivery = client.webhook(client.http(), "orders/create", "w1", order.to_string());
    assert_eq!(answer(delivery).await.0, 200);
    app.drain().await;

    let (_, found) = cached(&app, "/api/customers/by/email/ADA@example.com/360").await;
    let id = found["id"].as_str().unwrap();
    assert_eq!(cached(&app, &format!("/api/customers/{id}/360")).await.1, found);
    // The same on both profiles. Shopify's word on the e-mail address outweighs what a public key says.
    assert_same_json!("customer_360", found, {".id" => "[id]"});
    app.stop().await;
}

async fn an_answer_is_cached_until_the_customer_changes(on: On) {
    let app = TestApp::start(on).await;
    let path = "/api/customers/by/user_id/u1/360";
    send(&app, json!({"event": "E", "userId": "u1"})).await;
    assert_eq!(cached(&app, path).await.0, "miss");
    // An answer is kept beside the answer to whoever asked, and a cache that takes its time is not waited for.
    let mut tries = 0;
    while cached(&app, path).await.0 != "hit" {
        tries += 1;
        assert!(tries < 50, "nothing is cached");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    send(&app, json!({"event": "E", "userId": "u1"})).await;
    let (from, found) = cached(&app, path).await;
    assert_eq!((from.as_str(), &found["events_count"]), ("miss", &json!(2)), "a change is seen at once");
    app.stop().await;
}

/// A worker that dies after its commit drops nothing, a reader may put what it read before a commit, and a Redis that was restored has what it
/// had: an old answer lies in the cache, after each sort of change.
async fn no_hit_is_older_than_the_last_commit_whatever_the_cache_has_kept(on: On) {
    let app = TestApp::start(on).await;
    let client = app.client();
    let order = |updated: &str, total: &str| {
        json!({"id": 1, "email": "ada@example.com", "currency": "USD", "total_price": total, "created_at": "2026-01-01T00:00:00Z",
            "updated_at": updated})
    };
    let webhook = async |topic: &str, id: &str, body: &Value| {
        assert_eq!(answer(client.webhook(client.http(), topic, id, body.to_string())).await.0, 200);
        app.drain().await;
    };
    webhook("orders/create", "w1", &order("2026-01-01T00:00:00Z", "10.00")).await;
    let path = "/api/customers/by/email/ada@example.com/360";
    let id: ProfileId = serde_json::from_value(cached(&app, path).await.1["id"].clone()).unwrap();
    let key = answer_key(app.brand, id);
    let kept = async || {
        for _ in 0..100 {
            if let Some(kept) = app.context.cache.get(&key).await.unwrap() {
                return kept;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("nothing is cached");
    };
    let refund = json!({"id": 5, "order_id": 1, "created_at": "2026-01-02T00:00:00Z",
        "transactions": [{"kind": "refund", "status": "success", "amount": "4.00"}]});
    // By an event of the customer's; by what is told of an order alone; by a merge; by an order that goes to somebody else.
    for change in 0..4 {
        let before = cached(&app, path).await.1;
        let old = kept().await;
        match change {
            0 => send(&app, json!({"event": "E", "userId": "u1"})).await,
            1 => webhook("refunds/create", "w2", &refund).await,
            2 => {
                let link =
                    json!({"type": "identify", "userId": "u1", "traits": {"email": "ada@example.com"}});
                let sent = app.http.post(format!("{}/api/events", app.url)).bearer_auth(&app.secret_key);
                assert_eq!(answer(sent.body(link.to_string())).await.0, 202);
                app.drain().await;
            }
            _ => {
                let mut other = order("2026-01-03T00:00:00Z", "10.00");
                other["email"] = "zoe@example.com".into();
                webhook("orders/updated", "w3", &other).await;
            }
        }
        app.context.cache.put(&key, old, Duration::from_secs(300)).await.unwrap();
        let (from, now) = cached(&app, path).await;
        match change {
            // Somebody else's.
            0 => assert_eq!(now["events_count"], before["events_count"], "{from}"),
            1 => assert_eq!((from.as_str(), &now["refunded"]["USD"]), ("miss", &json!("4.00"))),
            2 => assert_eq!((from.as_str(), &now["events_count"]), ("miss", &json!(3))),
            _ => assert_eq!((from.as_str(), &now["orders_count"]), ("miss", &json!(0))),
        }
    }
    // And it is a cache: where nothing changes, it answers.
    let mut from = String::new();
    for _ in 0..100 {
        from = cached(&app, path).await.0;
        if from == "hit" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(from, "hit");
    app.stop().await;
}

async fn an_old_id_answers_with_the_survivor_also_from_the_cache(on: On) {
    let app = TestApp::start(on).await;
    send(&app, json!({"event": "E", "userId": "u1"})).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    send(&app, json!({"event": "E", "anonymousId": "a1"})).await;
    let (_, survivor) = cached(&app, "/api/customers/by/user_id/u1/360").await;
    let (_, young) = cached(&app, "/api/customers/by/anonymous_id/a1/360").await;
    let by_old_id = format!("/api/customers/{}/360", young["id"].as_str().unwrap());
    for events in 3..6 {
        send(&app, json!({"event": "E", "userId": "u1", "anonymousId": "a1"})).await;
        for path in
            [by_old_id.as_str(), "/api/customers/by/anonymous_id/a1/360", "/api/customers/by/user_id/u1/360"]
        {
            let (_, found) = cached(&app, path).await;
            assert_eq!((&found["id"], &found["events_count"]), (&survivor["id"], &json!(events)), "{path}");
        }
    }
    app.stop().await;
}

async fn nobody_is_404_and_a_write_key_reads_nobody(on: On) {
    let app = TestApp::start(on).await;
    for path in [
        "/api/customers/0190f0f0-0000-7000-8000-000000000000/360",
        "/api/customers/not-a-uuid/360",
        "/api/customers/by/user_id/nobody/360",
        "/api/customers/by/email/not-an-address/360",
    ] {
        let (status, found) = answer(app.get(path)).await;
        assert_eq!(json!([status, found["code"]]), json!([404, "not_found"]), "{path}");
        assert!(found["message"].is_string());
    }
    let (status, found) = answer(app.get("/api/customers/by/shoe_size/44/360")).await;
    assert_eq!(json!([status, found["code"]]), json!([400, "unknown_kind"]));
    let url = format!("{}/api/customers/by/user_id/u/360", app.url);
    assert_eq!(answer(app.http.get(&url)).await.0, 401);
    assert_eq!(answer(app.http.get(&url).bearer_auth("sk_wrong")).await.0, 401);
    assert_eq!(answer(app.http.get(&url).bearer_auth(&app.write_key)).await.0, 403);
    app.stop().await;
}

async fn a_brand_sees_only_its_own_customers(on: On) {
    let app = TestApp::start(on).await;
    send(&app, json!({"event": "E", "userId": "u1"})).await;
    let (_, ours) = cached(&app, "/api/customers/by/user_id/u1/360").await;
    let other = app.context.brand_ports.brands.add_brand("other").await.unwrap();
    let secret = new_key(&app.context.brand_ports, &app.context.world, other, KeyKind::Secret).await.unwrap();
    for path in [
        "/api/customers/by/user_id/u1/360".to_owned(),
        format!("/api/customers/{}/360", ours["id"].as_str().unwrap()),
    ] {
        let request = app.http.get(format!("{}{path}", app.url)).bearer_auth(&secret);
        assert_eq!(answer(request).await.0, 404, "{path}");
    }
    let request = app.http.get(format!("{}/api/monitoring/stats", app.url)).bearer_auth(&secret);
    assert_eq!(answer(request).await.1["brand"]["events"], 0);
    app.stop().await;
}

async fn monitoring_counts_and_judges(on: On) {
    let app = TestApp::start(on).await;
    assert_eq!(answer(app.http.get(format!("{}/healthz", app.url))).await.0, 200);
    let (status, ready) = answer(app.http.get(format!("{}/readyz", app.url))).await;
    assert_eq!(json!([status, ready["status"]]), json!([200, "ok"]));
    let (status, health) = answer(app.http.get(format!("{}/api/monitoring/health", app.url))).await;
    assert_eq!(json!([status, health["lag"]["status"]]), json!([200, "ok"]), "{health}");
    answer(app.post(
        "/api/events",
        json!([{"event": "E", "userId": "u"}, {"event": "F", "userId": "u"}]).to_string(),
    ))
    .await;
    let (_, queues) = answer(app.http.get(format!("{}/api/monitoring/queues", app.url))).await;
    assert_eq!(
        (&queues["events"]["pending"], &queues["events"]["enqueued"]),
        (&json!(2), &json!(2)),
        "{queues}"
    );
    tokio::time::sleep(Duration::from_millis(60)).await;
    let late = health::check(&app.context, Alarms { max_lag: Duration::from_millis(50), dead: 0 }).await;
    assert_eq!(
        (late.status, late.lag.status),
        (Status::Degraded, Status::Degraded),
        "everything answers, but nobody works"
    );
    app.drain().await;
    assert_eq!(
        health::check(&app.context, Alarms { max_lag: Duration::from_millis(50), dead: 0 }).await.status,
        Status::Ok
    );
    let (_, stats) = answer(app.get("/api/monitoring/stats")).await;
    assert_eq!(stats["brand"], json!({"profiles": 1, "events": 2, "orders": 0}));
    let (_, open) = answer(app.http.get(format!("{}/api/monitoring/stats", app.url))).await;
    assert_eq!(
        (open.get("brand"), &open["events"]["done"]),
        (None, &json!(2)),
        "what is a brand's needs its key"
    );
    assert_eq!(answer(app.http.get(format!("{}/metrics", app.url))).await.0, 200);
    app.stop().await;
}

async fn stopping_finishes_what_was_taken(on: On) {
    let app = TestApp::start_with(on, 2, QueueSettings::default()).await;
    let context = app.context.clone();
    for n in 0..30 {
        let events: Vec<Value> =
            (0..20).map(|m| json!({"event": "E", "userId": format!("u{}", (n * 7 + m) % 31)})).collect();
        let (status, _) = answer(app.post("/api/events", Value::from(events).to_string())).await;
        assert_eq!(status, 202);
    }
    app.stop().await;
    let stats = context.queue.stats().await.unwrap();
    assert_eq!(stats.in_flight, 0, "nothing is left under a lease: {stats:?}");
    assert_eq!(stats.acked + stats.pending, 600, "{stats:?}");
    assert_eq!((stats.retried, stats.reclaimed, stats.dead), (0, 0, 0), "stopping costs no attempt");
}

async fn an_export_takes_no_more_memory_than_its_pages(on: On) {
    let app = TestApp::start(on).await;
    // More than an export may hold, from the key that is in every browser.
    for batch in 0..12 {
        let events: Vec<Value> = (0..16)
            .map(|n| {
                json!({"type": "track", "event": "Big", "userId": "many", "messageId": format!("{batch}-{n}"),
                "properties": {"x": "y".repeat(28_000), "odd": "\\ud83d"}})
            })
            .collect();
        assert_eq!(answer(app.post("/v1/batch", json!({"batch": events}).to_string())).await.0, 200);
    }
    app.drain().await;
    let id = answer(app.get("/api/customers/by/user_id/many/360")).await.1["id"].as_str().unwrap().to_owned();
    let mut reply = app.get(&format!("/api/customers/{id}/export")).send().await.unwrap();
    assert_eq!(reply.status(), 200);
    let (mut whole, mut largest) = (Vec::new(), 0);
    while let Some(piece) = reply.chunk().await.unwrap() {
        largest = largest.max(piece.len());
        whole.extend_from_slice(&piece);
    }
    let export: Value = serde_json::from_slice(&whole).unwrap();
    assert_eq!(export["events"].as_array().unwrap().len(), 192);
    assert_eq!(export["events"][0]["message"]["properties"]["x"].as_str().unwrap().len(), 28_000);
    assert!(whole.len() > 5_000_000 && largest < 4_000_000, "{} bytes in pieces of {largest}", whole.len());
    let noted = answer(app.get("/api/privacy/audit")).await.1;
    assert!(noted["entries"].as_array().unwrap().iter().any(|entry| entry["action"] == "export"), "{noted}");
    app.stop().await;
}
