//! What leaves the system: webhooks and chats over HTTP, e-mail over SMTP.

use std::time::Duration;

use async_trait::async_trait;

use crate::domain::addresses::Reach;
use crate::ports::sender::{MessageContent, OutboundMessage, SendOutcome, Sender};

pub mod smtp;
pub mod webhook;

use smtp::Smtp;
use webhook::Webhooks;

/// How long a receiver may take, from the first byte to the last.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Why messages cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// The SMTP server's URL.
    #[error("the SMTP server's URL cannot be read: {0}; it must be like smtps://user:password@host")]
    Smtp(String),
    /// A password would cross the network in clear text.
    #[error(
        "the SMTP server's URL has a password and no TLS: use smtps://…, or smtp://…?tls=required. If the network in between is \
         your own, --allow-plain-smtp (TRIBUTARY_ALLOW_PLAIN_SMTP) lets it go in clear text"
    )]
    PlainPassword,
    #[error("HTTP cannot be spoken: {0}")]
    Http(String),
}

pub struct OutboundSender {
    webhooks: Webhooks,
    smtp: Option<Smtp>,
}

impl OutboundSender {
    /// Sends e-mail by `smtp_url`, if there is one; posts where `reach` lets it.
    ///
    /// # Errors
    /// When the URL cannot be read.
    pub fn new(smtp_url: Option<&str>, reach: Reach) -> Result<Self, OutboundError> {
        let smtp = smtp_url.map(Smtp::new).transpose()?;
        Ok(Self { webhooks: Webhooks::new(reach)?, smtp })
    }

    /// Connects to the SMTP server, signs in, and goes.
    ///
    /// # Errors
    /// What went wrong; that there is no such server.
    pub async fn greet_mail_server(&self) -> Result<(), String> {
        match &self.smtp {
            Some(smtp) => smtp.greet().await,
            None => Err("no SMTP server is set".to_owned()),
        }
    }
}

#[async_trait]
impl Sender for OutboundSender {
    async fn send(&self, message: &OutboundMessage) -> SendOutcome {
        match &message.content {
            MessageContent::Webhook { url, body, secrets, at } => {
                self.webhooks.post(url, body, &message.key, Some((secrets, *at))).await
            }
            MessageContent::Chat { url, body } => self.webhooks.post(url, body, &message.key, None).await,
            MessageContent::Email(email) => match &self.smtp {
                Some(smtp) => smtp.send(email, &message.key).await,
                None => SendOutcome::Refused("no SMTP server is set (TRIBUTARY_SMTP_URL)".to_owned()),
            },
        }
    }
}
