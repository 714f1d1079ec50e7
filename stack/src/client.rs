//! Tributary's API as a browser, Shopify and a shop's server call it.

use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::{RequestBuilder, StatusCode};
use serde_json::Value;
use sha2::Sha256;
use simulator::delivery::{Delivery, To};

use crate::system::Access;

/// How long a call may take. Shopify itself gives up after 5 s.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often a delivery is sent that is not taken, as the SDKs and Shopify do.
pub const TRIES: u32 = 8;

/// A client of one system. Clones share its connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    access: Access,
}

impl Client {
    /// A client with these keys.
    ///
    /// # Errors
    /// When there is no TLS.
    pub fn new(access: Access) -> anyhow::Result<Self> {
        Ok(Self { http: reqwest::Client::builder().timeout(TIMEOUT).build()?, access })
    }

    /// A delivery as a request.
    pub fn delivery(&self, http: &reqwest::Client, delivery: &Delivery) -> RequestBuilder {
        let Access { url, write_key, .. } = &self.access;
        match &delivery.to {
            To::Segment { path } => http
                .post(format!("{url}/v1/{path}"))
                .basic_auth(write_key, Some(""))
                .header("content-type", "text/plain")
                .body(delivery.body.clone()),
            To::Shopify { topic, webhook_id, event_id } => self
                .webhook(http, topic, webhook_id, delivery.body.clone())
                .header("X-Shopify-Event-Id", event_id),
        }
    }

    pub fn webhook(
        &self,
        http: &reqwest::Client,
        topic: &str,
        webhook_id: &str,
        body: String,
    ) -> RequestBuilder {
        let Access { url, shop_domain, shop_secret, .. } = &self.access;
        http.post(format!("{url}/api/webhooks/shopify"))
            .header("content-type", "application/json")
            .header("X-Shopify-Topic", topic)
            .header("X-Shopify-Shop-Domain", shop_domain)
            .header("X-Shopify-API-Version", "2026-01")
            .header("X-Shopify-Webhook-Id", webhook_id)
            .header("X-Shopify-Hmac-Sha256", sign(shop_secret, body.as_bytes()))
            .body(body)
    }

    /// The path of Customer360 by identifier.
    pub fn customer_path(kind: &str, value: &str) -> String {
        format!("/api/customers/by/{kind}/{value}/360")
    }

    /// Customer360 by identifier as a request.
    pub fn customer(&self, http: &reqwest::Client, kind: &str, value: &str) -> RequestBuilder {
        let Access { url, secret_key, .. } = &self.access;
        http.get(format!("{url}{}", Self::customer_path(kind, value))).bearer_auth(secret_key)
    }

    /// Sends a delivery until it is taken, as its sender would; `false` when it was given up.
    ///
    /// # Errors
    /// When it was refused for good.
    pub async fn send(&self, delivery: &Delivery) -> anyhow::Result<bool> {
        let sent = self.persist(|| self.delivery(&self.http, delivery)).await;
        sent.with_context(|| format!("{:?}", delivery.to))
    }

    /// Makes a request until it is taken, as the SDKs and Shopify do; `false` when it was given up.
    ///
    /// # Errors
    /// When it was refused for good.
    pub async fn persist(&self, request: impl Fn() -> RequestBuilder) -> anyhow::Result<bool> {
        for attempt in 0..TRIES {
            match request().send().await {
                Ok(response) if response.status().is_success() => return Ok(true),
                Ok(response)
                    if response.status().is_client_error()
                        && response.status() != StatusCode::TOO_MANY_REQUESTS =>
                {
                    bail!("refused: {}", response.text().await?);
                }
                _ => tokio::time::sleep(wait(attempt)).await,
            }
        }
        Ok(false)
    }

