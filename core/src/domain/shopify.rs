//! Shopify's webhooks: which delivery is which, and the event a body becomes.
//!
//! Source: Shopify's webhook and REST resource pages. Any field may be missing or null, and ids come as numbers or as
//! strings. What a body says beyond these fields is kept with the event, unread.

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use serde_json::Value;

use super::envelope::{Envelope, Origin};
use super::event::{
    BodyClaim, Channel, Consent, Event, EventKind, PrivacyAsk, Product, ProductPart, Rejection, SUBSCRIBED,
    Subject, TraitUpdate,
};
use super::gid;
use super::identity::{Identifier, IdentifierKind, Rules};
use super::json;
use super::money;
use super::order::{
    Amount, Fulfillment, Item, Order, OrderUpdate, ParcelPart, Part, Refund, SUM, UNKNOWN_CURRENCY,
};
use super::profile::MAX_TRAIT_BYTES;
use super::profile::TAG;
use super::time::{self, Timestamp};
use super::version::{Version, Versions};
use super::webhook;

/// The topics that a shop should send, and what each is good for. `server admin shop add` prints them.
pub const TOPICS: [&str; 30] = [
    "orders/create",
    "orders/updated",
    "orders/paid",
    "orders/cancelled",
    "orders/fulfilled",
    "orders/partially_fulfilled",
    "orders/edited",
    "orders/delete",
    "refunds/create",
    "customers/create",
    "customers/update",
    "customers/delete",
    "customers/enable",
    "customers/disable",
    "checkouts/create",
    "checkouts/update",
    "checkouts/delete",
    "carts/create",
    "carts/update",
    "fulfillments/create",
    "fulfillments/update",
    "products/create",
    "products/update",
    "products/delete",
    "app/uninstalled",
    "customers_email_marketing_consent/update",
    "customers_marketing_consent/update",
    "customers/merge",
    TAGS_ADDED,
    TAGS_REMOVED,
];
/// Since API version 2025-01 customers' bodies have no tags any more: these tell of them.
const TAGS_ADDED: &str = "customer.tags_added";
/// See [`TAGS_ADDED`].
const TAGS_REMOVED: &str = "customer.tags_removed";
/// Topics of privacy law, which are set apart at Shopify.
pub const PRIVACY_TOPICS: [&str; 3] = ["customers/data_request", "customers/redact", "shop/redact"];
/// The event after which a shop sends nothing more.
pub const APP_UNINSTALLED: &str = "App Uninstalled";

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
/// The names that the field's tools give to topics; any other topic is its own name.
const EVENT_NAMES: [(&str, &str); 23] = [
    ("orders/create", "Order Created"),
    ("orders/updated", "Order Updated"),
    ("orders/paid", "Order Paid"),
    ("orders/cancelled", "Order Cancelled"),
    ("orders/fulfilled", "Order Fulfilled"),
    ("orders/partially_fulfilled", "Order Partially Fulfilled"),
    ("orders/edited", "Order Edited"),
    ("orders/delete", "Order Deleted"),
    ("refunds/create", "Order Refunded"),
    ("fulfillments/create", "Fulfillment Created"),
    ("fulfillments/update", "Fulfillment Updated"),
    ("checkouts/create", "Checkout Started"),
    ("checkouts/update", "Checkout Updated"),
    ("checkouts/delete", "Checkout Deleted"),
    ("carts/create", "Cart Created"),
    ("carts/update", "Cart Updated"),
    ("customers/create", "Customer Created"),
    ("customers/update", "Customer Updated"),
    ("customers/delete", "Customer Deleted"),
    ("customers/merge", "Customers Merged"),
    (TAGS_ADDED, "Customer Tagged"),
    (TAGS_REMOVED, "Customer Untagged"),
    ("app/uninstalled", APP_UNINSTALLED),
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

/// What a kept webhook says of its customer: for making a profile anew from its events.
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

fn event_name(topic: &str) -> &str {
    EVENT_NAMES.into_iter().find(|(known, _)| *known == topic).map_or(topic, |(_, name)| name)
}

/// The part of a topic before the slash, or the full stop: what the body is.
fn resource(topic: &str) -> &str {
    topic.split(['/', '.']).next().unwrap_or_default()
}

/// The customer in a body; null where there is none. Groups of customers, their payment methods and accounts are something else.
fn customer<'a>(body: &'a Value, topic: &str) -> &'a Value {
    let resource = resource(topic);
    let is_one = ["customers", "customer"].contains(&resource) || resource.starts_with("customers_");
    if is_one { body } else { &body["customer"] }
}

