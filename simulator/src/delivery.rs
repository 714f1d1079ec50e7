//! One HTTP call that a browser or Shopify makes, and what it reports.

/// Where a delivery goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// `POST /v1/{path}` with the write key.
    Segment {
        /// `track`, `identify`, `batch`, …
        path: &'static str,
    },
    /// `POST /api/webhooks/shopify`, signed.
    Shopify {
        /// `X-Shopify-Topic`
        topic: &'static str,
        /// `X-Shopify-Webhook-Id`
        webhook_id: String,
        /// `X-Shopify-Event-Id`
        event_id: String,
    },
}

/// One HTTP call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// When it was made, in simulated milliseconds since the day began.
    pub made_ms: u64,
    /// When it is sent.
    pub send_ms: u64,
    /// Where it goes.
    pub to: To,
    /// The body.
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
    /// The shop's id.
    pub id: u64,
    /// The version.
    pub updated_ms: u64,
    /// ISO 4217.
    pub currency: &'static str,
    /// What it cost.
    pub total_cents: i64,
    /// What was paid back.
    pub refunded_cents: i64,
    /// Whether it counts: not cancelled.
    pub counts: bool,
}
