//! Keys: what they may do, who made them, how they end; on both profiles.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use reqwest::Method;
use serde_json::{Value, json};
use support::{On, TestApp, answer, key_with};
use tributary_core::domain::scopes::{Scope, Scopes};
use tributary_core::ports::brands::{KeyGrant, KeyKind, key_id};
use tributary_core::services::keys::hash;

async fn call(app: &TestApp, key: &str, method: Method, path: &str, body: Value) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    answer(app.http.request(method, format!("{}{path}", app.url)).bearer_auth(key).body(body)).await
}

async fn scoped(app: &TestApp, scopes: &[Scope]) -> String {
    let scopes: Scopes = scopes.iter().copied().collect();
    key_with(&app.context, KeyGrant { scopes, ..KeyGrant::new(app.brand, KeyKind::Secret) }).await
}

fn id(key: &str) -> String {
    key_id(&hash(key))
}

/// Makes a key with another, and answers its text.
async fn made(app: &TestApp, by: &str, body: Value) -> String {
    let (status, answer) = call(app, by, Method::POST, "/api/keys", body).await;
    assert_eq!(status, 201, "{answer}");
    answer["key"].as_str().unwrap().to_owned()
}

async fn listed(app: &TestApp, key: &str) -> Value {
    let (_, all) = call(app, &app.secret_key, Method::GET, "/api/keys", Value::Null).await;
    all["keys"].as_array().unwrap().iter().find(|one| one["id"] == id(key)).unwrap().clone()
}

async fn a_key_does_what_its_scopes_say_and_nothing_else(on: On) {
    let app = TestApp::start(on).await;
    let reader = scoped(&app, &[Scope::Read]).await;
    assert_eq!(call(&app, &reader, Method::GET, "/api/customers", Value::Null).await.0, 200);
    for (method, path, scope) in [
        (Method::PUT, "/api/segments/gold", "write"),
        (Method::GET, "/api/customers/019b7f3e-0000-7000-8000-000000000000/export", "export"),
        (Method::DELETE, "/api/customers/019b7f3e-0000-7000-8000-000000000000", "privacy"),
        (Method::POST, "/api/keys", "admin"),
        (Method::GET, "/api/signing-secret", "admin"),
    ] {
        let (status, body) = call(&app, &reader, method.clone(), path, json!({})).await;
        assert_eq!(json!([status, body["code"]]), json!([403, "missing_scope"]), "{method} {path}");
        let said = body["message"].as_str().unwrap();
        assert!(said.contains(&format!("scope {scope};")) && said.ends_with("has: read"), "{said}");
    }
    // Keys from before have every scope.
    assert_eq!(
        listed(&app, &app.secret_key).await["scopes"],
        json!(["read", "write", "export", "privacy", "admin"])
    );
    assert_eq!(listed(&app, &app.write_key).await["scopes"], json!([]));
    app.stop().await;
}

async fn a_key_makes_no_key_that_may_do_more_than_itself(on: On) {
    let app = TestApp::start(on).await;
    let clerk = scoped(&app, &[Scope::Admin, Scope::Read]).await;
    for scopes in [json!(["export"]), json!(["read", "privacy"])] {
        let (status, body) =
            call(&app, &clerk, Method::POST, "/api/keys", json!({"kind": "secret", "scopes": scopes})).await;
        assert_eq!(json!([status, body["code"]]), json!([403, "missing_scope"]), "{body}");
    }
    // Nor does it get one by rotating another's.
    let rotate = format!("/api/keys/{}/rotate", id(&app.secret_key));
    let (status, body) = call(&app, &clerk, Method::POST, &rotate, json!({})).await;
    assert_eq!(json!([status, body["code"]]), json!([403, "missing_scope"]), "{body}");
    let (status, body) =
        call(&app, &clerk, Method::POST, "/api/keys", json!({"kind": "secret", "scopes": []})).await;
    assert_eq!(json!([status, body["code"]]), json!([400, "invalid_settings"]), "{body}");

    let reader =
        made(&app, &clerk, json!({"kind": "secret", "scopes": ["read"], "expires_in_days": 1})).await;
    let entry = listed(&app, &reader).await;
    assert_eq!((&entry["scopes"], &entry["made_by"]), (&json!(["read"]), &json!(id(&clerk))));
    assert!(entry["expires_at"].is_string());
    let alike = made(&app, &clerk, json!({"kind": "secret"})).await;
    assert_eq!(listed(&app, &alike).await["scopes"], json!(["read", "admin"]), "as its maker, unless told");
    app.stop().await;
}

