//! `POST /api/webhooks/shopify`: verified over the raw bytes before anything is parsed, then claimed and enqueued in one step.
//!
//! The signature covers the body, and neither a time nor the headers. So a body must be of its topic's shape and of the shop that
//! the headers name (`domain/webhook.rs`), and is known again by itself: a replay verifies, and takes no effect.

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::Sha256;
use tributary_core::domain::envelope::{Envelope, Origin};
use tributary_core::domain::shopify::{Delivery, canonical};
use tributary_core::domain::webhook::{self, Seen};
use tributary_core::ports::brands::Shop;
use tributary_core::ports::queue::{Enqueued, Idempotency, NewItem};
use workers::traces;

use super::segment::count;
use crate::answers::WebhookAccepted;
use crate::body::{self, MAX_WEBHOOK_BYTES, Whole};
use crate::bucket::cost;
use crate::error::ApiError;
use crate::errors;
use crate::refusals;
use crate::state::AppState;

/// How long the store may take to say whether a body came before: Shopify waits for five seconds in all.
const STORE_PATIENCE: Duration = Duration::from_secs(1);
/// When a signature that does not fit is refused, from the headers on: longer than the store takes to say that it knows no such shop. (A body
/// that takes longer takes as long for either.)
const REFUSED_AFTER: Duration = Duration::from_millis(50);

/// What names the resource.
#[derive(Deserialize)]
struct Resource<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    token: Option<&'a RawValue>,
}

errors!(TakeErrors: &[
    "payload_too_large", "invalid_body", "body_timeout", "missing_header", "invalid_hmac", "invalid_json", "invalid_webhook", "idempotency_conflict",
    "rate_limited", "queue_unavailable", "queue_full", "share_full", "store_unavailable",
]);

/// Takes a webhook: 200 `{"success":true,"duplicate":false}`; 401 for a bad signature, 400 for missing headers.
#[utoipa::path(post, path = "/api/webhooks/shopify", tag = "Events",
    params(("x-shopify-hmac-sha256" = String, Header), ("x-shopify-shop-domain" = String, Header), ("x-shopify-topic" = String, Header),
        ("x-shopify-webhook-id" = String, Header), ("x-shopify-api-version" = String, Header), ("x-shopify-event-id" = Option<String>, Header),
        ("x-shopify-triggered-at" = Option<String>, Header)),
    request_body(content = Object, description = "As Shopify sends it"),
    responses((status = 200, description = "Accepted, or accepted before", body = WebhookAccepted), TakeErrors))]
pub async fn take(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    // Before the body: what has not the headers that Shopify always sends costs nothing.
    let signature = required(&headers, "x-shopify-hmac-sha256")?;
    let domain = required(&headers, "x-shopify-shop-domain")?.to_lowercase();
    let topic = required(&headers, "x-shopify-topic")?.to_lowercase();
    let webhook_id = required(&headers, "x-shopify-webhook-id")?;
    required(&headers, "x-shopify-api-version")?;
    let (shop, bytes) = authentic(&state, &domain, signature, body).await?;
    if shop.redacted_at.is_some() {
        // Its customers were erased, and it has not been added again: what it still sends is not kept.
        metrics::counter!("tributary_webhooks_unwanted_total").increment(1);
        return Ok(Json(WebhookAccepted { ignored: true, ..WebhookAccepted::new(false) }).into_response());
    }
    state.keys.charge_shop(&shop.domain, cost(1, bytes.len()))?;
    let body: &RawValue = parse(&bytes)?;
    check_shape(&shop, &topic, body)?;
    let digest = webhook::digest(body.get());
    match seen(&state, &shop, &topic, &digest).await {
        Seen::Never => {}
        Seen::Before => {
            metrics::counter!("tributary_webhooks_total", "duplicate" => "true").increment(1);
            return Ok(Json(WebhookAccepted::new(true)).into_response());
        }
        Seen::Elsewhere => {
            metrics::counter!("tributary_webhooks_refused_total", "reason" => "replay").increment(1);
            tracing::warn!(
                shop = shop.domain,
                "a signed body was sent again under a topic that deletes something"
            );
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                "idempotency_conflict",
                "this body was received before under another topic; a body of this topic is accepted under one topic only",
            ));
        }
    }
    let Resource { id, token } = parse(&bytes)?;
    let resource_id =
        [id, token].into_iter().flatten().map(|id| id.get().trim_matches('"')).find(|id| *id != "null");
    let said = canonical(body.get());
    let delivery = Delivery {
        shop: &shop.domain,
        topic: &topic,
        webhook_id,
        event_id: optional(&headers, "x-shopify-event-id"),
        resource_id,
        body: &said,
    };
    let triggered_at = optional(&headers, "x-shopify-triggered-at");
    let mut keys = delivery.idempotency_keys();
    keys.push(format!("shopify-body:{}:{topic}:{}", shop.domain, hex::encode(digest)));
    let item = NewItem {
        payload: envelope(&state, &shop, &delivery, triggered_at, body).into(),
        brand: Some(shop.brand),
        idempotency: Some(Idempotency::new(keys, said.as_bytes())),
        ..NewItem::default()
    };
    enqueue(&state, &shop, item).await
}

