//! Customer360: all that is known of a customer, in the shape that the API answers.
//!
//! The stores deliver a [`CustomerRecord`]; [`Customer360::of`] turns it into the answer, so that both stores answer alike.

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::event::EventKind;
use super::identity::Identifier;
use super::ids::ProfileId;
use super::money::{self, Amounts};
use super::order::{Item, Order};
use super::profile::Profile;
use super::time::{self, Timestamp};

/// How many of the newest events an answer lists.
pub const RECENT_EVENTS: usize = 20;
/// How many of the newest orders an answer lists.
pub const RECENT_ORDERS: usize = 20;

/// What a store holds of one customer.
#[derive(Clone, Debug)]
pub struct CustomerRecord {
    /// The profile, never a merged-away one.
    pub profile: Profile,
    /// All its identifiers.
    pub identifiers: Vec<Identifier>,
    /// Its orders that count, summed by currency.
    pub totals: Vec<OrderTotals>,
    /// Its newest [`RECENT_EVENTS`], newest first.
    pub recent_events: Vec<StoredEvent>,
    /// Its newest [`RECENT_ORDERS`], newest first, also those that do not count.
    pub recent_orders: Vec<Order>,
}

/// Orders of one currency in sum.
#[derive(Clone, Debug, PartialEq)]
pub struct OrderTotals {
    /// ISO 4217.
    pub currency: String,
    /// How many orders.
    pub count: u64,
    /// What they cost in all.
    pub total: Decimal,
    /// What was paid back of it.
    pub refunded: Decimal,
    /// When the newest was placed.
    pub last_ordered_at: Timestamp,
}

/// An event as a store holds it.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// Its message id.
    pub message_id: String,
    /// [`EventKind`] by name.
    pub kind: String,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// When it happened.
    pub timestamp: Timestamp,
    /// The message as it came.
    pub body: String,
}

/// The answer of `GET /api/customers/{id}/360`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Customer360 {
    /// The profile's id. Ids of profiles merged into it answer with this one.
    pub id: ProfileId,
    /// Sorted by kind and value.
    pub identifiers: Vec<Identifier>,
    /// Traits that are set, by name.
    pub traits: BTreeMap<String, Value>,
    /// When the customer was first there; null if never.
    #[serde(with = "time::iso")]
    pub first_seen: Option<Timestamp>,
    /// When the customer was last there; null if never.
    #[serde(with = "time::iso")]
    pub last_seen: Option<Timestamp>,
    /// Events that took effect.
    pub events_count: i64,
    /// Orders that are neither tests nor cancelled.
    pub orders_count: u64,
    /// What these orders cost, by currency, as decimal strings.
    pub revenue: BTreeMap<String, String>,
    /// What was paid back of it, by currency.
    pub refunded: BTreeMap<String, String>,
    /// Revenue by order, rounded half to even, by currency.
    pub average_order: BTreeMap<String, String>,
    /// When the newest of these orders was placed.
    #[serde(with = "time::iso")]
    pub last_order_at: Option<Timestamp>,
    /// Newest first, at most [`RECENT_EVENTS`].
    pub recent_events: Vec<Value>,
    /// Newest first, at most [`RECENT_ORDERS`], also cancelled and test orders.
    pub recent_orders: Vec<Value>,
}

impl Customer360 {
    /// The answer for a record.
    pub fn of(record: CustomerRecord) -> Self {
        let CustomerRecord { profile, mut identifiers, totals, recent_events, recent_orders } = record;
        identifiers.sort();
        let sums = |pick: fn(&OrderTotals) -> Decimal| -> Amounts {
            totals.iter().map(|t| (t.currency.clone(), pick(t))).collect()
        };
        let average = |t: &OrderTotals| money::average(t.total, t.count, &t.currency);
        Self {
            id: profile.id,
            identifiers,
            traits: profile
                .traits
                .into_iter()
                .filter(|(_, held)| !held.value.is_null())
                .map(|(name, held)| (name, held.value))
                .collect(),
            first_seen: profile.first_seen,
            last_seen: profile.last_seen,
            events_count: profile.events_count,
            orders_count: totals.iter().map(|t| t.count).sum(),
            revenue: written(&sums(|t| t.total)),
            refunded: written(&sums(|t| t.refunded)),
            average_order: written(&sums(average)),
            last_order_at: totals.iter().map(|t| t.last_ordered_at).max(),
            recent_events: recent_events.iter().map(event_json).collect(),
            recent_orders: recent_orders.iter().map(order_json).collect(),
        }
    }
}

fn written(amounts: &Amounts) -> BTreeMap<String, String> {
    amounts.iter().map(|(currency, amount)| (currency.clone(), money::format(*amount, currency))).collect()
}

fn event_json(event: &StoredEvent) -> Value {
    json!({
        "message_id": event.message_id,
        "type": event.kind,
        "name": event.name,
        "timestamp": time::format(event.timestamp),
        "properties": properties(event),
    })
}

/// What a reader of the timeline wants of the message. A webhook's body is long: its order or customer in short.
fn properties(event: &StoredEvent) -> Value {
    let mut body: Map<String, Value> = serde_json::from_str(&event.body).unwrap_or_default();
    if event.kind != EventKind::Shopify.as_str() {
        let field = if body.contains_key("properties") { "properties" } else { "traits" };
        return body.remove(field).unwrap_or_else(|| json!({}));
    }
    const SHORT: [&str; 7] =
        ["id", "name", "title", "currency", "total_price", "financial_status", "fulfillment_status"];
    let short = SHORT.into_iter().filter_map(|field| Some((field.to_owned(), body.remove(field)?)));
    Value::Object(short.filter(|(_, value)| !value.is_null()).collect())
}

fn order_json(order: &Order) -> Value {
    let items: Vec<Value> = order.items.iter().map(|item| item_json(item, &order.currency)).collect();
    json!({
        "id": order.id,
        "name": order.name,
        "shop": order.shop,
        "ordered_at": time::format(order.ordered_at),
        "updated_at": time::format(order.updated_at),
        "cancelled_at": order.cancelled_at.map(time::format),
        "test": order.test,
        "currency": order.currency,
        "total": money::format(order.total, &order.currency),
        "refunded": money::format(order.refunded, &order.currency),
        "financial_status": order.financial_status,
        "fulfillment_status": order.fulfillment_status,
        "items": items,
    })
}

fn item_json(item: &Item, currency: &str) -> Value {
    json!({
        "product_id": item.product_id,
        "sku": item.sku,
        "title": item.title,
        "quantity": item.quantity,
        "price": money::format(item.price, currency),
    })
}
