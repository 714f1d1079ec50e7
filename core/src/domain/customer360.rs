//! Customer360: all that is known of a customer, in the shape that the API answers.
//!
//! The stores deliver a [`CustomerRecord`]; [`Customer360::of`] turns it into the answer, so that both stores answer alike.

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::contact;
use super::event::{Channel, EventKind, SUBSCRIBED, Source};
use super::identity::Identifier;
use super::ids::ProfileId;
use super::insights::{self, Activity, Affinity, Cadence, KnownProduct, Lifecycle, Sessions};
use super::json;
use super::money::{self, Amounts};
use super::order::{Item, Order, OrderRecord};
use super::profile::{Profile, TAG};
use super::time::{self, Timestamp, from_ms};

/// How many of the newest events an answer lists.
pub const RECENT_EVENTS: usize = 20;
/// How many of the newest orders an answer lists.
pub const RECENT_ORDERS: usize = 20;
/// How many changes of consent an answer lists of a channel.
pub const CONSENT_CHANGES: usize = 20;
/// How many groups an answer lists.
pub const GROUPS: usize = 20;

/// What a store holds of one customer.
#[derive(Clone, Debug)]
pub struct CustomerRecord {
    /// The profile, never a merged-away one.
    pub profile: Profile,
    pub identifiers: Vec<Identifier>,
    /// Those of its identifiers that are its own by a trusted source's word.
    pub trusted: Vec<Identifier>,
    /// Its orders that count, summed by currency.
    pub totals: Vec<OrderTotals>,
    /// Its newest [`RECENT_EVENTS`], newest first.
    pub recent_events: Vec<StoredEvent>,
    /// Its newest [`insights::ORDERS`], newest first, also those that do not count.
    pub orders: Vec<OrderRecord>,
    /// Its newest [`insights::ACTIVITY`] events in short, newest first.
    pub activity: Vec<Activity>,
    /// The products of its orders and of those events, as far as they are known.
    pub products: Vec<KnownProduct>,
    /// What it said of consent, newest first.
    pub consents: Vec<StoredConsent>,
    /// Its group calls, the newest of each group.
    pub groups: Vec<StoredEvent>,
    /// The segments that it belongs to, sorted by code point.
    pub segments: Vec<String>,
    /// Profiles that it was split from, or that a limit kept from it.
    pub related: Vec<RelatedProfile>,
}

/// What a customer said of being written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredConsent {
    /// [`Channel`] by name.
    pub channel: String,
    pub state: String,
    pub level: Option<String>,
    pub at: Timestamp,
    /// What comes later of two with the same time.
    pub sequence: i64,
    /// The event that said so.
    pub message_id: String,
    /// The address or number that it is about; `None` where it is about all that the customer has.
    pub address: Option<String>,
    pub source: Source,
}

impl StoredConsent {
    /// Whether marketing may be sent under it: only what was expressly given counts.
    pub fn is_given(&self) -> bool {
        self.state == SUBSCRIBED
    }
}

/// Whom a question is about.
#[derive(Clone, Debug)]
pub enum CustomerRef {
    /// A profile, by its id or that of a profile merged into it.
    Id(ProfileId),
    /// Whoever has this identifier.
    Identifier(Identifier),
}

/// What a customer's profile and orders had come to: another after each commit that changes either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// The profile that answers.
    pub id: ProfileId,
    /// How often it was written.
    pub profile: i64,
    /// How many orders there are, and how often they were written in all.
    pub orders: (i64, i64),
}

/// A profile that is related to a customer's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RelatedProfile {
    /// The id of the related profile.
    pub id: ProfileId,
    /// `split` or `refused`.
    pub kind: String,
    /// Why the two are related, in a sentence.
    pub reason: String,
}

/// Orders of one currency in sum.
#[derive(Clone, Debug, PartialEq)]
pub struct OrderTotals {
    /// The currency, as an ISO 4217 code.
    pub currency: String,
    pub count: u64,
    /// What they cost in all.
    pub total: Decimal,
    /// What was paid back of it.
    pub refunded: Decimal,
    /// When the oldest was placed.
    pub first_ordered_at: Timestamp,
    /// When the newest was placed.
    pub last_ordered_at: Timestamp,
}

