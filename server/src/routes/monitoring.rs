//! `/api/monitoring/{health,queues,stats}`: for people and alarms. They say nothing about customers; what `stats` says of a
//! brand needs its secret key.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tributary_core::services::health::{self, Health, Status};

use crate::auth::Secret;
use crate::error::ApiError;
use crate::errors;
use crate::state::AppState;

errors!(QueuesErrors: &["queue_unavailable"]);
errors!(StatsErrors: &["invalid_key", "wrong_key", "missing_scope", "rate_limited", "store_unavailable", "queue_unavailable"]);

/// 200 as long as the process answers.
#[utoipa::path(get, path = "/healthz", tag = "Monitoring", responses((status = 200, body = String)))]
#[expect(dead_code, reason = "it documents a route of workers::monitor")]
pub(crate) fn healthz() {}

/// 200 while events can be taken in, 503 while they cannot, with the report.
#[utoipa::path(get, path = "/readyz", tag = "Monitoring",
    responses((status = 200, body = Health), (status = 503, description = "Nothing can be taken in", body = Health)))]
#[expect(dead_code, reason = "it documents a route of workers::monitor")]
pub(crate) fn readyz() {}

/// Metrics for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "Monitoring", responses((status = 200, content_type = "text/plain", body = String)))]
#[expect(dead_code, reason = "it documents a route of workers::monitor")]
pub(crate) fn metrics() {}

/// The verdict on store, queue, cache and lag: 200, or 503 unless all is well.
#[utoipa::path(get, path = "/api/monitoring/health", tag = "Monitoring",
    responses((status = 200, description = "All is well", body = Health), (status = 503, description = "Something is not: the same report says what", body = Health)))]
pub async fn health(State(state): State<AppState>) -> Response {
    let health = health::check(&state.context, state.settings.alarms).await;
    let status = if health.status == Status::Ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health)).into_response()
}

/// Each queue in numbers, and the outbox: `null` while the store is away.
#[utoipa::path(get, path = "/api/monitoring/queues", tag = "Monitoring",
    responses((status = 200, body = Object), QueuesErrors))]
pub async fn queues(State(state): State<AppState>) -> Result<Json<Value>, ApiError> {
    // In this order: what leaves the outbox meanwhile is seen in its queue.
    let outbox = state.context.outbox.stats().await.ok();
    let mut answer = json!({"outbox": outbox});
    for (name, queue) in state.context.queues() {
        answer[name] = json!(queue.stats().await?);
    }
    Ok(Json(answer))
}

/// The server in numbers; with a secret key its brand, too.
#[utoipa::path(get, path = "/api/monitoring/stats", tag = "Monitoring", security((), ("secret_key" = [])),
    responses((status = 200, body = Object), StatsErrors))]
pub async fn stats(State(state): State<AppState>, secret: Option<Secret>) -> Result<Json<Value>, ApiError> {
    let queue = state.context.queue.stats().await?;
    let mut answer = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": state.started.elapsed().as_secs(),
        "events": {
            "enqueued": queue.enqueued,
            "duplicates": queue.duplicates,
            "done": queue.acked,
            "retried": queue.retried,
            "dead": queue.dead,
        },
    });
    if let Some(Secret { brand, .. }) = secret {
        answer["brand"] = json!(state.context.store.stats(brand).await?);
    }
    Ok(Json(answer))
}
