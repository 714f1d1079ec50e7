//! What a signed webhook is believed, and what not: Shopify signs the body, and neither topic nor shop nor id.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stack::client::Client;
use stack::system::Access;
use support::{On, SHOP, SHOP_SECRET, TestApp, answer};
use tributary_core::context::Context;
use tributary_core::ports::clock::ManualClock;
use tributary_core::ports::queue::QueueSettings;
use tributary_core::ports::store::BodyRow;
use tributary_core::ports::world::World;
use tributary_core::services::privacy::carry_out;
use tributary_core::services::shops::{ShopError, add_shop};

on_both_profiles!(
    a_signed_body_under_another_topic_takes_nothing_away,
    a_body_under_two_topics_at_once_takes_effect_under_one,
    who_has_no_secret_waits_as_long_for_a_shop_as_for_none,
    a_replay_is_known_by_its_body_when_the_queue_has_forgotten,
    a_shops_redaction_waits_is_shown_and_can_be_stopped,
    a_redaction_that_ended_can_be_asked_for_again,
    shops_of_two_brands_share_no_secret,
    what_is_refused_is_told_to_its_brand,
);

const HOUR_MS: i64 = 3_600_000;

async fn post(app: &TestApp, topic: &str, id: &str, body: &Value) -> (u16, Value) {
    let client = app.client();
    answer(client.webhook(client.http(), topic, id, body.to_string())).await
}

fn taken(duplicate: bool) -> (u16, Value) {
    (200, json!({"success": true, "duplicate": duplicate}))
}

fn later(app: &TestApp, hours: i64) -> Context {
    let clock = ManualClock::at(app.context.world.now_ms() + hours * HOUR_MS);
    let mut later = app.context.clone();
    later.world = World::on(clock);
    later
}

fn order() -> Value {
    json!({"id": 1, "email": "ada@example.com", "total_price": "5.00", "customer": {"id": 7, "email": "ada@example.com"}})
}

async fn a_signed_body_under_another_topic_takes_nothing_away(on: On) {
    let app = TestApp::start(on).await;
    assert_eq!(post(&app, "orders/create", "o", &order()).await, taken(false));
    assert_eq!(post(&app, "products/delete", "d", &json!({"id": 1})).await, taken(false));
    app.drain().await;
    let product = json!({"id": 777, "title": "a product"});
    let elsewhere = json!({"shop_id": 1, "shop_domain": "other.myshopify.com", "customer": {"id": 7}});
    for (topic, body) in [
        ("shop/redact", &product),
        ("shop/redact", &order()),
        ("shop/redact", &json!({})),
        ("customers/redact", &order()),
        ("customers/redact", &elsewhere),
        ("customers/data_request", &order()),
        ("customers/update", &order()),
        ("customers/delete", &order()),
        ("orders/delete", &order()),
        ("orders/cancelled", &order()),
        ("app/uninstalled", &product),
        ("orders/create", &product),
    ] {
        let (status, found) = post(&app, topic, &format!("{topic}-x"), body).await;
        assert_eq!(json!([status, found["code"]]), json!([400, "invalid_webhook"]), "{topic}: {found}");
    }
    // No more than an id: only that it came before, under another topic, tells that it is another's.
    let (status, found) = post(&app, "orders/delete", "x", &json!({"id": 1})).await;
    assert_eq!(json!([status, found["code"]]), json!([409, "idempotency_conflict"]), "{found}");
    assert_eq!(app.context.queue.stats().await.unwrap().pending, 0, "nothing of it was taken");
    app.drain().await;
    assert_eq!(carry_out(&later(&app, 1000)).await.unwrap(), 0);
    let stats = app.context.store.stats(app.brand).await.unwrap();
    assert_eq!((stats.profiles, stats.orders), (1, 1));
    app.stop().await;
}

async fn a_body_under_two_topics_at_once_takes_effect_under_one(on: On) {
    let app = TestApp::start(on).await;
    let (brand, store) = (app.brand, app.context.store.clone());
    let row = move |topic| BodyRow { brand, shop: SHOP, digest: [7; 32], topic, message_id: topic };
    let mut first = store.begin().await.unwrap();
    assert_eq!(first.body_topics(&[row("products/delete")]).await.unwrap(), [Vec::<String>::new()]);
    let second = tokio::spawn(async move {
        let mut second = store.begin().await.unwrap();
        second.body_topics(&[row("orders/delete")]).await.unwrap()
    });
    // Long enough for it to look, were it not for the first.
    tokio::time::sleep(Duration::from_millis(200)).await;
    first.claim_bodies(&[row("products/delete")], app.context.world.now()).await.unwrap();
    first.commit().await.unwrap();
    assert_eq!(second.await.unwrap(), [["products/delete"]], "it waits for what the first one does");
    app.stop().await;
}

