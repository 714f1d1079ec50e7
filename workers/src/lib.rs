//! The worker loops: [`event`] processes the events queue, [`automation`] the automations queue; both by the same [`lanes`]. The binary
//! `workers` runs one role a process; the server runs both in its own process when it is embedded.
//!
//! [`housekeeping`] runs beside every loop: what dead workers held, what waits in the outbox, what is astray, what is due.
//!
//! [`settings`], [`telemetry`] and [`monitor`] are what every process of Tributary has in common.

// Time, ids and randomness are the World's (clippy.toml).
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod automation;
pub mod event;
pub mod housekeeping;
pub mod http;
pub mod lanes;
pub mod monitor;
pub mod numbers;
pub mod settings;
pub mod shutdown;
pub mod telemetry;
pub mod traces;

use std::ffi::OsString;
use std::net::SocketAddr;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tokio::net::TcpListener;
use tributary_core::context::Context;
use tributary_core::failpoint;
use tributary_core::ports::world::World;

use crate::settings::{OutboundArgs, QueueArgs, ServicesArgs, WorkerArgs};

/// Tributary's workers: they process what the server accepted.
#[derive(Debug, Parser)]
#[command(name = "workers", version)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Process the events queue; run as many as needed.
    Event(RoleArgs),
    /// Process the automations queue: segments, runs and their messages; run as many as needed.
    Automation(AutomationArgs),
}

#[derive(Debug, clap::Args)]
struct AutomationArgs {
    #[command(flatten)]
    role: RoleArgs,
    #[command(flatten)]
    outbound: OutboundArgs,
}

#[derive(Debug, clap::Args)]
struct RoleArgs {
    #[command(flatten)]
    services: ServicesArgs,
    #[command(flatten)]
    queue: QueueArgs,
    #[command(flatten)]
    worker: WorkerArgs,
    /// Address of `/healthz`, `/readyz` and `/metrics`.
    #[arg(long, env = "TRIBUTARY_MONITOR_BIND", default_value = "127.0.0.1:3001")]
    monitor_bind: SocketAddr,
}

/// The binary's main: reads `args` (the program's name first), runs the role until SIGTERM or SIGINT.
///
/// # Errors
/// When the settings are wrong or a service cannot be reached.
pub async fn main_from(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<()> {
    let (args, outbound) = match Cli::parse_from(args).role {
        Role::Event(args) => (args, None),
        Role::Automation(AutomationArgs { role, outbound }) => {
            (role, Some(outbound.outbound(&World::real())?))
        }
    };
    let _log = telemetry::log_to_stderr("tributary-workers");
    failpoint::arm();
    let metrics = telemetry::record_metrics()?;
    let backend = args.services.backend()?;
    let context = Context::open(&backend, args.queue.settings()).await?;
    let listener = TcpListener::bind(args.monitor_bind)
        .await
        .with_context(|| format!("cannot listen on {} (--monitor-bind)", args.monitor_bind))?;
    telemetry::say(format_args!("monitor on http://{}", listener.local_addr()?));
    let stop = shutdown::on_signals();
    let state = monitor::State { context: context.clone(), metrics, alarms: args.queue.alarms() };
    let monitor = tokio::spawn(monitor::serve(listener, state, stop.clone()));
    match outbound {
        None => event::run(context.clone(), args.worker.options(), stop).await,
        Some(outbound) => automation::run(context.clone(), outbound, args.worker.options(), stop).await,
    }
    monitor.await??;
    context.close().await;
    Ok(())
}
