//! Shopify in full, through the webhooks' own route: topics in any order, repeated, half empty; and what privacy law asks for.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use serde_json::{Value, json};
use support::{On, SHOP, TestApp, answer};
use tributary_core::ports::clock::{Clock, ManualClock, SystemClock};
use tributary_core::ports::store::OrderKey;
use tributary_core::ports::world::World;
use tributary_core::services::privacy::{REDACTION_SETTLES, carry_out};

on_both_profiles!(
    an_order_is_the_same_whatever_order_its_webhooks_come_in,
    a_visitor_is_a_lead_as_soon_as_an_address_is_known,
    two_devices_become_one_customer_when_both_have_signed_in,
    a_refund_lowers_what_a_customer_is_worth,
    a_timeline_has_the_events_of_every_device_a_page_at_a_time,
    strange_bodies_are_taken_or_named,
    consent_holds_with_its_history,
    products_give_likes_their_names_and_categories,
    a_data_request_and_a_redaction_are_carried_out,
    a_shop_that_is_redacted_leaves_nothing,
    an_uninstalled_shop_is_noted,
);

async fn deliver(app: &TestApp, topic: &str, id: &str, body: &Value) {
    let client = app.client();
    let (status, found) = answer(client.webhook(client.http(), topic, id, body.to_string())).await;
    assert_eq!(json!([status, found["success"]]), json!([200, true]), "{topic}: {found}");
}

async fn customer(app: &TestApp, kind: &str, value: &str) -> Value {
    let (status, found) = answer(app.get(&format!("/api/customers/by/{kind}/{value}/360"))).await;
    assert_eq!(status, 200, "{kind} {value}: {found}");
    found
}

async fn send(app: &TestApp, body: Value) {
    let (status, found) = answer(app.post("/api/events", body.to_string())).await;
    assert_eq!((status, &found["rejected"]), (202, &json!([])), "{found}");
}

