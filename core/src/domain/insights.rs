//! What a customer's events and orders say between the lines: sessions, what they like, how often they order, where they are
//! in their life as a customer. Computed when asked, from what is kept; so it follows every merge and split by itself.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::customer360::{CustomerRecord, OrderTotals};
use super::json;
use super::order::OrderRecord;
use super::time::{self, Timestamp};

/// A session ends when nothing has happened for so long (the field's rule).
pub const SESSION_GAP_MINUTES: i64 = 30;
/// How many of a customer's newest events are looked at.
pub const ACTIVITY: usize = 1000;
/// How many of a customer's newest orders are looked at for what they hold.
pub const ORDERS: usize = 200;
/// How many sessions are listed.
pub const SESSIONS: usize = 10;
/// How many products and categories are listed.
pub const LIKES: usize = 5;
/// Events about a product, with what each is worth beside something bought.
pub const PRODUCT_EVENTS: [(&str, u64); 4] = [
    ("Product Viewed", 1),
    ("Product Added", 3),
    ("Product Added to Wishlist", 3),
    ("Checkout Product Viewed", 1),
];
/// What something bought is worth.
const BOUGHT: u64 = 5;
/// Days without an order after which a customer with one order is at risk, and lost.
const USUAL_RISK_DAYS: f64 = 90.0;
/// See [`USUAL_RISK_DAYS`].
const USUAL_LOSS_DAYS: f64 = 365.0;
const DAY_MS: f64 = 86_400_000.0;

/// One of the newest events, as far as these computations look at it.
#[derive(Clone, Debug)]
pub struct Activity {
    pub timestamp: Timestamp,
    /// Whether the customer was there, in a browser or an app: webhooks are not visits.
    pub visit: bool,
    /// A page or a screen.
    pub page: bool,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// What it says of a product, where it is one of [`PRODUCT_EVENTS`].
    pub product: Option<ProductEvent>,
}

/// A product as webhooks have described it.
#[derive(Clone, Debug)]
pub struct KnownProduct {
    pub id: String,
    /// What it is called.
    pub title: Option<String>,
    /// What sort of thing it is.
    pub category: Option<String>,
}

/// One visit: events no further apart than [`SESSION_GAP_MINUTES`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Session {
    /// When the first event of the visit happened.
    #[serde(with = "time::iso")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    /// When the last event of the visit happened.
    #[serde(with = "time::iso")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    /// How many events the visit has.
    pub events: u64,
    /// How many of them pages or screens.
    pub pages: u64,
}

/// Visits among the newest [`ACTIVITY`] events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Sessions {
    /// How many visits are known.
    pub count: u64,
    /// The newest, newest first, at most [`SESSIONS`].
    pub recent: Vec<Session>,
}

/// Something a customer likes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Like {
    /// The product's id, or the category's name.
    pub id: String,
    /// What the product is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// How much: 5 for each bought, 3 for each put into a cart, 1 for each looked at.
    pub score: u64,
    /// How many were bought.
    pub bought: u64,
}

/// What a customer likes, the most liked first, at most [`LIKES`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Affinity {
    /// The products that are liked most, first.
    pub products: Vec<Like>,
    /// Categories: the product types of the shop.
    pub categories: Vec<Like>,
}

/// Where a customer is in their life as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Lifecycle {
    /// Nobody knows who it is.
    Visitor,
    /// Known, and never ordered.
    Lead,
    /// Has ordered once, and not long ago.
    New,
    /// Ordered more than once, and lately.
    Active,
    /// Has not ordered for twice as long as usual.
    AtRisk,
    /// Has not ordered for four times as long as usual.
    Lost,
}

/// When a customer orders.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Cadence {
    /// When the first order that counts was placed.
    #[serde(with = "time::iso")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub first_order_at: Option<Timestamp>,
    /// When the last was.
    #[serde(with = "time::iso")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_order_at: Option<Timestamp>,
    /// Days between two orders, on average; null before the second.
    pub average_days: Option<f64>,
    /// When the next is due by that average; null before the second.
    #[serde(with = "time::iso")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub next_expected_at: Option<Timestamp>,
}