async fn a_key_makes_no_key_that_lives_longer_asks_more_often_or_is_not_its_to_end(on: On) {
    let app = TestApp::start(on).await;
    let owner = id(&app.secret_key);
    let asked =
        json!({"kind": "secret", "scopes": ["read", "admin"], "expires_in_days": 1, "rate_limit": 500});
    let brief = made(&app, &app.secret_key, asked).await;
    let end = listed(&app, &brief).await["expires_at"].as_str().unwrap().to_owned();
    let own = format!("/api/keys/{}", id(&brief));
    let (status, rotated) =
        call(&app, &brief, Method::POST, &format!("{own}/rotate"), json!({"grace_s": 3600})).await;
    assert_eq!(status, 201, "{rotated}");
    let mut keys = vec![rotated["key"].as_str().unwrap().to_owned()];
    for more in
        [json!({"kind": "secret"}), json!({"kind": "secret", "expires_in_days": 3650, "rate_limit": 100_000})]
    {
        keys.push(made(&app, &brief, more).await);
    }
    for key in &keys {
        let entry = listed(&app, key).await;
        assert!(entry["expires_at"].as_str().unwrap() <= end.as_str(), "{entry}");
        assert_eq!(entry["rate_limit"], 500, "{entry}");
    }
    let (status, set) = call(&app, &brief, Method::PUT, &own, json!({"rate_limit": null})).await;
    assert_eq!((status, &set["rate_limit"]), (200, &json!(500)), "nor does it lift its own limit");
    for (method, body) in [(Method::DELETE, Value::Null), (Method::PUT, json!({"rate_limit": 1}))] {
        let (status, body) = call(&app, &brief, method, &format!("/api/keys/{owner}"), body).await;
        assert_eq!(json!([status, body["code"]]), json!([403, "missing_scope"]), "{body}");
    }
    // A write key sends events: it has a limit of its own.
    let write = made(&app, &brief, json!({"kind": "write", "rate_limit": 2000})).await;
    assert_eq!(listed(&app, &write).await["rate_limit"], 2000);
    app.stop().await;
}

async fn a_secret_key_sends_no_events_from_a_page(on: On) {
    let app = TestApp::start(on).await;
    let event = json!({"event": "A", "userId": "u"});
    for (path, body) in [
        ("/v1/track", event.clone()),
        ("/v1/batch", json!({"batch": [{"type": "track", "event": "A", "userId": "u"}]})),
        ("/api/events", json!([{"type": "track", "event": "A", "userId": "u"}])),
    ] {
        let post = |key: &str| {
            app.http.post(format!("{}{path}", app.url)).basic_auth(key, Some("")).body(body.to_string())
        };
        let page = |key: &str| post(key).header("origin", "https://evil.example");
        let (status, answered) = answer(page(&app.secret_key)).await;
        assert_eq!(json!([status, answered["code"]]), json!([403, "wrong_key"]), "{path}: {answered}");
        for request in [post(&app.secret_key), page(&app.write_key)] {
            let (status, answered) = answer(request).await;
            assert!(status == 200 || status == 202, "{path}: {status} {answered}");
        }
    }
    app.stop().await;
}

