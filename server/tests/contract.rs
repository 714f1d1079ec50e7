//! The OpenAPI document is true: every error that it documents is returned, every one returned is documented (debug builds
//! refuse to answer otherwise), and no route shows one brand anything of another.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use backends::postgres::Postgres;
use backends::redis::{Fsync, Redis};
use futures::future::join_all;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use server::codes::{self, ANYWHERE, CODES};
use server::openapi::{codes_of, operations};
use server::router::document;
use server::scopes;
use stack::system::Access;
use support::{On, SHOP, TestApp, answer, key_with, services_backend};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tributary_core::domain::addresses::Reach;
use tributary_core::domain::automation::segment::MAX_SEGMENTS;
use tributary_core::domain::scopes::Scope;
use tributary_core::ports::brands::{KeyGrant, KeyKind, key_id};
use tributary_core::ports::queue::{NewItem, QueueSettings};
use tributary_core::services::automations::api::MAX_AUTOMATIONS;
use tributary_core::services::automations::preflight::{self, Abilities};
use tributary_core::services::keys::{hash, new_key};

/// A route that the document describes.
#[derive(Clone, Debug)]
struct Route {
    method: &'static str,
    path: String,
    /// The kind of key that it needs; `None` for none.
    key: Option<KeyKind>,
    codes: BTreeSet<(u16, String)>,
}

fn routes() -> Vec<Route> {
    operations(&document())
        .into_iter()
        .map(|(method, path, operation)| {
            let codes = codes_of(&operation);
            let has = |code: &str| codes.iter().any(|(_, known)| known == code);
            let writes = ["/v1/", "/customerio/", "/sourceConfig"].iter().any(|from| path.starts_with(from));
            let key = match (has("wrong_key"), writes || path == "/api/events") {
                (false, _) => None,
                (true, true) => Some(KeyKind::Write),
                (true, false) => Some(KeyKind::Secret),
            };
            Route { method, path, key, codes }
        })
        .collect()
}

/// A path with its parameters filled in; what is not named names nobody.
fn filled(path: &str, with: &BTreeMap<&str, String>) -> String {
    let mut parts: Vec<String> = path.split('/').map(str::to_owned).collect();
    for part in &mut parts {
        let Some(name) = part.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else { continue };
        *part = with.get(name).cloned().unwrap_or_else(|| match name {
            "queue" => "events".to_owned(),
            "kind" => "user_id".to_owned(),
            "value" => "nobody-at-all".to_owned(),
            "name" => "nobodys".to_owned(),
            "token" if path.starts_with("/confirm/") => "1.YUBiLmNv.AAAA".to_owned(),
            "token" => "1.019b7f3e-0000-7000-8000-000000000000.AAAA".to_owned(),
            _ => "019b7f3e-0000-7000-8000-000000000000".to_owned(),
        });
    }
    parts.join("/")
}

fn key_of(app: &TestApp, kind: KeyKind) -> &str {
    match kind {
        KeyKind::Write => &app.write_key,
        KeyKind::Secret => &app.secret_key,
    }
}

fn request(app: &TestApp, route: &Route, path: &str, query: &str) -> RequestBuilder {
    let method = Method::from_bytes(route.method.as_bytes()).unwrap();
    app.http.request(method, format!("{}{path}{query}", app.url))
}

/// A body that the route takes.
fn sound_body(route: &Route) -> Value {
    match route.path.as_str() {
        "/api/events" => json!({"event": "E", "userId": "u"}),
        path if path.starts_with("/v1/b") || path.starts_with("/v1/import") => {
            json!({"batch": [{"type": "track", "event": "E", "userId": "u"}]})
        }
        path if path.starts_with("/v1/") => {
            json!({"event": "E", "userId": "u", "groupId": "g", "previousId": "p"})
        }
        "/api/settings" => json!({}),
        "/api/privacy/erasures" => json!({"identifiers": [{"kind": "user_id", "value": "erased-by-a-test"}]}),
        "/api/keys" => json!({"kind": "write"}),
        "/api/segments/{name}" | "/api/segment-preview" => json!({"expression": "orders.count > 0"}),
        "/api/automations" | "/api/automations/{id}" => automation("E"),
        "/api/automations/{id}/dry-run" => json!({"customer": "019b7f3e-0000-7000-8000-000000000000"}),
        "/api/automations/{id}/test" => json!({"to": "writer@example.com"}),
        "/api/keys/{key}" => json!({"rate_limit": null}),
        _ => json!({}),
    }
}

fn automation(event: &str) -> Value {
    json!({"name": event, "trigger": {"on": "event", "event": event}, "steps": [{"do": "add_tag", "tag": "t"}]})
}

fn letter() -> Value {
    json!({"name": "writes", "trigger": {"on": "event", "event": "E"}, "steps": [{"do": "email", "subject": "s", "text": "t"}]})
}

/// An automation that writes an e-mail.
async fn writing(app: &TestApp) -> String {
    let made = secretly(app, Method::POST, "/api/automations", &letter()).await;
    made["id"].as_str().unwrap().to_owned()
}

