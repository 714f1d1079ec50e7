//! What SDKs and Shopify get from the ingestion routes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::Write;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use stack::client::Client;
use support::{On, SHOP, TestApp, answer};
use tributary_core::ports::queue::{QueueSettings, Scope};

on_both_profiles!(
    every_segment_route_answers_exactly_success,
    keys_are_taken_from_basic_bearer_and_body_and_others_refused,
    a_bad_message_is_refused_with_code_and_message,
    a_bad_message_in_a_batch_takes_nobody_along_and_is_found_among_the_dead,
    gzip_is_unpacked_and_its_bombs_are_not,
    batches_over_the_limits_are_refused_whole,
    a_small_request_cannot_become_a_large_one_or_stop_a_worker,
    a_batchs_context_is_merged_into_its_messages,
    api_events_says_of_each_event_whether_it_was_taken,
    browsers_of_any_site_may_post,
    what_is_nested_deep_makes_no_customer_unreadable,
    a_webhook_is_verified_before_anything_else,
    a_webhook_is_taken_once_however_often_it_comes,
    a_secret_can_be_rotated_without_losing_a_webhook,
    the_routes_answer_errors_as_json,
);

fn track(user: &str, message_id: &str) -> Value {
    json!({"type": "track", "event": "Thing Done", "userId": user, "messageId": message_id})
}

async fn waiting(app: &TestApp) -> u64 {
    app.context.queue.stats().await.unwrap().pending
}

async fn every_segment_route_answers_exactly_success(on: On) {
    let app = TestApp::start(on).await;
    let message =
        json!({"userId": "u", "event": "E", "groupId": "g", "previousId": "p", "name": "n"}).to_string();
    let names = ["track", "identify", "page", "screen", "group", "alias", "t", "i", "p", "s", "g", "a"];
    for name in names {
        for path in [format!("/v1/{name}"), format!("/v1/{name}/")] {
            let response =
                app.post(&path, message.clone()).header("content-type", "text/plain").send().await.unwrap();
            assert_eq!(response.status(), 200, "{path}");
            assert_eq!(response.headers()["content-type"], "application/json");
            assert_eq!(response.text().await.unwrap(), "{\"success\":true}", "{path}");
        }
    }
    let batch = json!({"batch": [track("u", "m1")]}).to_string();
    for path in ["/v1/batch", "/v1/b", "/v1/batch/", "/v1/b/"] {
        let request = app.post(path, batch.clone()).header("X-Retry-Count", "3");
        assert_eq!(answer(request).await, (200, json!({"success": true})), "{path}");
    }
    assert_eq!(waiting(&app).await, 2 * names.len() as u64 + 4);
    app.drain().await;
    let (_, stats) = answer(app.get("/api/monitoring/stats")).await;
    assert_eq!(stats["brand"]["events"], 2 * names.len() + 1, "one message id came four times: {stats}");
    assert_eq!(stats["events"]["dead"], 0);
    app.stop().await;
}

async fn keys_are_taken_from_basic_bearer_and_body_and_others_refused(on: On) {
    let app = TestApp::start(on).await;
    let url = format!("{}/v1/track", app.url);
    let body = |key: Option<&str>| {
        let mut message = track("u", "m");
        if let Some(key) = key {
            message["writeKey"] = key.into();
        }
        message.to_string()
    };
    let plain = |key: Option<&str>| app.http.post(&url).body(body(key));
    let (write, secret) = (app.write_key.as_str(), app.secret_key.as_str());
    for (request, status, code) in [
        (plain(None).basic_auth(write, Some("")), 200, Value::Null),
        (plain(None).basic_auth(write, None::<&str>), 200, Value::Null),
        (plain(None).bearer_auth(write), 200, Value::Null),
        (plain(Some(write)), 200, Value::Null),
        // OAuth: a token that is none of ours, and the key in the body
        (plain(Some(write)).bearer_auth("some-oauth-token"), 200, Value::Null),
        (plain(Some(write)).basic_auth("", Some("")), 200, Value::Null),
        (plain(None), 401, json!("no_key")),
        (plain(Some("wk_unknown")), 401, json!("invalid_key")),
        // The brand's own server: its ids are a space of their own.
        (plain(None).bearer_auth(secret), 200, Value::Null),
    ] {
        let (is, found) = answer(request).await;
        assert_eq!((is, &found["code"]), (status, &code), "{found}");
    }
    let batch = json!({"batch": [track("u", "m")], "writeKey": write}).to_string();
    assert_eq!(answer(app.http.post(format!("{}/v1/batch", app.url)).body(batch)).await.0, 200);
    app.drain().await;
    let (_, found) = answer(app.get("/api/customers/by/user_id/u/360")).await;
    assert_eq!(found["events_count"], 2);
    app.stop().await;
}