fn order(updated: &str, more: Value) -> Value {
    let mut body = json!({
        "id": 1, "name": "#1001", "currency": "USD", "total_price": "100.00", "email": "ada@example.com",
        "created_at": "2026-01-01T10:00:00Z", "updated_at": format!("2026-01-{updated}T10:00:00Z"),
        "line_items": [{"title": "Mug", "product_id": 9, "quantity": 2, "price": "50.00"}],
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn an_order_is_the_same_whatever_order_its_webhooks_come_in(on: On) {
    let refund = |id: u64, amount: &str| {
        json!({"id": id, "order_id": 1, "created_at": "2026-01-04T10:00:00Z", "transactions": [
            {"kind": "refund", "status": "success", "amount": amount, "currency": "USD"}]})
    };
    let deliveries = [
        ("orders/create", order("01", json!({"financial_status": "pending"}))),
        ("orders/paid", order("02", json!({"financial_status": "paid"}))),
        (
            "orders/fulfilled",
            order(
                "03",
                json!({"financial_status": "paid", "fulfillment_status": "fulfilled",
            "fulfillments": [{"id": 5, "status": "success", "updated_at": "2026-01-03T10:00:00Z"}]}),
            ),
        ),
        (
            "fulfillments/update",
            json!({"id": 5, "order_id": 1, "status": "success", "shipment_status": "delivered",
            "tracking_number": "1Z", "updated_at": "2026-01-05T10:00:00Z"}),
        ),
        ("refunds/create", refund(7, "10.00")),
        (
            "orders/updated",
            order("04", json!({"financial_status": "partially_refunded", "refunds": [refund(7, "10.00")]})),
        ),
        ("refunds/create", refund(8, "5.50")),
        ("orders/edited", json!({"order_edit": {"id": 3, "order_id": 1}})),
    ];
    let mut ends = Vec::new();
    for seed in 0..4_usize {
        let app = TestApp::start(on).await;
        // Four different orders, each delivery twice.
        let mut places: Vec<usize> = (0..deliveries.len()).collect();
        places.sort_by_key(|place| (place * 5 + 3) * (seed * 2 + 1) % 11);
        for round in 0..2 {
            for &place in &places {
                let (topic, body) = &deliveries[place];
                deliver(&app, topic, &format!("w{place}-{round}"), body).await;
                if seed % 2 == 0 {
                    app.drain().await;
                }
            }
        }
        app.drain().await;
        let found = customer(&app, "email", "ada@example.com").await;
        assert_eq!(json!([found["refunded"]["USD"], found["revenue"]["USD"]]), json!(["15.50", "100.00"]));
        let held = &found["recent_orders"][0];
        assert_eq!(held["financial_status"], "partially_refunded");
        assert_eq!(held["fulfillments"][0]["status"], "delivered");
        assert_eq!(held["fulfillments"][0]["tracking_number"], "1Z");
        ends.push(found["recent_orders"].clone());
        // A deleted order counts nowhere, also where an older state of it comes afterwards.
        deliver(&app, "orders/delete", "gone", &json!({"id": 1})).await;
        deliver(&app, "orders/updated", "late", &order("06", json!({}))).await;
        app.drain().await;
        let found = customer(&app, "email", "ada@example.com").await;
        assert_eq!(json!([found["orders_count"], found["recent_orders"][0]["counts"]]), json!([0, false]));
        app.stop().await;
    }
    assert!(ends.windows(2).all(|pair| pair[0] == pair[1]), "{ends:#?}");
}

/// A visitor looks at a mug on the phone, and buys it in the evening on the laptop. Returns the visitor as the phone knows them, and as the
/// laptop does.
async fn buys_on_another_device(app: &TestApp) -> (Value, Value) {
    send(app, json!([
        {"type": "page", "name": "Home", "anonymousId": "phone", "messageId": "1", "timestamp": "2026-01-01T09:00:00Z"},
        {"type": "track", "event": "Product Viewed", "anonymousId": "phone", "messageId": "2", "timestamp": "2026-01-01T09:01:00Z",
         "properties": {"product_id": "9", "name": "Mug", "category": "Kitchen"}},
    ])).await;
    app.drain().await;
    let phone = customer(app, "anonymous_id", "phone").await;
    send(app, json!([
        {"type": "page", "name": "Mug", "anonymousId": "laptop", "messageId": "3", "timestamp": "2026-01-01T20:00:00Z"},
        {"type": "track", "event": "Product Added", "anonymousId": "laptop", "messageId": "4", "timestamp": "2026-01-01T20:01:00Z",
         "properties": {"product_id": "9", "cart_token": "cart-1"}},
    ])).await;
    let cart = json!({"id": "cart-1", "token": "cart-1", "updated_at": "2026-01-01T20:01:01Z"});
    deliver(app, "carts/create", "w1", &cart).await;
    let checkout = json!({"id": 4, "token": "check-1", "cart_token": "cart-1", "email": "Ada@Example.com",
        "updated_at": "2026-01-01T20:02:00Z"});
    deliver(app, "checkouts/create", "w2", &checkout).await;
    app.drain().await;
    let laptop = customer(app, "anonymous_id", "laptop").await;
    let order = json!({"id": 1, "name": "#1001", "checkout_token": "check-1", "currency": "USD", "total_price": "50.00",
        "created_at": "2026-01-01T20:05:00Z", "updated_at": "2026-01-01T20:05:00Z",
        "customer": {"id": 7, "email": "ada@example.com", "first_name": "Ada", "last_name": "Lovelace", "updated_at": "2026-01-01T20:05:00Z"},
        "line_items": [{"title": "Mug", "product_id": 9, "quantity": 1, "price": "50.00"}]});
    deliver(app, "orders/create", "w3", &order).await;
    app.drain().await;
    (phone, laptop)
}

/// The phone signs in as whoever bought.
async fn signs_in(app: &TestApp) -> Value {
    let identify = json!({"type": "identify", "userId": "u7", "anonymousId": "phone", "messageId": "5",
        "timestamp": "2026-01-02T08:00:00Z", "traits": {"email": "ada@example.com"}});
    send(app, identify).await;
    app.drain().await;
    customer(app, "user_id", "u7").await
}

/// The tenth of January 2026.
fn january() -> ManualClock {
    ManualClock::at(1_768_003_200_000)
}

async fn a_visitor_is_a_lead_as_soon_as_an_address_is_known(on: On) {
    let app = TestApp::start_at(on, &january()).await;
    let (phone, laptop) = buys_on_another_device(&app).await;
    assert_eq!(json!([phone["lifecycle"], phone["sessions"]["count"]]), json!(["visitor", 1]));
    assert_eq!(laptop["lifecycle"], "lead", "before the order");
    assert_ne!(laptop["id"], phone["id"]);
    app.stop().await;
}

async fn two_devices_become_one_customer_when_both_have_signed_in(on: On) {
    let app = TestApp::start_at(on, &january()).await;
    let (phone, laptop) = buys_on_another_device(&app).await;
    let ada = signs_in(&app).await;
    assert_eq!(ada["id"], phone["id"], "the oldest profile survives");
    assert_same_json!("two_devices_one_customer", ada, {".id" => "[id]"});
    let (_, old) = answer(app.get(&format!("/api/customers/{}/360", laptop["id"].as_str().unwrap()))).await;
    assert_eq!(old, ada, "old ids keep resolving");
    let (_, history) =
        answer(app.get(&format!("/api/customers/{}/identity", ada["id"].as_str().unwrap()))).await;
    assert_same_json!("two_devices_one_merge", history, {
        ".merges[].id" => "[id]",
        ".merges[].merged" => "[id]",
        ".merges[].survivor" => "[id]",
    });
    app.stop().await;
}

async fn a_refund_lowers_what_a_customer_is_worth(on: On) {
    let app = TestApp::start_at(on, &january()).await;
    buys_on_another_device(&app).await;
    let refund = json!({"id": 5, "order_id": 1, "created_at": "2026-01-09T00:00:00Z",
        "transactions": [{"kind": "refund", "status": "success", "amount": "50.00"}]});
    deliver(&app, "refunds/create", "w4", &refund).await;
    app.drain().await;
    let ada = customer(&app, "email", "ada@example.com").await;
    assert_eq!(
        json!([ada["revenue"], ada["refunded"], ada["computed"]["net_revenue_usd"]]),
        json!([{"USD": "50.00"}, {"USD": "50.00"}, "0.00"])
    );
    app.stop().await;
}

async fn a_timeline_has_the_events_of_every_device_a_page_at_a_time(on: On) {
    let app = TestApp::start_at(on, &january()).await;
    buys_on_another_device(&app).await;
    let ada = signs_in(&app).await;
    let path = format!("/api/customers/{}/timeline?limit=5", ada["id"].as_str().unwrap());
    let (_, first) = answer(app.get(&path)).await;
    let (_, rest) = answer(app.get(&format!("{path}&before={}", first["next"].as_str().unwrap()))).await;
    let ids = |page: &Value| -> Vec<Value> {
        page["events"].as_array().unwrap().iter().map(|event| event["message_id"].clone()).collect()
    };
    assert_eq!(json!([ids(&first).len(), ids(&rest).len(), rest["next"]]), json!([5, 3, null]));
    assert_eq!(ids(&rest).last(), Some(&json!("1")), "the oldest is the first page view");
    app.stop().await;
}

async fn strange_bodies_are_taken_or_named(on: On) {
    let app = TestApp::start(on).await;
    let nulls = json!({"id": 1, "email": null, "customer": null, "line_items": null, "refunds": null, "total_price": null,
        "cancelled_at": null, "created_at": null, "updated_at": null, "currency": null, "test": null});
    deliver(&app, "orders/create", "nulls", &nulls).await;
    deliver(&app, "orders/create", "guest", &json!({"id": "2", "total_price": 5, "customer": {}})).await;
    deliver(
        &app,
        "orders/updated",
        "text",
        &json!({"id": "3", "email": "ada@example.com", "total_price": "7.00", "currency": "eur",
        "customer": {"id": "77"}, "note_attributes": [{"unknown": true}]}),
    )
    .await;
    deliver(
        &app,
        "orders/create",
        "test",
        &json!({"id": 4, "email": "ada@example.com", "total_price": "99.00", "test": true}),
    )
    .await;
    deliver(
        &app,
        "orders/cancelled",
        "cancelled",
        &json!({"id": 5, "email": "ada@example.com", "total_price": "99.00", "cancelled_at": "2026-01-05T00:00:00Z"}),
    )
    .await;
    let client = app.client();
    let nobodys = json!({"id": 6, "transactions": []}).to_string();
    let (status, found) = answer(client.webhook(client.http(), "refunds/create", "nobody", nobodys)).await;
    assert_eq!(json!([status, found["code"]]), json!([400, "invalid_webhook"]));
    assert!(found["message"].as_str().unwrap().contains("order_id"), "{found}");
    // Beyond all reason, and no reason to fall over.
    let cards =
        json!([{"gift_card": true, "price": "1000000000000000", "quantity": 9_000_000_000_000_000_000_i64}]);
    deliver(
        &app,
        "orders/create",
        "huge",
        &json!({"id": 7, "email": "huge@example.com", "total_price": "5.00", "line_items": cards}),
    )
    .await;
    app.drain().await;
    let ada = customer(&app, "shopify_customer_id", "77").await;
    assert_eq!(json!([ada["orders_count"], ada["revenue"]]), json!([1, {"EUR": "7.00"}]));
    assert_eq!(ada["recent_orders"].as_array().unwrap().len(), 3, "tests and cancelled ones are listed");
    let (_, export) =
        answer(app.get(&format!("/api/customers/{}/export", ada["id"].as_str().unwrap()))).await;
    assert!(export.to_string().contains("note_attributes"), "unknown fields are kept");
    let stats = app.context.store.stats(app.brand).await.unwrap();
    assert_eq!((stats.orders, stats.profiles), (6, 2), "a guest without a word about them is nobody");
    app.stop().await;
}

async fn consent_holds_with_its_history(on: On) {
    let app = TestApp::start(on).await;
    let said = |state: &str, day: &str| {
        json!({"id": 7, "email": "ada@example.com", "updated_at": format!("2026-01-{day}T00:00:00Z"),
            "email_marketing_consent": {"state": state, "opt_in_level": "single_opt_in", "consent_updated_at": format!("2026-01-{day}T00:00:00Z")},
            "sms_marketing_consent": {"state": "not_subscribed"}})
    };
    for (at, (state, day)) in
        [("subscribed", "05"), ("not_subscribed", "01"), ("unsubscribed", "09"), ("subscribed", "05")]
            .into_iter()
            .enumerate()
    {
        deliver(&app, "customers/update", &format!("w{at}"), &said(state, day)).await;
    }
    app.drain().await;
    let ada = customer(&app, "email", "ada@example.com").await;
    let email = &ada["consent"]["email"];
    assert_eq!(json!([email["state"], email["allowed"]]), json!(["unsubscribed", false]));
    let history: Vec<&str> =
        email["history"].as_array().unwrap().iter().map(|c| c["state"].as_str().unwrap()).collect();
    assert_eq!(history, ["unsubscribed", "subscribed", "not_subscribed"]);
    assert_eq!(ada["consent"]["sms"]["state"], "not_subscribed");
    send(
        &app,
        json!({"type": "identify", "userId": "u", "messageId": "i", "timestamp": "2026-02-01T00:00:00Z",
        "traits": {"email": "ada@example.com", "emailMarketingConsent": true}}),
    )
    .await;
    send(&app, json!({"type": "group", "userId": "u", "groupId": "acme", "messageId": "g", "traits": {"plan": "team"}})).await;
    app.drain().await;
    let ada = customer(&app, "user_id", "u").await;
    assert_eq!(
        ada["consent"]["email"]["allowed"], false,
        "a public key takes nothing back that Shopify said"
    );
    let own = json!({"type": "identify", "userId": "u", "messageId": "own", "timestamp": "2026-02-01T00:00:00Z",
        "traits": {"email": "ada@example.com", "emailMarketingConsent": true}});
    let request = app.http.post(format!("{}/api/events", app.url)).bearer_auth(&app.secret_key);
    assert_eq!(answer(request.body(own.to_string())).await.0, 202);
    app.drain().await;
    let ada = customer(&app, "user_id", "u").await;
    assert_eq!(ada["consent"]["email"]["allowed"], true);
    assert_eq!(
        json!([ada["groups"][0]["id"], ada["groups"][0]["traits"]]),
        json!(["acme", {"plan": "team"}])
    );
    assert!(ada["traits"].get("plan").is_none(), "a group's traits are the group's");
    app.stop().await;
}

async fn products_give_likes_their_names_and_categories(on: On) {
    let app = TestApp::start(on).await;
    deliver(&app, "products/delete", "gone", &json!({"id": 8})).await;
    deliver(&app, "products/update", "p2", &json!({"id": 9, "title": "Blue Mug", "product_type": "Kitchen", "updated_at": "2026-01-02T00:00:00Z"})).await;
    deliver(
        &app,
        "products/create",
        "p1",
        &json!({"id": 9, "title": "Mug", "product_type": "Misc", "updated_at": "2026-01-01T00:00:00Z"}),
    )
    .await;
    deliver(
        &app,
        "products/create",
        "p0",
        &json!({"id": 8, "title": "Pot", "product_type": "Kitchen", "updated_at": "2026-01-01T00:00:00Z"}),
    )
    .await;
    deliver(&app, "orders/create", "o", &order("01", json!({}))).await;
    send(&app, json!({"event": "Product Viewed", "userId": "u", "messageId": "v", "context": {"traits": {"email": "ada@example.com"}},
        "properties": {"product_id": 8}})).await;
    app.drain().await;
    let ada = customer(&app, "user_id", "u").await;
    let products = ada["affinity"]["products"].as_array().unwrap();
    assert_eq!(json!([products[0]["title"], products[0]["bought"]]), json!(["Blue Mug", 2]));
    assert_eq!(products[1]["title"], "Pot");
    assert_eq!(ada["affinity"]["categories"], json!([{"id": "Kitchen", "score": 11, "bought": 2}]));
    app.stop().await;
}

async fn a_data_request_and_a_redaction_are_carried_out(on: On) {
    let app = TestApp::start(on).await;
    deliver(
        &app,
        "orders/create",
        "o",
        &order("01", json!({"customer": {"id": 7, "email": "ada@example.com"}})),
    )
    .await;
    send(&app, json!({"event": "Viewed", "userId": "u7", "messageId": "v", "context": {"traits": {"email": "ada@example.com"}}})).await;
    // It names only the order, and tells where she lives.
    let fulfillment = json!({"id": 5, "order_id": 1, "status": "success", "email": "ada@example.com", "destination": {"address1": "Chestnut Street 92"}});
    deliver(&app, "fulfillments/create", "fulfillment", &fulfillment).await;
    // A dead letter about her, and one about somebody else.
    send(&app, json!({"event": "E", "userId": "other", "messageId": "fine"})).await;
    let bad = json!({"batch": [{"type": "track", "userId": "u7", "context": {"traits": {"email": "ada@example.com"}}},
        {"type": "track", "userId": "other"}, {"type": "page", "userId": "other", "messageId": "p"}]});
    assert_eq!(answer(app.post("/v1/batch", bad.to_string())).await.0, 200);
    app.drain().await;
    let ada = customer(&app, "email", "ada@example.com").await;
    assert_eq!(answer(app.get("/api/customers/by/email/ada@example.com/360")).await.0, 200, "cached");

    let subject = json!({"shop_id": 1, "shop_domain": SHOP, "customer": {"id": 7, "email": "ada@example.com"},
        "orders_requested": [], "data_request": {"id": 1}});
    deliver(&app, "customers/data_request", "ask", &subject).await;
    app.drain().await;
    assert_eq!(carry_out(&app.context).await.unwrap(), 1);
    let (_, requests) = answer(app.get("/api/privacy/requests")).await;
    let request = &requests["requests"][0];
    assert_eq!(json!([request["kind"], request["result"]["customers"]]), json!(["export", [ada["id"]]]));
    let (_, export) =
        answer(app.get(&format!("/api/privacy/requests/{}/export", request["id"].as_str().unwrap()))).await;
    let held = &export["customers"][0];
    assert_eq!(
        (held["customer"]["id"].as_str(), held["orders"].as_array().unwrap().len()),
        (ada["id"].as_str(), 1)
    );
    assert!(held["events"].to_string().contains("Viewed") && held["events"].to_string().contains("Chestnut"));
    let before = app.context.store.stats(app.brand).await.unwrap().events;

    let subject = json!({"shop_id": 1, "shop_domain": SHOP, "customer": {"id": 7, "email": "ada@example.com"}, "orders_to_redact": [1]});
    deliver(&app, "customers/redact", "redact", &subject).await;
    deliver(&app, "customers/redact", "redact-again", &subject).await;
    app.drain().await;
    assert!(carry_out(&app.context).await.unwrap() >= 1);
    assert_eq!(carry_out(&app.context).await.unwrap(), 0, "each once");
    let after = app.context.store.stats(app.brand).await.unwrap().events;
    assert_eq!(after, before + 1 - 3, "a request came, once; order, view and fulfillment went");
    let (_, requests) = answer(app.get("/api/privacy/requests")).await;
    assert_eq!(requests["requests"].as_array().unwrap().len(), 2);
    let id = requests["requests"][1]["id"].as_str().unwrap();
    let (_, again) = answer(app.get(&format!("/api/privacy/requests/{id}/export"))).await;
    assert_eq!(again["customers"], json!([]), "and the data request names her no more");
    for path in
        ["by/email/ada@example.com/360", "by/user_id/u7/360", &format!("{}/360", ada["id"].as_str().unwrap())]
    {
        assert_eq!(answer(app.get(&format!("/api/customers/{path}"))).await.0, 404, "{path}");
    }
    let (_, dead) = answer(app.get("/api/queues/events/dead")).await;
    let dead = dead["letters"].as_array().unwrap();
    // A faulty message names nobody that could be decoded; its text does.
    assert!(dead.iter().all(|letter| !letter.to_string().contains("ada@example.com")), "{dead:?}");
    assert!(dead.iter().any(|letter| letter.to_string().contains("other")), "nobody else's: {dead:?}");
    // Late, under each of her names.
    deliver(
        &app,
        "orders/updated",
        "late",
        &order("08", json!({"customer": {"id": 7, "email": "ada@example.com"}})),
    )
    .await;
    send(&app, json!({"type": "identify", "userId": "u7", "messageId": "late", "traits": {"email": "ada@example.com"}})).await;
    app.drain().await;
    // Also a new order of hers, and its fulfillment, which names only the order.
    deliver(
        &app,
        "orders/create",
        "new",
        &json!({"id": 2, "email": "ada@example.com", "total_price": "3.00"}),
    )
    .await;
    app.drain().await;
    let fulfillment = json!({"id": 6, "order_id": 2, "tracking_number": "1Z", "destination": {"address1": "Chestnut Street 92"}});
    deliver(&app, "fulfillments/create", "new fulfillment", &fulfillment).await;
    app.drain().await;
    let mut tx = app.context.store.begin().await.unwrap();
    let held = tx.orders(&[OrderKey { brand: app.brand, shop: SHOP.into(), id: "2".into() }]).await.unwrap();
    assert!(held[0].record.erased && held[0].record.fulfillments.is_empty(), "{held:?}");
    drop(tx);
    let stats = app.context.store.stats(app.brand).await.unwrap();
    assert_eq!((stats.profiles, stats.orders), (1, 2), "the other customer, and an order that is nobody's");
    let (_, list) = answer(app.get("/api/customers?q=ada")).await;
    assert_eq!(list["customers"], json!([]));
    let (_, log) = answer(app.get("/api/privacy/audit")).await;
    let actions: Vec<&str> =
        log["entries"].as_array().unwrap().iter().map(|e| e["action"].as_str().unwrap()).collect();
    assert!(actions.contains(&"erase") && actions.contains(&"export"), "{actions:?}");
    assert!(!log.to_string().contains("ada@example.com"), "{log}");
    app.stop().await;
}

async fn a_shop_that_is_redacted_leaves_nothing(on: On) {
    let clock = ManualClock::at(SystemClock.now_ms());
    let app = TestApp::start_at(on, &clock).await;
    for at in 0..3 {
        let body = json!({"id": at, "email": format!("c{at}@example.com"), "total_price": "5.00"});
        deliver(&app, "orders/create", &format!("o{at}"), &body).await;
    }
    deliver(&app, "orders/create", "guest", &json!({"id": 50, "total_price": "5.00"})).await;
    deliver(&app, "products/create", "p", &json!({"id": 1, "title": "Mug"})).await;
    send(&app, json!({"event": "E", "userId": "elsewhere", "messageId": "e"})).await;
    app.drain().await;
    deliver(&app, "shop/redact", "redact", &json!({"shop_id": 1, "shop_domain": SHOP})).await;
    app.drain().await;
    assert_eq!(carry_out(&app.context).await.unwrap(), 0, "it waits");
    assert_eq!(app.context.store.stats(app.brand).await.unwrap().orders, 4);
    // Another process, a day later; this one still believes what it knew of the shop.
    let ahead = ManualClock::at(clock.now_ms() + 24 * 3_600_000 + 1000);
    let mut later = app.context.clone();
    later.world = World::on(ahead.clone());
    assert_eq!(ahead.drive(carry_out(&later)).await.unwrap(), 0, "it is looked at again");
    let stats = app.context.store.stats(app.brand).await.unwrap();
    assert_eq!((stats.profiles, stats.events, stats.orders), (1, 1, 0), "who came another way stays");
    // What was under way when it was asked for goes, too, though nobody knew of it yet; what the shop still sends is answered, and
    // not kept.
    deliver(
        &app,
        "orders/create",
        "under way",
        &json!({"id": 8, "email": "c2@example.com", "total_price": "5.00"}),
    )
    .await;
    app.drain().await;
    assert_eq!(app.context.store.stats(app.brand).await.unwrap().orders, 1);
    for clock in [&clock, &ahead] {
        clock.advance(i64::try_from(REDACTION_SETTLES.as_millis()).unwrap() + 1000);
    }
    // A restart in between: what was erased before it is counted, too.
    assert_eq!(ahead.drive(carry_out(&later)).await.unwrap(), 1);
    let (_, requests) = answer(app.get("/api/privacy/requests")).await;
    let result = &requests["requests"][0]["result"];
    assert_eq!((&result["customers"], &result["orders"]), (&json!(4), &json!(4)), "{result}");
    assert_eq!(result["rows"], 9, "five orders, the guest's event, the product and its event, the redaction");
    assert_eq!(app.context.store.stats(app.brand).await.unwrap().orders, 0);
    deliver(
        &app,
        "orders/create",
        "late",
        &json!({"id": 9, "email": "c1@example.com", "total_price": "5.00"}),
    )
    .await;
    app.drain().await;
    assert_eq!(app.context.store.stats(app.brand).await.unwrap().orders, 0);
    app.stop().await;
}

async fn an_uninstalled_shop_is_noted(on: On) {
    let app = TestApp::start(on).await;
    deliver(
        &app,
        "app/uninstalled",
        "bye",
        &json!({"id": 1, "email": "owner@example.com", "myshopify_domain": SHOP}),
    )
    .await;
    app.drain().await;
    let shops = app.context.brand_ports.shops.shops(app.brand).await.unwrap();
    assert!(shops[0].uninstalled_at.is_some());
    assert_eq!(app.context.store.stats(app.brand).await.unwrap().profiles, 0, "the owner is no customer");
    app.stop().await;
}