/// With the secret key, as the brand's engineers would.
async fn secretly(app: &TestApp, method: Method, path: &str, body: &Value) -> Value {
    let request = app.http.request(method, format!("{}{path}", app.url)).bearer_auth(&app.secret_key);
    let (status, answer) = answer(request.body(body.to_string())).await;
    assert!((200..300).contains(&status), "{path}: {answer}");
    answer
}

/// A run of that user's that has ended.
async fn ended_run(app: &TestApp, event: &str, user: &str) -> String {
    let made = secretly(app, Method::POST, "/api/automations", &automation(event)).await;
    let id = made["id"].as_str().unwrap().to_owned();
    secretly(app, Method::POST, &format!("/api/automations/{id}/activate"), &json!({})).await;
    let message = json!({"event": event, "userId": user, "messageId": format!("{event}-{user}")});
    assert_eq!(answer(app.post("/api/events", message.to_string())).await.0, 202);
    app.drain().await;
    let runs = secretly(app, Method::GET, &format!("/api/automations/{id}/runs"), &json!({})).await;
    assert_eq!(runs["runs"][0]["status"], "done", "{runs}");
    runs["runs"][0]["id"].as_str().unwrap().to_owned()
}

fn webhook(app: &TestApp, id: &str, body: &str) -> RequestBuilder {
    let client = app.client();
    client.webhook(client.http(), "themes/publish", id, body.to_owned())
}

/// As another shop would send it, or with another secret.
fn webhook_of(app: &TestApp, shop: &str, secret: &str) -> RequestBuilder {
    let access = Access {
        url: app.url.clone(),
        write_key: String::new(),
        secret_key: String::new(),
        shop_domain: shop.into(),
        shop_secret: secret.into(),
    };
    let client = stack::client::Client::new(access).unwrap();
    client.webhook(client.http(), "themes/publish", "other", "{}".to_owned())
}

