//! An erasure, looked for byte by byte: in the data folder, in dumps of Redis and PostgreSQL, in what is logged.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use reqwest::Method;
use serde_json::{Value, json};
use support::{On, TestApp, answer};
use tributary_core::domain::envelope::Envelope;
use tributary_core::ports::queue::{Idempotency, NewItem, QueueSettings};

on_both_profiles!(nothing_of_a_person_is_found_after_an_erasure);

/// In every field that can hold one: looked for in any capitals.
const MARK: &str = "geheimnachname";
const NUMBER: &str = "+4917099988877";

/// What the test's process logs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// How often the person stands in these bytes.
fn found(bytes: &[u8]) -> usize {
    let lower = bytes.to_ascii_lowercase();
    [MARK, "99988877", "999 888 77"]
        .iter()
        .map(|mark| lower.windows(mark.len()).filter(|part| *part == mark.as_bytes()).count())
        .sum()
}

fn found_in_folder(folder: &Path) -> Vec<(String, usize)> {
    let files =
        std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).filter(|path| path.is_file());
    files
        .map(|path| {
            (path.file_name().unwrap().to_string_lossy().into_owned(), found(&std::fs::read(&path).unwrap()))
        })
        .filter(|(_, times)| *times > 0)
        .collect()
}

async fn secretly(app: &TestApp, method: Method, path: &str, body: &Value) -> Value {
    let request = app.http.request(method, format!("{}{path}", app.url));
    let (status, found) = answer(request.bearer_auth(&app.secret_key).body(body.to_string())).await;
    assert!(status < 300, "{path}: {status} {found}");
    found
}

