//! What senders really send: clocks that are wrong, calls that overtake each other, bodies that say a part, states of one second, files
//! that a spreadsheet has been in. Tables of inputs with their right values, through the server's own routes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use serde_json::{Value, json};
use support::{On, TestApp, answer};
use tributary_core::domain::time::{self, from_ms};
use tributary_core::ports::clock::{Clock, ManualClock};

on_both_profiles!(
    the_later_of_two_calls_holds_whatever_the_network_does,
    a_clock_of_the_future_wins_over_nothing,
    an_event_is_dated_by_what_can_be_believed,
    of_two_states_of_one_second_the_later_holds,
    a_body_that_says_a_part_keeps_the_rest,
    what_was_emptied_is_empty_and_what_is_not_told_stays,
    an_edited_order_counts_what_is_left_of_it,
    one_action_may_tell_two_states,
    an_order_that_changes_hands_joins_nobody,
    other_topics_name_their_customer_and_nobody_elses,
    browsers_get_what_their_sdk_asks_for,
    a_shops_pixel_is_understood,
    a_batch_of_four_megabytes_is_taken,
);

const T0: i64 = 1_780_000_000_000;

/// A server whose clock stands at [`T0`].
async fn start(on: On) -> (TestApp, ManualClock) {
    let clock = ManualClock::at(T0);
    (TestApp::start_at(on, &clock).await, clock)
}

fn at(ms: i64) -> String {
    time::format(from_ms(ms))
}

async fn post(app: &TestApp, path: &str, body: &Value) {
    let (status, found) = answer(app.post(path, body.to_string())).await;
    assert!((200..300).contains(&status), "{path}: {found}");
}

