//! Segment's HTTP tracking API: `/v1/{track,identify,page,screen,group,alias,batch}` and the short forms.
//!
//! Answers as the SDKs expect: exactly 200 `{"success":true}`, 400 only for what will never be right, 503 for what is
//! worth sending again. In a batch, a bad message does not take its neighbours along: it is accepted with them, and the
//! worker puts it among the dead letters with the reason, where it can be found. A batch of nothing but bad ones is 400.

use std::borrow::Cow;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::value::RawValue;
use tributary_core::domain::envelope::{Envelope, Origin};
use tributary_core::domain::event::{EventKind, Rejection};
use tributary_core::domain::ids::BrandId;
use tributary_core::domain::segment;
use tributary_core::ports::queue::NewItem;
use tributary_core::ports::tenants::KeyKind;
use uuid::Uuid;

use crate::auth;
use crate::body::{self, MAX_BATCH_BYTES};
use crate::error::ApiError;
use crate::state::AppState;

/// The most events a batch (Segment's limit).
pub const MAX_BATCH_EVENTS: usize = 2500;

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
    sent_at: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    write_key: Option<Cow<'a, str>>,
}

/// One message, whose kind the route says.
pub async fn one(
    kind: EventKind,
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let bytes = body::read(&headers, body, MAX_BATCH_BYTES).await?;
    let message: &RawValue = json(&bytes)?;
    let key = match auth::from_headers(&headers) {
        Some(key) => Some(key),
        None => json::<Keyed<'_>>(&bytes)?.write_key.map(Cow::into_owned),
    };
    let brand = state.keys.brand(key.as_deref(), KeyKind::Write).await?;
    segment::check(message, Some(kind))?;
    let reception = Reception {
        brand,
        received_ms: state.context.clock.now_ms(),
        kind: Some(kind),
        sent_at: None,
        context: None,
    };
    state.ingest.enqueue(vec![reception.item(message)]).await?;
    count(1);
    Ok(success())
}

/// A batch of messages, each with its type.
pub async fn batch(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let bytes = body::read(&headers, body, MAX_BATCH_BYTES).await?;
    let batch: Batch<'_> = json(&bytes)?;
    let key = auth::from_headers(&headers).or_else(|| batch.write_key.as_deref().map(str::to_owned));
    let brand = state.keys.brand(key.as_deref(), KeyKind::Write).await?;
    let count_of = batch.batch.len();
    if count_of > MAX_BATCH_EVENTS {
        let message = format!("the batch has {count_of} events; at most {MAX_BATCH_EVENTS} are taken");
        return Err(ApiError::bad_request("too_many_events", message));
    }
    let mut first_fault = None;
    let mut sound = 0;
    for message in &batch.batch {
        match segment::check(message, None) {
            Ok(_) => sound += 1,
            Err(fault) => {
                metrics::counter!("tributary_events_faulty_total", "code" => fault.code).increment(1);
                first_fault.get_or_insert(fault);
            }
        }
    }
    if let (0, Some(Rejection { code, message })) = (sound, first_fault) {
        return Err(ApiError::bad_request(
            code,
            format!("no event of the batch can be taken; the first: {message}"),
        ));
    }
    let reception = Reception {
        brand,
        received_ms: state.context.clock.now_ms(),
        kind: None,
        sent_at: batch.sent_at.as_deref(),
        context: batch.context.map(RawValue::get).filter(|context| context.starts_with('{')),
    };
    let items: Vec<NewItem> = batch.batch.iter().map(|message| reception.item(message)).collect();
    if !items.is_empty() {
        state.ingest.enqueue(items).await?;
    }
    count(count_of);
    Ok(success())
}

/// What the messages of one request have in common.
pub(super) struct Reception<'a> {
    /// Whose messages.
    pub(super) brand: BrandId,
    /// When they came.
    pub(super) received_ms: i64,
    /// The kind that the route says.
    pub(super) kind: Option<EventKind>,
    /// The batch's `sentAt`.
    pub(super) sent_at: Option<&'a str>,
    /// The batch's `context`.
    pub(super) context: Option<&'a str>,
}

impl Reception<'_> {
    /// A message as a queue item.
    pub(super) fn item(&self, message: &RawValue) -> NewItem {
        let envelope = Envelope {
            brand: self.brand,
            received_ms: self.received_ms,
            origin: Origin::Segment {
                kind: self.kind,
                message_id: Uuid::now_v7().to_string().into(),
                sent_at: self.sent_at.map(Cow::Borrowed),
                context: self.context.map(Cow::Borrowed),
            },
            body: message,
        };
        NewItem { payload: envelope.encode().into(), ..NewItem::default() }
    }
}

/// Reads a body as JSON of that shape.
pub(super) fn json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|error| {
        ApiError::bad_request("invalid_json", format!("the body is not JSON of the right shape: {error}"))
    })
}

/// Counts events that were taken.
pub(super) fn count(events: usize) {
    metrics::counter!("tributary_events_accepted_total").increment(events as u64);
}

fn success() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], "{\"success\":true}").into_response()
}
