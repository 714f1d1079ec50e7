//! Automations from end to end, over HTTP, against a real mailbox and a real receiver of webhooks, on both profiles.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use stack::receiver::{Mailbox, Receiver};
use support::{On, SHOP, TestApp, answer, outbound};
use tributary_core::domain::time;
use tributary_core::ports::clock::{Clock, ManualClock, SystemClock};

const MIN: i64 = 60_000;
const DAY: i64 = 24 * 60 * MIN;

/// A server, its workers in the test's hand with a clock of their own, and who receives what they send.
struct Shop {
    app: TestApp,
    clock: ManualClock,
    mailbox: Mailbox,
    receiver: Receiver,
}

impl Shop {
    async fn open(on: On) -> Self {
        let clock = ManualClock::at(SystemClock.now_ms());
        let mut app = TestApp::start_at(on, &clock).await;
        let (mailbox, receiver) = (Mailbox::start().await.unwrap(), Receiver::start(false).await.unwrap());
        app.outbound = outbound(Some(&mailbox.url), &app.url);
        let shop = Self { app, clock, mailbox, receiver };
        let settings = json!({"email_from": "Shop <hello@shop.example>", "timezone": "Europe/Berlin"});
        shop.ask(Method::PUT, "/api/settings", &settings).await;
        shop
    }

    async fn ask(&self, method: Method, path: &str, body: &Value) -> Value {
        let request = self.app.http.request(method, format!("{}{path}", self.app.url));
        let (status, body) = answer(request.bearer_auth(&self.app.secret_key).body(body.to_string())).await;
        assert!((200..300).contains(&status), "{path}: {status} {body}");
        body
    }

    async fn activate(&self, made: &Value) -> String {
        let id = made["id"].as_str().unwrap().to_owned();
        let active = self.ask(Method::POST, &format!("/api/automations/{id}/activate"), &json!({})).await;
        assert_eq!(active["status"], "active");
        id
    }

    /// A delivery of Shopify's; times are by the workers' clock.
    async fn webhook(&self, topic: &str, id: &str, mut body: Value) {
        for field in ["created_at", "updated_at"] {
            if body[field].is_null() {
                body[field] = time::format(self.clock.now()).into();
            }
        }
        let client = self.app.client();
        let (status, found) = answer(client.webhook(client.http(), topic, id, body.to_string())).await;
        assert_eq!(status, 200, "{found}");
    }

    /// Processes everything, and what is due by then.
    async fn settle(&self) {
        self.app.drain().await;
    }

    fn subjects(&self) -> Vec<String> {
        let of = |mail: &stack::receiver::Mail| {
            format!("{}: {}", mail.to.join(", "), mail.header("Subject").unwrap_or_default())
        };
        self.mailbox.mails().iter().map(of).collect()
    }
}

fn customer(id: u64, email: &str, consents: bool) -> Value {
    let state = if consents { "subscribed" } else { "not_subscribed" };
    json!({"id": id, "email": email, "first_name": "Ada", "email_marketing_consent":
        {"state": state, "opt_in_level": "single_opt_in", "consent_updated_at": "2026-01-01T00:00:00Z"}})
}

on_both_profiles!(
    the_templates_run_from_a_webhook_to_a_mailbox,
    what_goes_out_is_signed_and_comes_back_in,
    a_public_key_borrows_nobodys_voice,
    whoever_reads_an_address_confirms_it
);

