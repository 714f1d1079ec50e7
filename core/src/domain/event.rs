//! An event: one thing that happened, in the form that the rest of the domain works on.

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

use super::identity::{Identifier, IdentifierKind};
use super::ids::{BrandId, ProfileId};
use super::order::OrderUpdate;
use super::profile::TAG;
use super::time::{self, Timestamp};
use super::version::Versions;

/// What sort of message an event came as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// Something the customer did.
    Track,
    /// Who the customer is.
    Identify,
    Page,
    /// A screen of an app.
    Screen,
    /// Membership of a group.
    Group,
    /// Two ids of one user.
    Alias,
    Shopify,
}

impl EventKind {
    /// The kinds that Segment's API knows, in its order.
    pub const SEGMENT: [Self; 6] =
        [Self::Track, Self::Identify, Self::Page, Self::Screen, Self::Group, Self::Alias];

    /// The name on the wire and in the stores.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Track => "track",
            Self::Identify => "identify",
            Self::Page => "page",
            Self::Screen => "screen",
            Self::Group => "group",
            Self::Alias => "alias",
            Self::Shopify => "shopify",
        }
    }

    /// The kind of that name.
    pub fn parse(name: &str) -> Option<Self> {
        if name == Self::Shopify.as_str() { Some(Self::Shopify) } else { Self::segment(name) }
    }

    /// The Segment kind of that name.
    pub fn segment(name: &str) -> Option<Self> {
        Self::SEGMENT.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// Who stated something. What a [trusted](Source::is_trusted) source stated is never overridden by what a public key says.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Whoever has a write key, which is in every browser.
    #[default]
    Public,
    /// The brand itself: whoever has a secret key, its automations, an import.
    Secret,
    /// Shopify, by a signed webhook.
    Shopify,
}

impl Source {
    /// Whether it can be believed of others than itself.
    pub fn is_trusted(self) -> bool {
        self != Self::Public
    }

    /// Whether it may set a trait of that name. A tag is the brand's word, not a browser's.
    pub fn may_set(self, name: &str) -> bool {
        self.is_trusted() || !name.starts_with(TAG)
    }

    /// Whether it is the usual one, which is not written out.
    pub fn is_public(&self) -> bool {
        *self == Self::Public
    }

    /// The number in the stores.
    pub fn code(self) -> i16 {
        match self {
            Self::Public => 0,
            Self::Secret => 1,
            Self::Shopify => 2,
        }
    }

    /// The source of that number; of rows from before sources were kept, Shopify's webhooks are known by their kind.
    pub fn from_code(code: Option<i16>, kind: &str) -> Self {
        match code {
            Some(2) => Self::Shopify,
            Some(1) => Self::Secret,
            None if kind == EventKind::Shopify.as_str() => Self::Shopify,
            _ => Self::Public,
        }
    }
}

/// How far a sender's clock may be ahead of the reception, in minutes. A time that is later says nothing but that the clock is wrong:
/// the reception stands for it.
pub const MAX_AHEAD_MINUTES: i64 = 5;

/// A time that something speaks of that was received then, as far as it can be believed.
pub fn believed(at: Timestamp, received_at: Timestamp) -> Timestamp {
    match at > time::plus(received_at, time::millis(MAX_AHEAD_MINUTES * 60_000)) {
        true => received_at,
        false => at,
    }
}

/// A value that an event gives a trait.
#[derive(Clone, Debug, PartialEq)]
pub struct TraitUpdate {
    pub name: String,
    /// The value; null unsets the trait.
    pub value: serde_json::Value,
    /// When the value was true: the newest wins.
    pub at: Timestamp,
}

/// A way to write to a customer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Channel {
    /// Marketing by e-mail.
    Email,
    /// Marketing by text message.
    Sms,
}

impl Channel {
    /// The name on the wire and in the stores.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Sms => "sms",
        }
    }

    /// What sort of identifier it writes to.
    pub fn identifier_kind(self) -> IdentifierKind {
        match self {
            Self::Email => IdentifierKind::Email,
            Self::Sms => IdentifierKind::Phone,
        }
    }

    /// The channel of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Email, Self::Sms].into_iter().find(|channel| channel.as_str() == name)
    }
}

/// The state of consent that allows marketing.
pub const SUBSCRIBED: &str = "subscribed";
/// The state of an address that a mail server has refused for good: nothing is sent there until consent is given again.
pub const UNDELIVERABLE: &str = "undeliverable";

