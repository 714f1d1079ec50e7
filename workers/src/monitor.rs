//! What every process answers about itself: `/healthz`, `/readyz`, `/metrics`.

use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::State as Extract;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tributary_core::context::Context;
use tributary_core::services::health::{self, Alarms, Status};

use crate::http::{self, Bounds};

/// Connections to a monitor's port: few ask.
pub const BOUNDS: Bounds = Bounds { connections: 64, by_address: 64 };
/// How long questions under way may go on after the process was asked to stop.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// What the answers are made from.
#[derive(Clone)]
pub struct State {
    pub context: Context,
    pub metrics: PrometheusHandle,
    pub alarms: Alarms,
}

fn routes() -> Router<State> {
    Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(render_metrics))
}

/// Serves the routes until `stop`.
///
/// # Errors
/// When the socket fails.
pub async fn serve(listener: TcpListener, state: State, stop: CancellationToken) -> std::io::Result<()> {
    http::serve(listener, routes().with_state(state), BOUNDS, stop, STOP_GRACE).await
}

/// 200 as long as the process answers: a reason not to restart it.
async fn alive() -> &'static str {
    "ok\n"
}

/// 200 when it takes events in, 503 when it cannot: the queue is unavailable, and so is the store in its stead.
async fn ready(Extract(state): Extract<State>) -> Response {
    let health = health::check(&state.context, state.alarms).await;
    let status = if health.status == Status::Down { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, Json(health)).into_response()
}

async fn render_metrics(Extract(state): Extract<State>) -> String {
    render(&state.context, &state.metrics).await
}

/// The metrics, with what store and queues say now.
pub async fn render(context: &Context, metrics: &PrometheusHandle) -> String {
    for (queue, stats) in context.queues() {
        let Ok(stats) = stats.stats().await else { continue };
        let gauges = [
            ("tributary_queue_pending", stats.pending),
            ("tributary_queue_in_flight", stats.in_flight),
            ("tributary_queue_delayed", stats.delayed),
            ("tributary_queue_bytes", stats.bytes),
            ("tributary_queue_dead", stats.dead),
        ];
        for (name, value) in gauges {
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
            metrics::gauge!(name, "queue" => queue).set(value as f64);
        }
        let age = std::time::Duration::from_millis(stats.oldest_age_ms);
        metrics::gauge!("tributary_queue_oldest_age_seconds", "queue" => queue).set(age.as_secs_f64());
        metrics::counter!("tributary_queue_dead_dropped_total", "queue" => queue).absolute(stats.dropped);
    }
    if let Ok(outbox) = context.outbox.stats().await {
        for (name, value) in
            [("tributary_outbox_waiting", outbox.waiting), ("tributary_outbox_refused", outbox.refused)]
        {
            #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
            metrics::gauge!(name).set(value as f64);
        }
    }
    metrics.render()
}
