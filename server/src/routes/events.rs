//! `POST /api/events`: one event or an array of them, in Segment's message format, with an answer that says of each whether
//! it was taken.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use serde_json::value::RawValue;
use tributary_core::domain::segment;
use tributary_core::ports::queue::NewItem;
use tributary_core::ports::tenants::KeyKind;

use super::segment::{MAX_BATCH_EVENTS, Reception, count, json};
use crate::auth;
use crate::body::{self, MAX_BATCH_BYTES};
use crate::error::ApiError;
use crate::state::AppState;

/// Takes events: 202 `{"accepted", "rejected": [{"index", "code", "error"}]}`; 400 when none could be taken.
pub async fn take(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let bytes = body::read(&headers, body, MAX_BATCH_BYTES).await?;
    let brand = state.keys.brand(auth::from_headers(&headers).as_deref(), KeyKind::Write).await?;
    let whole: &RawValue = json(&bytes)?;
    let events: Vec<&RawValue> =
        if whole.get().starts_with('[') { json(whole.get().as_bytes())? } else { vec![whole] };
    if events.len() > MAX_BATCH_EVENTS {
        let message = format!("{} events; at most {MAX_BATCH_EVENTS} are taken at once", events.len());
        return Err(ApiError::bad_request("too_many_events", message));
    }
    let reception = Reception {
        brand,
        received_ms: state.context.clock.now_ms(),
        kind: None,
        sent_at: None,
        context: None,
    };
    let mut items: Vec<NewItem> = Vec::with_capacity(events.len());
    let mut rejected = Vec::new();
    for (index, event) in events.iter().enumerate() {
        match segment::check(event, None) {
            Ok(_) => items.push(reception.item(event)),
            Err(fault) => {
                metrics::counter!("tributary_events_faulty_total", "code" => fault.code).increment(1);
                rejected.push(json!({"index": index, "code": fault.code, "error": fault.message}));
            }
        }
    }
    let accepted = items.len();
    if accepted > 0 {
        state.ingest.enqueue(items).await?;
        count(accepted);
    }
    let mut answer = json!({"accepted": accepted, "rejected": rejected});
    let status =
        if accepted > 0 || rejected_none(&answer) { StatusCode::ACCEPTED } else { StatusCode::BAD_REQUEST };
    if status == StatusCode::BAD_REQUEST {
        answer["code"] = answer["rejected"][0]["code"].clone();
        answer["message"] = answer["rejected"][0]["error"].clone();
    }
    Ok((status, Json(answer)).into_response())
}

fn rejected_none(answer: &serde_json::Value) -> bool {
    answer["rejected"].as_array().is_none_or(Vec::is_empty)
}