async fn the_templates_run_from_a_webhook_to_a_mailbox(on: On) {
    let shop = Shop::open(on).await;
    let templates = shop.ask(Method::GET, "/api/automation-templates", &json!({})).await;
    let names: Vec<String> = templates["templates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|template| template["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["abandoned_cart", "welcome", "win_back", "post_purchase_review", "vip"]);
    let mut carts = String::new();
    for name in &names {
        let made = shop.ask(Method::POST, &format!("/api/automation-templates/{name}"), &json!({})).await;
        assert_eq!(made["status"], "draft");
        let id = shop.activate(&made).await;
        if name == "abandoned_cart" {
            carts = id;
        }
    }
    // Welcome, but not who has not consented.
    shop.webhook("customers/create", "c1", customer(1, "ada@example.com", true)).await;
    shop.webhook("customers/create", "c2", customer(2, "silent@example.com", false)).await;
    shop.settle().await;
    shop.clock.advance(6 * MIN);
    shop.settle().await;
    assert_eq!(shop.subjects(), ["ada@example.com: Welcome, Ada"]);

    // Two carts are left, one of them is bought.
    for (id, email) in [(1, "ada@example.com"), (3, "bob@example.com")] {
        shop.webhook("customers/update", &format!("u{id}"), customer(id, email, true)).await;
        let url = format!("https://shop.example/carts/{id}");
        let checkout = json!({"id": 100 + id, "token": format!("k{id}"), "customer": {"id": id}, "email": email,
            "abandoned_checkout_url": url});
        shop.webhook("checkouts/create", &format!("k{id}"), checkout).await;
    }
    shop.settle().await;
    shop.clock.advance(30 * MIN);
    let order = json!({"id": 500, "customer": {"id": 3}, "email": "bob@example.com", "total_price": "700.00", "currency": "EUR"});
    shop.webhook("orders/create", "o500", order).await;
    shop.settle().await;
    shop.clock.advance(31 * MIN);
    shop.settle().await;
    assert_eq!(shop.subjects()[1..], ["ada@example.com: You left something behind"]);
    let mail = shop.mailbox.mails()[1].clone();
    assert!(mail.text.contains("https://shop.example/carts/1"), "{}", mail.text);
    let runs =
        shop.ask(Method::GET, &format!("/api/automations/{carts}/runs?status=cancelled"), &json!({})).await;
    assert_eq!(runs["runs"].as_array().unwrap().len(), 1, "bob's: {runs}");

    // One click of a mail program, as RFC 8058 has it; then the second reminder stays out.
    let link = mail.header("List-Unsubscribe").unwrap();
    let link = link.trim_matches(['<', '>']);
    assert_eq!(mail.header("List-Unsubscribe-Post").as_deref(), Some("List-Unsubscribe=One-Click"));
    let page = shop.app.http.get(link).send().await.unwrap();
    assert!(page.text().await.unwrap().contains("<button>Unsubscribe"));
    let clicked = shop.app.http.post(link).body("List-Unsubscribe=One-Click").send().await.unwrap();
    assert_eq!(clicked.status(), 200);
    shop.settle().await;
    shop.clock.advance(DAY + MIN);
    shop.settle().await;
    assert_eq!(shop.subjects().len(), 2);

    // A best customer, one who has stayed away, a fulfillment two weeks ago.
    let at = |days: i64| time::format(time::from_ms(shop.clock.now_ms() - days * DAY));
    shop.webhook("customers/update", "u4", customer(4, "best@example.com", true)).await;
    shop.webhook("customers/update", "u5", customer(5, "away@example.com", true)).await;
    for (number, (who, email, days, total)) in [
        (4, "best@example.com", 1, "300.00"),
        (4, "best@example.com", 2, "300.00"),
        (4, "best@example.com", 3, "300.00"),
        (4, "best@example.com", 4, "300.00"),
        (4, "best@example.com", 5, "300.00"),
        (5, "away@example.com", 130, "20.00"),
        (5, "away@example.com", 200, "20.00"),
    ]
    .into_iter()
    .enumerate()
    {
        let order = json!({"id": 600 + number, "customer": {"id": who}, "email": email, "total_price": total,
            "currency": "EUR", "created_at": at(days), "updated_at": at(days)});
        shop.webhook("orders/create", &format!("o{number}"), order).await;
    }
    let fulfillment = json!({"id": 500, "name": "#500", "customer": {"id": 3}, "email": "bob@example.com", "total_price": "700.00",
        "currency": "EUR", "fulfillment_status": "fulfilled"});
    shop.webhook("orders/fulfilled", "f500", fulfillment).await;
    shop.settle().await;
    let mut sent = shop.subjects()[2..].to_vec();
    sent.sort();
    assert_eq!(sent, ["away@example.com: We miss you", "best@example.com: Thank you"]);
    shop.clock.advance(14 * DAY + MIN);
    shop.settle().await;
    assert!(
        shop.subjects().contains(&"bob@example.com: How do you like it?".to_owned()),
        "{:?}",
        shop.subjects()
    );
    let best = answer(shop.app.get("/api/customers/by/email/best@example.com/360")).await.1;
    assert_eq!((&best["tags"], &best["traits"]["tag:vip"]), (&json!(["vip"]), &Value::Null));
    let id = best["id"].as_str().unwrap();
    let changes = shop.ask(Method::GET, &format!("/api/customers/{id}/segments"), &json!({})).await;
    assert_eq!(changes["changes"].as_array().unwrap().last().unwrap()["change"], "entered");
    assert_eq!(SHOP, "stack.myshopify.com");
    shop.app.stop().await;
}

