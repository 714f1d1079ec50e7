//! What expressions and templates may know of a customer.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use cel::Value;
use cel::objects::Key;
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use serde_json::{Value as Json, json};

use super::expression::time_value;
use crate::domain::contact::{self, Address};
use crate::domain::customer360::{OrderTotals, StoredConsent, StoredEvent, event_json, in_short};
use crate::domain::event::{Channel, Source};
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::money;
use crate::domain::profile::{Profile, Trait};
use crate::domain::settings::BrandSettings;
use crate::domain::time::{self, Timestamp};

/// How many of a customer's newest events expressions see.
pub const EVENTS_SEEN: usize = 200;
/// The longest message of an event, in bytes, of which expressions see the properties; of a longer one they see none.
pub const EVENT_BYTES: usize = 8 * 1024;
/// The most bytes of messages that are held of a customer's events; of those beyond, the oldest, no properties are seen.
pub const EVENTS_BYTES: usize = 256 * 1024;
/// How many statements of consent are read of a customer.
pub const CONSENTS_SEEN: usize = 200;
/// How many entries of a list or an object in a trait or an event expressions see.
pub const LISTED: usize = 200;

/// What is known of a customer.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The profile, never a merged-away one.
    pub profile: Profile,
    /// All its identifiers, sorted.
    pub identifiers: Vec<Identifier>,
    /// Those of them that are its own by a trusted source's word, sorted.
    pub trusted: Vec<Identifier>,
    /// Its orders that count, summed by currency.
    pub totals: Vec<OrderTotals>,
    /// The newest that was said of each channel and address, by trusted sources and by others, at most [`CONSENTS_SEEN`].
    pub consents: Vec<StoredConsent>,
    /// Its newest [`EVENTS_SEEN`], newest first; empty where nobody asks for them.
    pub events: Vec<StoredEvent>,
    /// The segments that it belongs to, since when (milliseconds since 1970).
    pub segments: BTreeMap<String, i64>,
}

impl Facts {
    /// Of a profile of which nothing else is known yet.
    pub fn of(profile: Profile) -> Self {
        Self {
            profile,
            identifiers: Vec::new(),
            trusted: Vec::new(),
            totals: Vec::new(),
            consents: Vec::new(),
            events: Vec::new(),
            segments: BTreeMap::new(),
        }
    }

    /// Takes in one of its identifiers.
    pub fn own(&mut self, identifier: Identifier, trusted: bool) {
        if trusted {
            self.trusted.push(identifier.clone());
        }
        self.identifiers.push(identifier);
    }

    /// Where a channel writes to: see [`contact`].
    pub fn address(&self, channel: Channel) -> Option<Address> {
        contact::address(channel.identifier_kind(), &self.profile, &self.identifiers, &self.trusted)
    }

    /// Takes in the next older event, cut by bytes: anybody with a public key decides how long messages are, and a page of customers
    /// is held at once.
    pub fn saw(&mut self, mut event: StoredEvent) {
        if event.body.len() > EVENT_BYTES {
            event.body = in_short(&event).filter(|body| body.len() <= EVENT_BYTES).unwrap_or_default();
        }
        let held: usize = self.events.iter().map(|event| event.body.len()).sum();
        if held + event.body.len() > EVENTS_BYTES {
            event.body = String::new();
        }
        self.events.push(event);
    }

    /// The e-mail address that is written to.
    pub fn email(&self) -> Option<String> {
        self.address(Channel::Email).map(|address| address.value)
    }

    fn phone(&self) -> Option<String> {
        self.address(Channel::Sms).map(|address| address.value)
    }

    /// Whether marketing may be sent by a channel to the address that it writes to.
    pub fn allows(&self, channel: Channel) -> bool {
        contact::allows(&self.consents, channel, self.address(channel).as_ref())
    }

    /// What holds of consent for the address that a channel writes to.
    pub fn consent(&self, channel: Channel) -> Option<&StoredConsent> {
        contact::holding(&self.consents, channel, self.address(channel).as_ref())
    }

    pub fn known_trait(&self, name: &str) -> Option<&Json> {
        self.profile.traits.get(name).map(|held| &held.value).filter(|value| !value.is_null())
    }

    /// The sums of the currency that most orders are in.
    pub fn main_totals(&self) -> Option<&OrderTotals> {
        // Of two with as many orders, the first by name: the same on every store.
        self.totals.iter().min_by_key(|totals| (std::cmp::Reverse(totals.count), &totals.currency))
    }

    fn last_order(&self) -> Option<Timestamp> {
        self.totals.iter().map(|totals| totals.last_ordered_at).max()
    }

    fn orders_count(&self) -> i64 {
        self.totals.iter().map(|totals| i64::try_from(totals.count).unwrap_or(i64::MAX)).sum()
    }