/// What a customer said of being written to. The newest of a channel holds, by `at` and then as [`Version`](super::version::Version) says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consent {
    pub channel: Channel,
    /// The e-mail address or telephone number that it is about, normalised; `None` where the event names none: then it is about
    /// all that the customer has.
    pub address: Option<String>,
    /// Shopify's word: `subscribed`, `not_subscribed`, `pending`, `unsubscribed`, …
    pub state: String,
    /// How it was given (`single_opt_in`, …), if that is known.
    pub level: Option<String>,
    /// When it was said.
    pub at: Timestamp,
}

/// A part of what is known of a product. A webhook that does not mention one leaves it as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProductPart {
    Title,
    Category,
    Vendor,
    Price,
}

impl ProductPart {
    pub const ALL: [Self; 4] = [Self::Title, Self::Category, Self::Vendor, Self::Price];
}

/// What webhooks say of a product.
#[derive(Clone, Debug, PartialEq)]
pub struct Product {
    pub id: String,
    /// Where its parts are from.
    pub versions: Versions<ProductPart>,
    /// What it is called.
    pub title: Option<String>,
    /// What sort of thing it is (Shopify's product type).
    pub category: Option<String>,
    pub vendor: Option<String>,
    /// The price of its first variant, in the shop's currency.
    pub price: Option<Decimal>,
    /// When it was deleted.
    pub deleted_at: Option<Timestamp>,
}

impl Product {
    /// Takes in another report of the same product.
    pub fn take_in(&mut self, other: &Self) {
        self.versions.take_in(&other.versions, &ProductPart::ALL, |part| match part {
            ProductPart::Title => self.title.clone_from(&other.title),
            ProductPart::Category => self.category.clone_from(&other.category),
            ProductPart::Vendor => self.vendor.clone_from(&other.vendor),
            ProductPart::Price => self.price = other.price,
        });
        self.deleted_at = self.deleted_at.into_iter().chain(other.deleted_at).min();
    }
}

/// What privacy law asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrivacyAsk {
    /// All that is held on a customer.
    Export(Subject),
    /// A customer is to be forgotten.
    Erase(Subject),
    /// All customers of a shop are to be forgotten.
    EraseShop,
}

/// Whom a request is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    pub identifiers: Vec<Identifier>,
    /// Profiles, where they are meant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<ProfileId>,
}

/// Which shop's customers are to be forgotten, and whether that has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShopSubject {
    pub shop: String,
    /// Whether the shop was noted as redacted under this request.
    pub begun: bool,
    /// How many dead letters were discarded so far.
    #[serde(default)]
    pub dead_letters: u64,
}

impl ShopSubject {
    /// Of a request that nobody has looked at.
    pub fn new(shop: &str) -> Self {
        Self { shop: shop.to_owned(), begun: false, dead_letters: 0 }
    }
}

/// By what a webhook's body is known again, whatever its headers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyClaim {
    /// The topic it came under.
    pub topic: String,
    /// The SHA-256 of the body.
    pub digest: [u8; 32],
}

/// One event, decoded and normalised. It takes effect once for each `(brand, message_id)`.
#[derive(Clone, Debug)]
pub struct Event {
    pub brand: BrandId,
    /// What makes two deliveries the same event.
    pub message_id: String,
    /// What sort of message.
    pub kind: EventKind,
    pub source: Source,
    /// Whether the source says by its identifiers who the person is. An automation only says by them whom it means.
    pub vouches: bool,
    /// The event's or page's name; for a webhook, what it reports.
    pub name: Option<String>,
    /// When it happened, corrected for the sender's clock.
    pub timestamp: Timestamp,
    /// From when what it says of traits and consent holds. Nearly always `timestamp`; of a sender whose clock is wrong it is so rounded
    /// that what the network does to two messages does not change which of them is the later.
    pub told_at: Timestamp,
    /// What comes later of two with the same time: see [`Version`](super::version::Version).
    pub sequence: i64,
    /// When it reached the server.
    pub received_at: Timestamp,
    /// Who it is about, the most trusted first. Empty: nobody we could know.
    pub identifiers: Vec<Identifier>,
    /// What it says of the customer.
    pub traits: Vec<TraitUpdate>,
    /// What it says of an order.
    pub order: Option<OrderUpdate>,
    /// What it says of consent.
    pub consents: Vec<Consent>,
    /// What it says of a product.
    pub product: Option<Product>,
    /// What it asks for in the name of privacy.
    pub ask: Option<PrivacyAsk>,
    /// The shop of a webhook.
    pub shop: Option<String>,
    /// By what a webhook's body is known again.
    pub claim: Option<BodyClaim>,
    /// Whether it was about somebody who was erased: [`Event::anonymised`].
    pub erased: bool,
    /// Whether the customer was there (false for what a server reports of them, `context.active = false`).
    pub active: bool,
    /// The message itself, as JSON, kept as it came.
    pub body: String,
}

