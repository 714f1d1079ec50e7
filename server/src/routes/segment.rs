//! Segment's HTTP tracking API: `/v1/{track,identify,page,screen,group,alias,batch}` and the short forms.
//!
//! Answers as the SDKs expect: exactly 200 `{"success":true}`, 400 only for what will never be right, 503 for what is
//! worth sending again. In a batch, a bad message does not take its neighbours along: it is accepted with them, and the
//! worker puts it among the dead letters with the reason, where it can be found. A batch of nothing but bad ones is 400.

use std::borrow::Cow;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::value::RawValue;
use tributary_core::domain::envelope::{Envelope, Origin};
use tributary_core::domain::event::{EventKind, Rejection, Source};
use tributary_core::domain::ids::BrandId;
use tributary_core::domain::tracking::{self, TOO_LARGE};
use tributary_core::ports::queue::NewItem;
use tributary_core::ports::world::World;
use tributary_core::priority::others_first;
use tributary_core::sampled::Sampled;
use workers::traces;

use crate::answers::{Accepted, TrackingBatch, TrackingMessage};
use crate::auth::{self, Peer, Sender};
use crate::body::{self, MAX_BATCH_BYTES};
use crate::bucket::cost;
use crate::codes::{EVENT, INGEST};
use crate::error::ApiError;
use crate::errors;
use crate::refusals;
use crate::state::AppState;

/// The most events a batch (Segment's limit).
pub const MAX_BATCH_EVENTS: usize = 2500;
/// The most bytes that a batch's `context` and `integrations` may make, copied into every event of it.
pub const MAX_SHARED_BYTES: usize = 2 * 1024 * 1024;

/// `{"writeKey"}` of a body.
#[derive(Deserialize)]
struct Keyed<'a> {
    #[serde(rename = "writeKey", borrow, default)]
    write_key: Option<Cow<'a, str>>,
}

/// The body of `/v1/batch`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Batch<'a> {
    #[serde(borrow)]
    batch: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    context: Option<&'a RawValue>,
    #[serde(borrow, default)]
    integrations: Option<&'a RawValue>,
    #[serde(borrow, default)]
    sent_at: Option<&'a RawValue>,
    #[serde(borrow, default)]
    write_key: Option<Cow<'a, str>>,
}

impl Batch<'_> {
    /// `context` and `integrations` as the text of one JSON object, if there are any.
    fn shared(&self) -> Result<Option<String>, ApiError> {
        let fields: Vec<String> = [("context", self.context), ("integrations", self.integrations)]
            .into_iter()
            .filter_map(|(name, raw)| {
                Some((name, raw.map(RawValue::get).filter(|raw| raw.starts_with('{'))?))
            })
            .map(|(name, raw)| format!("\"{name}\":{raw}"))
            .collect();
        if fields.is_empty() {
            return Ok(None);
        }
        let shared = format!("{{{}}}", fields.join(","));
        // Every event gets a copy: a small request must not become a large one.
        let copies = shared.len() * self.batch.len();
        if copies > MAX_SHARED_BYTES {
            let message = format!(
                "the batch's context and integrations, copied into {} events, make {copies} bytes; at most {MAX_SHARED_BYTES}",
                self.batch.len()
            );
            return Err(ApiError::bad_request("context_too_large", message));
        }
        Ok(Some(shared))
    }
}

/// Who sends: by the key in the headers, or, where that is none of ours (an OAuth token), in the body.
pub(super) async fn writer(
    state: &AppState,
    headers: &HeaderMap,
    peer: Peer,
    in_body: impl FnOnce() -> Option<String>,
) -> Result<Sender, ApiError> {
    let in_headers = auth::from_headers(headers);
    let sender = match state.keys.sender(in_headers.as_deref(), peer).await {
        Err(error) if error.is_unauthorized() => match in_body() {
            Some(key) => state.keys.sender(Some(&key), peer).await,
            None => Err(error),
        },
        known => known,
    }?;
    // A browser says which page asks. One that has a secret key has what only servers may have, or adds it to what another page asks.
    if sender.source.is_trusted() && headers.contains_key(header::ORIGIN) {
        let message =
            "a secret key is for servers, and this request comes from a page; use a write key in pages";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "wrong_key", message));
    }
    Ok(sender)
}

