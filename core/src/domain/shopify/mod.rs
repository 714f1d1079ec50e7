//! Shopify's webhooks: which delivery is which, and the event a body becomes.
//!
//! Source: Shopify's webhook and REST resource pages. Any field may be missing or null, and ids come as numbers or as
//! strings. What a body says beyond these fields is kept with the event, unread.

mod customers;
mod fields;
mod orders;
mod products;
mod topics;

use serde_json::Value;

use self::customers::{ask, consents, identifiers, traits};
pub use self::fields::EXACT_FLOATS;
use self::fields::instant;
use self::orders::order_update;
use self::products::product;
use self::topics::{ACTIVE_TOPICS, EVENT_NAMES, event_name, resource};
pub use self::topics::{APP_UNINSTALLED, PRIVACY_TOPICS, TOPICS};

use super::envelope::{Envelope, Origin};
use super::event::{BodyClaim, Event, EventKind, Rejection, TraitUpdate};
use super::identity::Rules;
use super::json;
use super::time::{self, Timestamp};
use super::version::Version;
use super::webhook;

/// The ids by which Shopify marks a delivery.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    /// The shop's domain, from `X-Shopify-Shop-Domain`.
    pub shop: &'a str,
    pub topic: &'a str,
    /// `X-Shopify-Webhook-Id`: the same for every try of one delivery.
    pub webhook_id: &'a str,
    /// `X-Shopify-Event-Id`: the same for all that one action of a merchant sends.
    pub event_id: Option<&'a str>,
    /// The body's `id`, or its `token`: checkouts have had no id since API version 2026-04.
    pub resource_id: Option<&'a str>,
    /// The body, as [`canonical`] writes it.
    pub body: &'a str,
}

/// The key of one delivery: (shop, webhook id).
pub fn webhook_key(shop: &str, webhook_id: &str) -> String {
    format!("shopify:{shop}:{webhook_id}")
}

impl Delivery<'_> {
    /// What makes two deliveries the same: a delivery is a duplicate if any of these was seen.
    pub fn idempotency_keys(&self) -> Vec<String> {
        let mut keys = vec![webhook_key(self.shop, self.webhook_id)];
        keys.extend(self.event_key());
        keys
    }

    /// The event's message id, which the store keeps unique when the queue has forgotten the keys.
    pub fn message_id(&self) -> String {
        self.event_key().unwrap_or_else(|| webhook_key(self.shop, self.webhook_id))
    }

    /// The key of what one action of a merchant says of one resource: (shop, topic, event id, resource, body). Two subscriptions send the
    /// same body under two webhook ids. One action may also fire several topics, or one topic twice with another state each time:
    /// these are deliveries of their own.
    fn event_key(&self) -> Option<String> {
        let (event, resource) = (self.event_id?, self.resource_id.unwrap_or("-"));
        let said = hex::encode(&webhook::digest(self.body)[..8]);
        Some(format!("shopify:{}:{}:{event}:{resource}:{said}", self.shop, self.topic))
    }
}

/// What a body says, however it is written: fields sorted, numbers as text. Two subscriptions to a topic may render one
/// event in two API versions, with an id as a number or as a string; that is no other body. What this program cannot hold
/// (half a surrogate pair, nesting without end) is compared as it is written.
pub fn canonical(body: &str) -> String {
    fn plain(value: &Value) -> Value {
        match value {
            Value::Number(number) => Value::String(number.to_string()),
            Value::Array(values) => values.iter().map(plain).collect(),
            Value::Object(fields) => {
                let mut sorted: Vec<_> =
                    fields.iter().map(|(name, value)| (name.clone(), plain(value))).collect();
                sorted.sort_by(|a, b| a.0.cmp(&b.0));
                sorted.into_iter().collect()
            }
            other => other.clone(),
        }
    }
    serde_json::from_str(body).map_or_else(|_| body.to_owned(), |value| plain(&value).to_string())
}

