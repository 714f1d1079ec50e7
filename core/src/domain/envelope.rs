//! What travels through the queue: a message as it came, and what only its reception knows.
//!
//! The message itself stays raw JSON text from the socket to the worker; the server parses no more of it than it must to
//! answer. Decoding is [`Envelope::decode`], in the worker.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::automation::emitted;
use super::event::{Event, EventKind, Rejection, Source};
use super::identity::{Identifier, Rules};
use super::ids::BrandId;
use super::json::is_default;
use super::{shopify, tracking};

/// A message on its way to a worker.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope<'a> {
    pub brand: BrandId,
    /// When the server received it, in milliseconds since 1970.
    pub received_ms: i64,
    /// The trace of the request that brought it, as the W3C's `traceparent`; none where nobody collects traces.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Cow<'a, str>>,
    /// What only its reception knows of it.
    #[serde(flatten, borrow)]
    pub origin: Origin<'a>,
    #[serde(borrow)]
    pub body: &'a RawValue,
}

/// Where a message came in.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "origin", rename_all = "snake_case")]
pub enum Origin<'a> {
    /// Segment's API, or `/api/events`.
    Segment {
        /// The kind that the route says, where the body does not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kind: Option<EventKind>,
        /// For a message that has no id of its own.
        #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
        message_id: Option<Cow<'a, str>>,
        #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
        sent_at: Option<Cow<'a, str>>,
        /// Which message of its batch it is, from 0: of two that say something at the same time, the later holds.
        #[serde(default, skip_serializing_if = "is_default")]
        place: u32,
        /// What the batch says for all its messages (`context`, `integrations`), as the text of a JSON object, to be
        /// merged under the message's own.
        #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
        shared: Option<Cow<'a, str>>,
        /// Whether a secret key sent it.
        #[serde(default, skip_serializing_if = "Source::is_public")]
        source: Source,
    },
    /// A verified Shopify webhook.
    Shopify {
        #[serde(borrow)]
        shop: Cow<'a, str>,
        /// The topic, for example `orders/create`.
        #[serde(borrow)]
        topic: Cow<'a, str>,
        /// Made from the delivery's ids: equal for repeated deliveries.
        #[serde(borrow)]
        message_id: Cow<'a, str>,
        #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
        triggered_at: Option<Cow<'a, str>>,
    },
    /// An automation of the brand's.
    Automation {
        /// Made from the run and its step: equal for whatever is made twice.
        message_id: String,
        /// Whom it is about.
        identifier: Identifier,
        /// Whether that is who they are: they have confirmed it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        vouches: bool,
    },
}

impl<'a> Envelope<'a> {
    /// The bytes for the queue.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.body.get().len() + 160);
        // Writing to memory cannot fail, and neither can these types: every key is a string, every number finite.
        serde_json::to_writer(&mut bytes, self).expect("an envelope is always JSON");
        bytes
    }

    /// Reads what [`Envelope::encode`] wrote.
    ///
    /// # Errors
    /// `malformed_envelope` for anything else.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Rejection> {
        serde_json::from_slice(bytes)
            .map_err(|error| Rejection::new("malformed_envelope", format!("not a queue envelope: {error}")))
    }

    /// The event in it, by its brand's rules.
    ///
    /// # Errors
    /// What is wrong with the message.
    pub fn decode(&self, rules: &Rules) -> Result<Event, Rejection> {
        let (event, source) = match &self.origin {
            Origin::Segment { source, .. } => (tracking::decode(self, rules)?.from_source(*source), *source),
            Origin::Shopify { .. } => (shopify::decode(self, rules)?, Source::Shopify),
            Origin::Automation { .. } => (emitted::decode(self)?, Source::Secret),
        };
        Ok(Event { source, ..event }.clamped())
    }
}