fn order_update(
    body: &Value,
    shop: &str,
    topic: &str,
    updated_at: Timestamp,
    version: &Version,
) -> Result<Option<OrderUpdate>, Rejection> {
    let about = |field: &str| {
        id_in(body, field).ok_or_else(|| {
            Rejection::new("invalid_order", format!("{topic} without {field}: which order is it?"))
        })
    };
    let sequence = version.sequence;
    let blank = |id: String| OrderUpdate {
        shop: shop.to_owned(),
        id,
        updated_at,
        sequence,
        ..OrderUpdate::default()
    };
    Ok(Some(match topic {
        "orders/delete" => OrderUpdate { deleted_at: Some(updated_at), ..blank(about("id")?) },
        "refunds/create" => {
            let paid = paid_back(body, updated_at, version)?;
            let refunds = paid.map(|paid| Ok((about("id")?, paid))).into_iter().collect::<Result<_, _>>()?;
            OrderUpdate { refunds, ..blank(about("order_id")?) }
        }
        "fulfillments/create" | "fulfillments/update" => {
            let fulfillments = [fulfillment(body, version)].into_iter().flatten().collect();
            OrderUpdate { fulfillments, ..blank(about("order_id")?) }
        }
        topic if ORDER_TOPICS.contains(&topic) => OrderUpdate {
            refunds: refunds(body, updated_at, version)?,
            fulfillments: list(body, "fulfillments")
                .iter()
                .filter_map(|one| fulfillment(one, version))
                .collect(),
            state: Some(Box::new(order(body, topic, updated_at)?)),
            left_out: left_out(body, topic),
            ..blank(about("id")?)
        },
        // What else is told of an order is its own: it goes when the order's customer is erased.
        _ => match id_in(body, "order_id").or_else(|| id_in(&body["order"], "id")) {
            Some(id) => blank(id),
            None => return Ok(None),
        },
    }))
}

/// The parts of an order's state that a body does not mention: a subscription may name the fields that it wants.
fn left_out(body: &Value, topic: &str) -> Vec<Part> {
    let mentions = |part: &Part| {
        let is_there = |fields: &[&str]| mentions_any(body, fields);
        let is_told = |fields: &[&str]| fields.iter().any(|field| !body[*field].is_null());
        match part {
            Part::Name => is_there(&["name"]),
            Part::OrderedAt => is_told(&["processed_at", "created_at"]),
            Part::CancelledAt => is_there(&["cancelled_at"]) || topic == "orders/cancelled",
            Part::Test => is_told(&["test"]),
            Part::Currency => currency(body).is_some(),
            Part::Total => is_told(&["total_price_set", "total_price"]),
            Part::CurrentTotal => is_told(&["current_total_price_set", "current_total_price"]),
            Part::Payment => is_there(&["financial_status"]),
            Part::Shipping => is_there(&["fulfillment_status"]),
            Part::Items => is_told(&["line_items"]),
            Part::Customer => is_there(&["customer", "email", "contact_email", "phone"]),
        }
    };
    Part::ALL.into_iter().filter(|part| !mentions(part)).collect()
}

fn currency(body: &Value) -> Option<String> {
    let code =
        text(body, "currency").or_else(|| text(&body["total_price_set"]["shop_money"], "currency_code"));
    code.map(|code| code.to_uppercase())
}

fn order(body: &Value, topic: &str, updated_at: Timestamp) -> Result<Order, Rejection> {
    let cancelled_at = instant(body, "cancelled_at").or((topic == "orders/cancelled").then_some(updated_at));
    let in_shop_money = |set: &str, plain: &str| match money_in(body, set, "shop_money")? {
        Some(shop) => Ok(Some(shop.amount)),
        None if body[plain].is_null() => Ok(None),
        None => amount(body, plain).map(Some),
    };
    let currency = currency(body).unwrap_or_else(|| UNKNOWN_CURRENCY.into());
    Ok(Order {
        name: text(body, "name"),
        ordered_at: instant(body, "processed_at")
            .or_else(|| instant(body, "created_at"))
            .unwrap_or(updated_at),
        cancelled_at,
        test: body["test"].as_bool().unwrap_or(false),
        total: in_shop_money("total_price_set", "total_price")?.unwrap_or_default(),
        current_total: in_shop_money("current_total_price_set", "current_total_price")?,
        presentment: money_in(body, "total_price_set", "presentment_money")?
            .filter(|seen| seen.currency != currency),
        currency,
        financial_status: text(body, "financial_status"),
        fulfillment_status: text(body, "fulfillment_status"),
        items: items(body)?,
    })
}

