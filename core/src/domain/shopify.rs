//! Shopify's webhooks: which delivery is which, and the event a body becomes.
//!
//! Source: Shopify's webhook and REST resource pages. Any field may be missing or null, and ids come as numbers or as
//! strings. What a body says beyond these fields is kept with the event, unread.

use rust_decimal::Decimal;
use serde_json::Value;

use super::envelope::{Envelope, Origin};
use super::event::{Event, EventKind, Rejection, TraitUpdate};
use super::identity::{Identifier, IdentifierKind};
use super::money;
use super::order::{Item, Order};
use super::time::{self, Timestamp};

/// Topics whose body is an order. Others under `orders/` (edited, risk assessments, …) have bodies of their own.
const ORDER_TOPICS: [&str; 7] = [
    "orders/create",
    "orders/updated",
    "orders/cancelled",
    "orders/paid",
    "orders/partially_paid",
    "orders/fulfilled",
    "orders/partially_fulfilled",
];
/// Resources whose body names a customer's own e-mail and phone. A shop's or a location's body names the merchant's.
const PERSONAL: [&str; 5] = ["orders", "checkouts", "carts", "customers", "draft_orders"];
/// Topics that say that the customer was there; others tell what the merchant or Shopify did.
const ACTIVE_TOPICS: [&str; 6] = [
    "orders/create",
    "checkouts/create",
    "checkouts/update",
    "carts/create",
    "carts/update",
    "customers/create",
];

/// The ids by which Shopify marks a delivery.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    /// The shop's domain, from `X-Shopify-Shop-Domain`.
    pub shop: &'a str,
    /// `X-Shopify-Topic`.
    pub topic: &'a str,
    /// `X-Shopify-Webhook-Id`: the same for every try of one delivery.
    pub webhook_id: &'a str,
    /// `X-Shopify-Event-Id`: the same for all that one action of a merchant sends.
    pub event_id: Option<&'a str>,
    /// The body's `id`.
    pub resource_id: Option<&'a str>,
}

impl Delivery<'_> {
    /// What makes two deliveries the same. Shopify's own documents name both: a delivery is a duplicate if any of these
    /// was seen. The event id counts only together with topic and resource: one action may fire several topics.
    pub fn idempotency_keys(&self) -> Vec<String> {
        let mut keys = vec![self.webhook_key()];
        keys.extend(self.event_key());
        keys
    }

    /// The key of one delivery: (shop, webhook id).
    pub fn webhook_key(&self) -> String {
        format!("shopify:{}:{}", self.shop, self.webhook_id)
    }

    /// The event's message id, which the store keeps unique when the queue has forgotten the keys.
    pub fn message_id(&self) -> String {
        self.event_key().unwrap_or_else(|| self.webhook_key())
    }

    /// The key of one event on one resource: (shop, topic, event id, resource id).
    pub fn event_key(&self) -> Option<String> {
        let (event, resource) = (self.event_id?, self.resource_id?);
        Some(format!("shopify:{}:{}:{}:{}", self.shop, self.topic, event, resource))
    }
}

/// What a body says, however it is written: fields sorted, numbers as text. Two subscriptions to a topic may render one
/// event in two API versions, with an id as a number or as a string; that is no other body. What this program cannot hold
/// (half a surrogate pair, nesting without end) is compared as it is written; the worker says what is wrong with it.
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
/// When the body is no JSON object, or an order without an id.
pub fn decode(envelope: &Envelope<'_>) -> Result<Event, Rejection> {
    let Origin::Shopify { shop, topic, message_id, triggered_at } = &envelope.origin else {
        return Err(Rejection::new("malformed_envelope", "not a Shopify webhook"));
    };
    let body: Value = serde_json::from_str(envelope.body.get())
        .map_err(|error| Rejection::new("invalid_webhook", format!("the body cannot be read: {error}")))?;
    if !body.is_object() {
        return Err(Rejection::new("invalid_webhook", "the body must be a JSON object"));
    }
    let received_at = time::from_ms(envelope.received_ms);
    let timestamp = instant(&body, "updated_at")
        .or_else(|| instant(&body, "created_at"))
        .or_else(|| triggered_at.as_deref().and_then(time::parse))
        .unwrap_or(received_at);
    let resource = topic.split('/').next().unwrap_or_default();
    let order = match ORDER_TOPICS.contains(&&**topic) {
        true => Some(order(&body, shop, topic, timestamp)?),
        false => None,
    };
    Ok(Event {
        brand: envelope.brand,
        message_id: message_id.replace('\0', ""),
        kind: EventKind::Shopify,
        name: Some(event_name(topic).replace('\0', "")),
        // An order is placed when the customer places it, whenever Shopify tells.
        timestamp: order.as_ref().filter(|_| topic == "orders/create").map_or(timestamp, |o| o.ordered_at),
        received_at,
        identifiers: identifiers(&body, resource),
        traits: traits(&body, resource, timestamp),
        order,
        active: ACTIVE_TOPICS.contains(&&**topic),
        body: envelope.body.get().to_owned(),
    })
}