/// What was read of a body. Where it could not be, the key in the headers still says whose it is, and its owner is informed.
pub(super) async fn of_whom<T>(
    state: &AppState,
    headers: &HeaderMap,
    peer: Peer,
    read: Result<T, ApiError>,
) -> Result<T, ApiError> {
    if read.is_err() {
        let _ = writer(state, headers, peer, || None).await;
    }
    read
}

/// The `writeKey` of a message.
pub(super) fn key_in(message: &RawValue) -> Option<String> {
    serde_json::from_str::<Keyed<'_>>(message.get()).ok()?.write_key.map(Cow::into_owned)
}

/// Events that were too large.
static DROPPED: Sampled = Sampled::new();

errors!(OneErrors: INGEST, EVENT);
errors!(BatchErrors: INGEST, EVENT, &["too_many_events", "context_too_large", "no_type", "invalid_type"]);

/// One message, whose kind the route says.
#[utoipa::path(post, path = "/v1/track", tag = "Events", security(("write_key" = [])),
    request_body(content = TrackingMessage, description = "A message in Segment's format"),
    responses((status = 200, description = "Accepted durably", body = Accepted), OneErrors))]
pub async fn one(
    kind: EventKind,
    State(state): State<AppState>,
    peer: Peer,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let bytes = body::read(&headers, body, MAX_BATCH_BYTES).await?;
    let message: &RawValue = of_whom(&state, &headers, peer, json(&bytes)).await?;
    let sender = writer(&state, &headers, peer, || key_in(message)).await?;
    state.keys.charge(&sender, cost(1, bytes.len()))?;
    let Sender { brand, source, .. } = sender;
    let has_id = tracking::check(message, Some(kind), 0)?;
    let received_ms = state.context.world.now_ms();
    let reception = Reception {
        world: &state.context.world,
        trace: traces::traceparent(),
        brand,
        source,
        received_ms,
        kind: Some(kind),
        sent_at: None,
        shared: None,
    };
    state.ingest.enqueue(vec![reception.item(message, 0, has_id)]).await?;
    count(1);
    Ok(success())
}

/// A batch of messages, each with its type.
#[utoipa::path(post, path = "/v1/batch", tag = "Events", security(("write_key" = [])),
    request_body(content = TrackingBatch, description = "`{\"batch\": […]}`, at most 2,500 messages and 4 MB"),
    responses((status = 200, description = "Accepted durably", body = Accepted), BatchErrors))]
pub async fn batch(
    State(state): State<AppState>,
    peer: Peer,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let bytes = body::read(&headers, body, MAX_BATCH_BYTES).await?;
    // Fields by their names: a list of them in their order is nobody's format.
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(ApiError::bad_request(
            "invalid_json",
            "a batch must be a JSON object, {\"batch\": […]}".to_owned(),
        ));
    }
    let batch: Batch<'_> = of_whom(&state, &headers, peer, json(&bytes)).await?;
    let sender = writer(&state, &headers, peer, || batch.write_key.as_deref().map(str::to_owned)).await?;
    let Sender { brand, source, .. } = sender;
    let count_of = batch.batch.len();
    if count_of > MAX_BATCH_EVENTS {
        let message = format!("the batch has {count_of} events; at most {MAX_BATCH_EVENTS} are taken");
        return Err(ApiError::bad_request("too_many_events", message));
    }
    let shared = batch.shared()?;
    let shared_bytes = shared.as_deref().map_or(0, str::len);
    // Also what is wrong with it is paid for: it is looked at, and most of it is kept among the dead letters.
    state.keys.charge(&sender, cost(count_of, bytes.len() + shared_bytes * count_of))?;
    let kept = kept(&batch.batch, shared_bytes, brand).await?;
    let reception = Reception {
        world: &state.context.world,
        trace: traces::traceparent(),
        brand,
        source,
        received_ms: state.context.world.now_ms(),
        kind: None,
        // A sentAt that is no text is no reason to lose a batch: its events have times of their own.
        sent_at: batch.sent_at.and_then(|raw| serde_json::from_str(raw.get()).ok()),
        shared: shared.as_deref(),
    };
    let mut items: Vec<NewItem> = Vec::with_capacity(kept.len());
    for (place, message, has_id) in &kept {
        others_first(*place).await;
        items.push(reception.item(message, *place, *has_id));
    }
    if !items.is_empty() {
        state.ingest.enqueue(items).await?;
    }
    count(kept.len());
    Ok(success())
}