/// Where an event stands among those of its customer: by time, and by message id where times are equal. Ordered so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventKey {
    pub timestamp: Timestamp,
    pub message_id: String,
}

/// An event as a store holds it.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    pub message_id: String,
    /// [`EventKind`] by name.
    pub kind: String,
    /// Its name, if it has one.
    pub name: Option<String>,
    pub timestamp: Timestamp,
    /// The message as it came.
    pub body: String,
    /// Whether the customer was there.
    pub active: bool,
    pub source: Source,
    /// When it reached the server.
    pub received_at: Timestamp,
}

impl StoredEvent {
    /// Its place among its customer's events.
    pub fn key(&self) -> EventKey {
        EventKey { timestamp: self.timestamp, message_id: self.message_id.clone() }
    }
}

/// What a customer says of being written to by one channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ConsentState {
    /// What holds: Shopify's word.
    pub state: String,
    /// How it was given, if that is known.
    pub level: Option<String>,
    /// When the state was first said; null where nobody said when.
    #[serde(with = "time::iso")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
    /// The address or number that is written to; null where there is none.
    #[serde(default)]
    pub address: Option<String>,
    /// Whether marketing may be sent: only what was expressly given counts.
    pub allowed: bool,
    /// Every change, newest first, at most [`CONSENT_CHANGES`].
    pub history: Vec<ConsentChange>,
}

/// One change of consent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ConsentChange {
    /// The state of consent, such as `subscribed`.
    pub state: String,
    /// When it was said; null where nobody said when.
    #[serde(with = "time::iso")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub at: Option<Timestamp>,
}

/// A customer's place in the web of identifiers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct IdentityState {
    /// The limit that stopped it from merging further, if one did.
    pub limited: Option<String>,
    /// Profiles that are kept apart from it.
    pub related: Vec<RelatedProfile>,
}

/// The answer of `GET /api/customers/{id}/360`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Customer360 {
    /// The profile's id. Ids of profiles merged into it answer with this one.
    pub id: ProfileId,
    /// Sorted by kind and value.
    pub identifiers: Vec<Identifier>,
    /// Traits that are set, by name; tags are not among them.
    pub traits: BTreeMap<String, Value>,
    /// The customer's tags, sorted.
    #[serde(default)]
    pub tags: Vec<String>,
    /// The segments that the customer belongs to, sorted: as of the last events that automation workers have seen.
    #[serde(default)]
    pub segments: Vec<String>,
    /// When the customer was first there; null if never.
    #[serde(with = "time::iso")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub first_seen: Option<Timestamp>,
    /// When the customer was last there; null if never.
    #[serde(with = "time::iso")]
    #[schema(value_type = Option<String>, format = DateTime)]
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
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_order_at: Option<Timestamp>,
    /// Newest first, at most [`RECENT_EVENTS`].
    pub recent_events: Vec<Value>,
    /// Newest first, at most [`RECENT_ORDERS`], also cancelled and test orders.
    pub recent_orders: Vec<Value>,
    /// Where the customer is in their life as one.
    pub lifecycle: Lifecycle,
    /// How often the customer orders, and when the next order is due.
    pub cadence: Cadence,
    /// Visits to the shop: events without a longer pause between them.
    pub sessions: Sessions,
    /// The products and types that the customer looks at and orders most.
    pub affinity: Affinity,
    /// What they say of being written to, by channel.
    pub consent: BTreeMap<String, ConsentState>,
    /// The groups they belong to, with the groups' traits.
    pub groups: Vec<Value>,
    /// Computed values under the names of traits, for segments and exports.
    pub computed: BTreeMap<String, Value>,
    /// What keeps others apart from it.
    pub identity: IdentityState,
}