    /// A variable of [`super::expression::VARIABLES`], but for those that need more than the facts.
    pub(super) fn value(&self, name: &str) -> Value {
        let float = |amount: Decimal| amount.to_f64().map_or(Value::Null, Value::Float);
        match name {
            "traits" => {
                let set = self.profile.traits.iter().filter(|(_, held)| !held.value.is_null());
                map(set.map(|(name, held)| (name.as_str(), of_json(&held.value))))
            }
            "tags" => list(self.profile.tags().into_iter().map(text)),
            "segments" => list(self.segments.keys().map(|name| text(name))),
            "email" => self.email().map_or(Value::Null, |email| text(&email)),
            "phone" => self.phone().map_or(Value::Null, |phone| text(&phone)),
            "seen" => map([
                ("first", time_value(self.profile.first_seen)),
                ("last", time_value(self.profile.last_seen)),
                ("events", Value::Int(self.profile.events_count)),
            ]),
            "orders" => {
                let main = self.main_totals();
                let net = main.map_or(Decimal::ZERO, |t| t.total - t.refunded);
                let average = main.map_or(Decimal::ZERO, |t| money::average(t.total, t.count, &t.currency));
                map([
                    ("count", Value::Int(self.orders_count())),
                    ("first", time_value(self.totals.iter().map(|t| t.first_ordered_at).min())),
                    ("last", time_value(self.last_order())),
                    ("currency", main.map_or(Value::Null, |t| text(&t.currency))),
                    ("total", float(net)),
                    ("average", float(average)),
                ])
            }
            "revenue" => map(self.totals.iter().map(|t| (t.currency.as_str(), float(t.total - t.refunded)))),
            "consent" => map([
                ("email", Value::Bool(self.allows(Channel::Email))),
                ("sms", Value::Bool(self.allows(Channel::Sms))),
            ]),
            "events" => list(self.events.iter().map(event_value)),
            _ => Value::Null,
        }
    }

    /// The scores of recency, frequency and monetary value, 1 to 5, by the brand's bounds; 0 for who has not bought. And when
    /// time alone makes recency fall.
    pub(super) fn rfm(&self, settings: &BrandSettings, now: Timestamp) -> (Value, Option<Timestamp>) {
        let Some(last) = self.last_order() else {
            let none = ["recency", "frequency", "monetary"].map(|name| (name, Value::Int(0)));
            return (map(none), None);
        };
        let bounds = &settings.rfm;
        let passed = (now - last).num_days();
        let over = bounds.recency_days.iter().filter(|days| passed >= i64::from(**days)).count();
        let changes =
            bounds.recency_days.get(over).map(|days| time::plus(last, time::days(i64::from(*days))));
        let orders = self.orders_count();
        let frequency = 1 + bounds.orders.iter().filter(|least| orders >= i64::from(**least)).count();
        let spent = self.main_totals().map_or(Decimal::ZERO, |t| t.total - t.refunded);
        let monetary = 1 + bounds.spent.iter().filter(|least| spent >= Decimal::from(**least)).count();
        let score = |score: usize| Value::Int(i64::try_from(score).unwrap_or_default());
        let scores = map([
            ("recency", score(5_usize.saturating_sub(over).max(1))),
            ("frequency", score(frequency)),
            ("monetary", score(monetary)),
        ]);
        (scores, changes)
    }

    /// What templates and webhooks see of the customer.
    pub fn json(&self) -> Json {
        let traits: BTreeMap<&String, &Json> = self
            .profile
            .traits
            .iter()
            .filter(|(_, held)| !held.value.is_null())
            .map(|(name, held)| (name, &held.value))
            .collect();
        let main = self.main_totals();
        json!({
            "id": self.profile.id,
            "email": self.email(),
            "phone": self.phone(),
            "traits": traits,
            "tags": self.profile.tags(),
            "segments": self.segments.keys().collect::<Vec<_>>(),
            "first_seen": self.profile.first_seen.map(time::format),
            "last_seen": self.profile.last_seen.map(time::format),
            "orders": {
                "count": self.orders_count(),
                "currency": main.map(|t| &t.currency),
                "total": main.map(|t| money::format(t.total - t.refunded, &t.currency)),
                "first": self.totals.iter().map(|t| t.first_ordered_at).min().map(time::format),
                "last": self.last_order().map(time::format),
            },
            "consent": {"email": self.allows(Channel::Email), "sms": self.allows(Channel::Sms)},
        })
    }

