//! The load test: `cargo run --release -p loadtest` brings a system up, replays a day of a shop in about a minute while
//! dashboard users read Customer360, and ends with a verdict on each KPI.
//!
//! `replay` sends real purchases through and compares every customer to the cent; `automations` checks that every action fires once
//! and on time; `hostile` lets one brand attack while another is watched; `speed` measures how much the system takes. It reaches the system over HTTP only, and trusts none of its counters where it can count itself.

mod automations;
mod cdnow;
mod day;
mod hostile;
mod html;
mod progress;
mod replay;
mod report;
mod speed;
mod target;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::target::TargetArgs;

/// Checks a Tributary: KPIs under load, real purchases to the cent, speed.
#[derive(Parser)]
#[command(name = "loadtest", version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    day: day::DayArgs,
    /// The folder for report.json and report.html
    #[arg(long, default_value = "target/loadtest", global = true)]
    out: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Send a CDNOW purchase history as signed Shopify orders, and compare every customer to the cent
    Replay(replay::ReplayArgs),
    /// Measure throughput and response times
    Speed(speed::SpeedArgs),
    /// Let one brand attack the system, and compare another brand's latency with that in quiet times
    Hostile(hostile::HostileArgs),
    /// Run a campaign of automations, and compare what was sent with a ledger
    Automations(automations::AutomationsArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    if let Some(played) = stack::roles::play().await {
        return ended(played.map(|()| true));
    }
    let cli = Cli::parse();
    ended(match cli.command {
        None => day::run(&cli.target, &cli.day, &cli.out).await,
        Some(Command::Replay(args)) => replay::run(&cli.target, &args).await,
        Some(Command::Speed(args)) => speed::run(&cli.target, &args, &cli.out).await,
        Some(Command::Hostile(args)) => hostile::run(&cli.target, &args).await,
        Some(Command::Automations(args)) => automations::run(&cli.target, &args).await,
    })
}

/// 0 when all is as it should be, 1 when not, 2 when it could not be found out.
fn ended(outcome: anyhow::Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