/// The names that the field's tools give to Shopify's topics; any other topic is its own name.
fn event_name(topic: &str) -> &str {
    match topic {
        "orders/create" => "Order Created",
        "orders/updated" => "Order Updated",
        "orders/cancelled" => "Order Cancelled",
        "checkouts/create" => "Checkout Started",
        "checkouts/update" => "Checkout Updated",
        "customers/create" => "Customer Created",
        "customers/update" => "Customer Updated",
        other => other,
    }
}

fn order(body: &Value, shop: &str, topic: &str, updated_at: Timestamp) -> Result<Order, Rejection> {
    let id = text(body, "id").ok_or_else(|| {
        Rejection::new("invalid_order", format!("{topic} without an id: which order is it?"))
    })?;
    let cancelled_at = instant(body, "cancelled_at").or((topic == "orders/cancelled").then_some(updated_at));
    Ok(Order {
        shop: shop.to_owned(),
        id,
        name: text(body, "name"),
        ordered_at: instant(body, "processed_at")
            .or_else(|| instant(body, "created_at"))
            .unwrap_or(updated_at),
        updated_at,
        cancelled_at,
        test: body["test"].as_bool().unwrap_or(false),
        currency: text(body, "currency").unwrap_or_else(|| "XXX".into()).to_uppercase(),
        total: amount(body, "total_price")?,
        refunded: refunded(body)?,
        financial_status: text(body, "financial_status"),
        fulfillment_status: text(body, "fulfillment_status"),
        items: list(body, "line_items").iter().map(item).collect::<Result<_, _>>()?,
    })
}

/// What was paid back. A transaction that failed or only voided an authorisation moved no money.
fn refunded(body: &Value) -> Result<Decimal, Rejection> {
    list(body, "refunds")
        .iter()
        .flat_map(|refund| list(refund, "transactions"))
        .filter(|t| t["kind"] == "refund" && matches!(t["status"].as_str(), None | Some("success")))
        .try_fold(Decimal::ZERO, |sum, t| Ok(sum + amount(t, "amount")?))
}

fn item(line: &Value) -> Result<Item, Rejection> {
    Ok(Item {
        product_id: text(line, "product_id"),
        sku: text(line, "sku"),
        title: text(line, "title"),
        quantity: line["quantity"].as_i64().unwrap_or(1),
        price: amount(line, "price")?,
    })
}

fn identifiers(body: &Value, resource: &str) -> Vec<Identifier> {
    let customer = if resource == "customers" { body } else { &body["customer"] };
    let own = if PERSONAL.contains(&resource) { body } else { &Value::Null };
    let mut found: Vec<Identifier> = [
        (IdentifierKind::ShopifyCustomerId, text(customer, "id")),
        (IdentifierKind::Email, text(customer, "email")),
        (IdentifierKind::Email, text(own, "email").or_else(|| text(own, "contact_email"))),
        (IdentifierKind::Phone, text(customer, "phone")),
        (IdentifierKind::Phone, text(own, "phone")),
        (IdentifierKind::CartToken, text(body, "cart_token")),
    ]
    .into_iter()
    .filter_map(|(kind, value)| Identifier::new(kind, &value?))
    .collect();
    found.sort();
    found.dedup();
    found
}

