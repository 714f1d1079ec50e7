use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use crate::ports::sender::{Email, MessageContent, OutboundMessage, SendOutcome, Sender};
use crate::ports::world::World;

/// What a receiver does with a message.
#[derive(Clone, Debug)]
enum Receiver {
    Says(SendOutcome),
    SaysAfter(Duration, SendOutcome),
    /// Whoever waits for it is dropped.
    NeverAnswers,
}

/// Sends nothing, and remembers what it was given. Receivers take everything, unless a test says otherwise.
pub struct RecordingSender {
    world: World,
    sent: Mutex<Vec<OutboundMessage>>,
    receivers: Mutex<BTreeMap<String, Receiver>>,
}

impl RecordingSender {
    pub fn new(world: World) -> Arc<Self> {
        Arc::new(Self { world, sent: Mutex::default(), receivers: Mutex::default() })
    }

    /// Every message so far, in the order in which they were given.
    pub fn sent(&self) -> Vec<OutboundMessage> {
        self.sent.lock().unwrap().clone()
    }

    /// The idempotency keys of the messages so far.
    pub fn keys(&self) -> Vec<String> {
        self.sent().into_iter().map(|message| message.key).collect()
    }

    /// The e-mails among the messages so far.
    pub fn emails(&self) -> Vec<Email> {
        let email = |message: OutboundMessage| match message.content {
            MessageContent::Email(email) => Some(email),
            _ => None,
        };
        self.sent().into_iter().filter_map(email).collect()
    }

    /// The URL and the body of the webhooks and chat messages so far.
    pub fn posts(&self) -> Vec<(String, Value)> {
        let post = |message: OutboundMessage| match message.content {
            MessageContent::Webhook { url, body, .. } | MessageContent::Chat { url, body, .. } => {
                Some((url, serde_json::from_str(&body).unwrap()))
            }
            MessageContent::Email(_) => None,
        };
        self.sent().into_iter().filter_map(post).collect()
    }

    /// The receiver `to`, a URL or an e-mail address, answers so from now on.
    pub fn says(&self, to: &str, outcome: SendOutcome) {
        self.set(to, Receiver::Says(outcome));
    }

    /// The same, `time` after it was asked.
    pub fn says_after(&self, to: &str, time: Duration, outcome: SendOutcome) {
        self.set(to, Receiver::SaysAfter(time, outcome));
    }

    /// The receiver `to` does not answer from now on.
    pub fn never_answers(&self, to: &str) {
        self.set(to, Receiver::NeverAnswers);
    }

    /// The receiver `to` takes everything again.
    pub fn recovers(&self, to: &str) {
        self.receivers.lock().unwrap().remove(to);
    }

    fn set(&self, to: &str, receiver: Receiver) {
        self.receivers.lock().unwrap().insert(to.to_owned(), receiver);
    }
}

#[async_trait]
impl Sender for RecordingSender {
    async fn send(&self, message: &OutboundMessage) -> SendOutcome {
        self.sent.lock().unwrap().push(message.clone());
        let to = match &message.content {
            MessageContent::Webhook { url, .. } | MessageContent::Chat { url, .. } => url,
            MessageContent::Email(email) => &email.to,
        };
        let receiver = self.receivers.lock().unwrap().get(to).cloned();
        match receiver {
            Some(Receiver::Says(outcome)) => outcome,
            Some(Receiver::SaysAfter(time, outcome)) => {
                self.world.sleep(time).await;
                outcome
            }
            Some(Receiver::NeverAnswers) => std::future::pending().await,
            None => SendOutcome::Done("taken".into()),
        }
    }
}