async fn deliver(app: &TestApp, topic: &str, id: &str, body: &Value, headers: &[(&str, &str)]) {
    let client = app.client();
    let mut request = client.webhook(client.http(), topic, id, body.to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (status, found) = answer(request).await;
    assert_eq!(json!([status, found["success"]]), json!([200, true]), "{topic} {body}: {found}");
}

async fn customer(app: &TestApp, kind: &str, value: &str) -> Value {
    let (status, found) = answer(app.get(&format!("/api/customers/by/{kind}/{value}/360"))).await;
    assert_eq!(status, 200, "{kind} {value}: {found}");
    found
}

async fn is_nobody(app: &TestApp, kind: &str, value: &str) -> bool {
    answer(app.get(&format!("/api/customers/by/{kind}/{value}/360"))).await.0 == 404
}

/// An identify call, and when its request arrives.
struct Call {
    plan: &'static str,
    /// By the sender's clock, in milliseconds from [`T0`].
    at: i64,
    sent: Option<i64>,
    arrives: i64,
}

async fn the_later_of_two_calls_holds_whatever_the_network_does(on: On) {
    let hour = 3_600_000;
    let call = |plan, at, sent, arrives| Call { plan, at, sent, arrives };
    let (older, newer) = ("older", "newer");
    let cases = [
        ("the older one is late", [call(older, 0, Some(0), 500), call(newer, 100, Some(100), 150)]),
        (
            "it is sent again after an outage, as it was",
            [call(newer, 100, Some(61_000), 61_050), call(older, 0, Some(0), 62_000)],
        ),
        ("after half an hour", [call(newer, 100, Some(150), 200), call(older, 0, Some(0), hour / 2)]),
        ("without sentAt", [call(newer, 100, None, 150), call(older, 0, None, 600)]),
        (
            "the clock is two hours ahead",
            [
                call(newer, 2 * hour + 100, Some(2 * hour + 100), 150),
                call(older, 2 * hour, Some(2 * hour), 900),
            ],
        ),
        (
            "the clock is a day behind",
            [
                call(newer, 100 - 24 * hour, Some(100 - 24 * hour), 150),
                call(older, -24 * hour, Some(-24 * hour), 30_000),
            ],
        ),
    ];
    for (number, (what, calls)) in cases.iter().enumerate() {
        // As they arrive, and the other way round: the reception's times are the same.
        for turned in [false, true] {
            let (app, clock) = start(on).await;
            let user = format!("u{number}");
            let mut order: Vec<&Call> = calls.iter().collect();
            if turned {
                order.reverse();
            }
            for call in order {
                clock.advance(T0 + call.arrives - clock.now_ms());
                let mut body = json!({"userId": user, "timestamp": at(T0 + call.at), "traits": {"plan": call.plan},
                    "messageId": format!("{}{turned}", if call.plan == older { "z" } else { "a" })});
                if let Some(sent) = call.sent {
                    body["sentAt"] = at(T0 + sent).into();
                }
                post(&app, "/v1/identify", &body).await;
                if turned {
                    app.drain().await;
                }
            }
            app.drain().await;
            assert_eq!(
                customer(&app, "user_id", &user).await["traits"]["plan"],
                newer,
                "{what}, turned: {turned}"
            );
            app.stop().await;
        }
    }
    // In one batch: by the place, where the times are one, and by the microseconds of those that give them.
    let (app, _) = start(on).await;
    let batch = |user: &str, times: [&str; 2]| {
        let call = |id: &str, time: &str, plan: &str| json!({"type": "identify", "userId": user, "messageId": format!("{id}-{user}"), "timestamp": time, "traits": {"plan": plan}});
        json!({"batch": [call("zz", times[0], "first"), call("aa", times[1], "second")]})
    };
    let whole = "2026-03-01T00:00:00+00:00";
    for (user, times, holds) in [
        ("place", [whole, whole], "second"),
        ("micros", ["2026-03-01T00:00:00.000300Z", "2026-03-01T00:00:00.000200Z"], "first"),
    ] {
        post(&app, "/v1/batch", &batch(user, times)).await;
        app.drain().await;
        assert_eq!(customer(&app, "user_id", user).await["traits"]["plan"], holds, "{user}");
    }
    app.stop().await;
}

async fn a_clock_of_the_future_wins_over_nothing(on: On) {
    let (app, clock) = start(on).await;
    for (number, ahead) in [360_000_i64, 3_600_000, 86_400_000, 2_000_000_000_000].into_iter().enumerate() {
        let user = format!("u{number}");
        let said = |plan: &str, consent: bool, timestamp: Option<i64>| {
            let mut body = json!({"userId": user, "messageId": format!("{plan}-{user}"),
                "traits": {"plan": plan, "email": format!("{user}@example.com"), "emailMarketingConsent": consent}});
            if let Some(ms) = timestamp {
                body["timestamp"] = at(ms).into();
            }
            body
        };
        post(&app, "/v1/identify", &said("old", true, Some(clock.now_ms() + ahead))).await;
        clock.advance(1000);
        post(&app, "/v1/identify", &said("new", false, None)).await;
        app.drain().await;
        let found = customer(&app, "user_id", &user).await;
        assert_eq!(found["traits"]["plan"], "new", "{ahead} ms ahead");
        assert_eq!(found["consent"]["email"]["allowed"], false, "{ahead} ms ahead");
        assert!(found["last_seen"].as_str().unwrap() <= at(clock.now_ms()).as_str(), "{found}");
        let update = |plan: &str, updated: i64| json!({"id": number + 1, "first_name": plan, "email": format!("{user}@example.com"), "updated_at": at(updated)});
        deliver(&app, "customers/update", &format!("w1-{user}"), &update("old", clock.now_ms() + ahead), &[])
            .await;
        clock.advance(1000);
        deliver(&app, "customers/update", &format!("w2-{user}"), &update("new", clock.now_ms()), &[]).await;
        app.drain().await;
        assert_eq!(customer(&app, "user_id", &user).await["traits"]["firstName"], "new", "{ahead} ms ahead");
    }
    app.stop().await;
}

async fn an_event_is_dated_by_what_can_be_believed(on: On) {
    let (app, _) = start(on).await;
    let day = 86_400_000;
    let cases = [
        ("a right clock", T0 - 5000, Some(T0 - 1000), T0 - 5000),
        ("kept for ten minutes", T0 - 600_000, Some(T0 - 600_000), T0 - 600_000),
        ("a day ahead", T0 + day - 5000, Some(T0 + day), T0 - 5000),
        ("a day behind", T0 - day - 5000, Some(T0 - day), T0 - 5000),
        ("sentAt never set", T0 - 5000, Some(0), T0 - 5000),
        ("a time of the future", T0 + day, None, T0),
        ("a moment ahead", T0 + 2000, None, T0 + 2000),
    ];
    for (number, (what, timestamp, sent, dated)) in cases.into_iter().enumerate() {
        let mut body = json!({"userId": format!("u{number}"), "event": "E", "timestamp": at(timestamp)});
        if let Some(sent) = sent {
            body["sentAt"] = at(sent).into();
        }
        post(&app, "/v1/track", &body).await;
        app.drain().await;
        let found = customer(&app, "user_id", &format!("u{number}")).await;
        assert_eq!(found["recent_events"][0]["timestamp"], at(dated), "{what}");
    }
    app.stop().await;
}

async fn of_two_states_of_one_second_the_later_holds(on: On) {
    let (app, _) = start(on).await;
    let order = |id: u64, state: &str| {
        json!({"id": id, "email": format!("o{id}@example.com"), "currency": "EUR", "total_price": "10.00", "financial_status": state,
            "created_at": "2026-02-01T10:00:00Z", "updated_at": "2026-02-01T10:00:00Z"})
    };
    // The ids by which they would sort otherwise speak for the other one.
    let cases = [
        (
            "2026-02-01T10:00:00.100000000Z",
            "2026-02-01T10:00:00.900000000Z",
            ["orders/updated", "orders/updated"],
        ),
        (
            "2026-02-01T10:00:00.123400000Z",
            "2026-02-01T10:00:00.123900000Z",
            ["orders/updated", "orders/paid"],
        ),
        (
            "2026-02-01T10:00:01.100000000Z",
            "2026-02-01T10:00:03.900000000Z",
            ["orders/updated", "orders/cancelled"],
        ),
    ];
    for (number, (first, second, topics)) in cases.into_iter().enumerate() {
        for turned in [false, true] {
            let id = number as u64 * 2 + u64::from(turned) + 1;
            let mut later = order(id, "paid");
            if topics[1] == "orders/cancelled" {
                later["cancelled_at"] = "2026-02-01T10:00:00Z".into();
            }
            let mut both = [
                (topics[0], format!("zz{id}"), order(id, "pending"), first),
                (topics[1], format!("aa{id}"), later, second),
            ];
            if turned {
                both.reverse();
            }
            for (topic, webhook, body, triggered) in &both {
                deliver(&app, topic, webhook, body, &[("X-Shopify-Triggered-At", triggered)]).await;
                app.drain().await;
            }
            let found = customer(&app, "email", &format!("o{id}@example.com")).await;
            assert_eq!(
                found["recent_orders"][0]["financial_status"], "paid",
                "case {number}, turned: {turned}"
            );
        }
    }
    app.stop().await;
}

async fn a_body_that_says_a_part_keeps_the_rest(on: On) {
    let (app, _) = start(on).await;
    let whole = json!({"id": 1, "name": "#1", "email": "jon@example.com", "currency": "EUR", "total_price": "100.00",
        "financial_status": "paid", "created_at": "2026-02-01T10:00:00Z", "updated_at": "2026-02-01T10:00:00Z",
        "line_items": [{"title": "Mug", "quantity": 2, "price": "50.00"}],
        "fulfillments": [{"id": 5, "status": "success", "tracking_number": "1Z", "tracking_company": "UPS",
                          "created_at": "2026-02-01T12:00:00Z", "updated_at": "2026-02-01T12:00:00Z"}]});
    let parts = [
        (
            "orders/updated",
            json!({"id": 1, "updated_at": "2026-02-02T10:00:00Z", "fulfillment_status": "fulfilled"}),
        ),
        ("orders/updated", json!({"id": 1, "updated_at": "2026-02-03T10:00:00Z", "note": "gift"})),
        (
            "fulfillments/update",
            json!({"id": 5, "order_id": 1, "updated_at": "2026-02-03T10:00:00Z", "shipment_status": "delivered"}),
        ),
        (
            "refunds/create",
            json!({"id": 9, "order_id": 1, "created_at": "2026-02-03T10:00:00Z", "note": "sorry"}),
        ),
    ];
    for (round, turned) in [false, true].into_iter().enumerate() {
        let id = round + 1;
        let mut all: Vec<(&str, Value)> =
            std::iter::once(("orders/create", whole.clone())).chain(parts.clone()).collect();
        if turned {
            all.reverse();
        }
        for (number, (topic, mut body)) in all.into_iter().enumerate() {
            for (name, field) in
                [("id", topic.starts_with("orders/")), ("order_id", !topic.starts_with("orders/"))]
            {
                if field {
                    body[name] = id.into();
                }
            }
            if body["email"].is_string() {
                body["email"] = format!("jon{id}@example.com").into();
            }
            deliver(&app, topic, &format!("w{round}-{number}"), &body, &[]).await;
            app.drain().await;
        }
        let found = customer(&app, "email", &format!("jon{id}@example.com")).await;
        let order = &found["recent_orders"][0];
        assert_eq!(
            (&found["orders_count"], &found["revenue"]["EUR"]),
            (&json!(1), &json!("100.00")),
            "turned: {turned}"
        );
        assert_eq!(
            (&order["fulfillment_status"], &order["financial_status"]),
            (&json!("fulfilled"), &json!("paid"))
        );
        assert_eq!((&order["name"], order["items"].as_array().unwrap().len()), (&json!("#1"), 1));
        let fulfillment = &order["fulfillments"][0];
        assert_eq!(
            (&fulfillment["status"], &fulfillment["tracking_number"]),
            (&json!("delivered"), &json!("1Z"))
        );
        assert_eq!(fulfillment["at"], "2026-02-01T12:00:00.000Z");
        assert_eq!(order["refunded"], "0.00");
    }
    // A product keeps its title when a body says only its vendor.
    let viewed = json!({"event": "Product Viewed", "userId": "looks", "properties": {"product_id": "77"}});
    post(&app, "/v1/track", &viewed).await;
    for (number, body) in [
        json!({"id": 77, "title": "River Mug", "product_type": "Mugs", "vendor": "A", "variants": [], "updated_at": "2026-02-01T10:00:00Z"}),
        json!({"id": 77, "vendor": "B", "updated_at": "2026-02-02T10:00:00Z"}),
    ]
    .iter()
    .enumerate()
    {
        deliver(&app, "products/update", &format!("p{number}"), body, &[]).await;
        app.drain().await;
    }
    let liked = customer(&app, "user_id", "looks").await["affinity"]["products"][0].clone();
    assert_eq!(liked["title"], "River Mug", "{liked}");
    app.stop().await;
}

async fn what_was_emptied_is_empty_and_what_is_not_told_stays(on: On) {
    let (app, _) = start(on).await;
    let state = |day: u32, more: Value| {
        let mut body =
            json!({"id": 1, "email": "a@example.com", "updated_at": format!("2026-02-{day:02}T10:00:00Z")});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let told = json!({"tags": "vip, wholesale", "first_name": "Ada", "last_name": "Byron", "phone": "+4915123456789"});
    deliver(&app, "customers/create", "w1", &state(1, told), &[]).await;
    deliver(
        &app,
        "customers/update",
        "w2",
        &state(2, json!({"tags": "", "first_name": "", "last_name": null})),
        &[],
    )
    .await;
    app.drain().await;
    let traits = customer(&app, "shopify_customer_id", "1").await["traits"].clone();
    assert!(traits["tags"].is_null() && traits["firstName"].is_null(), "{traits}");
    // Null may also be what Shopify does not show, and a field that is not there says nothing.
    assert_eq!((&traits["lastName"], &traits["phone"]), (&json!("Byron"), &json!("+4915123456789")));
    let order = json!({"id": 9, "currency": "EUR", "total_price": "1.00", "created_at": "2026-02-03T10:00:00Z",
        "updated_at": "2026-02-03T10:00:00Z", "email": "", "phone": null,
        "customer": {"id": 1, "email": "a@example.com", "updated_at": "2026-02-03T10:00:00Z", "tags": "back"}});
    deliver(&app, "orders/create", "w3", &order, &[]).await;
    app.drain().await;
    let traits = customer(&app, "shopify_customer_id", "1").await["traits"].clone();
    assert_eq!((&traits["tags"], &traits["email"]), (&json!("back"), &json!("a@example.com")), "{traits}");
    app.stop().await;
}

async fn an_edited_order_counts_what_is_left_of_it(on: On) {
    let (app, _) = start(on).await;
    let order = |id: u64, day: u32, current: &str, left: u32, refunds: Value| {
        json!({"id": id, "email": format!("e{id}@example.com"), "currency": "EUR", "total_price": "100.00", "current_total_price": current,
            "created_at": "2026-02-01T10:00:00Z", "updated_at": format!("2026-02-{day:02}T10:00:00Z"), "refunds": refunds,
            "line_items": [{"id": 1, "title": "Pot", "product_id": 1, "quantity": 1, "current_quantity": 1, "price": "60.00"},
                           {"id": 2, "title": "Pan", "product_id": 2, "quantity": 1, "current_quantity": left, "price": "40.00"}]})
    };
    let removed = |transactions: Value| {
        json!([{"id": 9, "created_at": "2026-02-02T10:00:00Z", "transactions": transactions,
            "refund_line_items": [{"line_item_id": 2, "quantity": 1, "subtotal": 40.0}]}])
    };
    let paid_back = json!([{"kind": "refund", "status": "success", "amount": "40.00", "currency": "EUR"}]);
    // What was taken out, unpaid; what was sent back, and paid back; what was paid back of goodwill; what was added.
    let goodwill = json!([{"id": 9, "created_at": "2026-02-02T10:00:00Z", "refund_line_items": [],
        "transactions": [{"kind": "refund", "status": "success", "amount": "10.00", "currency": "EUR"}]}]);
    let cases = [
        (order(1, 2, "60.00", 0, removed(json!([]))), "60.00", "0.00", 1),
        (order(2, 2, "60.00", 0, removed(paid_back)), "100.00", "40.00", 2),
        (order(3, 2, "100.00", 1, goodwill), "100.00", "10.00", 2),
    ];
    for (number, (edited, revenue, refunded, items)) in cases.into_iter().enumerate() {
        let id = edited["id"].as_u64().unwrap();
        deliver(&app, "orders/create", &format!("c{number}"), &order(id, 1, "100.00", 1, json!([])), &[])
            .await;
        deliver(&app, "orders/updated", &format!("u{number}"), &edited, &[]).await;
        app.drain().await;
        let found = customer(&app, "email", &format!("e{id}@example.com")).await;
        let back = found["refunded"]["EUR"].as_str().unwrap_or("0.00");
        assert_eq!((found["revenue"]["EUR"].as_str(), back), (Some(revenue), refunded), "order {id}");
        assert_eq!(found["recent_orders"][0]["items"].as_array().unwrap().len(), items, "order {id}");
    }
    app.stop().await;
}

async fn one_action_may_tell_two_states(on: On) {
    let (app, _) = start(on).await;
    let order = |state: &str, second: u32| {
        json!({"id": 1, "email": "a@example.com", "currency": "EUR", "total_price": "10.00", "financial_status": state,
            "created_at": "2026-02-01T10:00:00Z", "updated_at": format!("2026-02-01T10:00:{second:02}Z")})
    };
    let event = [("X-Shopify-Event-Id", "e1")];
    deliver(&app, "orders/updated", "w1", &order("pending", 0), &event).await;
    deliver(&app, "orders/updated", "w2", &order("paid", 2), &event).await;
    // The same again, by another subscription.
    deliver(&app, "orders/updated", "w3", &order("paid", 2), &event).await;
    // A checkout has no id any more.
    let checkout = json!({"token": "k1", "email": "a@example.com", "updated_at": "2026-02-01T10:00:00Z"});
    for id in ["w4", "w5"] {
        deliver(&app, "checkouts/create", id, &checkout, &[("X-Shopify-Event-Id", "e2")]).await;
    }
    app.drain().await;
    let found = customer(&app, "email", "a@example.com").await;
    assert_eq!(
        (&found["recent_orders"][0]["financial_status"], &found["events_count"]),
        (&json!("paid"), &json!(3))
    );
    app.stop().await;
}

async fn an_order_that_changes_hands_joins_nobody(on: On) {
    for turned in [false, true] {
        let (app, _) = start(on).await;
        let order = |customer: u64, hour: u32| {
            json!({"id": 1, "email": format!("c{customer}@example.com"), "checkout_token": "k", "cart_token": "c", "currency": "EUR",
                "total_price": "10.00", "created_at": "2026-02-01T10:00:00Z", "updated_at": format!("2026-02-01T{hour}:00:00Z"),
                "customer": {"id": customer, "email": format!("c{customer}@example.com")}})
        };
        post(
            &app,
            "/v1/track",
            &json!({"anonymousId": "browser", "event": "Product Added", "properties": {"cart_token": "c"}}),
        )
        .await;
        let mut both = [("orders/create", order(1, 10)), ("orders/updated", order(2, 12))];
        if turned {
            both.reverse();
        }
        for (topic, body) in &both {
            deliver(&app, topic, topic, body, &[]).await;
            app.drain().await;
        }
        let [first, second] = [
            customer(&app, "shopify_customer_id", "1").await,
            customer(&app, "shopify_customer_id", "2").await,
        ];
        assert_ne!(first["id"], second["id"], "turned: {turned}");
        assert_eq!(
            (&first["orders_count"], &second["orders_count"]),
            (&json!(0), &json!(1)),
            "turned: {turned}"
        );
        assert_eq!(
            customer(&app, "anonymous_id", "browser").await["id"],
            first["id"],
            "who checked out is who was there"
        );
        app.stop().await;
    }
}

async fn other_topics_name_their_customer_and_nobody_elses(on: On) {
    let (app, _) = start(on).await;
    deliver(&app, "customers/create", "w0", &json!({"id": 7, "email": "a@example.com"}), &[]).await;
    let of_customer = [
        (
            "customer.joined_segment",
            json!({"customerId": "gid://shopify/Customer/7", "segmentId": "gid://shopify/Segment/1"}),
        ),
        (
            "customers/purchasing_summary",
            json!({"customerId": "gid://shopify/Customer/7", "occurredAt": "2026-02-01T10:00:00Z"}),
        ),
        (
            "customer_payment_methods/create",
            json!({"admin_graphql_api_id": "gid://shopify/CustomerPaymentMethod/1", "customer_id": 7}),
        ),
        (
            "subscription_contracts/create",
            json!({"id": 1, "admin_graphql_api_customer_id": "gid://shopify/Customer/7"}),
        ),
        (
            "customers_whats_app_marketing_consent/update",
            json!({"customer_id": 7, "phone_number": "+4915123456789",
            "whats_app_marketing_consent": {"state": "subscribed", "updated_at": "2026-02-01T10:00:00Z"}}),
        ),
    ];
    for (number, (topic, body)) in of_customer.iter().enumerate() {
        deliver(&app, topic, &format!("w{}", number + 1), body, &[]).await;
    }
    // A group's id is no customer's.
    deliver(&app, "customer_groups/create", "g", &json!({"id": 8, "name": "VIP", "query": "tag:vip"}), &[])
        .await;
    app.drain().await;
    let found = customer(&app, "shopify_customer_id", "7").await;
    assert_eq!(found["events_count"], 6, "{found}");
    assert_eq!(found["traits"]["whatsAppMarketingConsent"], "subscribed");
    assert_eq!(customer(&app, "phone", "%2B4915123456789").await["id"], found["id"]);
    assert!(is_nobody(&app, "shopify_customer_id", "8").await);
    app.stop().await;
}

async fn browsers_get_what_their_sdk_asks_for(on: On) {
    let (app, _) = start(on).await;
    let page =
        |path: &str| app.http.get(format!("{}{path}", app.url)).header("origin", "https://shop.example");
    let host = app.url.strip_prefix("http://").unwrap().to_owned();
    for (prefix, integration) in [("", "Segment.io"), ("/customerio", "Customer.io Data Pipelines")] {
        let asked = page(&format!("{prefix}/v1/projects/{}/settings", app.write_key)).send().await.unwrap();
        assert_eq!(asked.headers()["access-control-allow-origin"], "*");
        let settings: Value = asked.json().await.unwrap();
        let own = &settings["integrations"][integration];
        assert_eq!(json!([own["apiKey"], own["apiHost"]]), json!([&*app.write_key, &*format!("{host}/v1")]));
        assert_eq!(
            json!([own["protocol"], settings["integrations"].as_object().unwrap().len()]),
            json!(["http", 1])
        );
        let unknown = answer(page(&format!("{prefix}/v1/projects/wk_nobodys/settings"))).await;
        assert_eq!((unknown.0, unknown.1["code"].as_str()), (401, Some("invalid_key")));
        let secret = answer(page(&format!("{prefix}/v1/projects/{}/settings", app.secret_key))).await;
        assert_eq!((secret.0, secret.1["code"].as_str()), (403, Some("wrong_key")));
    }
    for path in [format!("/sourceConfig/?p=npm&v=3&writeKey={}", app.write_key), "/sourceConfig".to_owned()] {
        let asked = page(&path).basic_auth(&app.write_key, Some(""));
        let source = answer(asked).await.1["source"].clone();
        assert_eq!(json!([source["writeKey"], source["enabled"]]), json!([&*app.write_key, true]), "{path}");
        assert_eq!(source["destinations"], json!([]));
    }
    let measures =
        app.http.post(format!("{}/v1/m", app.url)).header("origin", "https://shop.example").body("{}");
    assert_eq!(answer(measures).await.0, 200);
    // A browser can read an answer that says no, and when to come back.
    let nowhere = page("/v1/nowhere").send().await.unwrap();
    assert_eq!(
        (nowhere.status().as_u16(), &nowhere.headers()["access-control-allow-origin"]),
        (404, &"*".parse().unwrap())
    );
    assert_eq!(nowhere.headers()["access-control-expose-headers"], "retry-after,x-request-id");
    app.stop().await;
}

async fn a_shops_pixel_is_understood(on: On) {
    let (app, _) = start(on).await;
    let event = |id: &str, name: &str, data: Value| {
        json!({"id": id, "name": name, "type": "standard", "clientId": "client-1", "seq": 1, "timestamp": at(T0), "data": data,
            "context": {"document": {"location": {"href": "https://shop.example/"}, "title": "Home"}}, "writeKey": app.write_key})
    };
    let checkout = json!({"checkout": {"token": "k1", "email": "a@example.com", "currencyCode": "EUR", "totalPrice": {"amount": 10.0}}});
    let events = [
        event("sh-1", "page_viewed", json!({})),
        event(
            "sh-2",
            "product_viewed",
            json!({"productVariant": {"id": "1", "product": {"id": "77", "title": "Mug"}}}),
        ),
        event("sh-3", "checkout_completed", checkout),
    ];
    for body in &events {
        // As a page without an origin of its own sends it: a text, and the key within.
        let sent = app
            .http
            .post(format!("{}/api/events", app.url))
            .header("origin", "null")
            .header("content-type", "text/plain");
        let (status, found) = answer(sent.body(body.to_string())).await;
        assert_eq!((status, &found["rejected"]), (202, &json!([])), "{found}");
    }
    let order = json!({"id": 5, "checkout_token": "k1", "currency": "EUR", "total_price": "10.00", "customer": {"id": 8},
        "created_at": "2026-02-01T10:00:00Z", "updated_at": "2026-02-01T10:00:00Z"});
    deliver(&app, "orders/create", "w1", &order, &[]).await;
    app.drain().await;
    let found = customer(&app, "anonymous_id", "client-1").await;
    assert_eq!((&found["orders_count"], &found["events_count"]), (&json!(1), &json!(4)), "{found}");
    assert_eq!(customer(&app, "email", "a@example.com").await["id"], found["id"]);
    let names: Vec<&str> = found["recent_events"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|event| event["name"].as_str())
        .collect();
    for name in ["Home", "Product Viewed", "Order Completed", "Order Created"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    app.stop().await;
}

async fn a_batch_of_four_megabytes_is_taken(on: On) {
    let (app, _) = start(on).await;
    let event = |number: usize| json!({"type": "track", "event": "E", "userId": "u", "messageId": format!("m{number}"), "properties": {"pad": "x".repeat(30_000)}});
    let batch = json!({"batch": (0..130).map(event).collect::<Vec<_>>()});
    assert!((3_900_000..4_194_304).contains(&batch.to_string().len()));
    post(&app, "/v1/batch", &batch).await;
    app.drain().await;
    assert_eq!(customer(&app, "user_id", "u").await["events_count"], 130);
    app.stop().await;
}
