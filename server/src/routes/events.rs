//! `POST /api/events`: one event or an array of them, in Segment's message format or as Shopify's web pixels have them, with an answer that says of each whether
//! it was taken.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::value::RawValue;
use tributary_core::domain::{pixel, tracking};
use tributary_core::ports::queue::NewItem;
use tributary_core::priority::others_first;
use workers::traces;

use super::segment::{MAX_BATCH_EVENTS, Reception, count, json, key_in, of_whom, writer};
use crate::answers::{EventRejected, Events, EventsAccepted};
use crate::auth::{Peer, Sender};
use crate::body::{self, MAX_BATCH_BYTES};
use crate::bucket::cost;
use crate::codes::INGEST;
use crate::error::ApiError;
use crate::errors;
use crate::refusals;
use crate::state::AppState;

errors!(TakeErrors: INGEST, &["too_many_events"]);

/// Takes events: 202 `{"accepted", "rejected": [{"index", "code", "error"}]}`, also when all are rejected.
#[utoipa::path(post, path = "/api/events", tag = "Events", security(("write_key" = [])),
    request_body(content = Events, description = "A message in Segment's format, an event of Shopify's web pixels, or an array of them"),
    responses((status = 202, description = "What was accepted, and why the rest was not", body = EventsAccepted), TakeErrors))]
pub async fn take(
    State(state): State<AppState>,
    peer: Peer,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let bytes = body::read(&headers, body, MAX_BATCH_BYTES).await?;
    let whole: &RawValue = of_whom(&state, &headers, peer, json(&bytes)).await?;
    let sender = writer(&state, &headers, peer, || key_in(whole)).await?;
    let Sender { brand, source, .. } = sender;
    let events: Vec<&RawValue> =
        if whole.get().starts_with('[') { json(whole.get().as_bytes())? } else { vec![whole] };
    if events.len() > MAX_BATCH_EVENTS {
        let message = format!("{} events; at most {MAX_BATCH_EVENTS} are taken at once", events.len());
        return Err(ApiError::bad_request("too_many_events", message));
    }
    state.keys.charge(&sender, cost(events.len(), bytes.len()))?;
    let reception = Reception {
        world: &state.context.world,
        trace: traces::traceparent(),
        brand,
        source,
        received_ms: state.context.world.now_ms(),
        kind: None,
        sent_at: None,
        shared: None,
    };
    let mut items: Vec<NewItem> = Vec::with_capacity(events.len());
    let mut rejected = Vec::new();
    for (index, event) in events.iter().enumerate() {
        others_first(index).await;
        let pixels = pixel::translated(event);
        let event = pixels.as_deref().unwrap_or(event);
        match tracking::check(event, None, 0) {
            Ok(has_id) => items.push(reception.item(event, index, has_id)),
            Err(fault) => {
                metrics::counter!("tributary_events_faulty_total", "code" => fault.code).increment(1);
                refusals::message(fault.code);
                rejected.push(EventRejected { index, code: fault.code.to_owned(), error: fault.message });
            }
        }
    }
    let accepted = items.len();
    if accepted > 0 {
        state.ingest.enqueue(items).await?;
        count(accepted);
    }
    Ok((StatusCode::ACCEPTED, Json(EventsAccepted { accepted, rejected })).into_response())
}