/// The shop, and the body that it has signed.
async fn authentic(
    state: &AppState,
    domain: &str,
    signature: &str,
    body: Body,
) -> Result<(Shop, Whole), ApiError> {
    let world = &state.context.world;
    let began = world.monotonic();
    let shop = state.keys.shop(domain).await?;
    match &shop {
        Some(shop) => refusals::is_of(shop.brand, || format!("shop {}", shop.domain)),
        None => refusals::stranger(domain),
    }
    let bytes = body::read_raw(body, MAX_WEBHOOK_BYTES).await?;
    let is_signed = signed(shop.as_ref(), &bytes, signature);
    if let Some(shop) = shop.filter(|_| is_signed) {
        return Ok((shop, bytes));
    }
    // The same answer for an unknown shop, and at the same time, though nothing is remembered of one: nobody learns which shops are here.
    world.sleep(REFUSED_AFTER.saturating_sub(world.since(began))).await;
    let why = "the signature does not match this shop's secret";
    Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_hmac", why))
}

/// Refuses a body that is not of its topic's shape. With an error, and no 200: should it be a form of Shopify's that is not known here
/// yet, Shopify tries again for hours, and shows it.
fn check_shape(shop: &Shop, topic: &str, body: &RawValue) -> Result<(), ApiError> {
    webhook::check(topic, &shop.domain, body.get()).map_err(|wrong| {
        metrics::counter!("tributary_webhooks_refused_total", "reason" => "shape").increment(1);
        tracing::warn!(
            shop = shop.domain,
            "a signed webhook is not of its topic's shape, or of another shop"
        );
        ApiError::bad_request(wrong.code, wrong.message)
    })
}

fn envelope(
    state: &AppState,
    shop: &Shop,
    delivery: &Delivery<'_>,
    triggered_at: Option<&str>,
    body: &RawValue,
) -> Vec<u8> {
    let envelope = Envelope {
        trace: traces::traceparent().map(Cow::Owned),
        brand: shop.brand,
        received_ms: state.context.world.now_ms(),
        origin: Origin::Shopify {
            shop: Cow::Borrowed(&shop.domain),
            topic: Cow::Borrowed(delivery.topic),
            message_id: delivery.message_id().into(),
            triggered_at: triggered_at.map(Cow::Borrowed),
        },
        body,
    };
    envelope.encode()
}

async fn enqueue(state: &AppState, shop: &Shop, item: NewItem) -> Result<Response, ApiError> {
    let duplicate = match state.ingest.enqueue(vec![item]).await?.first() {
        Some(Enqueued::Accepted) => false,
        Some(Enqueued::Conflict) => {
            metrics::counter!("tributary_webhook_conflicts_total").increment(1);
            tracing::warn!(shop = shop.domain, "a delivery came again with another body");
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                "idempotency_conflict",
                "a delivery with this webhook id was received before with another body",
            ));
        }
        _ => true,
    };
    if !duplicate {
        count(1);
    }
    metrics::counter!("tributary_webhooks_total", "duplicate" => duplicate.to_string()).increment(1);
    Ok(Json(WebhookAccepted::new(duplicate)).into_response())
}

/// What the store knows of a body. Where it does not answer in time, nothing: the worker's transaction asks again.
async fn seen(state: &AppState, shop: &Shop, topic: &str, digest: &[u8; 32]) -> Seen {
    let asked = state.context.store.body_topics(shop.brand, &shop.domain, digest);
    match state.context.world.timeout(STORE_PATIENCE, asked).await {
        Ok(Ok(under)) => webhook::seen(topic, &under),
        _ => Seen::Never,
    }
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|error| {
        ApiError::bad_request("invalid_json", format!("the signed body is not a JSON object: {error}"))
    })
}

/// Whether `signature` is the base64 of the body's HMAC-SHA256 under the shop's secret, or under the one before it. It takes as long
/// for a shop that is not here, or that has one secret, so that nobody learns by a clock which shops are here.
fn signed(shop: Option<&Shop>, body: &[u8], signature: &str) -> bool {
    let signature = STANDARD.decode(signature.trim()).unwrap_or_default();
    let secrets = [shop.map(|shop| &shop.secret), shop.and_then(|shop| shop.previous_secret.as_ref())];
    let fits = secrets.map(|secret| {
        let key = secret.map_or(b"nobody's".as_slice(), |secret| secret.as_bytes());
        // A key of any length is taken; verify_slice compares in constant time.
        let verified = Hmac::<Sha256>::new_from_slice(key)
            .is_ok_and(|mac| mac.chain_update(body).verify_slice(&signature).is_ok());
        verified && secret.is_some()
    });
    fits.contains(&true)
}

fn required<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<&'h str, ApiError> {
    optional(headers, name)
        .ok_or_else(|| ApiError::bad_request("missing_header", format!("the header {name} is missing")))
}

/// A header; newer deliveries of Shopify's have them without `x-`.
fn optional<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let value = headers.get(name).or_else(|| headers.get(name.strip_prefix("x-")?))?;
    value.to_str().ok().map(str::trim).filter(|value| !value.is_empty())
}