/// The event in a webhook's envelope.
///
/// # Errors
/// When the body is no JSON object, or speaks of an order, refund, fulfillment or product without an id.
pub fn decode(envelope: &Envelope<'_>, rules: &Rules) -> Result<Event, Rejection> {
    let Origin::Shopify { shop, topic, message_id, triggered_at } = &envelope.origin else {
        return Err(Rejection::new("malformed_envelope", "not a Shopify webhook"));
    };
    let body: Value = json::read(envelope.body.get())
        .map_err(|error| Rejection::new("invalid_webhook", format!("the body cannot be read: {error}")))?;
    if !body.is_object() {
        return Err(Rejection::new("invalid_webhook", "the body must be a JSON object"));
    }
    let received_at = time::from_ms(envelope.received_ms);
    let triggered = triggered_at.as_deref().and_then(time::parse_fine);
    let timestamp = told_at(&body, topic).or(triggered.map(|(at, _)| at)).unwrap_or(received_at);
    let message_id = message_id.replace('\0', "");
    let version = Version {
        at_ms: timestamp.timestamp_millis(),
        // Shopify's `updated_at` are whole seconds; of two states of one second the one that was triggered later is the newer.
        sequence: triggered.map_or(0, |(at, micros)| at.timestamp_millis() * 1000 + micros),
        message_id,
    };
    let ask = ask(&body, topic, rules);
    let order = order_update(&body, shop, topic, timestamp, &version)?;
    // An order is placed when the customer places it, whenever Shopify tells.
    let placed = order.as_ref().and_then(|update| update.state.as_ref()).map(|order| order.ordered_at);
    Ok(Event {
        name: Some(event_name(topic).replace('\0', "")),
        received_at,
        identifiers: if ask.is_none() { identifiers(&body, topic, rules) } else { Vec::new() },
        traits: if ask.is_none() { traits(&body, topic, timestamp) } else { Vec::new() },
        order,
        consents: consents(&body, topic, timestamp, rules),
        product: product(&body, topic, timestamp, &version)?,
        sequence: version.sequence,
        shop: Some((**shop).to_owned()),
        claim: Some(BodyClaim {
            topic: topic.replace('\0', ""),
            digest: webhook::digest(envelope.body.get()),
        }),
        active: ACTIVE_TOPICS.contains(&&**topic),
        // What law wants forgotten is not kept in the request to forget it.
        body: if ask.is_none() { envelope.body.get().to_owned() } else { "{}".to_owned() },
        ask,
        ..Event::new(
            envelope.brand,
            version.message_id,
            EventKind::Shopify,
            placed.filter(|_| **topic == *"orders/create").unwrap_or(timestamp),
        )
    })
}

/// What a kept webhook says of its customer: for making a profile again from its events.
pub fn traits_again(name: &str, body: &str, timestamp: Timestamp) -> Vec<TraitUpdate> {
    let topic = EVENT_NAMES.into_iter().find(|(_, known)| *known == name).map_or(name, |(topic, _)| topic);
    let body: Value = json::read(body).unwrap_or_default();
    let timestamp = told_at(&body, topic).unwrap_or(timestamp);
    traits(&body, topic, timestamp)
}