/// The customer's traits under Segment's reserved names, so that a browser and Shopify speak of the same ones.
fn traits(body: &Value, resource: &str, event_at: Timestamp) -> Vec<TraitUpdate> {
    let customer = if resource == "customers" { body } else { &body["customer"] };
    let at = instant(customer, "updated_at").unwrap_or(event_at);
    let address = &customer["default_address"];
    [
        ("email", &customer["email"]),
        ("phone", &customer["phone"]),
        ("firstName", &customer["first_name"]),
        ("lastName", &customer["last_name"]),
        ("tags", &customer["tags"]),
        ("shopifyState", &customer["state"]),
        ("acceptsMarketing", &customer["accepts_marketing"]),
        ("city", &address["city"]),
        ("countryCode", &address["country_code"]),
    ]
    .into_iter()
    // Shopify writes null and "" for what it does not know: that is no statement about the customer.
    .filter(|(_, value)| !value.is_null() && value.as_str() != Some(""))
    .map(|(name, value)| TraitUpdate { name: name.into(), value: value.clone(), at })
    .collect()
}

fn list<'a>(of: &'a Value, field: &str) -> &'a [Value] {
    of[field].as_array().map_or(&[], Vec::as_slice)
}

/// A field's text; numbers are written out, null, "" and everything else is absent.
fn text(of: &Value, field: &str) -> Option<String> {
    match &of[field] {
        Value::String(text) if !text.is_empty() => Some(text.replace('\0', "")),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn instant(of: &Value, field: &str) -> Option<Timestamp> {
    of[field].as_str().and_then(time::parse)
}

/// An amount; zero where there is none.
fn amount(of: &Value, field: &str) -> Result<Decimal, Rejection> {
    let Some(text) = text(of, field) else { return Ok(Decimal::ZERO) };
    money::parse(&text).ok_or_else(|| {
        Rejection::new("invalid_amount", format!("{field} is {text:?}, which is no amount of money"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use serde_json::value::to_raw_value;

    use super::*;
    use crate::domain::ids::BrandId;

    fn decoded(topic: &str, body: &Value) -> Result<Event, Rejection> {
        let body = to_raw_value(body).unwrap();
        let envelope = Envelope {
            brand: BrandId(1),
            received_ms: 0,
            origin: Origin::Shopify {
                shop: "a.myshopify.com".into(),
                topic: topic.into(),
                message_id: "m".into(),
                triggered_at: Some("2026-01-01T00:00:00Z".into()),
            },
            body: &body,
        };
        Envelope::read(&envelope.encode()).unwrap().decode()
    }

    #[test]
    fn an_order_is_read_with_its_money_and_its_customer() {
        let event = decoded(
            "orders/updated",
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
        let order = event.order.unwrap();
        assert_eq!((order.id.as_str(), order.currency.as_str()), ("450789469", "USD"));
        assert_eq!((order.total.to_string(), order.refunded.to_string()), ("409.94".into(), "9.94".into()));
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
        assert_eq!(event.order.unwrap().total, Decimal::ZERO);
        assert_eq!(decoded("orders/create", &json!({"id": null})).unwrap_err().code, "invalid_order");
        assert_eq!(decoded("orders/create", &json!([1])).unwrap_err().code, "invalid_webhook");
        assert_eq!(
            decoded("products/create", &json!({"title": "x"})).unwrap().name.unwrap(),
            "products/create"
        );
    }

    #[test]
    fn only_a_customers_own_contact_identifies_and_only_an_order_is_one() {
        let contact = json!({"id": 1, "email": "owner@example.com", "phone": "+4917012345678"});
        for topic in ["shop/update", "app/uninstalled", "locations/create"] {
            assert_eq!(decoded(topic, &contact).unwrap().identifiers, [], "{topic}");
        }
        assert_eq!(decoded("checkouts/create", &contact).unwrap().identifiers.len(), 2);
        for topic in ["orders/edited", "orders/risk_assessment_changed", "orders/delete"] {
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
        let order = decoded("orders/cancelled", &json!({"id": 1})).unwrap().order.unwrap();
        assert!(!order.counts());
    }

    #[test]
    fn one_action_with_two_topics_is_two_deliveries_and_a_repeated_one_is_one() {
        let first = Delivery {
            shop: "s",
            topic: "orders/create",
            webhook_id: "w1",
            event_id: Some("e"),
            resource_id: Some("1"),
        };
        let twin = Delivery { webhook_id: "w2", ..first };
        let other = Delivery { webhook_id: "w3", topic: "orders/paid", ..first };
        assert_eq!(first.message_id(), twin.message_id());
        assert_ne!(first.message_id(), other.message_id());
        assert!(first.idempotency_keys().iter().all(|key| !other.idempotency_keys().contains(key)));
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
}