/// A request that must be answered with that code; `None` where another test provokes it.
async fn provoke(app: &TestApp, route: &Route, code: &str) -> Option<RequestBuilder> {
    let path = filled(&route.path, &BTreeMap::new());
    let plain = |query: &str| request(app, route, &path, query);
    let keyed = |query: &str| match route.key {
        Some(kind) => plain(query).bearer_auth(key_of(app, kind)),
        None => plain(query),
    };
    let with = |body: &Value| keyed("").body(body.to_string());
    let is_webhook = route.path == "/api/webhooks/shopify";
    let padded = |size: usize| json!({"pad": "x".repeat(size)}).to_string();
    let in_batch = |message: Value| match route.path.as_str() {
        path if path.starts_with("/v1/b") || path.starts_with("/v1/import") => {
            with(&json!({"batch": [message]}))
        }
        _ => with(&message),
    };
    let with_key_in_path = |key: &str| {
        let path = filled(&route.path, &BTreeMap::from([("writeKey", key.to_owned())]));
        request(app, route, &path, "")
    };
    let is_settings = route.path.contains("{writeKey}");
    Some(match code {
        "invalid_key" if is_settings => with_key_in_path("wk_nobodys"),
        "wrong_key" if is_settings => with_key_in_path(&app.secret_key),
        // Of keys that are not known: as of any key.
        "rate_limited" if is_settings || route.path == "/sourceConfig" => return None,
        "invalid_query" if route.path == "/sourceConfig" => plain("?writeKey=a&writeKey=b"),
        // From this machine none is needed.
        "no_key" if route.path == "/metrics" || route.path.starts_with("/api/monitoring/") => {
            plain("").header("x-forwarded-for", "203.0.113.7")
        }
        "no_key" => plain("").body(sound_body(route).to_string()),
        "invalid_key" => plain("").bearer_auth("sk_nobodys").body(sound_body(route).to_string()),
        "wrong_key" if route.key == Some(KeyKind::Write) => {
            let read = [Scope::Read].into_iter().collect();
            let reader = key_with(
                &app.context,
                KeyGrant { scopes: read, ..KeyGrant::new(app.brand, KeyKind::Secret) },
            );
            plain("").bearer_auth(reader.await).body(sound_body(route).to_string())
        }
        "wrong_key" => {
            let other = if route.key == Some(KeyKind::Write) { KeyKind::Secret } else { KeyKind::Write };
            plain("").bearer_auth(key_of(app, other)).body(sound_body(route).to_string())
        }
        // Of a shop: as of a key.
        "rate_limited" if is_webhook => return None,
        "rate_limited" => {
            let brand_ports = &app.context.brand_ports;
            let key =
                new_key(brand_ports, &app.context.world, app.brand, route.key.unwrap_or(KeyKind::Secret))
                    .await
                    .unwrap();
            brand_ports.keys.limit_key(app.brand, &key_id(&hash(&key)), Some(1), None).await.unwrap();
            let once = || plain("").bearer_auth(&key).body(sound_body(route).to_string());
            // More than a second's worth, all at once: the next is refused, however slow the machine.
            let burst = join_all((0..4).map(|_| answer(once()))).await;
            assert!(burst.iter().any(|(status, _)| *status != 429), "{route:?}");
            once()
        }
        "missing_scope" => {
            // All scopes but the one that the route needs.
            let method = Method::from_bytes(route.method.as_bytes()).unwrap();
            let needed = scopes::needed(&method, &route.path).unwrap();
            let others = Scope::ALL.into_iter().filter(|scope| *scope != needed).collect();
            let grant = KeyGrant { scopes: others, ..KeyGrant::new(app.brand, KeyKind::Secret) };
            let key = key_with(&app.context, grant).await;
            plain("").bearer_auth(&key).body(sound_body(route).to_string())
        }
        "payload_too_large" if is_webhook => webhook(app, "big", &padded(server::body::MAX_WEBHOOK_BYTES)),
        "payload_too_large" if route.path.starts_with("/v1/") || route.path == "/api/events" => {
            keyed("").body(padded(server::body::MAX_BATCH_BYTES))
        }
        "payload_too_large" => keyed("").body(padded(server::body::MAX_BODY_BYTES)),
        "invalid_gzip" => keyed("").header("content-encoding", "gzip").body("not gzip"),
        "invalid_json" if is_webhook => webhook(app, "json", "not json"),
        "invalid_json" => keyed("").body("not json"),
        "invalid_query" | "invalid_limit" if route.path.ends_with("/claims") => keyed("?shop=a&shop=b"),
        "invalid_query" if route.path == "/api/keys/{key}" => keyed("?cascade=perhaps"),
        "invalid_query" => keyed("?limit=many"),
        "invalid_limit" => keyed("?limit=0"),
        "invalid_after"
            if ["/dead", "/runs", "/changes", "/segments"].iter().any(|end| route.path.ends_with(end))
                || route.path.ends_with("/customers") =>
        {
            keyed("?after=nowhere")
        }
        "invalid_segment" => {
            let path = filled(&route.path, &BTreeMap::from([("name", "rfm_mine".to_owned())]));
            request(app, route, &path, "").bearer_auth(&app.secret_key).body(sound_body(route).to_string())
        }
        "invalid_expression" if route.path.starts_with("/api/automations") => {
            let mut wrong = automation("E");
            wrong["condition"] = "orders.count >".into();
            with(&wrong)
        }
        "invalid_expression" => with(&json!({"expression": "order.count > 1"})),
        "invalid_automation" if route.path.ends_with("/dry-run") || route.path.ends_with("/test") => {
            let path = filled(&route.path, &BTreeMap::from([("id", writing(app).await)]));
            let body = if route.path.ends_with("/test") { json!({"to": "nobody"}) } else { json!({}) };
            request(app, route, &path, "").bearer_auth(&app.secret_key).body(body.to_string())
        }
        "invalid_automation" => {
            let mut wrong = automation("E");
            wrong["steps"] = json!([]);
            with(&wrong)
        }
        "refused" if route.method == "PUT" && route.path.starts_with("/api/segments") => {
            let path = |name: &str| filled(&route.path, &BTreeMap::from([("name", name.to_owned())]));
            let put = |name: &str| {
                let asked = request(app, route, &path(name), "").bearer_auth(&app.secret_key);
                asked.body(sound_body(route).to_string())
            };
            for number in 0..MAX_SEGMENTS {
                put(&format!("full_{number}")).send().await.unwrap();
            }
            put("one_too_many")
        }
        "refused"
            if route.path == "/api/automations" || route.path.starts_with("/api/automation-templates") =>
        {
            // Of a brand of its own, which no other answer needs.
            let full =
                app.context.brand_ports.brands.add_brand(&format!("full of {}", route.path)).await.unwrap();
            let key = key_with(&app.context, KeyGrant::new(full, KeyKind::Secret)).await;
            for number in 0..MAX_AUTOMATIONS {
                let made = app.http.post(format!("{}/api/automations", app.url)).bearer_auth(&key);
                made.body(automation(&format!("Full {number}")).to_string()).send().await.unwrap();
            }
            let template = secretly(app, Method::GET, "/api/automation-templates", &json!({})).await;
            let template = template["templates"][0]["name"].as_str().unwrap().to_owned();
            let path = filled(&route.path, &BTreeMap::from([("template", template)]));
            request(app, route, &path, "").bearer_auth(&key).body(sound_body(route).to_string())
        }
        // Workers have no mail server.
        "refused" if route.path.starts_with("/api/automations/") => {
            preflight::report_abilities(
                &app.context,
                Abilities { mail: false, public_url: false, reach: Reach::default() },
            )
            .await;
            let id = match route.method {
                "PUT" => {
                    let made = secretly(app, Method::POST, "/api/automations", &automation("Edited")).await;
                    let id = made["id"].as_str().unwrap().to_owned();
                    secretly(app, Method::POST, &format!("/api/automations/{id}/activate"), &json!({})).await;
                    id
                }
                _ if route.path.ends_with("/test") => {
                    let made = secretly(app, Method::POST, "/api/automations", &automation("Silent")).await;
                    made["id"].as_str().unwrap().to_owned()
                }
                _ => writing(app).await,
            };
            let path = filled(&route.path, &BTreeMap::from([("id", id)]));
            let body = if route.method == "PUT" { letter() } else { sound_body(route) };
            request(app, route, &path, "").bearer_auth(&app.secret_key).body(body.to_string())
        }
        "refused" if route.path.starts_with("/api/segments") => {
            let path = filled(&route.path, &BTreeMap::from([("name", "rfm_lost".to_owned())]));
            request(app, route, &path, "").bearer_auth(&app.secret_key)
        }
        "refused" if route.path.starts_with("/api/runs") => {
            let run = ended_run(app, &route.path, "whoever").await;
            let path = filled(&route.path, &BTreeMap::from([("run", run)]));
            request(app, route, &path, "").bearer_auth(&app.secret_key)
        }
        "invalid_after" => keyed("?before=nowhere"),
        "unknown_kind" if route.path == "/api/privacy/erasures" => {
            with(&json!({"identifiers": [{"kind": "shoe_size", "value": "42"}]}))
        }
        "unknown_kind" => {
            let path = filled(&route.path, &BTreeMap::from([("kind", "shoe_size".to_owned())]));
            request(app, route, &path, "").bearer_auth(&app.secret_key)
        }
        "invalid_identifier" => with(&json!({"identifiers": [{"kind": "email", "value": "nobody"}]})),
        "invalid_settings" if route.path == "/api/keys" => with(&json!({"kind": "write", "rate_limit": 0})),
        "invalid_settings" if route.path == "/api/keys/{key}" => with(&json!({"rate_limit": 0})),
        "invalid_settings" if route.path.ends_with("/rotate") => with(&json!({"grace_s": 4_294_967_295_u32})),
        "invalid_settings" => with(&json!({"default_country": "Atlantis"})),
        "not_found" if route.path.ends_with("/claims") => keyed(&format!("?shop={SHOP}&webhook_id=never")),
        "not_found"
            if route.path == "/api/queues/{queue}" || route.path.starts_with("/api/queues/{queue}/") =>
        {
            let path = filled(&route.path, &BTreeMap::from([("queue", "nowhere".to_owned())]));
            request(app, route, &path, "").bearer_auth(&app.secret_key)
        }
        "not_found" if route.path.contains("{name}") => {
            let path = filled(&route.path, &BTreeMap::from([("name", "never_made".to_owned())]));
            request(app, route, &path, "").bearer_auth(&app.secret_key)
        }
        "not_found" => with(&sound_body(route)),
        "refused" => {
            let done =
                answer(app.post("/api/events", json!({"event": "E", "userId": "one"}).to_string())).await;
            assert_eq!(done.0, 202);
            app.drain().await;
            let (_, one) = answer(app.get("/api/customers/by/user_id/one/360")).await;
            let id = one["id"].as_str().unwrap().to_owned();
            let merge = match route.path.contains("/split") {
                false => String::new(),
                true => undone_merge(app).await,
            };
            let with = BTreeMap::from([("id", id.clone()), ("other", id), ("merge", merge)]);
            request(app, route, &filled(&route.path, &with), "").bearer_auth(&app.secret_key)
        }
        "shared_queue" => {
            let _ = app.context.brand_ports.brands.add_brand("another").await;
            keyed("")
        }
        "missing_header" => plain("").body("{}"),
        "invalid_hmac" => webhook_of(app, SHOP, "another secret"),
        "invalid_webhook" => webhook(app, "elsewhere", r#"{"shop_domain": "other.myshopify.com"}"#),
        "idempotency_conflict" => {
            let _ = answer(webhook(app, "twice", r#"{"id": 1}"#)).await;
            webhook(app, "twice", r#"{"id": 2}"#)
        }
        "too_many_events" => {
            let many = vec![json!({"type": "page", "userId": "u"}); 2501];
            with(&if route.path == "/api/events" { json!(many) } else { json!({"batch": many}) })
        }
        "context_too_large" => {
            let many = vec![json!({"type": "page", "userId": "u"}); 2400];
            with(&json!({"batch": many, "context": {"pad": "x".repeat(6000)}}))
        }
        "event_too_large" => {
            in_batch(json!({"type": "track", "event": "E", "userId": "u", "pad": "x".repeat(33_000)}))
        }
        "too_deep" => {
            let deep = format!("{}1{}", "[".repeat(110), "]".repeat(110));
            let message = format!(r#"{{"type": "track", "event": "E", "userId": "u", "deep": {deep}}}"#);
            let whole = route.path.starts_with("/v1/b") || route.path.starts_with("/v1/import");
            keyed("").body(if whole { format!(r#"{{"batch": [{message}]}}"#) } else { message })
        }
        "no_user_anon_id" => in_batch(json!({"type": "track", "event": "E"})),
        "no_type" => in_batch(json!({"userId": "u"})),
        "invalid_type" => in_batch(json!({"type": "dance", "userId": "u"})),
        "invalid_event" => in_batch(json!([1])),
        "invalid_message_id" => in_batch(
            json!({"type": "track", "event": "E", "userId": "u", "groupId": "g", "previousId": "p", "messageId": "x".repeat(101)}),
        ),
        "invalid_name" => in_batch(
            json!({"type": "track", "event": "x".repeat(501), "userId": "u", "groupId": "g", "previousId": "p"}),
        ),
        "invalid_timestamp" => in_batch(
            json!({"type": "track", "event": "E", "userId": "u", "groupId": "g", "previousId": "p", "timestamp": "once"}),
        ),
        // Each is one kind's: where the route is of another kind, it cannot be.
        "no_event" | "no_group_id" | "no_previous_id" => {
            let kind = match code {
                "no_event" => "track",
                "no_group_id" => "group",
                _ => "alias",
            };
            in_batch(json!({"type": kind, "userId": "u"}))
        }
        "invalid_body" | "body_timeout" | "queue_unavailable" | "queue_full" | "share_full"
        | "store_unavailable" => {
            return None;
        }
        other => panic!("{} {} documents {other}, which no test provokes", route.method, route.path),
    })
}

/// A merge that was undone already.
async fn undone_merge(app: &TestApp) -> String {
    for (at, user) in ["left", "right"].into_iter().enumerate() {
        let event = json!({"event": "E", "userId": user, "messageId": format!("side{at}")});
        assert_eq!(answer(app.post("/api/events", event.to_string())).await.0, 202);
        app.drain().await;
    }
    let mut ids = Vec::new();
    for user in ["left", "right"] {
        let (_, found) = answer(app.get(&format!("/api/customers/by/user_id/{user}/360"))).await;
        ids.push(found["id"].as_str().unwrap().to_owned());
    }
    let url = format!("{}/api/customers/{}/merge/{}", app.url, ids[0], ids[1]);
    let (status, merged) = answer(app.http.post(url).bearer_auth(&app.secret_key)).await;
    assert_eq!(status, 200, "{merged}");
    let merge = merged["merge"].as_str().unwrap().to_owned();
    let url = format!("{}/api/merges/{merge}/split", app.url);
    assert_eq!(answer(app.http.post(url).bearer_auth(&app.secret_key)).await.0, 200);
    merge
}

/// The message kind that a route of one message is for.
fn kind_of(path: &str) -> Option<&'static str> {
    let name = path.strip_prefix("/v1/")?.trim_end_matches('/');
    ["track", "identify", "page", "screen", "group", "alias"]
        .into_iter()
        .find(|kind| *kind == name || kind[..1] == *name)
}

/// Whether a documented code is of another kind of message than the route takes.
fn other_kinds(route: &Route, code: &str) -> bool {
    let Some(kind) = kind_of(&route.path) else { return false };
    match code {
        "no_event" => kind != "track",
        "no_group_id" => kind != "group",
        "no_previous_id" => kind != "alias",
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_documented_error_is_returned() {
    let app = TestApp::start(On::Embedded).await;
    let mut provoked = BTreeSet::new();
    for route in routes() {
        for (status, code) in &route.codes {
            if other_kinds(&route, code) {
                continue;
            }
            let Some(request) = provoke(&app, &route, code).await else { continue };
            let (found, body) = answer(request).await;
            assert_eq!(
                (found, body["code"].as_str()),
                (*status, Some(code.as_str())),
                "{} {}: {body}",
                route.method,
                route.path
            );
            assert!(body["message"].as_str().is_some_and(|text| !text.is_empty()));
            provoked.insert(code.clone());
        }
    }
    let (status, body) = answer(app.http.delete(format!("{}/openapi.json", app.url))).await;
    assert_eq!(json!([status, body["code"]]), json!([405, "method_not_allowed"]));
    // What needs a broken body, a full queue or an outage is provoked below; a defect by a hand in the data.
    let elsewhere = [
        "invalid_body",
        "body_timeout",
        "queue_unavailable",
        "queue_full",
        "share_full",
        "store_unavailable",
    ];
    for code in CODES.iter().filter(|code| !ANYWHERE.contains(&code.name) && !elsewhere.contains(&code.name))
    {
        assert!(provoked.contains(code.name), "no route documents {}", code.name);
    }
    app.stop().await;
}

/// Speaks HTTP by hand, and answers status and code.
async fn by_hand(app: &TestApp, route: &Route, headers: &str, body: &str) -> (u16, String) {
    let address = app.url.strip_prefix("http://").unwrap();
    let mut socket = TcpStream::connect(address).await.unwrap();
    let key =
        route.key.map(|kind| format!("authorization: Bearer {}\r\n", key_of(app, kind))).unwrap_or_default();
    let path = filled(&route.path, &BTreeMap::new());
    // What Shopify always sends is looked at before the body.
    let shopify: String = ["hmac-sha256", "shop-domain", "topic", "webhook-id", "api-version"]
        .iter()
        .filter(|_| path == "/api/webhooks/shopify")
        .map(|name| format!("x-shopify-{name}: x\r\n"))
        .collect();
    let head = format!(
        "{} {path} HTTP/1.1\r\nhost: {address}\r\n{key}{shopify}{headers}\r\n\r\n{body}",
        route.method
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&answer).contains("\"message\"") {
        let read = socket.read(&mut buffer).await.unwrap();
        assert!(read > 0, "{route:?}: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buffer[..read]);
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    let code = text.split("\"code\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
    (status, code.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_breaks_off_or_never_comes_is_named() {
    let app = TestApp::start(On::Embedded).await;
    let all = routes();
    let with = |code: &'static str| {
        all.iter().filter(move |route| route.codes.iter().any(|(_, known)| known == code))
    };
    for route in with("invalid_body") {
        let broken = by_hand(&app, route, "transfer-encoding: chunked", "zzz\r\n").await;
        assert_eq!(broken, (400, "invalid_body".to_owned()), "{route:?}");
    }
    // All at once: each waits for as long as the server does.
    let slow = with("body_timeout").map(async |route| {
        let late = by_hand(&app, route, "content-length: 100", "{").await;
        assert_eq!(late, (408, "body_timeout".to_owned()), "{route:?}");
    });
    assert!(join_all(slow).await.len() > 10);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_is_named() {
    let settings = QueueSettings { max_depth: 1, ..QueueSettings::default() };
    let app = TestApp::start_with(On::Embedded, 0, settings).await;
    app.context.queue.enqueue(&[NewItem::default()]).await.unwrap();
    let mut tried = 0;
    for route in routes().iter().filter(|route| route.codes.iter().any(|(_, code)| code == "queue_full")) {
        let response = match route.path.as_str() {
            "/api/webhooks/shopify" => webhook(&app, "full", "{}"),
            path => {
                request(&app, route, path, "").bearer_auth(&app.write_key).body(sound_body(route).to_string())
            }
        };
        let response = response.send().await.unwrap();
        assert!(response.headers().contains_key("retry-after"));
        let (status, body): (u16, Value) = (response.status().as_u16(), response.json().await.unwrap());
        assert_eq!(json!([status, body["code"]]), json!([503, "queue_full"]), "{route:?}");
        tried += 1;
    }
    assert!(tried > 10);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_away_is_named() {
    let mut redis = Redis::start(Fsync::Always).await.unwrap();
    let mut postgres = Postgres::start().await.unwrap();
    let backend = services_backend(&postgres.url(), &redis.url());
    let app = TestApp::start_on(&backend, tempfile::tempdir().unwrap(), 0, QueueSettings::default()).await;
    let with = |code: &'static str| {
        routes()
            .into_iter()
            .filter(move |route| route.codes.iter().any(|(_, known)| known == code))
            .collect::<Vec<_>>()
    };
    let plain = |route: &Route, key: &str| match route.path.as_str() {
        "/api/webhooks/shopify" => webhook(&app, "away", "{}"),
        path => request(&app, route, &filled(path, &BTreeMap::new()), "")
            .bearer_auth(key)
            .body(sound_body(route).to_string()),
    };
    // Known from before, for the time that the store is unavailable.
    assert_eq!(answer(app.post("/v1/track", r#"{"event": "E", "userId": "u"}"#)).await.0, 200);
    app.drain().await;
    let (_, customer) = answer(app.get("/api/customers/by/user_id/u/360")).await;
    let id = customer["id"].as_str().unwrap().to_owned();
    assert_eq!(answer(webhook(&app, "known", "{}")).await.0, 200);

    redis.kill().unwrap();
    let asked = with("queue_unavailable");
    let (taking, looking): (Vec<&Route>, Vec<&Route>) = asked
        .iter()
        .partition(|route| route.key == Some(KeyKind::Write) || route.path == "/api/webhooks/shopify");
    // Taking events in goes on without Redis: only where the store is unavailable, too, there is nothing to be done.
    let refused = async |route: &Route, request: RequestBuilder| {
        let (status, body) = answer(request).await;
        assert_eq!(json!([status, body["code"]]), json!([503, "queue_unavailable"]), "{route:?}: {body}");
    };
    let looked = looking.iter().map(async |route| {
        let here = match route.path.starts_with("/api/customers") {
            true => BTreeMap::from([("id", id.clone())]),
            false => BTreeMap::new(),
        };
        let query = if route.path.ends_with("/claims") {
            format!("?shop={SHOP}&webhook_id=w")
        } else {
            String::new()
        };
        let asked = request(&app, route, &filled(&route.path, &here), &query);
        refused(route, asked.bearer_auth(&app.secret_key).body(sound_body(route).to_string())).await;
    });
    assert!(join_all(looked).await.len() > 10);
    postgres.kill().unwrap();
    let taken = taking.iter().map(async |route| refused(route, plain(route, &app.write_key)).await);
    assert!(join_all(taken).await.len() > 10);
    redis.restart().await.unwrap();
    while app.context.queue.stats().await.is_err() {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    // A key or a shop that nobody has asked for yet.
    let asked = with("store_unavailable");
    let unknown = asked.iter().map(async |route| {
        let request = match route.path.as_str() {
            "/api/webhooks/shopify" => webhook_of(&app, "new.myshopify.com", "secret"),
            _ => plain(route, "sk_new"),
        };
        let (status, body) = answer(request).await;
        assert_eq!(json!([status, body["code"]]), json!([503, "store_unavailable"]), "{route:?}: {body}");
    });
    assert!(join_all(unknown).await.len() > 30);
    postgres.restart().await.unwrap();
    app.stop().await;
}

/// Deny by default: a route that takes a secret key and declares no scope is closed, so there is none such.
#[test]
fn every_route_of_a_secret_key_declares_its_scope_in_the_document() {
    let document = document();
    let mut declared = BTreeSet::new();
    for (method, path, operation) in operations(&document) {
        let security = serde_json::to_value(&operation.security).unwrap();
        let secret = security.as_array().into_iter().flatten().find_map(|one| one.get("secret_key"));
        let takes_one = codes_of(&operation).iter().any(|(_, code)| code == "missing_scope");
        assert_eq!(secret.is_some(), takes_one, "{method} {path}: security and errors say the same");
        let Some(secret) = secret else { continue };
        let needed = scopes::needed(&Method::from_bytes(method.as_bytes()).unwrap(), &path);
        let needed = needed.unwrap_or_else(|| panic!("{method} {path} has no scope in server/src/scopes.rs"));
        assert_eq!(*secret, json!([needed.as_str()]), "{method} {path}");
        declared.insert((method.to_owned(), path));
    }
    let table: BTreeSet<_> =
        scopes::TABLE.iter().map(|(m, p, _)| ((*m).to_owned(), (*p).to_owned())).collect();
    assert_eq!(table.len(), scopes::TABLE.len(), "each route stands once");
    assert_eq!(table, declared, "the table has no route that is not there");
}

/// A text that stands in everything that one brand has, and nowhere else.
const MARK: &str = "marked7f3e";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_route_shows_one_brand_anything_of_another() {
    for on in [On::Embedded, On::Services] {
        let app = TestApp::start(on).await;
        // Brand A has customers, orders, a dead letter, a merge, a privacy request, a key, settings: all of them marked.
        let user = |name: &str| format!("{MARK}-{name}");
        let events = json!([
            {"type": "identify", "userId": user("ada"), "messageId": user("m1"), "traits": {"firstName": MARK, "email": format!("{MARK}@example.com")}},
            {"type": "track", "event": MARK, "userId": user("bob"), "messageId": user("m2")},
        ]);
        assert_eq!(answer(app.post("/api/events", events.to_string())).await.0, 202);
        let order = json!({"id": 77, "name": format!("#{MARK}"), "email": format!("{MARK}@example.com"), "total_price": "10.00",
            "currency": "USD", "created_at": "2026-01-02T00:00:00Z"});
        let client = app.client();
        assert_eq!(
            answer(client.webhook(client.http(), "orders/create", "w1", order.to_string())).await.0,
            200
        );
        let asked = json!({"shop_id": 1, "shop_domain": support::SHOP, "customer": {"email": format!("{MARK}@example.com")}});
        assert_eq!(
            answer(client.webhook(client.http(), "customers/data_request", "w2", asked.to_string())).await.0,
            200
        );
        let bad = json!({"batch": [{"type": "track", "userId": user("bad")}, {"type": "page", "userId": user("bob")}]});
        assert_eq!(answer(app.post("/v1/batch", bad.to_string())).await.0, 200);
        app.drain().await;
        tributary_core::services::privacy::carry_out(&app.context).await.unwrap();
        let settings = json!({"blocked_identifiers": [MARK]}).to_string();
        let put =
            app.http.put(format!("{}/api/settings", app.url)).bearer_auth(&app.secret_key).body(settings);
        assert_eq!(answer(put).await.0, 200);
        let merge = undone_merge(&app).await;
        let run = ended_run(&app, MARK, &user("ada")).await;
        let own_automation = own_automation(&app).await;
        let gold = json!({"expression": format!("traits.firstName == '{MARK}'"), "description": MARK});
        secretly(&app, Method::PUT, "/api/segments/marked", &gold).await;
        app.drain().await;
        let own = async |path: &str| answer(app.get(path)).await.1;
        let ada = own(&format!("/api/customers/by/user_id/{}/360", user("ada"))).await["id"]
            .as_str()
            .unwrap()
            .to_owned();
        let bob = own(&format!("/api/customers/by/user_id/{}/360", user("bob"))).await["id"]
            .as_str()
            .unwrap()
            .to_owned();
        let letter = own("/api/queues/events/dead").await["letters"][0]["id"].as_str().unwrap().to_owned();
        let asked = own("/api/privacy/requests").await["requests"][0]["id"].as_str().unwrap().to_owned();
        let keys = own("/api/keys").await;
        let key = keys["keys"][0]["id"].as_str().unwrap().to_owned();

        let other = app.context.brand_ports.brands.add_brand("other").await.unwrap();
        let write =
            new_key(&app.context.brand_ports, &app.context.world, other, KeyKind::Write).await.unwrap();
        let secret =
            new_key(&app.context.brand_ports, &app.context.world, other, KeyKind::Secret).await.unwrap();
        let before = everything(&app, &ada, &bob).await;
        let mut tried = 0;
        for route in routes() {
            let id = match route.path.as_str() {
                path if path.contains("/dead/") => letter.clone(),
                path if path.starts_with("/api/automations") => own_automation.clone(),
                _ => ada.clone(),
            };
            let with = BTreeMap::from([
                ("id", id),
                ("other", bob.clone()),
                ("merge", merge.clone()),
                ("request", asked.clone()),
                ("key", key.clone()),
                ("run", run.clone()),
                ("name", "marked".to_owned()),
                ("kind", "email".to_owned()),
                ("value", format!("{MARK}@example.com")),
            ]);
            let query = match route.path.as_str() {
                "/api/customers" => format!("?q={MARK}"),
                path if path.ends_with("/claims") => format!("?shop={SHOP}&webhook_id=w1"),
                _ => String::new(),
            };
            let own_key = if route.key == Some(KeyKind::Write) { &write } else { &secret };
            let body = match route.path.as_str() {
                "/api/privacy/erasures" => {
                    json!({"identifiers": [{"kind": "email", "value": format!("{MARK}@example.com")}]})
                }
                _ => sound_body(&route),
            };
            let request = request(&app, &route, &filled(&route.path, &with), &query)
                .bearer_auth(own_key)
                .body(body.to_string());
            let (status, found) = answer(request).await;
            // An error may repeat what was asked for; it must not say more.
            let told = found.to_string().replace(&format!("{MARK}@example.com"), "").replace(&ada, "");
            assert!(
                !told.contains(MARK) && !told.contains(&bob),
                "{} {} ({status}): {found}",
                route.method,
                route.path
            );
            let names_one = ["{id}", "{merge}", "{request}", "{key}", "{run}"]
                .iter()
                .any(|name| route.path.contains(name));
            if names_one {
                assert_eq!(status, 404, "{} {}: {found}", route.method, route.path);
            }
            tried += 1;
        }
        assert!(tried > 50);
        app.drain().await;
        assert_eq!(everything(&app, &ada, &bob).await, before, "and nothing was changed");
        app.stop().await;
    }
}

async fn own_automation(app: &TestApp) -> String {
    let all = secretly(app, Method::GET, "/api/automations", &json!({})).await;
    all["automations"][0]["id"].as_str().unwrap().to_owned()
}

/// What the first brand sees of itself.
async fn everything(app: &TestApp, ada: &str, bob: &str) -> Vec<Value> {
    let mut all = Vec::new();
    for path in [
        format!("/api/customers/{ada}/360"),
        format!("/api/customers/{bob}/360"),
        "/api/customers".to_owned(),
        "/api/queues/events/dead".to_owned(),
        "/api/settings".to_owned(),
        "/api/privacy/requests".to_owned(),
        "/api/automations".to_owned(),
        "/api/segments".to_owned(),
        "/api/segments/marked/customers".to_owned(),
    ] {
        let (status, found) = answer(app.get(&path)).await;
        assert_eq!(status, 200, "{path}: {found}");
        all.push(found);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_is_served_with_a_page_and_names_every_route() {
    let app = TestApp::start(On::Embedded).await;
    let (status, served) = answer(app.http.get(format!("{}/openapi.json", app.url))).await;
    assert_eq!(json!([status, served["openapi"]]), json!([200, "3.1.0"]));
    let page = app.http.get(format!("{}/docs", app.url)).send().await.unwrap();
    assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
    let tags: Vec<&str> =
        served["tags"].as_array().unwrap().iter().filter_map(|tag| tag["name"].as_str()).collect();
    for route in routes() {
        let operation = &served["paths"][&route.path][route.method.to_lowercase()];
        let tag = operation["tags"][0].as_str().unwrap();
        assert!(tags.contains(&tag), "the page shows no operation whose tag {tag:?} is not declared");
        assert!(operation["summary"].is_string(), "{route:?}");
        for (status, _) in &route.codes {
            assert_eq!(
                operation["responses"][status.to_string()]["content"]["application/json"]["schema"]["$ref"],
                "#/components/schemas/Error"
            );
        }
        // It is really there: no other answer than the fallback's says this.
        let with = BTreeMap::new();
        let (_, body) = answer(request(&app, &route, &filled(&route.path, &with), "")).await;
        assert!(!body["message"].as_str().unwrap_or_default().contains("no such route"), "{route:?}");
    }
    let ids: BTreeSet<_> =
        operations(&document()).into_iter().map(|(.., operation)| operation.operation_id).collect();
    assert_eq!(ids.len(), routes().len(), "each operation has an id of its own");
    assert!(codes::of("internal").is_some());
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_defect_is_500_and_says_nothing_of_the_inside() {
    use sqlx::Connection;

    let app = TestApp::start(On::Embedded).await;
    assert_eq!(answer(app.post("/v1/track", r#"{"event": "E", "userId": "u"}"#)).await.0, 200);
    app.drain().await;
    let file = format!("sqlite://{}", app.data().join("store.db").display());
    let mut store = sqlx::SqliteConnection::connect(&file).await.unwrap();
    sqlx::query("update profiles set traits = 'a hand was here'").execute(&mut store).await.unwrap();
    let (status, body) = answer(app.get("/api/customers/by/user_id/u/360")).await;
    assert_eq!(json!([status, body["code"]]), json!([500, "internal"]));
    assert!(!body.to_string().contains("hand"), "{body}");
    app.stop().await;
}

/// What a browser sees at the server's own address: a page that is let load its looks, and leads on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_own_address_is_a_page() {
    let app = TestApp::start(On::Embedded).await;
    let response = app.http.get(format!("{}/", app.url)).send().await.unwrap();
    let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(response.status() == 200 && policy.contains("style-src 'self'"), "{policy}");
    let page = response.text().await.unwrap();
    for path in ["/page.css", "/docs", "/openapi.json", "/readyz"] {
        assert!(page.contains(&format!("\"{path}\"")), "{page}");
        assert_eq!(app.http.get(format!("{}{path}", app.url)).send().await.unwrap().status(), 200, "{path}");
    }
    app.stop().await;
}