/// What was bought: without what was taken out of the order, and with what was returned. Both are less in the current quantity; which it
/// was the refunds say, where they are told line by line.
fn items(body: &Value) -> Result<Vec<Item>, Rejection> {
    let paid_back: Vec<&Value> = list(body, "refunds")
        .iter()
        .filter(|refund| list(refund, "transactions").iter().any(is_paid_back))
        .collect();
    let is_told =
        body["refunds"].is_array() && paid_back.iter().all(|refund| refund["refund_line_items"].is_array());
    let mut returned: BTreeMap<String, i64> = BTreeMap::new();
    for line in paid_back.iter().flat_map(|refund| list(refund, "refund_line_items")) {
        if let Some(id) = id_in(line, "line_item_id") {
            let count = returned.entry(id).or_default();
            *count = count.saturating_add(line["quantity"].as_i64().unwrap_or(0));
        }
    }
    let mut items = Vec::new();
    for line in list(body, "line_items") {
        let mut item = item(line)?;
        if let Some(current) = line["current_quantity"].as_i64().filter(|_| is_told) {
            let back = id_in(line, "id").and_then(|id| returned.get(&id)).copied().unwrap_or(0);
            item.quantity = item.quantity.min(current.saturating_add(back));
        }
        if item.quantity != 0 || line["quantity"] == 0 {
            items.push(item);
        }
    }
    Ok(items)
}

/// One side of a Shopify money set; `None` where it is not there.
fn money_in(body: &Value, set: &str, side: &str) -> Result<Option<Amount>, Rejection> {
    let money = &body[set][side];
    let Some(currency) = text(money, "currency_code") else { return Ok(None) };
    if money["amount"].is_null() {
        return Ok(None);
    }
    Ok(Some(Amount { amount: amount(money, "amount")?, currency: currency.to_uppercase() }))
}

/// The refunds in an order's body, by their ids. Those without one stand under one name with their sum: the newest body that
/// tells it holds.
fn refunds(
    body: &Value,
    updated_at: Timestamp,
    version: &Version,
) -> Result<BTreeMap<String, Refund>, Rejection> {
    let mut refunds: BTreeMap<String, Refund> = BTreeMap::new();
    for refund in list(body, "refunds") {
        let Some(paid) = paid_back(refund, updated_at, version)? else { continue };
        match id_in(refund, "id") {
            Some(id) => drop(refunds.insert(id, paid)),
            None => match refunds.get_mut(SUM) {
                Some(sum) => sum.amount += paid.amount,
                None => drop(refunds.insert(SUM.to_owned(), paid)),
            },
        }
    }
    Ok(refunds)
}

/// Whether a transaction paid something back. One that failed or only voided an authorisation moved no money.
fn is_paid_back(transaction: &Value) -> bool {
    transaction["kind"] == "refund" && matches!(transaction["status"].as_str(), None | Some("success"))
}

/// What was paid back; `None` where the body does not mention it.
fn paid_back(refund: &Value, updated_at: Timestamp, version: &Version) -> Result<Option<Refund>, Rejection> {
    if refund.get("transactions").is_none() {
        return Ok(None);
    }
    let mut sum = Decimal::ZERO;
    let mut currency = None;
    for transaction in list(refund, "transactions").iter().filter(|one| is_paid_back(one)) {
        // The amount in the shop's money, where it is told; else in the money it was paid with.
        match money_in(transaction, "amount_set", "shop_money")? {
            Some(shop) => sum += shop.amount,
            None => {
                sum += amount(transaction, "amount")?;
                currency = text(transaction, "currency").map(|code| code.to_uppercase());
            }
        }
    }
    let at = instant(refund, "processed_at").or_else(|| instant(refund, "created_at")).unwrap_or(updated_at);
    let version = version.clone();
    Ok(Some(Refund { at_ms: at.timestamp_millis(), amount: sum, currency, version }))
}