/// The messages of a batch that are kept: each with its place, and whether it has an id of its own. What is wrong with a message is kept
/// with it, so that a worker buries it.
async fn kept<'b>(
    messages: &[&'b RawValue],
    shared_bytes: usize,
    brand: BrandId,
) -> Result<Vec<(usize, &'b RawValue, bool)>, ApiError> {
    let mut first_fault = None;
    let (mut sound, mut dropped) = (0, 0);
    let mut kept: Vec<(usize, &RawValue, bool)> = Vec::with_capacity(messages.len());
    for (at, message) in messages.iter().enumerate() {
        others_first(at).await;
        match tracking::check(message, None, shared_bytes) {
            Ok(has_id) => {
                sound += 1;
                kept.push((at, message, has_id));
            }
            Err(fault) => {
                metrics::counter!("tributary_events_faulty_total", "code" => fault.code).increment(1);
                refusals::message(fault.code);
                // One over the limit is not kept among the dead letters either: anybody with a public key could fill
                // the queue's memory. Segment's limit is documented, and its SDKs hold it.
                if fault.code == TOO_LARGE {
                    dropped += 1;
                } else {
                    kept.push((at, message, true));
                }
                first_fault.get_or_insert(fault);
            }
        }
    }
    if dropped > 0
        && let Some(times) = DROPPED.happened(dropped)
    {
        tracing::warn!(%brand, times, "events of batches were dropped: they were too large");
    }
    if let (0, Some(Rejection { code, message })) = (sound, first_fault) {
        return Err(ApiError::bad_request(
            code,
            format!("no event of the batch is valid; the first: {message}"),
        ));
    }
    Ok(kept)
}

/// What the messages of one request have in common.
pub(super) struct Reception<'a> {
    pub(super) world: &'a World,
    /// The trace that the request is part of.
    pub(super) trace: Option<String>,
    pub(super) brand: BrandId,
    /// How far they are believed.
    pub(super) source: Source,
    pub(super) received_ms: i64,
    /// The kind that the route says.
    pub(super) kind: Option<EventKind>,
    pub(super) sent_at: Option<&'a str>,
    /// What the batch says for all its messages.
    pub(super) shared: Option<&'a str>,
}

impl Reception<'_> {
    /// The message of that place in its batch as a queue item; one without an id gets one here, so that the queue may deliver it twice.
    pub(super) fn item(&self, message: &RawValue, place: usize, has_id: bool) -> NewItem {
        let envelope = Envelope {
            trace: self.trace.as_deref().map(Cow::Borrowed),
            brand: self.brand,
            received_ms: self.received_ms,
            origin: Origin::Segment {
                kind: self.kind,
                message_id: (!has_id).then(|| self.world.id().to_string().into()),
                sent_at: self.sent_at.map(Cow::Borrowed),
                place: u32::try_from(place).unwrap_or(u32::MAX),
                shared: self.shared.map(Cow::Borrowed),
                source: self.source,
            },
            body: message,
        };
        NewItem {
            payload: envelope.encode().into(),
            brand: Some(self.brand),
            public: !self.source.is_trusted(),
            ..NewItem::default()
        }
    }
}

/// Reads a body as JSON of that shape.
pub(super) fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|error| {
        ApiError::bad_request("invalid_json", format!("the body is not JSON of the right shape: {error}"))
    })
}

/// Counts events that were accepted.
pub(super) fn count(events: usize) {
    metrics::counter!("tributary_events_accepted_total").increment(events as u64);
}

fn success() -> Response {
    Json(Accepted { success: true }).into_response()
}