/// Cuts visits at every gap. `activity` is newest first.
pub fn sessions(activity: &[Activity]) -> Sessions {
    let mut found: Vec<(Timestamp, Timestamp, u64, u64)> = Vec::new();
    for event in activity.iter().filter(|event| event.visit) {
        let gap =
            |start: Timestamp| (start - event.timestamp).num_milliseconds() > SESSION_GAP_MINUTES * 60_000;
        match found.last_mut() {
            Some((start, _, events, pages)) if !gap(*start) => {
                *start = event.timestamp;
                *events += 1;
                *pages += u64::from(event.page);
            }
            _ => found.push((event.timestamp, event.timestamp, 1, u64::from(event.page))),
        }
    }
    let count = found.len() as u64;
    let session =
        |(start, end, events, pages)| Session { started_at: Some(start), ended_at: Some(end), events, pages };
    Sessions { count, recent: found.into_iter().take(SESSIONS).map(session).collect() }
}

/// The products that are spoken of.
pub fn product_ids(activity: &[Activity], orders: &[OrderRecord]) -> Vec<String> {
    let viewed = activity.iter().filter_map(|event| event.product.as_ref()?.id.clone());
    let items = orders.iter().filter_map(OrderRecord::order).flat_map(|order| &order.items);
    let ids: BTreeSet<String> = items.filter_map(|item| item.product_id.clone()).chain(viewed).collect();
    ids.into_iter().collect()
}

/// What an event about a product says of it, by Segment's e-commerce names.
#[derive(Clone, Debug, Default)]
pub struct ProductEvent {
    id: Option<String>,
    title: Option<String>,
    category: Option<String>,
}

