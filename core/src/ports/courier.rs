//! Carrying what automations send to the world outside: webhooks, e-mail, chats.

use std::time::Duration;

use async_trait::async_trait;

use crate::domain::time::Timestamp;

/// What is to be carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parcel {
    /// The same for every try: whoever receives it twice can tell.
    pub key: String,
    /// What it is.
    pub content: Content,
}

/// What a parcel is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// JSON, signed by the Standard Webhooks scheme.
    Webhook {
        /// Where to.
        url: String,
        /// The JSON.
        body: String,
        /// The brand's secrets, `whsec_…`: each signs. Two within the grace of a rotation.
        secrets: Vec<String>,
        /// When it is signed.
        at: Timestamp,
    },
    /// JSON for a chat's webhook.
    Chat {
        /// Where to.
        url: String,
        /// The JSON.
        body: String,
    },
    /// An e-mail.
    Email(Email),
}

/// An e-mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Email {
    /// Whom from, like `Shop <hello@shop.example>`.
    pub from: String,
    /// Whom to.
    pub to: String,
    /// What they are called, if that is known.
    pub name: Option<String>,
    /// What sends it: receivers that report complaints name it by this (`Feedback-ID`).
    pub campaign: String,
    /// The subject.
    pub subject: String,
    /// The text.
    pub text: String,
    /// The same in HTML.
    pub html: Option<String>,
    /// Where a click unsubscribes: marketing has it.
    pub unsubscribe: Option<String>,
}

/// What became of a parcel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It was taken.
    Done(String),
    /// It was not taken, and may be later.
    Later {
        /// What happened.
        error: String,
        /// When the receiver says to come again.
        after: Option<Duration>,
    },
    /// It will never be taken.
    Refused(String),
    /// There is no such address, or it takes no mail: nothing that goes there will be taken.
    Bounced {
        /// The address.
        to: String,
        /// What the server said.
        error: String,
    },
}

/// The port.
#[async_trait]
pub trait Courier: Send + Sync {
    /// Carries a parcel. Whether it arrived is not known when this is dropped.
    async fn carry(&self, parcel: &Parcel) -> Delivery;
}