async fn what_goes_out_is_signed_and_comes_back_in(on: On) {
    let shop = Shop::open(on).await;
    let url = &shop.receiver.url;
    let definition = json!({
        "name": "hooks", "trigger": {"on": "event", "event": "E"}, "condition": "event.properties.value >= 10",
        "steps": [
            {"do": "webhook", "url": format!("{url}/hook"), "data": {"who": "{{ customer.traits.name }}", "of": [1, "{{ event.name }}"]}},
            {"do": "chat", "url": format!("{url}/chat"), "text": "{{ event.properties.value }} from {{ customer.traits.name }}"},
            {"do": "email", "marketing": false, "subject": "Receipt", "text": "t", "html": "<p>{{ customer.traits.name }}</p>"},
        ]
    });
    let made = shop.ask(Method::POST, "/api/automations", &definition).await;
    let id = shop.activate(&made).await;
    let identify = json!([
        {"type": "identify", "userId": "ada", "traits": {"name": "<Ada>", "email": "ada@example.com"}},
        {"type": "identify", "userId": "gone", "traits": {"email": "nobody@example.com"}},
    ]);
    // An address that the brand's own server tells may get what is no marketing.
    let own = shop.app.http.post(format!("{}/api/events", shop.app.url)).bearer_auth(&shop.app.secret_key);
    assert_eq!(answer(own.body(identify.to_string())).await.0, 202);
    shop.settle().await;
    let customer = answer(shop.app.get("/api/customers/by/user_id/ada/360")).await.1["id"].clone();
    let dry = shop
        .ask(Method::POST, &format!("/api/automations/{id}/dry-run"), &json!({"customer": customer}))
        .await;
    assert_eq!(json!([dry["starts"], shop.receiver.hooks().len()]), json!([false, 0]), "{dry}");
    for (user, value) in [("ada", 5), ("ada", 10), ("gone", 11)] {
        let event = json!({"event": "E", "userId": user, "properties": {"value": value}, "messageId": format!("{user}{value}")});
        assert_eq!(answer(shop.app.post("/api/events", event.to_string())).await.0, 202);
    }
    shop.settle().await;
    let secret =
        shop.ask(Method::GET, "/api/signing-secret", &json!({})).await["secret"].as_str().unwrap().to_owned();
    let hooks = shop.receiver.hooks();
    let names: Vec<&str> = hooks.iter().map(|hook| hook.name.as_str()).collect();
    assert_eq!(names.iter().filter(|name| **name == "hook").count(), 2, "{names:?}");
    let hook = hooks
        .iter()
        .find(|hook| hook.name == "hook" && hook.body["data"]["custom"]["who"] == "<Ada>")
        .unwrap();
    assert!(hook.is_signed_with(&secret) && !hook.is_signed_with("whsec_AAAA"));
    assert_eq!(hook.body["data"]["custom"]["of"], json!([1, "E"]));
    assert_eq!(hook.body["data"]["customer"]["id"], customer);
    assert!(hooks.iter().any(|hook| hook.name == "chat" && hook.body == json!({"text": "10 from <Ada>"})));
    let mails = shop.mailbox.mails();
    assert_eq!(mails.len(), 1, "the mailbox refuses nobody");
    assert!(
        mails[0].text.contains("&lt;Ada&gt;") && mails[0].header("List-Unsubscribe").is_none(),
        "{}",
        mails[0].text
    );
    // Who is refused fails, with all of the story.
    let failed =
        shop.ask(Method::GET, &format!("/api/automations/{id}/runs?status=failed"), &json!({})).await;
    let run = failed["runs"][0]["id"].as_str().unwrap();
    let run = shop.ask(Method::GET, &format!("/api/runs/{run}"), &json!({})).await;
    let steps: Vec<&str> =
        run["log"].as_array().unwrap().iter().map(|entry| entry["what"].as_str().unwrap()).collect();
    assert_eq!(steps, ["started", "done", "done", "failed"], "{run}");
    assert_eq!(run["actions"][2]["status"], "failed");
    assert!(run["actions"][2]["error"].as_str().unwrap().contains("550"), "{run}");
    let letters = shop.ask(Method::GET, "/api/queues/automations/dead", &json!({})).await;
    assert_eq!(letters["letters"].as_array().unwrap().len(), 1);
    let path = format!("/api/runs/{}/retry", run["id"].as_str().unwrap());
    shop.ask(Method::POST, &path, &json!({})).await;
    shop.settle().await;
    let again =
        shop.ask(Method::GET, &format!("/api/runs/{}", run["id"].as_str().unwrap()), &json!({})).await;
    // The address takes no mail: nothing more is sent there.
    assert_eq!(
        json!([again["status"], again["actions"][2]["status"]]),
        json!(["done", "skipped"]),
        "{again}"
    );
    assert!(again["actions"][2]["error"].as_str().unwrap().contains("for good"), "{again}");
    let gone = answer(shop.app.get("/api/customers/by/user_id/gone/360")).await.1;
    assert_eq!(gone["consent"]["email"]["state"], "undeliverable", "{gone}");
    tokio::time::sleep(Duration::from_millis(1)).await;
    shop.app.stop().await;
}

