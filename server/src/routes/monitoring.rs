//! `/healthz`, `/readyz`, `/metrics` and `/api/monitoring/{health,queues,stats}`: for people and alarms. They say nothing about
//! customers. What concerns all brands is for [`Inside`]; what `stats` says of a brand needs its secret key.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tributary_core::services::health::{self, Health, Status};
use workers::monitor;

use crate::answers::{EventCounts, QueuesMonitored, Statistics};
use crate::auth::Secret;
use crate::error::ApiError;
use crate::errors;
use crate::inside::Inside;
use crate::state::AppState;

errors!(InsideErrors: &["no_key"]);
errors!(QueuesErrors: &["no_key", "queue_unavailable"]);
errors!(StatsErrors: &["no_key", "invalid_key", "wrong_key", "missing_scope", "rate_limited", "store_unavailable", "queue_unavailable"]);

/// 200 as long as the process answers.
#[utoipa::path(get, path = "/healthz", tag = "Monitoring", responses((status = 200, body = String)))]
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// 200 while events can be accepted, 503 while they cannot. Anybody gets the verdict, at most a second old; the monitor gets the report.
#[utoipa::path(get, path = "/readyz", tag = "Monitoring",
    responses((status = 200, body = Health), (status = 503, description = "Events cannot be accepted", body = Health)))]
pub async fn readyz(State(state): State<AppState>, inside: Option<Inside>) -> Response {
    let of = |health: &Health| match health.status {
        Status::Down => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        Status::Ok | Status::Degraded => (StatusCode::OK, "ready\n"),
    };
    if inside.is_none() {
        return of(&*state.recent_health().await).into_response();
    }
    let health = health::check(&state.context, state.settings.alarms).await;
    (of(&health).0, Json(health)).into_response()
}

/// Metrics for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "Monitoring", security((), ("monitor_key" = [])),
    responses((status = 200, content_type = "text/plain", body = String), InsideErrors))]
pub async fn metrics(_: Inside, State(state): State<AppState>) -> String {
    monitor::render(&state.context, &state.metrics).await
}

/// The verdict on store, queue, cache and lag: 200, or 503 unless all is well.
#[utoipa::path(get, path = "/api/monitoring/health", tag = "Monitoring", security((), ("monitor_key" = [])),
    responses((status = 200, description = "All checks pass", body = Health), (status = 503, description = "A check fails; the report says which", body = Health), InsideErrors))]
pub async fn health(_: Inside, State(state): State<AppState>) -> Response {
    let health = health::check(&state.context, state.settings.alarms).await;
    let status = if health.status == Status::Ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health)).into_response()
}

/// Statistics of each queue, and of the outbox: `null` while the database is unavailable.
#[utoipa::path(get, path = "/api/monitoring/queues", tag = "Monitoring", security((), ("monitor_key" = [])),
    responses((status = 200, body = QueuesMonitored), QueuesErrors))]
pub async fn queues(_: Inside, State(state): State<AppState>) -> Result<Json<QueuesMonitored>, ApiError> {
    // In this order: what leaves the outbox meanwhile is seen in its queue.
    let outbox = state.context.outbox.stats().await.ok();
    let [events, automations] = [&state.context.queue, &state.context.automation_queue];
    Ok(Json(QueuesMonitored {
        outbox,
        events: events.stats().await?,
        automations: automations.stats().await?,
    }))
}

/// The server in numbers, for who looks after all brands; with a secret key its brand in numbers.
#[utoipa::path(get, path = "/api/monitoring/stats", tag = "Monitoring", security((), ("secret_key" = [])),
    responses((status = 200, body = Statistics), StatsErrors))]
pub async fn stats(
    State(state): State<AppState>,
    inside: Option<Inside>,
    secret: Option<Secret>,
) -> Result<Json<Statistics>, ApiError> {
    let mut answer =
        Statistics { version: env!("CARGO_PKG_VERSION"), uptime_s: None, events: None, brand: None };
    if inside.is_some() {
        let queue = state.context.queue.stats().await?;
        answer.uptime_s = Some(state.context.world.since(state.started).as_secs());
        answer.events = Some(EventCounts {
            enqueued: queue.enqueued,
            duplicates: queue.duplicates,
            done: queue.acked,
            retried: queue.retried,
            dead: queue.dead,
        });
    } else if secret.is_none() {
        return Err(ApiError::new(StatusCode::UNAUTHORIZED, "no_key", "send a secret key as a Bearer token"));
    }
    if let Some(Secret { brand, .. }) = secret {
        answer.brand = Some(state.context.store.stats(brand).await?);
    }
    Ok(Json(answer))
}