fn fulfillment(parcel: &Value, version: &Version) -> Option<(String, Fulfillment)> {
    let own = instant(parcel, "updated_at").map_or(version.at_ms, |at| at.timestamp_millis());
    let mentions = |part: &ParcelPart| {
        let is_there = |fields: &[&str]| mentions_any(parcel, fields);
        match part {
            ParcelPart::Status => is_there(&["shipment_status", "status"]),
            ParcelPart::At => instant(parcel, "created_at").is_some(),
            ParcelPart::Company => is_there(&["tracking_company"]),
            ParcelPart::Number => is_there(&["tracking_number"]),
        }
    };
    let left_out: Vec<ParcelPart> = ParcelPart::ALL.into_iter().filter(|part| !mentions(part)).collect();
    let made = Fulfillment {
        status: text(parcel, "shipment_status").or_else(|| text(parcel, "status")),
        at_ms: instant(parcel, "created_at").map_or(0, |at| at.timestamp_millis()),
        company: text(parcel, "tracking_company"),
        number: text(parcel, "tracking_number"),
        versions: Versions::told(Version { at_ms: own, ..version.clone() }, &left_out),
    };
    Some((id_in(parcel, "id")?, made))
}

fn item(line: &Value) -> Result<Item, Rejection> {
    Ok(Item {
        product_id: id_in(line, "product_id"),
        sku: text(line, "sku"),
        title: text(line, "title"),
        quantity: line["quantity"].as_i64().unwrap_or(1),
        price: amount(line, "price")?,
        gift_card: line["gift_card"].as_bool().unwrap_or(false),
    })
}

fn product(
    body: &Value,
    topic: &str,
    updated_at: Timestamp,
    version: &Version,
) -> Result<Option<Product>, Rejection> {
    if resource(topic) != "products" {
        return Ok(None);
    }
    let id = id_in(body, "id").ok_or_else(|| {
        Rejection::new("invalid_product", format!("{topic} without an id: which product is it?"))
    })?;
    let price = list(body, "variants").first().map(|variant| amount(variant, "price")).transpose()?;
    let deleted_at = (topic == "products/delete").then_some(updated_at);
    let mentions = |part: &ProductPart| {
        // A deletion says nothing of the state: whatever came before or comes late holds.
        let field = match part {
            ProductPart::Title => "title",
            ProductPart::Category => "product_type",
            ProductPart::Vendor => "vendor",
            ProductPart::Price => "variants",
        };
        deleted_at.is_none() && body.get(field).is_some()
    };
    let left_out: Vec<ProductPart> = ProductPart::ALL.into_iter().filter(|part| !mentions(part)).collect();
    Ok(Some(Product {
        id,
        versions: Versions::told(version.clone(), &left_out),
        title: text(body, "title"),
        category: text(body, "product_type"),
        vendor: text(body, "vendor"),
        price,
        deleted_at,
    }))
}

/// What a privacy topic asks for.
fn ask(body: &Value, topic: &str, rules: &Rules) -> Option<PrivacyAsk> {
    let subject = || {
        let customer = &body["customer"];
        let identifiers = [
            (IdentifierKind::ShopifyCustomerId, id_in(customer, "id")),
            (IdentifierKind::Email, text(customer, "email")),
            (IdentifierKind::Phone, text(customer, "phone")),
        ]
        .into_iter()
        .filter_map(|(kind, value)| rules.identifier(kind, &value?))
        .collect();
        Subject { identifiers, profiles: Vec::new() }
    };
    match topic {
        "customers/data_request" => Some(PrivacyAsk::Export(subject())),
        "customers/redact" => Some(PrivacyAsk::Erase(subject())),
        "shop/redact" => Some(PrivacyAsk::EraseShop),
        _ => None,
    }
}

