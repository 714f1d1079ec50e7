//! Stopping: the first SIGTERM or SIGINT asks, the second one ends the process at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a process answers that was told to end at once: 128 + SIGTERM.
const EXIT_AT_ONCE: i32 = 143;

/// A token that the first signal cancels.
pub fn on_signals() -> CancellationToken {
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        if next_signal().await.is_err() {
            return;
        }
        token.cancel();
        tracing::info!("stopping; a second signal exits at once");
        let _ = next_signal().await;
        tracing::warn!("exiting at once; items in progress are redelivered when their leases end");
        std::process::exit(EXIT_AT_ONCE);
    });
    stop
}

async fn next_signal() -> std::io::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
