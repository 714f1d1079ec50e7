//! Logs and metrics: set up once, in `main`.

use std::time::Duration;

pub use metrics_exporter_prometheus::PrometheusHandle;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use tracing_subscriber::EnvFilter;

use crate::numbers;

/// Where histograms of durations are cut, in seconds.
const SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// Where histograms of item counts are cut.
const ITEMS: [f64; 8] = [1.0, 5.0, 25.0, 100.0, 250.0, 500.0, 1000.0, 2000.0];
/// How often the recorder tidies up.
const UPKEEP: Duration = Duration::from_secs(5);

/// Logs to stderr. `RUST_LOG` filters (default `info`); `TRIBUTARY_LOG=json` writes JSON lines.
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call, as in tests that run two programs in one process, keeps the first.
    let _ = match std::env::var("TRIBUTARY_LOG").as_deref() {
        Ok("json") => log.json().try_init(),
        _ => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
    };
}

/// Records metrics from now on; the handle renders them for Prometheus.
///
/// # Errors
/// When this process records metrics already.
pub fn record_metrics() -> anyhow::Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_items".into()), &ITEMS)?
        .install_recorder()?;
    numbers::begin();
    let upkeep = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

/// Renders nothing: for a further server in a process whose metrics go to another handle.
pub fn no_metrics() -> PrometheusHandle {
    PrometheusBuilder::new().build_recorder().handle()
}