async fn who_has_no_secret_waits_as_long_for_a_shop_as_for_none(on: On) {
    let app = TestApp::start(on).await;
    for domain in [SHOP, "nobody.myshopify.com"] {
        let began = Instant::now();
        let mut request = app.http.post(format!("{}/api/webhooks/shopify", app.url)).body("{\"id\":1}");
        for (name, value) in [
            ("x-shopify-hmac-sha256", "AAAA"),
            ("x-shopify-shop-domain", domain),
            ("x-shopify-topic", "orders/create"),
            ("x-shopify-webhook-id", "w"),
            ("x-shopify-api-version", "2026-01"),
        ] {
            request = request.header(name, value);
        }
        let (status, body) = answer(request).await;
        assert_eq!(json!([status, body["code"]]), json!([401, "invalid_hmac"]), "{body}");
        // How fast a store is tells nothing where both wait for longer than it takes.
        assert!(began.elapsed() >= Duration::from_millis(50), "{domain}: {:?}", began.elapsed());
    }
    app.stop().await;
}

async fn a_replay_is_known_by_its_body_when_the_queue_has_forgotten(on: On) {
    let claim_ttl = Duration::from_millis(50);
    let app = TestApp::start_with(on, 0, QueueSettings { claim_ttl, ..QueueSettings::default() }).await;
    let product = json!({"id": 777, "title": "a product"});
    assert_eq!(post(&app, "products/update", "w1", &product).await, taken(false));
    tokio::time::sleep(claim_ttl * 2).await;
    // The queue has forgotten, and the store does not know yet: two items, one effect.
    assert_eq!(post(&app, "products/update", "w2", &product).await, taken(false));
    app.drain().await;
    assert_eq!(app.context.store.stats(app.brand).await.unwrap().events, 1);
    assert_eq!(post(&app, "products/update", "w3", &product).await, taken(true));
    // One action of a merchant's is told under several topics, in the same words.
    assert_eq!(post(&app, "orders/create", "w4", &order()).await, taken(false));
    assert_eq!(post(&app, "orders/updated", "w5", &order()).await, taken(false));
    app.drain().await;
    assert_eq!(app.context.store.stats(app.brand).await.unwrap().events, 3);
    app.stop().await;
}

async fn a_shops_redaction_waits_is_shown_and_can_be_stopped(on: On) {
    let app = TestApp::start(on).await;
    assert_eq!(post(&app, "orders/create", "o", &order()).await, taken(false));
    let redact = json!({"shop_id": 1, "shop_domain": SHOP});
    assert_eq!(post(&app, "shop/redact", "r", &redact).await, taken(false));
    app.drain().await;
    let (_, shown) = answer(app.get("/api/privacy/requests")).await;
    let request = &shown["requests"][0];
    assert_eq!(json!([request["kind"], request["done_at"]]), json!(["erase_shop", null]));
    assert!(request["due_at"].is_string(), "{request}");
    assert_eq!(carry_out(&later(&app, 23)).await.unwrap(), 0);
    // Until then the shop goes on.
    let more = json!({"id": 2, "email": "bob@example.com", "total_price": "5.00"});
    assert_eq!(post(&app, "orders/create", "o2", &more).await, taken(false));
    app.drain().await;
    let stop = || {
        let path = format!("{}/api/privacy/requests/{}/stop", app.url, request["id"].as_str().unwrap());
        app.http.post(path).bearer_auth(&app.secret_key)
    };
    assert_eq!(answer(stop()).await, (200, json!({"stopped": request["id"]})));
    assert_eq!(answer(stop()).await.0, 404, "it waits no more");
    assert_eq!(carry_out(&later(&app, 1000)).await.unwrap(), 0);
    assert_eq!(app.context.store.stats(app.brand).await.unwrap().orders, 2);
    let (_, shown) = answer(app.get("/api/privacy/requests")).await;
    assert!(shown["requests"][0]["result"]["stopped_by"].as_str().unwrap().starts_with("key "), "{shown}");
    let (_, log) = answer(app.get("/api/privacy/audit")).await;
    let stopped = log["entries"].as_array().unwrap().iter().find(|e| e["action"] == "request_stopped");
    assert_eq!(stopped.unwrap()["details"]["request"], request["id"]);
    app.stop().await;
}

