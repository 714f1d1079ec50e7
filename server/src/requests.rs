//! What every request has: an id, which its answer, its log lines and its error body carry; a span, which traces are made of.

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::field::Empty;
use tracing::{Instrument, Span};
use tributary_core::domain::ids::BrandId;
use tributary_core::ports::world::World;
use workers::traces;

/// The header with a request's id, in and out.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A client's own id may be so long; a longer one is replaced.
pub const MAX_REQUEST_ID: usize = 128;

tokio::task_local! {
    static ID: String;
}

/// The id of the request that this task answers.
pub fn current_id() -> Option<String> {
    ID.try_with(Clone::clone).ok()
}

/// Says in the request's span whom it concerns.
pub fn concerns(brand: BrandId) {
    Span::current().record("brand", brand.0);
}

/// The layer around all routes.
pub async fn identified(State(world): State<World>, request: Request, next: Next) -> Response {
    let id = asked(request.headers()).unwrap_or_else(|| world.token().to_string());
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let span = tracing::info_span!(
        "request",
        request_id = id,
        method = request.method().as_str(),
        route,
        brand = Empty,
        status = Empty,
        otel.kind = "server",
    );
    if let Some(parent) = request.headers().get("traceparent").and_then(|value| value.to_str().ok()) {
        traces::follow(&span, parent);
    }
    let header = HeaderValue::from_str(&id);
    let answered = async {
        let mut answer = next.run(request).await;
        Span::current().record("status", answer.status().as_u16());
        if let Ok(id) = header {
            answer.headers_mut().insert(REQUEST_ID, id);
        }
        tracing::debug!("answered");
        answer
    };
    ID.scope(id, answered.instrument(span)).await
}

/// The client's own id, if it is short and of signs that a log can show.
fn asked(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(&REQUEST_ID)?.to_str().ok()?;
    let is_plain = id.bytes().all(|sign| sign.is_ascii_graphic());
    (is_plain && !id.is_empty() && id.len() <= MAX_REQUEST_ID).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_s_id_is_taken_if_a_log_can_show_it() {
        let long = "x".repeat(MAX_REQUEST_ID + 1);
        for (id, taken) in [("abc-1", true), ("", false), ("two words", false), (long.as_str(), false)] {
            let headers = HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_str(id).unwrap())]);
            assert_eq!(asked(&headers).is_some(), taken, "{id}");
        }
        assert_eq!(asked(&HeaderMap::new()), None);
    }
}
