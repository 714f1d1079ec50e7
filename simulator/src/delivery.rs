//! One HTTP call that a browser or Shopify makes, and what it reports.

/// Where a delivery goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// `POST /v1/{path}` with the write key.
    Segment {
        /// `track`, `identify`, `batch`, …
        path: &'static str,
    },
    Shopify {
        topic: &'static str,
        webhook_id: String,
        event_id: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// When it was made, in simulated milliseconds since the day began.
    pub made_ms: u64,
    /// When it is sent.
    pub send_ms: u64,
    pub to: To,
    pub body: String,
    /// What it reports: one fact an event.
    pub facts: Vec<Fact>,
}

/// What one event says, for the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Unique to the event; repeated deliveries repeat it.
    pub event: String,
    /// Who it is about: `(kind, value)`.
    pub identifiers: Vec<(&'static str, String)>,
    /// The state of an order that it reports.
    pub order: Option<OrderState>,
}

/// The state of an order at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderState {
    pub id: u64,
    pub updated_ms: u64,
    /// The currency, as an ISO 4217 code.
    pub currency: &'static str,
    pub total_cents: i64,
    /// What was paid back.
    pub refunded_cents: i64,
    /// Whether it counts: not cancelled.
    pub counts: bool,
}