/// When what a body says was true, by its own word. When a thing was created says nothing of its state; but of a refund, which has no
/// state, and of what Shopify only tells once.
fn told_at(body: &Value, topic: &str) -> Option<Timestamp> {
    // The body is the shop's, whose times say nothing of this.
    if topic == "app/uninstalled" {
        return None;
    }
    let has_state = ["orders", "customers", "products", "checkouts", "carts"].contains(&resource(topic));
    let created = ["created_at"].iter().filter(|_| !has_state || topic.ends_with("/create"));
    ["updated_at", "occurredAt"].iter().chain(created).find_map(|field| instant(body, field))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use serde_json::value::to_raw_value;

    use rust_decimal::Decimal;

    use super::topics::{TAGS_ADDED, TAGS_REMOVED};
    use super::*;
    use crate::domain::event::PrivacyAsk;
    use crate::domain::ids::BrandId;
    use crate::domain::order::OrderRecord;

    fn decoded(topic: &str, body: &Value) -> Result<Event, Rejection> {
        let body = to_raw_value(body).unwrap();
        let envelope = Envelope {
            trace: None,
            brand: BrandId(1),
            received_ms: time::parse("2027-01-01T00:00:00Z").unwrap().timestamp_millis(),
            origin: Origin::Shopify {
                shop: "a.myshopify.com".into(),
                topic: topic.into(),
                message_id: "m".into(),
                triggered_at: Some("2026-01-01T00:00:00Z".into()),
            },
            body: &body,
        };
        Envelope::read(&envelope.encode()).unwrap().decode(&Rules::default())
    }

    fn known(event: &Event) -> OrderRecord {
        let update = event.order.as_ref().unwrap();
        let mut record = OrderRecord::new(&update.shop, &update.id);
        record.apply(update, &event.message_id, None);
        record
    }

    #[test]
    fn an_order_is_read_with_its_money_and_its_customer() {
        let event = decoded(
            "orders/create",
            &json!({
                "id": 450789469, "name": "#1001", "email": "Bob@Example.com", "cart_token": "c1", "currency": "usd",
                "created_at": "2026-01-10T11:00:00-05:00", "updated_at": "2026-01-11T00:00:00Z", "total_price": "409.94",
                "customer": {"id": "207119551", "email": "bob@example.com", "first_name": "Bob", "last_name": null,
                             "updated_at": "2026-01-09T00:00:00Z"},
                "line_items": [{"title": "Pod", "quantity": 2, "price": 199.5, "product_id": 1, "sku": ""}],
                "refunds": [{"transactions": [{"kind": "refund", "status": "success", "amount": "9.94"},
                                              {"kind": "refund", "status": "failure", "amount": "100.00"},
                                              {"kind": "void", "status": "success", "amount": "5.00"}]}],
            }),
        )
        .unwrap();
        let record = known(&event);
        let order = record.order().unwrap();
        assert_eq!((record.id.as_str(), order.currency.as_str()), ("450789469", "USD"));
        assert_eq!(
            (order.total.to_string(), record.refunded().to_string()),
            ("409.94".into(), "9.94".into())
        );
        assert_eq!(time::format(order.ordered_at), "2026-01-10T16:00:00.000Z");
        assert_eq!(order.items[0].price.to_string(), "199.5");
        let values: Vec<_> = event.identifiers.iter().map(|i| i.value.as_str()).collect();
        assert_eq!(values, ["bob@example.com", "207119551", "c1"]);
        assert_eq!(event.traits.len(), 2, "{:?}", event.traits);
        assert_eq!(time::format(event.traits[0].at), "2026-01-09T00:00:00.000Z");
    }

    #[test]
    fn null_everywhere_is_survived_and_a_missing_id_is_named() {
        let nulls = json!({"id": 1, "customer": null, "line_items": null, "total_price": null, "refunds": null, "email": null});
        let event = decoded("orders/create", &nulls).unwrap();
        assert!(event.identifiers.is_empty());
        assert_eq!(known(&event).order().unwrap().total, Decimal::ZERO);
        assert_eq!(decoded("orders/create", &json!({"id": null})).unwrap_err().code, "invalid_order");
        assert_eq!(decoded("orders/create", &json!([1])).unwrap_err().code, "invalid_webhook");
        assert_eq!(decoded("products/create", &json!({"title": "x"})).unwrap_err().code, "invalid_product");
        assert_eq!(decoded("themes/publish", &json!({"id": 1})).unwrap().name.unwrap(), "themes/publish");
    }

    #[test]
    fn only_a_customers_own_contact_identifies_and_only_an_order_is_one() {
        let contact = json!({"id": 1, "email": "owner@example.com", "phone": "+4917012345678"});
        for topic in ["shop/update", "app/uninstalled", "locations/create"] {
            assert_eq!(decoded(topic, &contact).unwrap().identifiers, [], "{topic}");
        }
        assert_eq!(decoded("checkouts/create", &contact).unwrap().identifiers.len(), 2);
        for topic in ["orders/edited", "orders/risk_assessment_changed"] {
            assert!(decoded(topic, &json!({"order_edit": {"id": 1}})).unwrap().order.is_none(), "{topic}");
        }
        assert!(!decoded("orders/paid", &json!({"id": 1})).unwrap().active, "the merchant's doing");
    }

    #[test]
    fn amounts_that_are_none_are_named_and_none_overflows() {
        let refund = json!({"kind": "refund", "amount": "70000000000000000000000000000"});
        let body = json!({"id": 1, "refunds": [{"transactions": [refund, refund]}]});
        assert_eq!(decoded("orders/updated", &body).unwrap_err().code, "invalid_amount");
        assert_eq!(
            decoded("orders/updated", &json!({"id": 1, "total_price": "ten"})).unwrap_err().code,
            "invalid_amount"
        );
    }

    #[test]
    fn a_cancelled_order_is_cancelled_even_if_its_body_forgets_when() {
        assert!(!known(&decoded("orders/cancelled", &json!({"id": 1})).unwrap()).counts());
    }

    #[test]
    fn one_action_with_two_topics_is_two_deliveries_and_a_repeated_one_is_one() {
        let first = Delivery {
            shop: "s",
            topic: "orders/create",
            webhook_id: "w1",
            event_id: Some("e"),
            resource_id: Some("1"),
            body: "{}",
        };
        let twin = Delivery { webhook_id: "w2", ..first };
        assert_eq!(first.message_id(), twin.message_id());
        for other in [
            Delivery { webhook_id: "w3", topic: "orders/paid", ..first },
            Delivery { webhook_id: "w3", body: "{\"later\":true}", ..first },
        ] {
            assert_ne!(first.message_id(), other.message_id());
            assert!(first.idempotency_keys().iter().all(|key| !other.idempotency_keys().contains(key)));
        }
    }

    #[test]
    fn one_body_written_in_two_ways_is_one_and_another_is_not() {
        let of = canonical;
        let body = of(r#"{"id": 7, "lines": [{"sku": "a", "qty": 1}]}"#);
        assert_eq!(of(r#"{"lines":[{"qty":"1","sku":"a"}],"id":"7"}"#), body);
        for other in
            [r#"{"id": 8, "lines": [{"sku": "a", "qty": 1}]}"#, r#"{"id": 7, "lines": []}"#, r#"{"id": 7}"#]
        {
            assert_ne!(of(other), body, "{other}");
        }
        let unreadable = r#"{"id": 7, "name": "\ud800"}"#;
        assert_eq!(of(unreadable), unreadable);
    }

    #[test]
    fn two_currencies_and_gift_cards_are_told_apart() {
        let set = |shop: &str, seen: &str| {
            json!({"shop_money": {"amount": shop, "currency_code": "USD"},
                   "presentment_money": {"amount": seen, "currency_code": "EUR"}})
        };
        let body = json!({
            "id": 1, "currency": "USD", "total_price": "110.00", "total_price_set": set("110.00", "100.00"),
            "line_items": [{"title": "Card", "quantity": 1, "price": "50.00", "gift_card": true},
                           {"title": "Mug", "quantity": 3, "price": "20.00"}],
            "refunds": [{"id": 5, "transactions": [
                {"kind": "refund", "status": "success", "amount": "10.00", "currency": "EUR"}]}],
        });
        let mut record = known(&decoded("orders/updated", &body).unwrap());
        assert_eq!(
            (record.revenue().to_string(), record.refunded().to_string()),
            ("60.00".into(), "11.00".into())
        );
        assert_eq!(record.order().unwrap().presentment.as_ref().unwrap().currency, "EUR");
        let stated = json!({"id": 6, "order_id": 1, "created_at": "2026-01-02T00:00:00Z", "transactions": [
            {"kind": "refund", "status": "success", "amount": "1.00", "currency": "EUR", "amount_set": set("1.10", "1.00")}]});
        let event = decoded("refunds/create", &stated).unwrap();
        record.apply(event.order.as_ref().unwrap(), "m2", None);
        assert_eq!(record.refunded().to_string(), "12.10");
    }

    #[test]
    fn what_happens_to_an_order_is_read_without_its_state() {
        let fulfillment = json!({"id": 9, "order_id": 1, "status": "success", "tracking_number": "1Z"});
        let update = decoded("fulfillments/update", &fulfillment).unwrap().order.unwrap();
        assert_eq!((update.id.as_str(), update.state.is_none()), ("1", true));
        assert_eq!(update.fulfillments["9"].number.as_deref(), Some("1Z"));
        let deleted = decoded("orders/delete", &json!({"id": 1})).unwrap().order.unwrap();
        assert_eq!(time::format(deleted.deleted_at.unwrap()), "2026-01-01T00:00:00.000Z");
        for (topic, body) in [
            ("refunds/create", json!({"id": 1})),
            ("fulfillments/create", json!({"id": 1})),
            ("orders/delete", json!({})),
        ] {
            assert_eq!(decoded(topic, &body).unwrap_err().code, "invalid_order", "{topic}");
        }
    }

    #[test]
    fn tokens_are_bridges_and_a_national_number_belongs_where_its_owner_lives() {
        let of = |topic, body: &Value| -> Vec<String> {
            let found = decoded(topic, body).unwrap().identifiers;
            found.iter().map(|i| format!("{} {}", i.kind.as_str(), i.value)).collect()
        };
        assert_eq!(of("carts/create", &json!({"id": "c1", "token": "c1"})), ["cart_token c1"]);
        let checkout = json!({"id": 1, "token": "k1", "cart_token": "c1", "phone": "0170 1234567",
                              "shipping_address": {"country_code": "DE"}});
        assert_eq!(
            of("checkouts/create", &checkout),
            ["phone +491701234567", "cart_token c1", "checkout_token k1"]
        );
        let order = json!({"id": 1, "cart_token": "c1", "checkout_token": "k1"});
        assert_eq!(of("orders/create", &order), ["cart_token c1", "checkout_token k1"]);
    }

    #[test]
    fn tags_come_by_topics_of_their_own_and_a_merge_names_both() {
        let tagged = json!({"customerId": "gid://shopify/Customer/7", "tags": ["vip", " early bird "], "occurredAt": "2026-01-02T00:00:00Z"});
        for (topic, has) in [(TAGS_ADDED, true), (TAGS_REMOVED, false)] {
            let event = decoded(topic, &tagged).unwrap();
            let ids: Vec<&str> = event.identifiers.iter().map(|one| one.value.as_str()).collect();
            let traits: Vec<(&str, &Value)> =
                event.traits.iter().map(|one| (one.name.as_str(), &one.value)).collect();
            assert_eq!(
                (ids, time::format(event.timestamp).as_str()),
                (vec!["7"], "2026-01-02T00:00:00.000Z")
            );
            assert_eq!(traits, [("tag:vip", &json!(has)), ("tag:early bird", &json!(has))]);
        }
        let merge = |status: &str| {
            let body = json!({"admin_graphql_api_customer_kept_id": "gid://shopify/Customer/1",
                              "admin_graphql_api_customer_deleted_id": "gid://shopify/Customer/2", "status": status});
            decoded("customers/merge", &body).unwrap().identifiers.len()
        };
        assert_eq!((merge("completed"), merge("in_progress")), (2, 0));
    }

    #[test]
    fn consent_is_read_in_each_of_its_forms() {
        let now = json!({"id": 1, "email_marketing_consent": {"state": "subscribed", "opt_in_level": "single_opt_in",
                         "consent_updated_at": "2026-01-03T00:00:00Z"}, "sms_marketing_consent": {"state": "not_subscribed"}});
        let consents = decoded("customers/update", &now).unwrap().consents;
        assert_eq!((consents.len(), consents[0].state.as_str()), (2, "subscribed"));
        assert_eq!(time::format(consents[0].at), "2026-01-03T00:00:00.000Z");
        let before = json!({"id": 1, "customer": {"id": 2, "accepts_marketing": true}});
        assert_eq!(decoded("orders/create", &before).unwrap().consents[0].state, "subscribed");
        let undated = |created: &str, state: &str| {
            let customer = json!({"id": 1, "created_at": created, "updated_at": "2026-01-02T00:00:00Z",
                                  "email_marketing_consent": {"state": state}});
            time::format(decoded("customers/update", &customer).unwrap().consents[0].at)
        };
        assert_eq!(undated("2025-12-01T00:00:00Z", "SUBSCRIBED"), "2025-12-01T00:00:00.000Z");
        assert_eq!(undated("2025-12-01T00:00:00Z", "unsubscribed"), "2026-01-02T00:00:00.000Z");
        assert_eq!(undated("", "subscribed"), "1970-01-01T00:00:00.000Z");
        let own = json!({"customer_id": 7, "email_marketing_consent": {"state": "unsubscribed"}});
        let event = decoded("customers_email_marketing_consent/update", &own).unwrap();
        assert_eq!(
            (event.identifiers[0].value.as_str(), event.consents[0].state.as_str()),
            ("7", "unsubscribed")
        );
    }

    #[test]
    fn a_privacy_request_names_its_subject_and_keeps_nothing_else() {
        let body = json!({"shop_id": 1, "customer": {"id": 7, "email": "A@Example.com", "phone": null}});
        let event = decoded("customers/redact", &body).unwrap();
        assert!(event.identifiers.is_empty() && event.body == "{}");
        let Some(PrivacyAsk::Erase(subject)) = event.ask else { panic!("{:?}", event.ask) };
        let values: Vec<_> = subject.identifiers.iter().map(|i| i.value.as_str()).collect();
        assert_eq!(values, ["7", "a@example.com"]);
        assert_eq!(decoded("shop/redact", &json!({"shop_id": 1})).unwrap().ask, Some(PrivacyAsk::EraseShop));
    }
}