async fn revoking_a_leaked_key_tells_which_keys_of_it_live_on_or_ends_them(on: On) {
    let app = TestApp::start(on).await;
    let leaked = scoped(&app, &[Scope::Admin, Scope::Read]).await;
    let child = made(&app, &leaked, json!({"kind": "secret"})).await;
    let grandchild = made(&app, &child, json!({"kind": "secret"})).await;
    // Whoever rotates a key has made the new one.
    let rotate = format!("/api/keys/{}/rotate", id(&grandchild));
    let (_, rotated) = call(&app, &grandchild, Method::POST, &rotate, json!({"grace_s": 0})).await;
    let rotated = rotated["key"].as_str().unwrap().to_owned();

    let path = format!("/api/keys/{}", id(&leaked));
    let (status, told) = call(&app, &app.secret_key, Method::DELETE, &path, Value::Null).await;
    let mut living = vec![id(&child), id(&rotated)];
    living.sort();
    assert_eq!(
        (status, &told["still_living"], &told["also_revoked"]),
        (200, &json!(living), &json!([])),
        "{told}"
    );
    assert_eq!(call(&app, &rotated, Method::GET, "/api/customers", Value::Null).await.0, 200);

    let path = format!("{path}?cascade=true");
    let (status, told) = call(&app, &app.secret_key, Method::DELETE, &path, Value::Null).await;
    let mut ended: Vec<String> = serde_json::from_value(told["also_revoked"].clone()).unwrap();
    ended.sort();
    assert_eq!((status, ended, &told["still_living"]), (200, living, &json!([])));
    for key in [&leaked, &child, &grandchild, &rotated] {
        assert_eq!(call(&app, key, Method::GET, "/api/customers", Value::Null).await.0, 401);
    }
    // A key that has ended makes no more: whatever a server still believes of it.
    let grant = KeyGrant::new(app.brand, KeyKind::Secret);
    let maker = tributary_core::services::keys::Maker {
        actor: "test",
        key: Some(&id(&leaked)),
        may: Scopes::all(),
        until: None,
        limit: None,
    };
    assert!(tributary_core::services::keys::add_key(&app.context, grant, maker).await.is_err());
    app.stop().await;
}

async fn a_rotation_has_a_grace_with_an_end(on: On) {
    let app = TestApp::start(on).await;
    let old =
        made(&app, &app.secret_key, json!({"kind": "secret", "scopes": ["read"], "rate_limit": 500})).await;
    let path = format!("/api/keys/{}/rotate", id(&old));
    for grace_s in [604_801_u32, u32::MAX] {
        let (status, body) =
            call(&app, &app.secret_key, Method::POST, &path, json!({"grace_s": grace_s})).await;
        assert_eq!(json!([status, body["code"]]), json!([400, "invalid_settings"]), "{body}");
    }
    let (status, new) = call(&app, &app.secret_key, Method::POST, &path, json!({"grace_s": 604_800})).await;
    assert_eq!(status, 201);
    let new = listed(&app, new["key"].as_str().unwrap()).await;
    assert_eq!((&new["scopes"], &new["rate_limit"]), (&json!(["read"]), &json!(500)), "like the old one");
    assert!(listed(&app, &old).await["expires_at"].is_string());
    app.stop().await;
}

async fn what_is_done_to_keys_and_settings_stands_in_the_log_or_is_not_done(on: On) {
    let app = TestApp::start(on).await;
    let key =
        made(&app, &app.secret_key, json!({"kind": "secret", "scopes": ["read"], "rate_limit": 9})).await;
    let actions = async || {
        let (_, log) = call(&app, &app.secret_key, Method::GET, "/api/privacy/audit", Value::Null).await;
        let entries = log["entries"].as_array().unwrap().clone();
        entries
            .into_iter()
            .map(|entry| (entry["action"].as_str().unwrap().to_owned(), entry["details"].clone()))
            .collect::<Vec<_>>()
    };
    let (what, details) = actions().await.swap_remove(0);
    assert_eq!(
        (what.as_str(), &details["scopes"], &details["rate_limit"]),
        ("key_added", &json!("read"), &json!(9))
    );
    assert!(!details.to_string().contains(&key[3..]), "never a key's text");

    // Where the log cannot be written, nothing is done.
    app.break_audit_log().await;
    let before = app.context.brand_ports.keys.keys(app.brand).await.unwrap();
    for (method, path, body) in [
        (Method::POST, "/api/keys".to_owned(), json!({"kind": "secret"})),
        (Method::POST, format!("/api/keys/{}/rotate", id(&key)), json!({})),
        (Method::PUT, format!("/api/keys/{}", id(&key)), json!({"rate_limit": 1})),
        (Method::DELETE, format!("/api/keys/{}", id(&key)), Value::Null),
        (Method::PUT, "/api/settings".to_owned(), json!({"default_country": "DE"})),
    ] {
        let (status, body) = call(&app, &app.secret_key, method.clone(), &path, body).await;
        assert!(status >= 500, "{method} {path}: {body}");
    }
    let strip = |keys: Vec<tributary_core::ports::brands::KeyRecord>| {
        keys.into_iter().map(|k| (k.id, k.grant)).collect::<Vec<_>>()
    };
    assert_eq!(strip(app.context.brand_ports.keys.keys(app.brand).await.unwrap()), strip(before));
    assert_eq!(app.context.brand_ports.brands.settings(app.brand).await.unwrap().default_country, None);
    app.stop().await;
}

