//! The table of all routes.

use std::time::Duration;

use axum::Router;
use axum::http::{Method, StatusCode};
use axum::routing::{get, post};
use tower_http::cors::{AllowHeaders, Any, CorsLayer};
use tributary_core::domain::event::EventKind;
use workers::monitor;

use crate::error::ApiError;
use crate::routes::{customers, events, monitoring, queues, segment, shopify};
use crate::state::AppState;

/// How long a browser may remember that it may post here.
const PREFLIGHT_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// All routes, on `state`.
pub fn router(state: AppState) -> Router {
    // The fallback comes before the layer, so that a browser's preflight request reaches the layer.
    let browser = segment_routes()
        .route("/api/events", post(events::take))
        .method_not_allowed_fallback(other_method)
        .layer(cors());
    Router::new()
        .merge(browser)
        .route("/api/webhooks/shopify", post(shopify::take))
        .route("/api/customers/{id}/360", get(customers::by_id))
        .route("/api/customers/by/{kind}/{value}/360", get(customers::by_identifier))
        .route("/api/monitoring/health", get(monitoring::health))
        .route("/api/monitoring/queues", get(monitoring::queues))
        .route("/api/monitoring/stats", get(monitoring::stats))
        .nest("/api/queues", queue_routes())
        .merge(monitor::routes())
        .fallback(async || ApiError::not_found("there is no such route; docs/API.md lists them"))
        .method_not_allowed_fallback(async || {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this route has another method",
            )
        })
        .with_state(state)
}

fn queue_routes() -> Router<AppState> {
    Router::new()
        .route("/", get(queues::all))
        .route("/{queue}", get(queues::one))
        .route("/{queue}/dead", get(queues::list).delete(queues::discard_all))
        .route("/{queue}/dead/retry", post(queues::retry_all))
        .route("/{queue}/dead/{id}", get(queues::show).delete(queues::discard_one))
        .route("/{queue}/dead/{id}/retry", post(queues::retry_one))
        .route("/{queue}/pause", post(queues::pause))
        .route("/{queue}/resume", post(queues::resume))
        .route("/{queue}/claims", get(queues::claim))
}

async fn other_method() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this route has another method")
}

/// Segment's routes, long and short, with and without a slash at the end: the SDKs use all of them.
fn segment_routes() -> Router<AppState> {
    let mut routes = Router::new();
    for kind in EventKind::SEGMENT {
        let long = kind.as_str();
        for name in [long, &long[..1]] {
            for path in [format!("/v1/{name}"), format!("/v1/{name}/")] {
                routes = routes
                    .route(&path, post(move |state, headers, body| segment::one(kind, state, headers, body)));
            }
        }
    }
    for path in ["/v1/batch", "/v1/batch/", "/v1/b", "/v1/b/", "/v1/import"] {
        routes = routes.route(path, post(segment::batch));
    }
    routes
}

/// Any site may send events with its write key, and read the answer; nothing else is open to browsers of other sites.
fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .max_age(PREFLIGHT_TTL)
}