fn identifiers(body: &Value, topic: &str, rules: &Rules) -> Vec<Identifier> {
    let resource = resource(topic);
    let customer = customer(body, topic);
    let own = if PERSONAL.contains(&resource) { body } else { &Value::Null };
    // A national telephone number belongs where its owner lives.
    let lives_in = |of: &Value| text(&of["default_address"], "country_code");
    let ships_to = ["billing_address", "shipping_address"]
        .into_iter()
        .find_map(|address| text(&own[address], "country_code"))
        .or_else(|| lives_in(customer));
    // A body about consent names the customer in fields of its own.
    let customers_id = ["id", "customer_id", "customerId"].iter().find_map(|field| id_in(customer, field));
    // Others name their customer, too: contracts, payment methods, contacts of companies.
    let customers_id = customers_id.or_else(|| {
        let named =
            ["customer_id", "customerId", "admin_graphql_api_customer_id", "customer_admin_graphql_api_id"];
        named.iter().find_map(|field| id_in(body, field))
    });
    // Shopify has made one customer of two: whoever is named by either is the same.
    let merged = |field: &str| text(body, field).filter(|_| is_merge(body, topic));
    let (cart, checkout) = match resource {
        "carts" => (text(body, "token").or_else(|| text(body, "id")), None),
        "checkouts" => (text(body, "cart_token"), text(body, "token")),
        _ => (text(body, "cart_token"), text(body, "checkout_token")),
    };
    // Whoever checked out is whose order it is when it is created. Later the shop may give it to another customer, and it keeps its tokens:
    // then they say who somebody is only where nothing else does.
    let is_later_state = resource == "orders" && topic != "orders/create";
    let names_somebody = customers_id.is_some()
        || ["email", "phone"].iter().any(|field| text(customer, field).is_some())
        || ["email", "contact_email", "phone"].iter().any(|field| text(own, field).is_some());
    let (cart, checkout) = if is_later_state && names_somebody { (None, None) } else { (cart, checkout) };
    let mut found: Vec<Identifier> = [
        (IdentifierKind::ShopifyCustomerId, customers_id, None),
        (IdentifierKind::ShopifyCustomerId, merged("admin_graphql_api_customer_kept_id"), None),
        (IdentifierKind::ShopifyCustomerId, merged("admin_graphql_api_customer_deleted_id"), None),
        (IdentifierKind::Email, text(customer, "email"), None),
        (IdentifierKind::Email, text(customer, "email_address"), None),
        (IdentifierKind::Email, text(own, "email").or_else(|| text(own, "contact_email")), None),
        (IdentifierKind::Phone, text(customer, "phone_number"), lives_in(customer)),
        (IdentifierKind::Phone, text(customer, "phone"), lives_in(customer).or_else(|| ships_to.clone())),
        (IdentifierKind::Phone, text(own, "phone"), ships_to),
        (IdentifierKind::CartToken, cart, None),
        (IdentifierKind::CheckoutToken, checkout, None),
    ]
    .into_iter()
    .filter_map(|(kind, value, country)| rules.identifier_in(kind, &value?, country.as_deref()))
    .collect();
    found.sort();
    found.dedup();
    found
}

/// A merge that has come to its end; others are announced, or failed.
fn is_merge(body: &Value, topic: &str) -> bool {
    topic == "customers/merge"
        && text(body, "status").is_some_and(|status| status.eq_ignore_ascii_case("completed"))
}

/// The customer's traits under Segment's reserved names, so that a browser and Shopify speak of the same ones.
fn traits(body: &Value, topic: &str, event_at: Timestamp) -> Vec<TraitUpdate> {
    if [TAGS_ADDED, TAGS_REMOVED].contains(&topic) {
        let at = instant(body, "occurredAt").unwrap_or(event_at);
        let tags =
            list(body, "tags").iter().filter_map(Value::as_str).map(str::trim).filter(|tag| !tag.is_empty());
        let named = tags.map(|tag| TraitUpdate {
            name: format!("{TAG}{tag}"),
            value: (topic == TAGS_ADDED).into(),
            at,
        });
        return named.filter(|update| update.name.len() <= MAX_TRAIT_BYTES).collect();
    }
    let customer = customer(body, topic);
    let at = instant(customer, "updated_at").unwrap_or(event_at);
    let address = &customer["default_address"];
    let deleted = Value::from("deleted");
    // Who buys as a guest is written to where the order says. An order's own address is emptied by nobody.
    let personal = PERSONAL.contains(&resource(topic));
    let contact = |field: &str| match (&customer[field], &body[field]) {
        (told, own) if !personal || is_empty(own) || own.is_null() => told.clone(),
        (told, _) if told.as_str().is_some_and(|text| !text.is_empty()) => told.clone(),
        (_, own) => own.clone(),
    };
    let (email, phone) = (contact("email"), contact("phone"));
    let state = if topic == "customers/delete" { &deleted } else { &customer["state"] };
    // There is no channel of that name; who may be written to there is known all the same.
    let whats_app = &customer["whats_app_marketing_consent"];
    let at = instant(whats_app, "updated_at").unwrap_or(at);
    [
        ("email", &email),
        ("phone", &phone),
        ("firstName", &customer["first_name"]),
        ("lastName", &customer["last_name"]),
        ("tags", &customer["tags"]),
        ("shopifyState", state),
        ("acceptsMarketing", &customer["accepts_marketing"]),
        ("city", &address["city"]),
        ("countryCode", &address["country_code"]),
        ("whatsAppMarketingConsent", &whats_app["state"]),
    ]
    .into_iter()
    // Shopify writes null for what it does not know, or may not tell: that is no statement about the customer.
    .filter(|(_, value)| !value.is_null())
    // A customer's body is the whole state: what is empty there was emptied.
    .map(|(name, value)| {
        let value = if is_empty(value) { Value::Null } else { value.clone() };
        TraitUpdate { name: name.into(), value, at }
    })
    .collect()
}