    /// A made-up customer, for trying expressions and templates on.
    pub fn example() -> Self {
        let day = |text: &str| time::parse(text).unwrap_or_default();
        let mut profile = Profile::new(ProfileId::first_at(0), BrandId(0));
        let values = [
            ("plan", json!("gold")),
            ("age", json!(30)),
            ("first_name", json!("Ada")),
            ("firstName", json!("Ada")),
            ("last_name", json!("Lovelace")),
            ("lastName", json!("Lovelace")),
            ("tag:vip", json!(true)),
            ("timezone", json!("Europe/Berlin")),
        ];
        profile.traits = values
            .into_iter()
            .map(|(name, value)| {
                let (message_id, source) = (String::new(), Source::Secret);
                (name.to_owned(), Trait { at_ms: 0, sequence: 0, message_id, value, source })
            })
            .collect();
        profile.first_seen = Some(day("2026-01-01T12:00:00Z"));
        profile.last_seen = Some(day("2026-06-14T12:00:00Z"));
        profile.events_count = 12;
        let viewed =
            json!({"properties": {"product_id": "1", "name": "Shoe", "category": "Shoes", "price": 60.25}});
        let email = Identifier { kind: IdentifierKind::Email, value: "ada@example.com".to_owned() };
        Self {
            profile,
            identifiers: vec![email.clone()],
            trusted: vec![email],
            totals: vec![OrderTotals {
                currency: "EUR".to_owned(),
                count: 3,
                total: Decimal::new(12_050, 2),
                refunded: Decimal::ZERO,
                first_ordered_at: day("2026-02-01T12:00:00Z"),
                last_ordered_at: day("2026-06-10T12:00:00Z"),
            }],
            consents: vec![StoredConsent {
                channel: Channel::Email.as_str().to_owned(),
                state: "subscribed".to_owned(),
                level: None,
                at: day("2026-01-01T12:00:00Z"),
                sequence: 0,
                message_id: String::new(),
                address: None,
                source: Source::Secret,
            }],
            events: vec![StoredEvent {
                message_id: "example".to_owned(),
                kind: "track".to_owned(),
                name: Some("Product Viewed".to_owned()),
                timestamp: day("2026-06-14T12:00:00Z"),
                body: viewed.to_string(),
                active: true,
                source: Source::Public,
                received_at: day("2026-06-14T12:00:00Z"),
            }],
            segments: BTreeMap::from([("loyal".to_owned(), 0)]),
        }
    }
}

/// The event that started a run, or that may end it.
#[derive(Clone, Debug)]
pub struct Trigger(pub StoredEvent);

impl Trigger {
    /// As expressions see it.
    pub(super) fn value(&self) -> Value {
        event_value(&self.0)
    }

    /// As templates and webhooks see it.
    pub fn json(&self) -> Json {
        event_json(&self.0)
    }

    pub fn example() -> Self {
        let body = json!({"event": "Checkout Started", "properties": {"value": 99.5, "checkout_url": "https://shop.example/c/1"}});
        Self(StoredEvent {
            message_id: "example".to_owned(),
            kind: "track".to_owned(),
            name: Some("Checkout Started".to_owned()),
            timestamp: Timestamp::default(),
            body: body.to_string(),
            active: true,
            source: Source::Shopify,
            received_at: Timestamp::default(),
        })
    }
}

fn event_value(event: &StoredEvent) -> Value {
    let json = event_json(event);
    map([
        ("name", event.name.as_deref().map_or(Value::Null, text)),
        ("type", text(&event.kind)),
        ("at", time_value(Some(event.timestamp))),
        ("trusted", Value::Bool(event.source.is_trusted())),
        ("properties", of_json(&json["properties"])),
    ])
}

fn text(text: &str) -> Value {
    Value::String(Arc::new(text.to_owned()))
}

fn list(values: impl Iterator<Item = Value>) -> Value {
    Value::List(Arc::new(values.collect()))
}

fn map<'a>(entries: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    let entries: HashMap<Key, Value> =
        entries.into_iter().map(|(name, value)| (Key::String(Arc::new(name.to_owned())), value)).collect();
    Value::Map(cel::objects::Map { map: Arc::new(entries) })
}

/// Whole numbers are CEL's `int`, so that they can be counted with; others are `double`.
fn of_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(held) => Value::Bool(*held),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Value::Int(whole),
            (None, Some(float)) => Value::Float(float),
            (None, None) => Value::Null,
        },
        Json::String(held) => text(held),
        Json::Array(items) => list(items.iter().take(LISTED).map(of_json)),
        Json::Object(fields) => {
            map(fields.iter().take(LISTED).map(|(name, value)| (name.as_str(), of_json(value))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_of_a_customer_is_cut_by_bytes_and_names_and_times_stay() {
        let mut facts = Facts::example();
        let pattern = facts.events.remove(0);
        let of = |kind: &str, size: usize| StoredEvent {
            kind: kind.to_owned(),
            body: json!({"id": 7, "properties": {"big": "x".repeat(size)}}).to_string(),
            ..pattern.clone()
        };
        facts.saw(of("track", 100));
        facts.saw(of("track", EVENT_BYTES));
        facts.saw(of("shopify", EVENT_BYTES));
        let seen: Vec<Json> =
            facts.events.iter().map(|event| event_json(event)["properties"].clone()).collect();
        assert_eq!(seen[0]["big"].as_str().map(str::len), Some(100));
        assert_eq!(seen[1], json!({}), "too long to be held");
        assert_eq!(seen[2], json!({"id": 7}), "a webhook in short");
        for _ in 0..EVENTS_SEEN {
            facts.saw(of("track", EVENT_BYTES / 2));
        }
        let held: usize = facts.events.iter().map(|event| event.body.len()).sum();
        assert!(held <= EVENTS_BYTES, "{held}");
        assert_eq!(facts.events.last().unwrap().name, pattern.name);
    }
}
