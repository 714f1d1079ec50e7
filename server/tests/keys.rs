//! Keys: what they may do, who made them, how they end; on both profiles.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use reqwest::Method;
use serde_json::{Value, json};
use support::{On, TestApp, answer, key_with};
use tributary_core::domain::scopes::{Scope, Scopes};
use tributary_core::ports::tenants::{KeyGrant, KeyKind, key_id};
use tributary_core::services::tenants::hash;

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
        assert_eq!((status, body["code"].as_str()), (403, Some("missing_scope")), "{method} {path}");
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
        assert_eq!((status, body["code"].as_str()), (403, Some("missing_scope")), "{body}");
    }
    // Nor does it get one by rotating another's.
    let rotate = format!("/api/keys/{}/rotate", id(&app.secret_key));
    let (status, body) = call(&app, &clerk, Method::POST, &rotate, json!({})).await;
    assert_eq!((status, body["code"].as_str()), (403, Some("missing_scope")), "{body}");
    let (status, body) =
        call(&app, &clerk, Method::POST, "/api/keys", json!({"kind": "secret", "scopes": []})).await;
    assert_eq!((status, body["code"].as_str()), (400, Some("invalid_settings")), "{body}");

    let reader =
        made(&app, &clerk, json!({"kind": "secret", "scopes": ["read"], "expires_in_days": 1})).await;
    let entry = listed(&app, &reader).await;
    assert_eq!((&entry["scopes"], &entry["made_by"]), (&json!(["read"]), &json!(id(&clerk))));
    assert!(entry["expires_at"].is_string());
    let alike = made(&app, &clerk, json!({"kind": "secret"})).await;
    assert_eq!(listed(&app, &alike).await["scopes"], json!(["read", "admin"]), "as its maker, unless told");
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
    let maker = tributary_core::services::tenants::Maker {
        actor: "test",
        key: Some(&id(&leaked)),
        may: Scopes::all(),
    };
    assert!(tributary_core::services::tenants::add_key(&app.context, grant, maker).await.is_err());
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
        assert_eq!((status, body["code"].as_str()), (400, Some("invalid_settings")), "{body}");
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
    let before = app.context.tenants.keys(app.brand).await.unwrap();
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
    let strip = |keys: Vec<tributary_core::ports::tenants::KeyRecord>| {
        keys.into_iter().map(|k| (k.id, k.grant)).collect::<Vec<_>>()
    };
    assert_eq!(strip(app.context.tenants.keys(app.brand).await.unwrap()), strip(before));
    assert_eq!(app.context.tenants.settings(app.brand).await.unwrap().default_country, None);
    app.stop().await;
}

on_both_profiles!(
    a_key_does_what_its_scopes_say_and_nothing_else,
    a_key_makes_no_key_that_may_do_more_than_itself,
    revoking_a_leaked_key_tells_which_keys_of_it_live_on_or_ends_them,
    a_rotation_has_a_grace_with_an_end,
    what_is_done_to_keys_and_settings_stands_in_the_log_or_is_not_done,
);
