//! A simulated campaign against a running system: its automations are set up, its customers act, and what is received is compared
//! with the ledger.

use std::time::Duration;

use anyhow::{Context, bail};
use futures::{StreamExt, stream};
use serde_json::Value;
use simulator::actions::{Act, ActionVerdict, CART_WAIT_S, Campaign, Fired, What, automations};

use crate::client::Client;
use crate::receiver::{Receiver, now_ms};

/// Deliveries under way at once.
const AT_ONCE: usize = 8;
/// How long a server may believe what it knew of automations before.
const HEARD_WITHIN: Duration = Duration::from_secs(6);
/// How long everything may take to come right after the last delivery and the last wait.
const LIVENESS: Duration = Duration::from_secs(90);
/// How long nothing more may come before it is believed that nothing does.
const QUIET: Duration = Duration::from_secs(3);

/// Sets the campaign's automations up; waits until every process has heard of them.
///
/// # Errors
/// When one is refused.
pub async fn set_up(client: &Client, receiver: &Receiver) -> anyhow::Result<()> {
    for (_, definition) in automations(&receiver.url) {
        let made = call(client, "POST", "/api/automations", Some(&definition)).await?;
        let id = made["id"].as_str().context("an automation without an id")?;
        call(client, "POST", &format!("/api/automations/{id}/activate"), None).await?;
    }
    tokio::time::sleep(HEARD_WITHIN).await;
    Ok(())
}

/// Calls the API with the secret key.
///
/// # Errors
/// When it does not answer with success.
pub async fn call(client: &Client, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
    let method = reqwest::Method::from_bytes(method.as_bytes())?;
    let url = format!("{}{path}", client.access().url);
    let mut request = client.http().request(method, url).bearer_auth(&client.access().secret_key);
    if let Some(body) = body {
        request = request.json(body);
    }
    let response = request.send().await?;
    let (status, text) = (response.status(), response.text().await?);
    if !status.is_success() {
        bail!("{path}: {status} {text}");
    }
    Ok(serde_json::from_str(&text)?)
}

/// Lets the campaign's customers act. Answers when it began, in milliseconds since 1970.
///
/// # Errors
/// When a delivery is refused, or given up.
pub async fn act(client: &Client, campaign: &Campaign) -> anyhow::Result<i64> {
    let began_ms = now_ms();
    let began = tokio::time::Instant::now();
    let mut sending = stream::iter(&campaign.acts)
        .map(|act| {
            let due = began + Duration::from_millis(u64::try_from(act.send_ms).unwrap_or_default());
            async move {
                tokio::time::sleep_until(due).await;
                client.persist(|| request(client, act, began_ms)).await
            }
        })
        .buffer_unordered(AT_ONCE);
    while let Some(taken) = sending.next().await {
        if !taken? {
            bail!("a delivery was given up");
        }
    }
    Ok(began_ms)
}

fn request(client: &Client, act: &Act, began_ms: i64) -> reqwest::RequestBuilder {
    let at = iso(began_ms + act.at_ms);
    let access = client.access();
    match &act.what {
        What::Segment(message) => {
            let mut message = message.clone();
            message["timestamp"] = at.into();
            let path = message["type"].as_str().unwrap_or("track").to_owned();
            client
                .http()
                .post(format!("{}/v1/{path}", access.url))
                .basic_auth(&access.write_key, Some(""))
                .body(message.to_string())
        }
        What::Order(order) => {
            let mut order = order.clone();
            order["created_at"] = at.clone().into();
            order["updated_at"] = at.into();
            let id = format!("order-{}", order["id"]);
            client.webhook(client.http(), "orders/create", &id, order.to_string())
        }
    }
}

/// `2026-01-31T12:00:00.000Z`, of milliseconds since 1970.
pub fn iso(ms: i64) -> String {
    tributary_core::domain::time::format(tributary_core::domain::time::from_ms(ms))
}

/// Waits until all that is due was received and nothing more comes, and compares it with the ledger.
///
/// # Errors
/// When a webhook is not signed with the brand's secret, or the API does not answer.
pub async fn verdict(
    client: &Client,
    campaign: &Campaign,
    receiver: &Receiver,
    began_ms: i64,
) -> anyhow::Result<ActionVerdict> {
    let end = tokio::time::Instant::now() + LIVENESS + Duration::from_secs(CART_WAIT_S.into());
    loop {
        let before = receiver.hooks().len();
        if campaign.ledger.compare(&fired(receiver, began_ms)).missing == 0 {
            tokio::time::sleep(QUIET).await;
            if receiver.hooks().len() == before {
                break;
            }
        }
        if tokio::time::Instant::now() > end {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let secret = call(client, "GET", "/api/signing-secret", None).await?;
    let secret = secret["secret"].as_str().context("no signing secret")?;
    if let Some(hook) = receiver.hooks().iter().find(|hook| !hook.is_signed_with(secret)) {
        bail!("a webhook is not signed with the brand's secret: {hook:?}");
    }
    Ok(campaign.ledger.compare(&fired(receiver, began_ms)))
}

fn fired(receiver: &Receiver, began_ms: i64) -> Vec<Fired> {
    let hooks = receiver.hooks().into_iter();
    hooks
        .map(|hook| Fired {
            automation: hook.name,
            customer: hook.body["data"]["custom"]["customer"].as_str().unwrap_or_default().to_owned(),
            key: hook.key,
            at_ms: hook.at_ms - began_ms,
        })
        .collect()
}