/// The log's entries, newest first: action, actor, subject, details.
async fn log(app: &TestApp) -> Vec<(String, String, Value, Value)> {
    let (_, log) = call(app, &app.secret_key, Method::GET, "/api/privacy/audit?limit=100", Value::Null).await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let entries = log["entries"].as_array().unwrap().iter();
    entries
        .map(|e| (text(&e["action"]), text(&e["actor"]), e["subject"].clone(), e["details"].clone()))
        .collect()
}

async fn who_looked_at_whom_and_whose_key_was_refused_stands_in_the_log(on: On) {
    let app = TestApp::start(on).await;
    assert_eq!(answer(app.post("/v1/track", r#"{"userId":"ada","event":"E"}"#)).await.0, 200);
    app.drain().await;
    let reader = scoped(&app, &[Scope::Read]).await;
    let look = async |path: &str| call(&app, &reader, Method::GET, path, Value::Null).await;
    let id = look("/api/customers/by/user_id/ada/360").await.1["id"].clone();
    for path in [
        format!("/api/customers/{}/360", id.as_str().unwrap()),
        format!("/api/customers/{}/timeline", id.as_str().unwrap()),
    ] {
        assert_eq!(look(&path).await.0, 200);
    }
    assert_eq!(look("/api/customers").await.0, 200);
    assert_eq!(look("/api/queues/events/dead").await.0, 200);
    assert_eq!(look("/api/keys").await.0, 403);
    assert_eq!(call(&app, &app.write_key, Method::GET, "/api/keys", Value::Null).await.0, 403);
    call(&app, &app.secret_key, Method::GET, "/api/signing-secret", Value::Null).await;
    app.looks.tell(&app.context).await.unwrap();
    let log = log(&app).await;
    let actor = format!("key {}", self::id(&reader));
    for (action, subject, times) in [
        ("customer_read", &id, 2),
        ("timeline_read", &id, 1),
        ("customers_listed", &Value::Null, 1),
        ("dead_letters_read", &Value::Null, 1),
        ("key_refused_scope", &Value::Null, 1),
    ] {
        let found =
            log.iter().find(|e| e.0 == action && e.1 == actor).unwrap_or_else(|| panic!("{action}: {log:?}"));
        assert_eq!((&found.2, &found.3["times"]), (subject, &json!(times)), "{action}");
    }
    assert!(log.iter().any(|e| e.0 == "key_refused" && e.1 == format!("key {}", self::id(&app.write_key))));
    assert!(log.iter().any(|e| e.0 == "signing_secret_read"));
    app.stop().await;
}

async fn what_cannot_be_noted_is_not_done(on: On) {
    let app = TestApp::start(on).await;
    let batch = r#"{"batch":[{"type":"track","userId":"u"},{"type":"page","userId":"u"}]}"#;
    assert_eq!(answer(app.post("/v1/batch", batch)).await.0, 200);
    app.drain().await;
    let automation = json!({"name": "n", "trigger": {"on": "event", "event": "E"}, "steps": [{"do": "add_tag", "tag": "t"}]});
    let (_, made) = call(&app, &app.secret_key, Method::POST, "/api/automations", automation.clone()).await;
    let missing = "/api/queues/events/dead/nobody/retry";
    assert_eq!(call(&app, &app.secret_key, Method::POST, missing, Value::Null).await.0, 404);
    let wrong =
        call(&app, &app.secret_key, Method::PUT, "/api/segments/rfm_own", json!({"expression": "true"}))
            .await;
    assert_eq!(wrong.0, 400);
    let newest = log(&app).await;
    assert_eq!((newest[0].0.as_str(), &newest[0].3["not_done"]), ("not_done", &json!("segment_written")));
    assert_eq!(newest[1].0, "segment_written");

    app.break_audit_log().await;
    let id = made["id"].as_str().unwrap();
    for (method, path) in [
        (Method::POST, "/api/queues/events/dead/retry".to_owned()),
        (Method::DELETE, "/api/queues/events/dead".to_owned()),
        (Method::POST, "/api/queues/events/pause".to_owned()),
        (Method::POST, format!("/api/automations/{id}/activate")),
        (Method::DELETE, format!("/api/automations/{id}")),
        (Method::GET, "/api/signing-secret".to_owned()),
        (Method::POST, "/api/signing-secret/rotate".to_owned()),
    ] {
        let (status, body) = call(&app, &app.secret_key, method.clone(), &path, Value::Null).await;
        assert!(status >= 500, "{method} {path}: {body}");
        assert!(body["secret"].is_null());
    }
    let stats = app.context.queue.stats().await.unwrap();
    assert_eq!((stats.dead, stats.paused), (1, false));
    let (status, still) =
        call(&app, &app.secret_key, Method::GET, &format!("/api/automations/{id}"), Value::Null).await;
    assert_eq!((status, &still["status"]), (200, &json!("draft")));
    app.stop().await;
}

async fn mail_comes_from_domains_that_the_operator_names_for_a_brand(on: On) {
    let app = TestApp::start(on).await;
    let set = async |from: &str| {
        call(&app, &app.secret_key, Method::PUT, "/api/settings", json!({"email_from": from})).await
    };
    assert_eq!(set("Shop <hello@shop.example>").await.0, 200, "the only brand, and nothing named");
    let other = app.context.brand_ports.brands.add_brand("other").await.unwrap();
    let (status, body) = set("Shop <hello@shop.example>").await;
    assert_eq!(json!([status, body["code"]]), json!([400, "invalid_settings"]));
    assert!(body["message"].as_str().unwrap().contains("server admin brand domains"), "{body}");
    app.context.brand_cache.forget(app.brand);
    let held = app.context.brand_cache.settings(app.brand).await.unwrap();
    assert_eq!(held.email_from, None, "what was set before sends nothing any more");

    let domains = ["shop.example".to_owned(), "post.example".to_owned()];
    app.context.brand_ports.brands.set_email_domains(app.brand, Some(&domains), None).await.unwrap();
    for from in ["a@shop.example", "A <a@POST.example>"] {
        assert_eq!(set(from).await.0, 200, "{from}");
    }
    for from in
        ["a@other.example", "a@mail.shop.example", "a@shop.example.evil.example", "a@evilshop.example"]
    {
        assert_eq!(set(from).await.0, 400, "{from}");
    }
    app.context.brand_cache.forget(app.brand);
    assert!(app.context.brand_cache.settings(app.brand).await.unwrap().email_from.is_some());
    assert!(app.context.brand_ports.brands.email_domains(other).await.unwrap().is_none());
    app.stop().await;
}

on_both_profiles!(
    who_looked_at_whom_and_whose_key_was_refused_stands_in_the_log,
    what_cannot_be_noted_is_not_done,
    mail_comes_from_domains_that_the_operator_names_for_a_brand,
    a_key_does_what_its_scopes_say_and_nothing_else,
    a_key_makes_no_key_that_may_do_more_than_itself,
    a_secret_key_sends_no_events_from_a_page,
    a_key_makes_no_key_that_lives_longer_asks_more_often_or_is_not_its_to_end,
    revoking_a_leaked_key_tells_which_keys_of_it_live_on_or_ends_them,
    a_rotation_has_a_grace_with_an_end,
    what_is_done_to_keys_and_settings_stands_in_the_log_or_is_not_done,
);