impl Shop {
    /// What somebody says who has the key that is in every browser.
    async fn say(&self, message: Value) {
        let path = format!("/v1/{}", message["type"].as_str().unwrap());
        let (status, body) = answer(self.app.post(&path, message.to_string())).await;
        assert_eq!(status, 200, "{body}");
    }

    async fn customer(&self, email: &str) -> Value {
        answer(self.app.get(&format!("/api/customers/by/email/{email}/360"))).await.1
    }
}

async fn a_public_key_borrows_nobodys_voice(on: On) {
    let shop = Shop::open(on).await;
    let made = shop.ask(Method::POST, "/api/automation-templates/abandoned_cart", &json!({})).await;
    shop.activate(&made).await;
    let form = json!({"name": "form", "trigger": {"on": "event", "event": "Signed Up"}, "reentry": {"mode": "always"}, "steps": [
        {"do": "email", "marketing": false, "subject": "Hello {{ customer.traits.nickname }}",
         "text": "{{ event.properties.page }} {{ customer.traits.nickname or 'no nickname' }}"}]});
    let form = shop.ask(Method::POST, "/api/automations", &form).await;
    shop.activate(&form).await;
    for (id, email) in [(1, "victim@shop.example"), (2, "other@shop.example"), (3, "third@shop.example")] {
        shop.webhook("customers/create", &format!("c{id}"), customer(id, email, true)).await;
    }
    shop.settle().await;
    let victim = shop.customer("victim@shop.example").await["id"].clone();

    // An address of the attacker's beside the victim's, before and after the attacker's own is somebody's; all three in one.
    for id in ["att", "btt"] {
        shop.say(json!({"type": "identify", "anonymousId": id, "traits": {"email": "0a@attacker.example"},
            "context": {"traits": {"email": "victim@shop.example"}}}))
            .await;
    }
    for email in ["victim@shop.example", "other@shop.example", "third@shop.example"] {
        shop.say(json!({"type": "identify", "anonymousId": "join", "traits": {"email": email, "firstName": "Owned"}}))
            .await;
    }
    // Consent in the victim's name that nobody could take back, a tag, and a time of the future.
    shop.say(json!({"type": "identify", "anonymousId": "att", "timestamp": "9999-12-31T00:00:00Z", "traits": {
        "email": "victim@shop.example", "emailMarketingConsent": true, "firstName": "Owned", "tag:vip": true}}))
        .await;
    shop.settle().await;
    let found = shop.customer("victim@shop.example").await;
    assert_eq!((&found["id"], &found["traits"]["firstName"]), (&victim, &json!("Ada")));
    assert_eq!((&found["traits"]["tag:vip"], &found["tags"]), (&Value::Null, &json!([])));
    assert_eq!(found["consent"]["email"]["address"], "victim@shop.example");
    let mut ids = vec![];
    for email in ["victim@shop.example", "other@shop.example", "third@shop.example"] {
        ids.push(shop.customer(email).await["id"].to_string());
    }
    ids.dedup();
    assert_eq!(ids.len(), 3, "three customers whom Shopify knows stay three");
    let related = shop.customer("other@shop.example").await["identity"]["related"].clone();
    assert_eq!(related[0]["kind"], "refused", "{related}");

    // Checkouts that a public key tells start nothing, and its orders end nothing.
    shop.say(json!({"type": "track", "event": "Checkout Started", "anonymousId": "att",
        "properties": {"abandoned_checkout_url": "https://phish.example"}}))
        .await;
    let checkout = json!({"id": 100, "token": "k", "customer": {"id": 1}, "email": "victim@shop.example",
        "abandoned_checkout_url": "https://shop.example/recover"});
    shop.webhook("checkouts/create", "k1", checkout).await;
    shop.settle().await;
    shop.say(json!({"type": "track", "event": "Order Created", "anonymousId": "att"})).await;
    shop.settle().await;
    shop.clock.advance(61 * MIN);
    shop.settle().await;
    assert_eq!(shop.subjects(), ["victim@shop.example: You left something behind"]);
    let mail = shop.mailbox.mails()[0].clone();
    assert!(
        mail.text.contains("https://shop.example/recover") && !mail.text.contains("phish"),
        "{}",
        mail.text
    );

    // Who unsubscribes is written to no more, whatever a public key says and whatever Shopify repeats.
    let link = mail.header("List-Unsubscribe").unwrap();
    let link = link.trim_matches(['<', '>']);
    assert_eq!(shop.app.http.post(link).send().await.unwrap().status(), 200);
    shop.settle().await;
    shop.say(json!({"type": "identify", "anonymousId": "att", "traits": {
        "email": "victim@shop.example", "emailMarketingConsent": true}}))
        .await;
    shop.webhook("customers/update", "again", customer(1, "victim@shop.example", true)).await;
    shop.settle().await;
    assert_eq!(shop.customer("victim@shop.example").await["consent"]["email"]["allowed"], false);
    shop.clock.advance(2 * DAY);
    shop.settle().await;
    assert_eq!(shop.subjects().len(), 1);

    // A form's words reach whoever is written into it, but lead nowhere.
    for (reader, nickname, page) in [
        ("ada@form.example", "Ada", "Spring sale"),
        ("stranger@form.example", "You have won! https://phish.example", "phish.example/win"),
        ("victim@shop.example", "phish.example", "https://shop.example/sale"),
    ] {
        shop.say(json!({"type": "identify", "userId": reader, "traits": {
            "email": reader, "nickname": nickname, "emailMarketingConsent": true}}))
            .await;
        let event =
            json!({"type": "track", "event": "Signed Up", "userId": reader, "properties": {"page": page}});
        shop.say(event).await;
    }
    shop.settle().await;
    let mails = shop.mailbox.mails();
    let body = |text: &str| text.trim_end().rsplit("\r\n\r\n").next().unwrap_or_default().to_owned();
    let texts: Vec<String> =
        mails[1..].iter().map(|mail| format!("{} {}", mail.to[0], body(&mail.text))).collect();
    let find = |reader: &str| texts.iter().find(|text| text.starts_with(reader)).cloned();
    assert_eq!(find("ada@form").as_deref(), Some("ada@form.example Spring sale Ada"), "{texts:?}");
    assert_eq!(find("stranger@form").as_deref(), Some("stranger@form.example  no nickname"), "{texts:?}");
    let known = "victim@shop.example https://shop.example/sale no nickname";
    assert_eq!(find("victim@shop").as_deref(), Some(known), "{texts:?}");
    shop.app.stop().await;
}

