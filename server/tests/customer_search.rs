//! Finding customers, and a brand's own settings and keys.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use support::{On, TestApp, answer};

on_both_profiles!(
    customers_are_found_by_what_people_type,
    lists_are_paged_in_every_order_without_loss_or_repetition,
    a_trait_is_looked_for_page_by_page,
    settings_change_who_is_who,
    a_key_is_rotated_limited_and_revoked,
    what_is_old_is_deleted_where_the_brand_says_so,
);

async fn send(app: &TestApp, body: Value) {
    let (status, found) = answer(app.post("/api/events", body.to_string())).await;
    assert_eq!((status, &found["rejected"]), (202, &json!([])), "{found}");
    app.drain().await;
}

async fn get(app: &TestApp, path: &str) -> Value {
    let (status, found) = answer(app.get(path)).await;
    assert_eq!(status, 200, "{path}: {found}");
    found
}

async fn secret(app: &TestApp, method: reqwest::Method, path: &str, body: Value) -> (u16, Value) {
    let request = app.http.request(method, format!("{}{path}", app.url));
    answer(request.bearer_auth(&app.secret_key).body(body.to_string())).await
}

fn person(number: usize, first: &str, last: &str) -> Value {
    json!({"type": "identify", "userId": format!("u{number:03}"), "messageId": format!("m{number}"),
        "timestamp": format!("2026-01-{:02}T00:00:00Z", number % 28 + 1),
        "traits": {"email": format!("{}.{number}@example.com", first.to_lowercase()), "firstName": first, "lastName": last,
                   "plan": if number.is_multiple_of(3) { "gold" } else { "free" }, "age": number}})
}