impl Event {
    /// An event that says nothing.
    pub fn new(brand: BrandId, message_id: impl Into<String>, kind: EventKind, timestamp: Timestamp) -> Self {
        Self {
            brand,
            message_id: message_id.into(),
            kind,
            source: Source::Public,
            vouches: true,
            name: None,
            timestamp,
            told_at: timestamp,
            sequence: 0,
            received_at: timestamp,
            identifiers: Vec::new(),
            traits: Vec::new(),
            order: None,
            consents: Vec::new(),
            product: None,
            ask: None,
            shop: None,
            claim: None,
            erased: false,
            active: true,
            body: "{}".to_owned(),
        }
    }

    /// Whether its identifiers belong together beyond doubt: a trusted source names a person by them. Other events link them, too,
    /// but never two people whom a trusted source knows.
    pub fn links_firmly(&self) -> bool {
        self.source.is_trusted()
            && self.vouches
            && self.identifiers.iter().any(|identifier| identifier.kind.is_personal())
    }

    /// As a sender of that source may say it.
    #[must_use]
    pub fn from_source(mut self, source: Source) -> Self {
        self.source = source;
        self.traits.retain(|update| source.may_set(&update.name));
        self.with_own_id()
    }

    /// Without times of the future, which would win over all that is said later: a sender's clock may be wrong, or lie. Consent is
    /// never later than the reception itself, so that whoever takes theirs back afterwards is heard.
    #[must_use]
    pub fn clamped(mut self) -> Self {
        let received_at = self.received_at;
        let believed = |at: Timestamp| believed(at, received_at);
        self.timestamp = believed(self.timestamp);
        self.told_at = believed(self.told_at);
        self.traits.iter_mut().for_each(|update| update.at = believed(update.at));
        self.consents.iter_mut().for_each(|consent| consent.at = consent.at.min(received_at));
        if let Some(product) = &mut self.product {
            product.versions.each(|version| {
                version.at_ms = believed(time::from_ms(version.at_ms)).timestamp_millis();
            });
        }
        if let Some(order) = &mut self.order {
            order.clamp(believed);
        }
        self
    }

    /// Puts its id into a space of its source's: nobody can take an id that another source will use. Public ids stay as they are,
    /// but for those that look like another's.
    fn with_own_id(mut self) -> Self {
        /// What ids begin with that no public sender's may.
        const TAKEN: [&str; 7] =
            ["public:", "secret:", "shopify:", "import:", "automation:", "unsubscribe-", "confirm-"];
        if self.kind == EventKind::Shopify {
            return self;
        }
        if self.source.is_trusted() {
            self.message_id.insert_str(0, "secret:");
        } else if TAKEN.iter().any(|taken| self.message_id.starts_with(taken))
            || super::automation::run::is_action_key(&self.message_id)
        {
            self.message_id.insert_str(0, "public:");
        }
        self
    }

    /// What may be kept of an event about somebody who was erased: that it was, and the order without the customer.
    #[must_use]
    pub fn anonymised(&self) -> Self {
        Self {
            // What happened, where the words are Shopify's; a group's name may be a person's.
            name: self.name.clone().filter(|_| self.kind == EventKind::Shopify),
            erased: true,
            source: self.source,
            told_at: self.told_at,
            sequence: self.sequence,
            received_at: self.received_at,
            order: self.order.clone(),
            product: self.product.clone(),
            ask: self.ask.clone(),
            shop: self.shop.clone(),
            active: false,
            ..Self::new(self.brand, self.message_id.clone(), self.kind, self.timestamp)
        }
    }
}

/// Why a message cannot be taken, in the form an API answers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Rejection {
    /// A stable name for programs.
    pub code: &'static str,
    /// What is wrong and what would be right, for people.
    pub message: String,
}

impl Rejection {
    /// A rejection with that code and text.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}
