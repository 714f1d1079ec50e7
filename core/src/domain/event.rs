//! An event: one thing that happened, in the form that the rest of the domain works on.

use super::identity::Identifier;
use super::ids::BrandId;
use super::order::Order;
use super::time::Timestamp;

/// What sort of message an event came as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// Something the customer did.
    Track,
    /// Who the customer is.
    Identify,
    /// A page view.
    Page,
    /// A screen of an app.
    Screen,
    /// Membership of a group.
    Group,
    /// Two ids of one user.
    Alias,
    /// A Shopify webhook.
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

    /// The Segment kind of that name.
    pub fn segment(name: &str) -> Option<Self> {
        Self::SEGMENT.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// A value that an event gives a trait.
#[derive(Clone, Debug, PartialEq)]
pub struct TraitUpdate {
    /// The trait's name.
    pub name: String,
    /// The value; null unsets the trait.
    pub value: serde_json::Value,
    /// When the value was true: the newest wins.
    pub at: Timestamp,
}

/// One event, decoded and normalised. It takes effect once for each `(brand, message_id)`.
#[derive(Clone, Debug)]
pub struct Event {
    /// Whose event.
    pub brand: BrandId,
    /// What makes two deliveries the same event.
    pub message_id: String,
    /// What sort of message.
    pub kind: EventKind,
    /// The event's or page's name; for a webhook, what it reports.
    pub name: Option<String>,
    /// When it happened, corrected for the sender's clock.
    pub timestamp: Timestamp,
    /// When it reached the server.
    pub received_at: Timestamp,
    /// Who it is about. Empty: nobody we could know.
    pub identifiers: Vec<Identifier>,
    /// What it says of the customer.
    pub traits: Vec<TraitUpdate>,
    /// The state of an order that it carries.
    pub order: Option<Order>,
    /// Whether the customer was there (false for what a server reports of them, `context.active = false`).
    pub active: bool,
    /// The message itself, as JSON, kept as it came.
    pub body: String,
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