fn is_empty(value: &Value) -> bool {
    value.as_str().is_some_and(str::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}

/// What the customer says of being written to, in any of the forms that Shopify has had for it.
fn consents(body: &Value, topic: &str, event_at: Timestamp, rules: &Rules) -> Vec<Consent> {
    let customer = customer(body, topic);
    let address = |channel: Channel| {
        let kind = channel.identifier_kind();
        let fields: &[&str] =
            if kind == IdentifierKind::Email { &["email", "email_address"] } else { &["phone"] };
        let country = text(&customer["default_address"], "country_code");
        let told = fields.iter().find_map(|field| text(customer, field))?;
        Some(rules.identifier_in(kind, &told, country.as_deref())?.value)
    };
    // What has no date is repeated with every order. A yes may be as old as the customer, and outweighs nobody's later no; a no counts
    // as of now.
    let undated = |state: &str| match state {
        SUBSCRIBED => instant(customer, "created_at").unwrap_or_default().min(event_at),
        _ => instant(customer, "updated_at").unwrap_or(event_at),
    };
    let mut found = Vec::new();
    for (channel, field) in
        [(Channel::Email, "email_marketing_consent"), (Channel::Sms, "sms_marketing_consent")]
    {
        let consent = &customer[field];
        if let Some(state) = text(consent, "state").map(|state| state.to_lowercase()) {
            found.push(Consent {
                channel,
                address: address(channel),
                at: instant(consent, "consent_updated_at").unwrap_or_else(|| undated(&state)),
                state,
                level: text(consent, "opt_in_level").map(|level| level.to_lowercase()),
            });
        } else if channel == Channel::Email
            && let Some(accepts) = customer["accepts_marketing"].as_bool()
        {
            let state = if accepts { SUBSCRIBED } else { "not_subscribed" };
            found.push(Consent {
                channel,
                address: address(channel),
                state: state.to_owned(),
                level: text(customer, "marketing_opt_in_level"),
                at: instant(customer, "accepts_marketing_updated_at").unwrap_or_else(|| undated(state)),
            });
        }
    }
    found
}

fn mentions_any(of: &Value, fields: &[&str]) -> bool {
    fields.iter().any(|field| of.get(*field).is_some())
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

/// An id: the number of what newer versions of Shopify's API write as `gid://shopify/Order/7`, and what a tool that takes numbers for
/// floating ones writes as `7.0`, as far as such a number is exact.
fn id_in(of: &Value, field: &str) -> Option<String> {
    if let Some(number) = of[field].as_f64().filter(|_| of[field].is_f64()) {
        let is_exact = number.fract() == 0.0 && (0.0..EXACT_FLOATS as f64).contains(&number);
        return is_exact.then(|| format!("{number:.0}"));
    }
    let told = text(of, field)?;
    Some(gid::id(&told).unwrap_or(&told).to_owned())
}

/// Whole numbers below this are exact as floating ones.
pub const EXACT_FLOATS: u64 = 1 << 53;

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
    use crate::domain::order::OrderRecord;

    fn decoded(topic: &str, body: &Value) -> Result<Event, Rejection> {
        let body = to_raw_value(body).unwrap();
        let envelope = Envelope {
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
        let told = json!({"id": 6, "order_id": 1, "created_at": "2026-01-02T00:00:00Z", "transactions": [
            {"kind": "refund", "status": "success", "amount": "1.00", "currency": "EUR", "amount_set": set("1.10", "1.00")}]});
        let event = decoded("refunds/create", &told).unwrap();
        record.apply(event.order.as_ref().unwrap(), "m2", None);
        assert_eq!(record.refunded().to_string(), "12.10");
    }

    #[test]
    fn what_happens_to_an_order_is_read_without_its_state() {
        let parcel = json!({"id": 9, "order_id": 1, "status": "success", "tracking_number": "1Z"});
        let update = decoded("fulfillments/update", &parcel).unwrap().order.unwrap();
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