async fn a_bad_message_is_refused_with_code_and_message(on: On) {
    let app = TestApp::start(on).await;
    for (path, body, code) in [
        ("/v1/track", "{", "invalid_json"),
        ("/v1/track", "[]", "invalid_event"),
        ("/v1/track", r#"{"event":"E"}"#, "no_user_anon_id"),
        ("/v1/track", r#"{"userId":"u"}"#, "no_event"),
        ("/v1/group", r#"{"userId":"u"}"#, "no_group_id"),
        ("/v1/alias", r#"{"userId":"u"}"#, "no_previous_id"),
        ("/v1/page", r#"{"userId":"u","timestamp":"noon"}"#, "invalid_timestamp"),
        ("/v1/batch", r#"{"batch":{}}"#, "invalid_json"),
        ("/v1/batch", r#"{"batch":[{"type":"nothing","userId":"u"}]}"#, "invalid_type"),
    ] {
        let (status, found) = answer(app.post(path, body)).await;
        assert_eq!(json!([status, found["code"]]), json!([400, code]), "{path} {body}: {found}");
        assert!(found["message"].as_str().is_some_and(|text| text.len() > 10), "{found}");
    }
    let large = json!({"userId": "u", "x": "x".repeat(33 * 1024)}).to_string();
    let (status, found) = answer(app.post("/v1/page", large)).await;
    assert_eq!(json!([status, found["code"]]), json!([400, "event_too_large"]), "{found}");
    assert_eq!(waiting(&app).await, 0);
    app.stop().await;
}

async fn a_bad_message_in_a_batch_takes_nobody_along_and_is_found_among_the_dead(on: On) {
    let app = TestApp::start(on).await;
    let bad = json!({"type": "track", "userId": "u", "why": "no event"});
    let unstorable =
        r#"{"type":"track","event":"E","userId":"u","messageId":"m3","properties":{"a":"\u0000\ud800"}}"#;
    let batch = format!(r#"{{"batch":[{},{bad},{unstorable},{}]}}"#, track("u", "m1"), track("u", "m2"));
    assert_eq!(answer(app.post("/v1/batch", batch)).await, (200, json!({"success": true})));
    app.drain().await;
    let (_, found) = answer(app.get("/api/customers/by/user_id/u/360")).await;
    assert_eq!(found["events_count"], 3, "{found}");
    let dead = app.context.queue.dead(Scope::All, None, 10).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert!(dead[0].error().contains("no_event"), "{}", dead[0].error());
    assert!(String::from_utf8_lossy(&dead[0].item.payload).contains("why"), "nothing of it is lost");
    app.stop().await;
}

async fn gzip_is_unpacked_and_its_bombs_are_not(on: On) {
    let app = TestApp::start(on).await;
    let gzip = |bytes: &[u8]| {
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    };
    let packed = |body: Vec<u8>| app.post("/v1/batch", body).header("content-encoding", "gzip");
    let batch = json!({"batch": [track("u", "m1")]}).to_string();
    assert_eq!(answer(packed(gzip(batch.as_bytes()))).await.0, 200);
    let (status, found) = answer(packed(gzip(&vec![b' '; 64 << 20]))).await;
    assert_eq!(json!([status, found["code"]]), json!([400, "payload_too_large"]));
    let (status, found) = answer(packed(b"not gzip".to_vec())).await;
    assert_eq!(json!([status, found["code"]]), json!([400, "invalid_gzip"]));
    assert_eq!(waiting(&app).await, 1);
    app.stop().await;
}

async fn batches_over_the_limits_are_refused_whole(on: On) {
    let app = TestApp::start(on).await;
    let batch = |count: usize| {
        let messages: Vec<Value> =
            (0..count).map(|n| json!({"type": "page", "userId": "u", "messageId": n})).collect();
        json!({"batch": messages}).to_string()
    };
    assert_eq!(answer(app.post("/v1/batch", batch(2500))).await.0, 200);
    let (status, found) = answer(app.post("/v1/batch", batch(2501))).await;
    assert_eq!(json!([status, found["code"]]), json!([400, "too_many_events"]));
    let large = json!({"batch": [track("u", "m")], "pad": "x".repeat(4 * 1024 * 1024)}).to_string();
    let (status, found) = answer(app.post("/v1/batch", large)).await;
    assert_eq!(json!([status, found["code"]]), json!([400, "payload_too_large"]));
    assert_eq!(waiting(&app).await, 2500);
    app.stop().await;
}

async fn a_small_request_cannot_become_a_large_one_or_stop_a_worker(on: On) {
    let app = TestApp::start_with(on, 1, QueueSettings::default()).await;
    let context = "x".repeat(20_000);
    let messages = vec![track("u", "m"); 2400];
    let (status, found) =
        answer(app.post("/v1/batch", json!({"context": {"pad": context}, "batch": messages}).to_string()))
            .await;
    assert_eq!(json!([status, found["code"]]), json!([400, "context_too_large"]), "{found}");
    // Over the limit of one event with what the batch adds: dropped, its neighbour taken.
    let large = json!({"type": "page", "userId": "u", "messageId": "large", "pad": "x".repeat(15_000)});
    let batch = json!({"context": {"pad": context}, "batch": [large, track("u", "m1")]}).to_string();
    assert_eq!(answer(app.post("/v1/batch", batch)).await.0, 200);
    for strange in [
        json!({"sentAt": "+262142-12-31T23:59:59", "batch": [{"type": "page", "userId": "u", "timestamp": "-262000-01-01T00:00:00"}]}),
        json!({"sentAt": 1_700_000_000, "batch": [{"type": "page", "userId": "u", "messageId": "p1"}]}),
        json!({"sentAt": "9999-12-31T23:59:59", "batch": [{"type": "page", "userId": "u", "messageId": "p2", "timestamp": "0001-01-01T00:00:00"}]}),
    ] {
        answer(app.post("/v1/batch", strange.to_string())).await;
    }
    assert_eq!(answer(app.post("/v1/batch", json!({"batch": [track("u", "m2")]}).to_string())).await.0, 200);
    app.client().drain(Duration::from_secs(30), |_| {}).await.unwrap();
    let (_, found) = answer(app.get("/api/customers/by/user_id/u/360")).await;
    assert_eq!(found["events_count"], 4, "m1, p1, p2, m2: {found}");
    app.stop().await;
}

async fn a_batchs_context_is_merged_into_its_messages(on: On) {
    let app = TestApp::start(on).await;
    let batch = json!({
        "context": {"traits": {"email": "Shared@Example.com"}, "ip": "1.2.3.4"},
        "batch": [track("u", "m1")],
    });
    assert_eq!(answer(app.post("/v1/batch", batch.to_string())).await.0, 200);
    app.drain().await;
    let (status, found) = answer(app.get("/api/customers/by/email/shared@example.com/360")).await;
    assert_eq!((status, &found["events_count"]), (200, &json!(1)));
    app.stop().await;
}

async fn api_events_says_of_each_event_whether_it_was_taken(on: On) {
    let app = TestApp::start(on).await;
    let one = answer(app.post("/api/events", r#"{"event":"E","anonymousId":"a"}"#)).await;
    assert_eq!(one, (202, json!({"accepted": 1, "rejected": []})));
    let some = json!([track("u", "m1"), {"type": "track"}, 7, track("u", "m2")]).to_string();
    let (status, found) = answer(app.post("/api/events", some)).await;
    assert_eq!((status, &found["accepted"]), (202, &json!(2)));
    let rejected: Vec<_> =
        found["rejected"].as_array().unwrap().iter().map(|r| r["index"].as_u64().unwrap()).collect();
    assert_eq!(rejected, [1, 2]);
    assert!(found["rejected"][0]["error"].as_str().unwrap().contains("userId"));
    let (status, found) = answer(app.post("/api/events", r#"{"event":"E"}"#)).await;
    assert_eq!(
        (status, &found["rejected"][0]["code"], &found["accepted"]),
        (202, &json!("no_user_anon_id"), &json!(0))
    );
    let keyed = json!({"event": "E", "anonymousId": "a", "writeKey": app.write_key}).to_string();
    assert_eq!(answer(app.http.post(format!("{}/api/events", app.url)).body(keyed)).await.0, 202);
    assert_eq!(answer(app.post("/api/events", "[]")).await.0, 202);
    assert_eq!(waiting(&app).await, 4);
    app.stop().await;
}

async fn browsers_of_any_site_may_post(on: On) {
    let app = TestApp::start(on).await;
    let preflight = app
        .http
        .request(reqwest::Method::OPTIONS, format!("{}/v1/t", app.url))
        .header("origin", "https://shop.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type")
        .send()
        .await
        .unwrap();
    assert_eq!(preflight.status(), 200);
    assert_eq!(preflight.headers()["access-control-allow-origin"], "*");
    assert_eq!(preflight.headers()["access-control-allow-headers"], "authorization,content-type");
    let posted = app.post("/v1/t", track("u", "m").to_string()).header("origin", "https://shop.example");
    assert_eq!(posted.send().await.unwrap().headers()["access-control-allow-origin"], "*");
    let read = app.get("/api/customers/by/user_id/u/360").header("origin", "https://shop.example");
    assert!(
        !read.send().await.unwrap().headers().contains_key("access-control-allow-origin"),
        "customers are not open"
    );
    app.stop().await;
}

fn webhook(client: &Client, webhook_id: &str, body: &Value) -> reqwest::RequestBuilder {
    client.webhook(client.http(), "orders/create", webhook_id, body.to_string())
}

fn order() -> Value {
    json!({"id": 1, "currency": "USD", "total_price": "10.00", "customer": {"id": 7}, "updated_at": "2026-01-01T00:00:00Z"})
}

async fn a_webhook_is_verified_before_anything_else(on: On) {
    let app = TestApp::start(on).await;
    let client = app.client();
    let request = |change: &dyn Fn(&mut HeaderMap), body: &str| {
        let mut request =
            client.webhook(client.http(), "customers/redact", "w1", body.to_owned()).build().unwrap();
        change(request.headers_mut());
        reqwest::RequestBuilder::from_parts(client.http().clone(), request)
    };
    let without = |name: &'static str| move |headers: &mut HeaderMap| drop(headers.remove(name));
    let with = |name: &'static str, value: &'static str| {
        move |headers: &mut HeaderMap| drop(headers.insert(name, value.parse().unwrap()))
    };
    let body = order().to_string();
    for name in [
        "x-shopify-hmac-sha256",
        "x-shopify-topic",
        "x-shopify-shop-domain",
        "x-shopify-api-version",
        "x-shopify-webhook-id",
    ] {
        let (status, found) = answer(request(&without(name), &body)).await;
        assert_eq!(json!([status, found["code"]]), json!([400, "missing_header"]), "{name}");
        assert!(found["message"].as_str().unwrap().contains(name));
    }
    for change in [
        with("x-shopify-hmac-sha256", "AAAA"),
        with("x-shopify-hmac-sha256", "not base64!"),
        with("x-shopify-shop-domain", "other.myshopify.com"),
    ] {
        let (status, found) = answer(request(&change, "{broken")).await;
        assert_eq!(json!([status, found["code"]]), json!([401, "invalid_hmac"]), "{found}");
    }
    let (status, found) = answer(request(&|_| {}, "{broken")).await;
    assert_eq!(json!([status, found["code"]]), json!([400, "invalid_json"]), "signed, but not JSON");
    let got = app.http.get(format!("{}/api/webhooks/shopify", app.url));
    assert_eq!(answer(got).await.0, 405);
    assert_eq!(waiting(&app).await, 0);
    app.stop().await;
}

async fn a_webhook_is_taken_once_however_often_it_comes(on: On) {
    let app = TestApp::start(on).await;
    let client = app.client();
    let taken = |duplicate: bool| (200, json!({"success": true, "duplicate": duplicate}));
    assert_eq!(answer(webhook(&client, "w1", &order())).await, taken(false));
    assert_eq!(answer(webhook(&client, "w1", &order())).await, taken(true));
    // The same event by another subscription: another webhook id.
    assert_eq!(answer(webhook(&client, "w2", &order())).await, taken(true), "known by its body");
    let mut updated = order();
    updated["updated_at"] = json!("2026-01-02T00:00:00Z");
    let event = |id: &str| webhook(&client, id, &updated).header("X-Shopify-Event-Id", "e1");
    assert_eq!(answer(event("w2")).await, taken(false));
    assert_eq!(answer(event("w3")).await, taken(true));
    let mut in_another_api_version = updated.clone();
    in_another_api_version["id"] = json!("1");
    let same = webhook(&client, "w4", &in_another_api_version).header("X-Shopify-Event-Id", "e1");
    assert_eq!(answer(same).await, taken(true));
    let other = webhook(&client, "w5", &json!({"id": "1", "total_price": "11.00"}))
        .header("X-Shopify-Event-Id", "e1");
    assert_eq!(answer(other).await, taken(false), "the same action told another state of it");
    let again = webhook(&client, "w5", &json!({"id": "1", "total_price": "12.00"}));
    assert_eq!(answer(again).await.0, 409, "the same delivery with another body");
    // A name that was cut in the middle of an emoji costs no order.
    let mut cut = order();
    cut["id"] = json!(9);
    let cut = cut.to_string().replacen('{', r#"{"note": "Happy \ud83c","#, 1);
    assert_eq!(answer(client.webhook(client.http(), "orders/create", "w7", cut)).await, taken(false));
    let unreadable = format!(r#"{{"id": 2, "name": {}{}}}"#, "[".repeat(200), "]".repeat(200));
    for duplicate in [false, true] {
        let sent = client.webhook(client.http(), "orders/create", "w6", unreadable.clone());
        assert_eq!(answer(sent).await, taken(duplicate), "signed, so it is kept, for people to look at");
    }
    app.drain().await;
    assert_eq!(app.context.queue.stats().await.unwrap().dead, 1);
    let (_, found) = answer(app.get("/api/customers/by/shopify_customer_id/7/360")).await;
    assert_eq!((&found["orders_count"], &found["revenue"]), (&json!(2), &json!({"USD": "21.00"})));
    assert_eq!(found["recent_events"][0]["name"], "Order Created");
    app.stop().await;
}

async fn a_secret_can_be_rotated_without_losing_a_webhook(on: On) {
    let app = TestApp::start(on).await;
    app.context.brand_ports.shops.add_shop(SHOP, app.brand, "new-secret").await.unwrap();
    assert_eq!(answer(webhook(&app.client(), "w1", &order())).await.0, 200, "signed with the old secret");
    app.context.brand_ports.shops.add_shop(SHOP, app.brand, "newest-secret").await.unwrap();
    let other = TestApp::start(On::Embedded).await;
    other.context.brand_ports.shops.add_shop(SHOP, other.brand, "a").await.unwrap();
    other.context.brand_ports.shops.add_shop(SHOP, other.brand, "b").await.unwrap();
    assert_eq!(answer(webhook(&other.client(), "w1", &order())).await.0, 401, "two rotations ago");
    app.stop().await;
    other.stop().await;
}

async fn the_routes_answer_errors_as_json(on: On) {
    let app = TestApp::start(on).await;
    let (status, found) = answer(app.get("/nowhere")).await;
    assert_eq!(json!([status, found["code"]]), json!([404, "not_found"]));
    let (status, found) = answer(app.get("/v1/track")).await;
    assert_eq!(json!([status, found["code"]]), json!([405, "method_not_allowed"]));
    app.stop().await;
}

async fn what_is_nested_deep_makes_no_customer_unreadable(on: On) {
    let app = TestApp::start(on).await;
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let identify = |depth: usize| {
        let traits = format!(r#"{{"deep{depth}":{},"plan":"gold"}}"#, nested(depth));
        format!(r#"{{"userId":"u","messageId":"m{depth}","traits":{traits}}}"#)
    };
    for depth in [60, 64, 65, 98] {
        assert_eq!(answer(app.post("/v1/identify", identify(depth))).await.0, 200, "{depth}");
    }
    for depth in [99, 127, 10_000] {
        let (status, refused) = answer(app.post("/v1/identify", identify(depth))).await;
        assert_eq!(json!([status, refused["code"]]), json!([400, "too_deep"]), "{depth}");
    }
    let properties = format!(r#"{{"a":{}}}"#, nested(97));
    let track = format!(r#"{{"userId":"u","event":"E","messageId":"d","properties":{properties}}}"#);
    assert_eq!(answer(app.post("/v1/track", track)).await.0, 200);
    app.drain().await;
    let (status, found) = answer(app.get("/api/customers/by/user_id/u/360")).await;
    assert_eq!((status, &found["events_count"], &found["traits"]["plan"]), (200, &json!(5), &json!("gold")));
    assert_eq!(found["traits"]["deep98"], nested(98), "as text");
    assert!(found["traits"]["deep60"].is_array());
    assert_eq!(app.context.queue.stats().await.unwrap().dead, 0);
    app.stop().await;
}