async fn a_redaction_that_ended_can_be_asked_for_again(on: On) {
    let claim_ttl = Duration::from_millis(50);
    let app = TestApp::start_with(on, 0, QueueSettings { claim_ttl, ..QueueSettings::default() }).await;
    let redact = json!({"shop_id": 1, "shop_domain": SHOP});
    for (id, duplicate) in [("r1", false), ("r2", true)] {
        assert_eq!(post(&app, "shop/redact", id, &redact).await, taken(duplicate), "{id}");
        app.drain().await;
        tokio::time::sleep(claim_ttl * 2).await;
    }
    let open = app.context.privacy.requests(app.brand, 10).await.unwrap();
    assert_eq!(open.len(), 1, "one waits");
    let stopped = tributary_core::services::privacy::stop(&app.context, app.brand, open[0].id, "test").await;
    assert!(stopped.unwrap());
    assert_eq!(post(&app, "shop/redact", "r3", &redact).await, taken(false), "another uninstallation");
    app.drain().await;
    assert_eq!(app.context.privacy.requests(app.brand, 10).await.unwrap().len(), 2);
    app.stop().await;
}

async fn shops_of_two_brands_share_no_secret(on: On) {
    let app = TestApp::start(on).await;
    let other = app.context.brand_ports.brands.add_brand("other").await.unwrap();
    let shared = add_shop(&app.context, "b.myshopify.com", other, SHOP_SECRET).await;
    assert!(matches!(shared, Err(ShopError::SharedSecret)), "{shared:?}");
    add_shop(&app.context, SHOP, app.brand, "newer").await.unwrap();
    let before = add_shop(&app.context, "b.myshopify.com", other, SHOP_SECRET).await;
    assert!(matches!(before, Err(ShopError::SharedSecret)), "good for an hour more: {before:?}");
    add_shop(&app.context, "b.myshopify.com", other, "own").await.unwrap();
    add_shop(&app.context, "c.myshopify.com", app.brand, "newer").await.unwrap();
    app.stop().await;
}

async fn what_is_refused_is_told_to_its_brand(on: On) {
    let app = TestApp::start(on).await;
    let client = app.client();
    assert_eq!(post(&app, "orders/create", "sound", &order()).await, taken(false));
    for n in 0..3 {
        // Another body than the one that was signed.
        let forged = client.webhook(client.http(), "orders/create", &format!("f{n}"), order().to_string());
        assert_eq!(answer(forged.body("{}")).await.0, 401);
    }
    let faulty = json!({"batch": [{"type": "track", "userId": "u"}, {"type": "page", "userId": "u"}]});
    assert_eq!(answer(app.post("/v1/batch", faulty.to_string())).await.0, 200);
    assert_eq!(answer(app.post("/v1/track", "not json".to_owned())).await.0, 400);
    assert_eq!(answer(app.get("/api/customers/by/user_id/nobody/360")).await.0, 404);
    let (status, found) = answer(app.get("/api/refusals")).await;
    assert_eq!(status, 200, "{found}");
    let mut told: Vec<(String, String, u64)> = found["refusals"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            assert!(row["last_at"].as_str().unwrap().ends_with('Z') && row["meaning"] != "", "{row}");
            let source = row["source"].as_str().unwrap().split(' ').next().unwrap().to_owned();
            (source, row["code"].as_str().unwrap().to_owned(), row["count"].as_u64().unwrap())
        })
        .collect();
    told.sort();
    let row = |source: &str, code: &str, count| (source.to_owned(), code.to_owned(), count);
    assert_eq!(
        told,
        [row("key", "invalid_json", 1), row("key", "no_event", 1), row("shop", "invalid_hmac", 3)],
        "an answer that there is nobody is no refusal"
    );
    // Nobody else is told, and a stranger's shop is nobody's.
    let other = app.context.brand_ports.brands.add_brand("other").await.unwrap();
    assert_eq!(app.context.brand_ports.refusals.refusals(other).await.unwrap(), []);
    let elsewhere = Access { shop_domain: "stranger.myshopify.com".to_owned(), ..client.access().clone() };
    let stranger = Client::new(elsewhere).unwrap();
    let sent = stranger.webhook(stranger.http(), "orders/create", "s", order().to_string());
    assert_eq!(answer(sent).await.0, 401);
    let (_, again) = answer(app.get("/api/refusals")).await;
    assert_eq!(again["refusals"].as_array().unwrap().len(), 3);
    app.stop().await;
}
