//! Logs and metrics: set up once, in `main`.

use std::fmt::Display;
use std::io::Write;
use std::time::Duration;

pub use metrics_exporter_prometheus::PrometheusHandle;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};
use tributary_core::ports::clock::{Clock, SystemClock};

use crate::numbers;
use crate::traces::{self, Traces};

/// Where histograms of durations are cut, in seconds.
const SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
/// Where histograms of item counts are cut.
const ITEMS: [f64; 8] = [1.0, 5.0, 25.0, 100.0, 250.0, 500.0, 1000.0, 2000.0];
/// How often the recorder tidies up.
const UPKEEP: Duration = Duration::from_secs(5);

/// The lines that wait where whoever reads stderr is slow; further ones are dropped.
const LINES: usize = 10_000;

/// What is logged is written as long as this is there; its end waits a second for what is on its way.
#[must_use]
pub struct Log {
    // Traces are sent before the last lines are written: what fails is still logged.
    _traces: Option<Traces>,
    _lines: WorkerGuard,
}

/// Logs to stderr. `RUST_LOG` filters (default `info`); `TRIBUTARY_LOG=json` writes JSON lines. Sends traces where the environment names a
/// collector, as those of `service`.
///
/// Nobody waits for stderr, and nobody learns whether it takes the line: whoever reads it may be slow, or gone, and a process that cannot
/// log still serves, and still stops.
pub fn log_to_stderr(service: &'static str) -> Log {
    // PostgreSQL notes at each start that the table of migrations is there.
    let usual = "info,sqlx::postgres::notice=warn";
    let asked = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|asked| !asked.is_empty());
    let (filter, wrong) = match asked.as_deref().map(filter) {
        None => (EnvFilter::new(usual), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(wrong)) => (EnvFilter::new(usual), Some(wrong)),
    };
    let (writer, guard) =
        NonBlockingBuilder::default().buffered_lines_limit(LINES).lossy(true).finish(std::io::stderr());
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).log_internal_errors(false);
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = match std::env::var("TRIBUTARY_LOG").as_deref() {
        Ok("json") => lines.json().boxed(),
        _ => lines.with_ansi(is_terminal).boxed(),
    };
    let (layer, traces, no_traces) = match traces::layer(service) {
        Ok(Some((layer, traces))) => (Some(layer), Some(traces), None),
        Ok(None) => (None, None, None),
        Err(error) => (None, None, Some(error)),
    };
    // A second call, as in tests that run two programs in one process, keeps the first.
    let _ = tracing_subscriber::registry().with(filter).with(lines).with(layer).try_init();
    if let Some(error) = no_traces {
        tracing::warn!(error = format!("{error:#}"), "traces are not sent");
    }
    if let Some(wrong) = wrong {
        tracing::warn!("RUST_LOG is {:?}: {wrong}; the log is as usual (info)", asked.unwrap_or_default());
    }
    let format = std::env::var("TRIBUTARY_LOG").unwrap_or_default();
    if !["", "text", "json"].contains(&format.as_str()) {
        tracing::warn!("TRIBUTARY_LOG is {format:?}; it may be text or json");
    }
    Log { _traces: traces, _lines: guard }
}

/// A filter as it was asked for. A word that is no level would be read as a module of that name, whose lines alone are logged.
fn filter(asked: &str) -> Result<EnvFilter, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let alone =
        |word: &&str| word.chars().all(char::is_alphanumeric) && !word.chars().all(|c| c.is_ascii_digit());
    let word = asked
        .split(',')
        .map(str::trim)
        .filter(alone)
        .find(|word| !LEVELS.contains(&word.to_lowercase().as_str()));
    if let Some(word) = word.filter(|_| !asked.contains('=')) {
        return Err(format!("{word:?} is no level; there are {}", LEVELS.join(", ")));
    }
    EnvFilter::try_new(asked).map_err(|error| error.to_string())
}

/// Says something at the start, on stdout, to whoever still reads it.
pub fn say(text: impl Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
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
            SystemClock.sleep(UPKEEP).await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

/// Renders nothing: for a further server in a process whose metrics go to another handle.
pub fn no_metrics() -> PrometheusHandle {
    PrometheusBuilder::new().build_recorder().handle()
}