async fn whoever_reads_an_address_confirms_it(on: On) {
    let shop = Shop::open(on).await;
    let settings = json!({"email_from": "Shop <hello@shop.example>", "confirm_addresses": true});
    shop.ask(Method::PUT, "/api/settings", &settings).await;
    for (name, steps) in [
        ("ask", json!([{"do": "confirm", "subject": "Please confirm", "text": "{{ confirm_url }}"}])),
        (
            "news",
            json!([{"do": "wait", "for": {"hours": 1}}, {"do": "email", "subject": "News", "text": "…"}]),
        ),
    ] {
        let trigger = json!({"on": "event", "event": "Signed Up"});
        let definition =
            json!({"name": name, "trigger": trigger, "steps": steps, "reentry": {"mode": "always"}});
        let made = shop.ask(Method::POST, "/api/automations", &definition).await;
        shop.activate(&made).await;
    }
    for (id, consent) in [("ada", json!(true)), ("bob", json!(true)), ("eve", Value::Null)] {
        let email = format!("{id}@example.com");
        shop.say(json!({"type": "identify", "anonymousId": id, "traits": {"email": email, "emailMarketingConsent": consent}}))
            .await;
        shop.say(json!({"type": "track", "event": "Signed Up", "anonymousId": id})).await;
    }
    shop.settle().await;
    let mut asked = shop.subjects();
    asked.sort();
    let wanted = ["ada@example.com: Please confirm", "bob@example.com: Please confirm"];
    assert_eq!(asked, wanted, "who has not asked for e-mail is asked nothing");
    let mails = shop.mailbox.mails();
    let text = &mails.iter().find(|mail| mail.to[0] == "ada@example.com").unwrap().text;
    // As mail programs read it: quoted-printable breaks long lines.
    let text = text.replace("=\r\n", "").replace("=\n", "").replace("=3D", "=");
    let link = text[text.find("http://").unwrap()..].split_whitespace().next().unwrap().to_owned();
    // Looking at the link, or another's signature, confirms nothing.
    assert!(shop.app.http.get(&link).send().await.unwrap().text().await.unwrap().contains("Yes, confirm"));
    let forged = format!("{}x", &link[..link.len() - 1]);
    assert_eq!(shop.app.http.post(forged).send().await.unwrap().status(), 404);
    assert_eq!(shop.app.http.post(&link).send().await.unwrap().status(), 200);
    shop.settle().await;
    shop.clock.advance(61 * MIN);
    shop.settle().await;
    let news: Vec<String> = shop.subjects().into_iter().filter(|s| s.ends_with("News")).collect();
    assert_eq!(news, ["ada@example.com: News"]);
    shop.app.stop().await;
}