impl Customer360 {
    /// The answer for a record, at `now`.
    pub fn of(record: CustomerRecord, now: Timestamp) -> Self {
        let sessions = insights::sessions(&record.activity);
        let affinity = insights::affinity(&record);
        let cadence = insights::cadence(&record.totals);
        let orders_count = record.totals.iter().map(|t| t.count).sum();
        let known = record.identifiers.iter().any(|identifier| identifier.kind.is_personal());
        let lifecycle = insights::lifecycle(known, orders_count, &cadence, now);
        let consent = consent(&record);
        let computed = computed(&record, &sessions, &affinity, &cadence, now);
        let CustomerRecord {
            profile,
            mut identifiers,
            totals,
            recent_events,
            orders,
            groups,
            mut segments,
            related,
            ..
        } = record;
        identifiers.sort();
        segments.sort();
        let sums = |pick: fn(&OrderTotals) -> Decimal| -> Amounts {
            totals.iter().map(|t| (t.currency.clone(), pick(t))).collect()
        };
        let average = |t: &OrderTotals| money::average(t.total, t.count, &t.currency);
        Self {
            id: profile.id,
            identifiers,
            tags: profile.tags().into_iter().map(str::to_owned).collect(),
            segments,
            traits: profile
                .traits
                .into_iter()
                .filter(|(name, held)| !held.value.is_null() && !name.starts_with(TAG))
                .map(|(name, held)| (name, held.value))
                .collect(),
            first_seen: profile.first_seen,
            last_seen: profile.last_seen,
            events_count: profile.events_count,
            orders_count,
            revenue: written(&sums(|t| t.total)),
            refunded: written(&sums(|t| t.refunded)),
            average_order: written(&sums(average)),
            last_order_at: totals.iter().map(|t| t.last_ordered_at).max(),
            recent_events: recent_events.iter().map(event_json).collect(),
            recent_orders: orders.iter().take(RECENT_ORDERS).map(order_json).collect(),
            lifecycle,
            cadence,
            sessions,
            affinity,
            consent,
            groups: groups.iter().map(group_json).collect(),
            computed,
            identity: IdentityState { limited: profile.standing.limited, related },
        }
    }
}

/// What holds of each channel, and how it came to.
fn consent(record: &CustomerRecord) -> BTreeMap<String, ConsentState> {
    let CustomerRecord { profile, identifiers, trusted, consents: said, .. } = record;
    let mut channels: BTreeMap<String, ConsentState> = BTreeMap::new();
    for channel in [Channel::Email, Channel::Sms] {
        let mut of: Vec<&StoredConsent> = said.iter().filter(|c| c.channel == channel.as_str()).collect();
        of.sort_by(|a, b| (a.at, a.sequence, &a.message_id).cmp(&(b.at, b.sequence, &b.message_id)));
        // Every webhook repeats what holds: only what differs from what was before is a change.
        of.dedup_by(|later, earlier| later.state == earlier.state);
        let Some(newest) = of.last() else { continue };
        let address = contact::address(channel.identifier_kind(), profile, identifiers, trusted);
        let holds = contact::holding(said, channel, address.as_ref());
        let stated = holds.unwrap_or(newest);
        let change = |c: &&StoredConsent| ConsentChange { state: c.state.clone(), at: Some(c.at) };
        let state = ConsentState {
            state: stated.state.clone(),
            level: stated.level.clone(),
            since: Some(stated.at),
            address: address.map(|address| address.value),
            allowed: holds.is_some_and(StoredConsent::is_given),
            history: of.iter().rev().take(CONSENT_CHANGES).map(change).collect(),
        };
        channels.insert(channel.as_str().to_owned(), state);
    }
    channels
}

/// Values that are computed from others, under stable names.
fn computed(
    record: &CustomerRecord,
    sessions: &Sessions,
    affinity: &Affinity,
    cadence: &Cadence,
    now: Timestamp,
) -> BTreeMap<String, Value> {
    let mut values = BTreeMap::new();
    let mut put = |name: &str, value: Value| drop(values.insert(name.to_owned(), value));
    put("sessions_count", sessions.count.into());
    if let Some(last) = cadence.last_order_at {
        put("days_since_last_order", (now - last).num_days().max(0).into());
    }
    if let Some(seen) = record.profile.last_seen {
        put("days_since_last_seen", (now - seen).num_days().max(0).into());
    }
    if let Some(favourite) = affinity.products.first() {
        put("favourite_product", favourite.title.clone().unwrap_or_else(|| favourite.id.clone()).into());
    }
    if let Some(favourite) = affinity.categories.first() {
        put("favourite_category", favourite.id.clone().into());
    }
    for totals in &record.totals {
        let net = totals.total - totals.refunded;
        put(
            &format!("net_revenue_{}", totals.currency.to_lowercase()),
            money::format(net, &totals.currency).into(),
        );
    }
    values
}