impl ProductEvent {
    pub fn of(body: &str) -> Self {
        let body: Value = json::read(body).unwrap_or_default();
        let text = |field: &str| match &body["properties"][field] {
            Value::String(text) => Some(text.clone()).filter(|text| !text.is_empty()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        Self {
            id: text("product_id").or_else(|| text("sku")),
            title: text("name"),
            category: text("category"),
        }
    }
}

/// Weighs what was bought, carted and viewed.
pub fn affinity(record: &CustomerRecord) -> Affinity {
    #[derive(Default)]
    struct Weight {
        title: Option<String>,
        score: u64,
        bought: u64,
    }
    let known: BTreeMap<&str, &KnownProduct> = record.products.iter().map(|p| (p.id.as_str(), p)).collect();
    let mut products: BTreeMap<String, Weight> = BTreeMap::new();
    let mut categories: BTreeMap<String, Weight> = BTreeMap::new();
    let mut weigh = |id: String, title: Option<String>, category: Option<String>, worth: u64, bought: u64| {
        let product = known.get(id.as_str());
        let category = product.and_then(|p| p.category.clone()).or(category);
        let weight = products.entry(id).or_default();
        weight.title = product.and_then(|p| p.title.clone()).or(weight.title.take()).or(title);
        weight.score += worth;
        weight.bought += bought;
        if let Some(category) = category.filter(|category| !category.is_empty()) {
            let weight = categories.entry(category).or_default();
            weight.score += worth;
            weight.bought += bought;
        }
    };
    for order in record.orders.iter().filter(|order| order.counts()).filter_map(|record| record.order()) {
        for item in order.items.iter().filter(|item| !item.gift_card) {
            if let Some(id) = item.product_id.clone().or_else(|| item.sku.clone()) {
                let quantity = u64::try_from(item.quantity).unwrap_or(0);
                weigh(id, item.title.clone(), None, BOUGHT.saturating_mul(quantity), quantity);
            }
        }
    }
    for event in &record.activity {
        let worth = PRODUCT_EVENTS.iter().find(|(name, _)| event.name.as_deref() == Some(*name));
        let (Some((_, worth)), Some(seen)) = (worth, &event.product) else { continue };
        if let Some(id) = &seen.id {
            weigh(id.clone(), seen.title.clone(), seen.category.clone(), *worth, 0);
        }
    }
    let most = |weights: BTreeMap<String, Weight>| {
        let mut likes: Vec<Like> = weights
            .into_iter()
            .map(|(id, weight)| Like { id, title: weight.title, score: weight.score, bought: weight.bought })
            .collect();
        likes.sort_by(|a, b| b.score.cmp(&a.score).then_with(|| a.id.cmp(&b.id)));
        likes.truncate(LIKES);
        likes
    };
    Affinity { products: most(products), categories: most(categories) }
}

/// When orders come, by the totals of all currencies.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "days need no 52 bits")]
pub fn cadence(totals: &[OrderTotals]) -> Cadence {
    let first = totals.iter().map(|t| t.first_ordered_at).min();
    let last = totals.iter().map(|t| t.last_ordered_at).max();
    let count: u64 = totals.iter().map(|t| t.count).sum();
    let average_ms = match (first, last) {
        (Some(first), Some(last)) if count > 1 => {
            Some((last - first).num_milliseconds() as f64 / (count - 1) as f64)
        }
        _ => None,
    };
    Cadence {
        first_order_at: first,
        last_order_at: last,
        average_days: average_ms.map(|ms| (ms / DAY_MS * 10.0).round() / 10.0),
        next_expected_at: last.zip(average_ms).map(|(last, ms)| time::plus(last, time::millis(ms as i64))),
    }
}

/// The stage at `now`, by the customer's own rhythm where there is one, else by the usual one.
#[expect(clippy::cast_precision_loss, reason = "days need no 52 bits")]
pub fn lifecycle(known: bool, orders: u64, cadence: &Cadence, now: Timestamp) -> Lifecycle {
    let Some(last) = cadence.last_order_at else {
        return if known { Lifecycle::Lead } else { Lifecycle::Visitor };
    };
    let days = (now - last).num_milliseconds() as f64 / DAY_MS;
    // Two orders within a day do not make a customer who orders daily.
    let usual = cadence.average_days.map(|days| days.max(7.0));
    let (risk, loss) = usual.map_or((USUAL_RISK_DAYS, USUAL_LOSS_DAYS), |days| (days * 2.0, days * 4.0));
    match orders {
        _ if days > loss => Lifecycle::Lost,
        _ if days > risk => Lifecycle::AtRisk,
        0 | 1 => Lifecycle::New,
        _ => Lifecycle::Active,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::from_ms;
    use rust_decimal::Decimal;

    const MINUTE: i64 = 60_000;
    const DAY: i64 = 86_400_000;

    fn seen(minute: i64, visit: bool) -> Activity {
        Activity { timestamp: from_ms(minute * MINUTE), visit, page: true, name: None, product: None }
    }

    #[test]
    fn a_session_ends_after_half_an_hour_of_silence_and_webhooks_are_no_visits() {
        let activity = [
            seen(200, true),
            seen(100, false),
            seen(91, true),
            seen(61, true),
            seen(60, true),
            seen(29, true),
        ];
        let found = sessions(&activity);
        let lengths: Vec<u64> = found.recent.iter().map(|s| s.events).collect();
        assert_eq!((found.count, lengths), (3, vec![1, 3, 1]));
        assert_eq!(found.recent[1].started_at, Some(from_ms(60 * MINUTE)));
        assert_eq!(sessions(&[]), Sessions::default());
    }

    fn totals(count: u64, first: i64, last: i64) -> OrderTotals {
        OrderTotals {
            currency: "USD".into(),
            count,
            total: Decimal::ZERO,
            refunded: Decimal::ZERO,
            first_ordered_at: from_ms(first * DAY),
            last_ordered_at: from_ms(last * DAY),
        }
    }

    #[test]
    fn the_stage_follows_the_customers_own_rhythm() {
        let at = |known, totals: &[OrderTotals], day: i64| {
            let orders = totals.iter().map(|t| t.count).sum();
            lifecycle(known, orders, &cadence(totals), from_ms(day * DAY))
        };
        assert_eq!(at(false, &[], 0), Lifecycle::Visitor);
        assert_eq!(at(true, &[], 0), Lifecycle::Lead);
        assert_eq!(at(true, &[totals(1, 0, 0)], 80), Lifecycle::New);
        assert_eq!(at(true, &[totals(1, 0, 0)], 100), Lifecycle::AtRisk);
        let monthly = [totals(4, 0, 90)];
        assert_eq!(cadence(&monthly).average_days, Some(30.0));
        assert_eq!(cadence(&monthly).next_expected_at, Some(from_ms(120 * DAY)));
        assert_eq!(at(true, &monthly, 140), Lifecycle::Active);
        assert_eq!(at(true, &monthly, 160), Lifecycle::AtRisk);
        assert_eq!(at(true, &monthly, 220), Lifecycle::Lost);
        assert_eq!(
            at(true, &[totals(2, 0, 0)], 10),
            Lifecycle::Active,
            "two orders in an hour are no rhythm"
        );
    }
}