    /// Customer360 by identifier; `None` for nobody.
    ///
    /// # Errors
    /// When there is no answer in [`TRIES`].
    pub async fn read_customer(&self, kind: &str, value: &str) -> anyhow::Result<Option<Value>> {
        let mut last = None;
        for attempt in 0..TRIES {
            match self.customer(&self.http, kind, value).send().await {
                Ok(response) if response.status() == StatusCode::NOT_FOUND => return Ok(None),
                Ok(response) if response.status().is_success() => return Ok(Some(response.json().await?)),
                Ok(response) => {
                    last = Some(anyhow::anyhow!("{} {}", response.status(), response.text().await?))
                }
                Err(error) => last = Some(error.into()),
            }
            tokio::time::sleep(wait(attempt)).await;
        }
        Err(last.context("no answer")?.context(format!("Customer360 of {kind} {value}")))
    }

    /// `/api/monitoring/queues`: the events queue in numbers.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn queue(&self) -> anyhow::Result<QueueNumbers> {
        let url = format!("{}/api/monitoring/queues", self.access.url);
        let answer: Value = self.http.get(url).send().await?.error_for_status()?.json().await?;
        let number =
            |name: &str| answer["events"][name].as_u64().with_context(|| format!("no {name} in {answer}"));
        // Unknown while the store is unavailable: then nobody may say that nothing waits.
        let staged = answer["outbox"]["waiting"].as_u64().context("the outbox is not known")?;
        Ok(QueueNumbers {
            waiting: staged + number("pending")? + number("in_flight")? + number("delayed")?,
            dead: number("dead")?,
            oldest_age_ms: number("oldest_age_ms")?,
        })
    }

    /// `/api/monitoring/stats`: how many events the brand has.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn brand_events(&self) -> anyhow::Result<u64> {
        let url = format!("{}/api/monitoring/stats", self.access.url);
        let request = self.http.get(url).bearer_auth(&self.access.secret_key);
        let answer: Value = request.send().await?.error_for_status()?.json().await?;
        answer["brand"]["events"].as_u64().with_context(|| format!("no brand.events in {answer}"))
    }

    /// The automations queue in numbers.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn automations_queue(&self) -> anyhow::Result<(u64, u64)> {
        let url = format!("{}/api/monitoring/queues", self.access.url);
        let answer: Value = self.http.get(url).send().await?.error_for_status()?.json().await?;
        let of = &answer["automations"];
        let number = |name: &str| of[name].as_u64().with_context(|| format!("no {name} in {answer}"));
        Ok((number("pending")? + number("in_flight")? + number("delayed")?, number("dead")?))
    }

    /// Waits until the queue is empty.
    ///
    /// # Errors
    /// When it is not in time.
    pub async fn drain(&self, timeout: Duration, mut seen: impl FnMut(QueueNumbers)) -> anyhow::Result<()> {
        let end = tokio::time::Instant::now() + timeout;
        loop {
            // A server that is just restarting does not answer; what counts is the end.
            if let Ok(numbers) = self.queue().await {
                seen(numbers);
                if numbers.waiting == 0 {
                    return Ok(());
                }
            }
            if tokio::time::Instant::now() > end {
                bail!("the queue was not empty after {} s", timeout.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// How to reach the system.
    pub fn access(&self) -> &Access {
        &self.access
    }
}

/// The events queue in numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct QueueNumbers {
    /// Pending, in flight, delayed, or in the outbox.
    pub waiting: u64,
    pub dead: u64,
    /// Age of the oldest pending one.
    pub oldest_age_ms: u64,
}

/// How long a sender waits before its next try.
pub fn wait(attempt: u32) -> Duration {
    Duration::from_millis(100 << attempt.min(5))
}

/// `X-Shopify-Hmac-Sha256`
fn sign(secret: &str, body: &[u8]) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    STANDARD.encode(mac.chain_update(body).finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_base64_of_the_hmac() {
        // RFC 4231, test case 2, in base64
        let expected = "W9zBRr9gdU5qBCQmCJV1x1oAPwidJzmDnexYuWTsOEM=";
        assert_eq!(sign("Jefe", b"what do ya want for nothing?"), expected);
    }
}