async fn customers_are_found_by_what_people_type(on: On) {
    let app = TestApp::start(on).await;
    send(&app, json!([person(1, "Ada", "Lovelace"), person(2, "Bob", "Norman"), person(3, "Álfrún", "Ada")]))
        .await;
    let order = json!({"id": 5, "name": "#1001", "phone": "+49 170 1234567", "email": "bob.2@example.com", "total_price": "1.00"});
    let client = app.client();
    assert_eq!(answer(client.webhook(client.http(), "orders/create", "w", order.to_string())).await.0, 200);
    app.drain().await;
    for (typed, found) in [
        ("ada", vec!["u003", "u001"]),
        ("Ada Love", vec!["u001"]),
        ("lovelace", vec!["u001"]),
        ("norman bob", vec!["u002"]),
        ("ÁLFRÚN", vec!["u003"]),
        ("bob.2@", vec!["u002"]),
        ("%23" /* # */, vec![]),
        ("%231001", vec!["u002"]),
        ("1001", vec!["u002"]),
        ("%2B49170", vec!["u002"]),
        ("u00", vec!["u003", "u002", "u001"]),
        ("%25", vec![]),
        ("nobody", vec![]),
    ] {
        let page = get(&app, &format!("/api/customers?q={typed}")).await;
        let users: Vec<&str> = page["customers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["identifiers"][0]["value"].as_str().unwrap())
            .collect();
        let sorted = |users: &[&str]| users.iter().map(|user| (*user).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(sorted(&users), sorted(&found), "{typed}");
        assert!(page["next"].is_null());
    }
    let page = get(&app, "/api/customers?q=lovelace").await;
    assert_eq!(
        json!([page["customers"][0]["name"], page["customers"][0]["events_count"]]),
        json!(["Ada Lovelace", 1])
    );
    app.stop().await;
}

async fn lists_are_paged_in_every_order_without_loss_or_repetition(on: On) {
    let app = TestApp::start(on).await;
    for part in (0..45).collect::<Vec<_>>().chunks(15) {
        send(&app, part.iter().map(|n| person(*n, ["Zoe", "Ada", "Bob"][n % 3], "Same")).collect()).await;
    }
    send(
        &app,
        json!({"event": "E", "anonymousId": "nameless", "messageId": "x", "context": {"active": false}}),
    )
    .await;
    for (sort, count) in [("newest", 46), ("oldest", 46), ("last_seen", 45), ("name", 45)] {
        let mut seen: Vec<Value> = Vec::new();
        let mut after = String::new();
        loop {
            let page = get(&app, &format!("/api/customers?sort={sort}&limit=7{after}")).await;
            seen.extend(page["customers"].as_array().unwrap().iter().cloned());
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
        let ids: BTreeSet<&str> = seen.iter().map(|c| c["id"].as_str().unwrap()).collect();
        assert_eq!((seen.len(), ids.len()), (count, count), "{sort}");
        let key = |c: &Value| match sort {
            "last_seen" => c["last_seen"].as_str().unwrap().to_owned(),
            "name" => c["name"].as_str().unwrap().to_lowercase(),
            _ => c["id"].as_str().unwrap().to_owned(),
        };
        let keys: Vec<String> = seen.iter().map(key).collect();
        let mut wanted = keys.clone();
        wanted.sort();
        if matches!(sort, "newest" | "last_seen") {
            wanted.reverse();
        }
        assert_eq!(keys, wanted, "{sort}");
    }
    app.stop().await;
}

async fn a_trait_is_looked_for_page_by_page(on: On) {
    let app = TestApp::start(on).await;
    send(&app, (0..40).map(|n| person(n, "Ada", "Same")).collect()).await;
    let mut found = 0;
    let mut after = String::new();
    loop {
        let page = get(&app, &format!("/api/customers?trait=plan:gold&limit=5{after}")).await;
        found += page["customers"].as_array().unwrap().len();
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(found, 14);
    assert_eq!(
        get(&app, "/api/customers?trait=age:7").await["customers"].as_array().unwrap().len(),
        1,
        "a number"
    );
    assert_eq!(
        get(&app, "/api/customers?trait=plan:gold&q=ada.3%40").await["customers"].as_array().unwrap().len(),
        1
    );
    app.stop().await;
}

async fn settings_change_who_is_who(on: On) {
    let app = TestApp::start(on).await;
    let own = json!({"default_country": "DE", "blocked_identifiers": ["Test@Example.com"], "alias_links": true,
        "limits": {"kinds": {"user_id": 1}}});
    let (status, set) = secret(&app, reqwest::Method::PUT, "/api/settings", own).await;
    assert_eq!(
        json!([status, set["limits"]["merges"]]),
        json!([200, 200]),
        "what is left out has its usual value"
    );
    assert_eq!(get(&app, "/api/settings").await, set);
    // A part of them, by a merge patch: what is left out stays, null gives the usual value.
    let part = json!({"limits": {"merges": 100}, "default_country": "FR"});
    let (status, patched) = secret(&app, reqwest::Method::PATCH, "/api/settings", part).await;
    assert_eq!(
        (
            status,
            &patched["limits"]["kinds"]["user_id"],
            &patched["limits"]["merges"],
            &patched["alias_links"]
        ),
        (200, &json!(1), &json!(100), &json!(true))
    );
    let back = json!({"limits": {"merges": null}, "default_country": "DE"});
    assert_eq!(secret(&app, reqwest::Method::PATCH, "/api/settings", back).await, (200, set));
    for (wrong, says) in [(json!([1]), "object"), (json!({"default_contry": "DE"}), "default_contry")] {
        let (status, refused) = secret(&app, reqwest::Method::PATCH, "/api/settings", wrong).await;
        assert!(status == 400 && refused["message"].as_str().unwrap().contains(says), "{refused}");
    }
    send(&app, json!([
        {"type": "identify", "userId": "u1", "messageId": "1", "traits": {"email": "test@example.com", "phone": "0170 1234567"}},
        {"type": "identify", "userId": "u2", "messageId": "2", "traits": {"email": "TEST@example.com"}},
        {"type": "track", "event": "E", "anonymousId": "a9", "messageId": "3"},
    ])).await;
    send(&app, json!([{"type": "alias", "userId": "u2", "previousId": "a9", "messageId": "4"}])).await;
    let one = get(&app, "/api/customers/by/phone/0170%201234567/360").await;
    assert_eq!(
        one["identifiers"],
        json!([{"kind": "user_id", "value": "u1"}, {"kind": "phone", "value": "+491701234567"}])
    );
    let two = get(&app, "/api/customers/by/anonymous_id/a9/360").await;
    assert_eq!(two["identifiers"][0]["value"], "u2", "{two}");
    assert_ne!(one["id"], two["id"], "a blocked address joins nobody");
    app.stop().await;
}

async fn a_key_is_rotated_limited_and_revoked(on: On) {
    let app = TestApp::start(on).await;
    let (status, made) =
        secret(&app, reqwest::Method::POST, "/api/keys", json!({"kind": "write", "rate_limit": 3})).await;
    assert_eq!(status, 201, "{made}");
    let key = made["key"].as_str().unwrap().to_owned();
    let track = |key: &str| {
        app.http.post(format!("{}/v1/track", app.url)).bearer_auth(key).body(r#"{"userId":"u","event":"E"}"#)
    };
    // All at once: more than a second's worth, however slow the machine.
    let statuses = futures::future::join_all((0..30).map(async |_| {
        let response = track(&key).send().await.unwrap();
        if response.status() == 429 {
            let wait: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
            assert!((1..=2).contains(&wait), "{wait}");
        }
        response.status().as_u16()
    }))
    .await;
    let count = |status| statuses.iter().filter(|found| **found == status).count();
    assert!(count(200) >= 3 && count(429) > 0 && count(200) + count(429) == 30, "{statuses:?}");
    let listed = get(&app, "/api/keys").await;
    let entry = listed["keys"].as_array().unwrap().iter().find(|k| k["rate_limit"] == 3).unwrap().clone();
    assert!(entry["last_used_at"].is_string() && entry["expires_at"].is_null(), "{entry}");
    assert!(!listed.to_string().contains(&key), "a key's text is nowhere");
    let id = entry["id"].as_str().unwrap();
    let (status, _) =
        secret(&app, reqwest::Method::PUT, &format!("/api/keys/{id}"), json!({"rate_limit": null})).await;
    assert_eq!(status, 200);
    for _ in 0..8 {
        assert_eq!(track(&key).send().await.unwrap().status(), 200);
    }
    let (status, rotated) =
        secret(&app, reqwest::Method::POST, &format!("/api/keys/{id}/rotate"), json!({"grace_s": 3600}))
            .await;
    assert_eq!(status, 201, "{rotated}");
    let fresh = rotated["key"].as_str().unwrap();
    assert_eq!(track(&key).send().await.unwrap().status(), 200, "the old one has its grace");
    assert_eq!(track(fresh).send().await.unwrap().status(), 200);
    let (status, _) = secret(&app, reqwest::Method::DELETE, &format!("/api/keys/{id}"), json!({})).await;
    assert_eq!(status, 200);
    let (status, refused) = answer(track(&key)).await;
    assert_eq!(json!([status, refused["code"]]), json!([401, "invalid_key"]));
    assert_eq!(track(fresh).send().await.unwrap().status(), 200);
    let (status, _) = secret(&app, reqwest::Method::POST, &format!("/api/keys/{id}/rotate"), json!({})).await;
    assert_eq!(status, 404, "a key that has ended is not rotated");
    app.stop().await;
}

async fn what_is_old_is_deleted_where_the_brand_says_so(on: On) {
    use tributary_core::domain::time::from_ms;
    use tributary_core::services::privacy::retain;

    let app = TestApp::start(on).await;
    send(
        &app,
        json!([
            {"type": "identify", "userId": "keeps", "messageId": "1", "traits": {"plan": "gold"}},
            {"type": "page", "anonymousId": "gone", "messageId": "2", "timestamp": "2026-01-01T00:00:00Z"},
        ]),
    )
    .await;
    let order = json!({"id": 5, "email": "buyer@example.com", "total_price": "1.00", "created_at": "2026-01-01T00:00:00Z"});
    let client = app.client();
    assert_eq!(answer(client.webhook(client.http(), "orders/create", "w", order.to_string())).await.0, 200);
    app.drain().await;
    assert_eq!(retain(&app.context).await.unwrap(), 0, "nothing, unless the brand says so");
    let settings = serde_json::from_value(json!({"retention_days": 30})).unwrap();
    app.context.brand_cache.set(app.brand, &settings, None).await.unwrap();
    assert_eq!(retain(&app.context).await.unwrap(), 0, "all of it came today");
    // As if it had come long ago.
    let later = from_ms(app.context.world.now_ms() + 1000);
    assert_eq!(app.context.privacy.delete_expired_events(app.brand, later, 2).await.unwrap(), 2);
    assert_eq!(app.context.privacy.delete_expired_events(app.brand, later, 2).await.unwrap(), 1);
    let forgotten = app.context.privacy.inactive_profiles(app.brand, later, 10).await.unwrap();
    assert_eq!(forgotten.len(), 2, "who has ordered stays");
    let kept = get(&app, "/api/customers/by/email/buyer@example.com/360").await;
    assert_eq!(json!([kept["orders_count"], kept["recent_events"].as_array().unwrap().len()]), json!([1, 0]));
    app.stop().await;
}
