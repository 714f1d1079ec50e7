//! Tributary's HTTP server: ingestion, Customer360, monitoring; and with `--embedded` the workers too, in one process.
//!
//! [`router`] is the table of all routes. [`main_from`] is the binary; [`serve`] is the seam for tests: bind a listener,
//! pass it in with a [`tributary_core::context::Context`], cancel the token.

// Time, ids and randomness are the World's (clippy.toml).
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod admin;
pub mod answers;
pub mod audit;
pub mod auth;
pub mod backup;
pub mod body;
pub mod bucket;
pub mod cli;
pub mod codes;
pub mod demo;
pub mod doctor;
pub mod error;
mod extract;
pub mod guards;
pub mod import;
pub mod inside;
pub mod measured;
pub mod openapi;
pub mod paging;
pub mod queues;
pub mod refusals;
pub mod requests;
pub mod router;
pub mod routes;
pub mod scopes;
pub mod state;
pub mod visitor;

use std::ffi::OsString;
use std::fs::File;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Parser;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tributary_core::adapters::folder::own_file;
use tributary_core::context::Context;
use tributary_core::failpoint;
use tributary_core::services::shops::warn_of_shared_secrets;
use workers::{automation, event, http, monitor, shutdown, telemetry};

use crate::cli::{Cli, Command, Import, ServeArgs};
use crate::state::AppState;

/// The file that one embedded server holds locked in its data folder.
const LOCK_FILE: &str = "server.lock";

/// How long requests under way may go on after the server was asked to stop.
pub const STOP_GRACE: Duration = Duration::from_secs(10);

/// The binary's main: reads `args` (the program's name first), and serves until SIGTERM or SIGINT, or runs a command.
///
/// # Errors
/// When the settings are wrong, a service cannot be reached, or the command fails.
pub async fn main_from(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<()> {
    let cli = Cli::parse_from(args);
    let _log = telemetry::log_to_stderr("tributary-server");
    failpoint::arm();
    match cli.command {
        Some(Command::Admin(command)) => admin::run(&cli.serve, command).await,
        Some(Command::Queues(command)) => queues::run(&cli.serve, command).await,
        Some(Command::Import(Import::ShopifyOrders { file, shop, restart })) => {
            import::shopify_orders(&cli.serve, &file, &shop, restart).await
        }
        Some(Command::Backup { folder }) => backup::run(&cli.serve, &folder).await,
        Some(Command::Doctor) => doctor::run(&cli.serve).await,
        Some(Command::Demo(asked)) => visitor::run(&cli.serve, &asked).await,
        None => run(&cli.serve).await,
    }
}

async fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let backend = args.backend()?;
    let metrics = telemetry::record_metrics()?;
    let context = Context::open(&backend, args.queue.settings()).await?;
    let _lock = if args.embedded { Some(lock(&args.data)?) } else { None };
    let listener = TcpListener::bind(args.bind)
        .await
        .with_context(|| format!("cannot listen on {} (--bind)", args.bind))?;
    if args.embedded {
        let show = args.demo || std::io::stdout().is_terminal();
        demo::seed_if_empty(&context, &format!("http://{}", listener.local_addr()?), show).await?;
    }
    warn_of_shared_secrets(&context).await?;
    // What is wrong with it is said before the server says that it listens.
    let outbound = if args.embedded { Some(args.outbound.outbound(&context.world)?) } else { None };
    let monitor = match args.monitor_bind {
        Some(bind) => {
            let what_failed = || format!("cannot listen on {bind} (--monitor-bind)");
            let listener = TcpListener::bind(bind).await.with_context(what_failed)?;
            telemetry::say(format_args!("monitor on http://{}", listener.local_addr()?));
            Some(listener)
        }
        None => None,
    };
    telemetry::say(format_args!("listening on http://{}", listener.local_addr()?));
    telemetry::say(format_args!(
        "{}; the API is described at http://{}/docs",
        args.place(),
        listener.local_addr()?
    ));
    let stop = shutdown::on_signals();
    let stop_workers = CancellationToken::new();
    let mut workers = Vec::new();
    if let Some(outbound) = outbound {
        let options = args.worker.options();
        let events = event::run(context.clone(), options, stop_workers.clone());
        let automations = automation::run(context.clone(), outbound, options, stop_workers.clone());
        workers.extend([tokio::spawn(events), tokio::spawn(automations)]);
    }
    let state = AppState::new(context.clone(), metrics, args.settings()?);
    // As long as anything is under way: who watches sees it end.
    let stop_monitor = CancellationToken::new();
    let monitor = monitor.map(|listener| {
        let routes = router::monitor(state.clone());
        tokio::spawn(http::serve(listener, routes, monitor::BOUNDS, stop_monitor.clone(), STOP_GRACE))
    });
    serve(listener, state, stop).await?;
    // Only now: what the last requests brought in is processed while there is time.
    stop_workers.cancel();
    for worker in workers {
        worker.await?;
    }
    stop_monitor.cancel();
    if let Some(monitor) = monitor {
        monitor.await??;
    }
    context.close().await;
    Ok(())
}

/// Serves until `stop`; requests under way are answered first, within [`STOP_GRACE`].
///
/// # Errors
/// When the socket fails.
pub async fn serve(listener: TcpListener, state: AppState, stop: CancellationToken) -> std::io::Result<()> {
    let (looks, context) = (state.looks.clone(), state.context.clone());
    let bounds = state.settings.connections;
    let ended = http::serve(listener, router::router(state), bounds, stop, STOP_GRACE).await;
    if let Err(error) = looks.tell(&context).await {
        tracing::error!(%error, "the last looks at customers could not be noted in the audit log");
    }
    ended
}

/// Two embedded servers on one folder would not see each other's cache: the second is refused.
fn lock(data: &Path) -> anyhow::Result<File> {
    let path = data.join(LOCK_FILE);
    let file = own_file(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(_) => bail!(
            "another server runs on the data folder {}: stop it, or give this one another folder with --data",
            data.display()
        ),
    }
}