async fn nothing_of_a_person_is_found_after_an_erasure(on: On) {
    let log = Log::default();
    let writer = log.clone();
    let _ = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_writer(move || writer.clone())
        .try_init();
    let mut app = TestApp::start_with(on, 0, QueueSettings::default()).await;
    let address = format!("{MARK}@example.com");
    let client = app.client();
    let deliver = async |topic: &str, id: &str, body: Value| {
        assert_eq!(
            answer(client.webhook(client.http(), topic, id, body.to_string())).await.0,
            200,
            "{topic}"
        );
    };

    // A customer with a mark in every field.
    deliver(
        "customers/create",
        "c",
        json!({"id": 7, "email": address, "first_name": MARK, "last_name": MARK, "phone": NUMBER,
        "tags": MARK, "default_address": {"address1": MARK, "city": MARK, "country_code": "DE"}, "note": MARK,
        "email_marketing_consent": {"state": "subscribed", "opt_in_level": MARK}}),
    )
    .await;
    deliver("orders/create", "o", json!({"id": 1, "name": "#1", "email": address, "phone": NUMBER, "total_price": "5.00", "currency": "EUR",
        "note": MARK, "note_attributes": [{"name": "gift", "value": MARK}], "customer": {"id": 7, "email": address},
        "shipping_address": {"address1": MARK, "name": MARK, "country_code": "DE"},
        "line_items": [{"title": "Mug", "quantity": 1, "price": "5.00", "properties": [{"name": "engraving", "value": MARK}]}]})).await;
    deliver(
        "fulfillments/create",
        "f",
        json!({"id": 5, "order_id": 1, "status": "success", "email": address,
        "destination": {"name": MARK}}),
    )
    .await;
    for at in 0..200 {
        let event = json!({"type": "track", "event": format!("Viewed {MARK}"), "userId": format!("{MARK}-id"), "anonymousId": "a1",
            "messageId": format!("v{at}"), "properties": {"text": format!("{MARK} ").repeat(20)}, "context": {"traits": {"email": address}}});
        assert_eq!(answer(app.post("/api/events", event.to_string())).await.0, 202);
    }
    // Dead letters in all spellings.
    let bad = json!({"batch": [
        {"type": "page", "userId": "other", "messageId": "fine"},
        {"type": "track", "event": "E", "userId": "other", "timestamp": MARK, "context": {"traits": {"email": address}}},
        {"type": "track", "userId": "other", "properties": {"to": format!("Erika <{address}>")}},
        {"type": "track", "userId": "other", "properties": {"to": format!(" {} ", address.to_uppercase())}},
        {"type": "track", "userId": "other", "properties": {"to": "0170 / 999 888 77"}},
    ]});
    assert_eq!(answer(app.post("/v1/batch", bad.to_string())).await.0, 200);
    let escaped = format!(r#"{{"brand":{},"to":"\u0067eheimnachname@example.com", broken"#, app.brand.0);
    app.context
        .queue
        .enqueue(&[NewItem { payload: escaped.into_bytes().into(), ..NewItem::default() }])
        .await
        .unwrap();

    // A segment of hers, mail that cannot be delivered, and an answer that quotes her.
    secretly(&app, Method::PUT, "/api/settings", &json!({"email_from": "Shop <shop@shop.example>"})).await;
    secretly(
        &app,
        Method::PUT,
        "/api/segments/watched",
        &json!({"expression": "email == 'nobody@example.com'"}),
    )
    .await;
    let definition = json!({"name": "mail", "trigger": {"on": "event", "event": "Go"}, "steps": [
        {"do": "email", "marketing": false, "subject": "Hello {{ customer.traits.firstName }}", "text": "{{ customer.traits.lastName }}"}]});
    let made = secretly(&app, Method::POST, "/api/automations", &definition).await;
    let path = format!("/api/automations/{}/activate", made["id"].as_str().unwrap());
    secretly(&app, Method::POST, &path, &json!({})).await;
    app.drain().await;
    app.outbound.sender = Arc::new(Quoting);
    let go = json!({"type": "track", "event": "Go", "userId": format!("{MARK}-id"), "messageId": "go"});
    assert_eq!(answer(app.post("/api/events", go.to_string())).await.0, 202);
    app.drain().await;
    assert!(app.context.automation_queue.stats().await.unwrap().dead > 0, "the mail is a dead letter");

    // A row of the outbox that its queue refused.
    let body = serde_json::value::to_raw_value(
        &json!({"type": "track", "event": "E", "userId": format!("{MARK}-id"), "messageId": "r"}),
    )
    .unwrap();
    let envelope =
        json!({"brand": app.brand, "received_ms": 1, "origin": "segment", "body": body}).to_string();
    assert!(Envelope::read(envelope.as_bytes()).is_ok());
    let refused = NewItem {
        payload: envelope.into_bytes().into(),
        idempotency: Some(Idempotency::new(vec!["k".into()], b"1")),
        ..NewItem::default()
    };
    app.context.outbox.add("events", &[refused], 1).await.unwrap();
    let waiting = app.context.outbox.oldest(&["events"], &[], 10).await.unwrap();
    app.context
        .outbox
        .refuse(&[waiting[0].id], "one of its keys was received before with another body")
        .await
        .unwrap();

    let (status, seen) = answer(app.get(&format!("/api/customers/by/email/{address}/360"))).await;
    assert_eq!(status, 200, "{seen}");
    let id = seen["id"].as_str().unwrap().to_owned();
    assert!(found(seen.to_string().as_bytes()) > 5);

    let (status, erased) =
        answer(app.http.delete(format!("{}/api/customers/{id}", app.url)).bearer_auth(&app.secret_key)).await;
    assert_eq!(status, 200, "{erased}");
    assert_eq!(answer(app.get(&format!("/api/customers/{id}/360"))).await.0, 404);
    // What was under way does not come back.
    app.drain().await;

    match on {
        On::Embedded => {
            app.context.scrub().await;
            assert_eq!(found_in_folder(&app.data()), [], "while it runs");
        }
        On::Services => assert_eq!(app.found_in_services(found).await, Vec::<String>::new()),
    }
    let said = log.0.lock().unwrap().clone();
    assert_eq!(found(&said), 0, "{}", String::from_utf8_lossy(&said));
    app.stop().await;
}

/// A receiver that refuses, as the couriers tell it: without its words.
struct Quoting;

#[async_trait]
impl tributary_core::ports::sender::Sender for Quoting {
    async fn send(
        &self,
        _: &tributary_core::ports::sender::OutboundMessage,
    ) -> tributary_core::ports::sender::SendOutcome {
        tributary_core::ports::sender::SendOutcome::Refused("the mail server answered 550, 5.1.1".into())
    }
}