fn group_json(event: &StoredEvent) -> Value {
    let mut body: Map<String, Value> = json::read(&event.body).unwrap_or_default();
    json!({
        "id": event.name,
        "joined_at": time::format(event.timestamp),
        "traits": body.remove("traits").filter(Value::is_object).unwrap_or_else(|| json!({})),
    })
}

fn written(amounts: &Amounts) -> BTreeMap<String, String> {
    amounts.iter().map(|(currency, amount)| (currency.clone(), money::format(*amount, currency))).collect()
}

/// An event as answers list it.
pub fn event_json(event: &StoredEvent) -> Value {
    json!({
        "message_id": event.message_id,
        "type": event.kind,
        "name": event.name,
        "timestamp": time::format(event.timestamp),
        "properties": properties(event),
    })
}

/// A message that is too long to be held, with what is read of it: only a webhook's can be said in short.
pub(crate) fn in_short(event: &StoredEvent) -> Option<String> {
    (event.kind == EventKind::Shopify.as_str()).then(|| properties(event).to_string())
}

/// What a reader of the timeline wants of the message. A webhook's body is long: its order or customer in short.
fn properties(event: &StoredEvent) -> Value {
    let mut body: Map<String, Value> = json::read(&event.body).unwrap_or_default();
    if event.kind != EventKind::Shopify.as_str() {
        let field = if body.contains_key("properties") { "properties" } else { "traits" };
        return body.remove(field).unwrap_or_else(|| json!({}));
    }
    const SHORT: [&str; 9] = [
        "id",
        "order_id",
        "name",
        "title",
        "currency",
        "total_price",
        "financial_status",
        "fulfillment_status",
        "abandoned_checkout_url",
    ];
    let short = SHORT.into_iter().filter_map(|field| Some((field.to_owned(), body.remove(field)?)));
    Value::Object(short.filter(|(_, value)| !value.is_null()).collect())
}

/// An order as answers list it.
pub fn order_json(record: &OrderRecord) -> Value {
    let order = record.order();
    let currency = order.map_or("XXX", |order| &order.currency);
    let at = |at: Option<Timestamp>| at.map(time::format);
    let refunds: Vec<Value> = record
        .refunds
        .iter()
        .map(|(id, refund)| {
            let currency = refund.currency.as_deref().unwrap_or(currency);
            json!({"id": id, "at": time::format(from_ms(refund.at_ms)), "amount": money::format(refund.amount, currency),
                   "currency": currency})
        })
        .collect();
    let fulfillments: Vec<Value> = record
        .fulfillments
        .iter()
        .map(|(id, fulfillment)| {
            let at =
                Some(fulfillment.at_ms).filter(|at_ms| *at_ms != 0).map(|at_ms| time::format(from_ms(at_ms)));
            json!({"id": id, "at": at, "status": fulfillment.status,
                   "tracking_company": fulfillment.company, "tracking_number": fulfillment.number})
        })
        .collect();
    json!({
        "id": record.id,
        "name": order.and_then(|o| o.name.as_ref()),
        "shop": record.shop,
        "ordered_at": at(order.map(|o| o.ordered_at)),
        "updated_at": at(record.state.as_ref().map(|(_, versions)| from_ms(versions.newest().at_ms))),
        "cancelled_at": at(order.and_then(|o| o.cancelled_at)),
        "deleted_at": at(record.deleted_at),
        "test": order.is_some_and(|o| o.test),
        "counts": record.counts(),
        "currency": currency,
        "total": money::format(record.total(), currency),
        "gift_cards": money::format(order.map_or(Decimal::ZERO, Order::gift_cards), currency),
        "refunded": money::format(record.refunded(), currency),
        "presentment": order.and_then(|o| o.presentment.as_ref()).map(|seen| {
            json!({"amount": money::format(seen.amount, &seen.currency), "currency": seen.currency})
        }),
        "financial_status": order.and_then(|o| o.financial_status.as_ref()),
        "fulfillment_status": order.and_then(|o| o.fulfillment_status.as_ref()),
        "refunds": refunds,
        "fulfillments": fulfillments,
        "items": order.map_or(&[][..], |o| &o.items).iter().map(|item| item_json(item, currency)).collect::<Vec<_>>(),
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
