//! Sending what automations send: webhooks, e-mails, chat messages.

use std::time::Duration;

use async_trait::async_trait;

use crate::domain::time::Timestamp;

/// A message that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundMessage {
    /// The same for every try: whoever receives it twice can tell.
    pub key: String,
    pub content: MessageContent,
}

/// What is sent, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageContent {
    /// JSON, signed by the Standard Webhooks scheme.
    Webhook {
        url: String,
        body: String,
        /// The brand's secrets, `whsec_…`: each signs. Two within the grace of a rotation.
        secrets: Vec<String>,
        /// When it is signed.
        at: Timestamp,
    },
    /// JSON for a chat's webhook.
    Chat {
        url: String,
        body: String,
    },
    Email(Email),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Email {
    /// Whom from, like `Shop <hello@shop.example>`.
    pub from: String,
    pub to: String,
    /// What they are called, if that is known.
    pub name: Option<String>,
    /// What sends it: receivers that report complaints name it by this (`Feedback-ID`).
    pub campaign: String,
    pub subject: String,
    pub text: String,
    /// The same in HTML.
    pub html: Option<String>,
    /// Where a click unsubscribes: marketing has it.
    pub unsubscribe: Option<String>,
}

/// What came of sending a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendOutcome {
    /// The receiver has accepted it. How, for people.
    Done(String),
    /// It was not accepted, and is to be sent again.
    Later {
        error: String,
        /// The Retry-After of the receiver, if it gave one.
        after: Option<Duration>,
    },
    /// The receiver will never accept it. Why, for people.
    Refused(String),
    /// There is no such address, or it accepts no mail: nothing that is sent there will be accepted.
    Bounced {
        to: String,
        /// What the server said.
        error: String,
    },
}

#[async_trait]
pub trait Sender: Send + Sync {
    /// Sends a message. Where the future is dropped, nobody knows whether the message arrived.
    async fn send(&self, message: &OutboundMessage) -> SendOutcome;
}
