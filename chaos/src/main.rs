//! `cargo run --release -p chaos -- --victim worker`: a drill, and its verdict.

use std::process::ExitCode;
use std::time::Duration;

use chaos::drill::{Drill, Outcome, Victim, run};
use clap::Parser;

/// Kills parts of a real system under load, and checks that nothing is lost or doubled.
#[derive(Parser)]
#[command(name = "chaos", version)]
struct Cli {
    /// Who is killed
    #[arg(long, value_enum, default_value_t = Victim::Worker)]
    victim: Victim,
    /// How often
    #[arg(long, default_value_t = 5)]
    kills: usize,
    /// How the queue lies in Redis: lists or streams
    #[arg(long, default_value = "lists", value_parser = ["lists", "streams"])]
    queue: String,
    /// Events of the simulated day
    #[arg(long, default_value_t = 20_000)]
    events: usize,
    /// Seconds over which the day is sent
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// The same seed, the same day and the same faults
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    if let Some(played) = stack::roles::play().await {
        return played.map(|()| ExitCode::SUCCESS);
    }
    let cli = Cli::parse();
    println!("victim {:?}, {} kills, {} events, seed {}", cli.victim, cli.kills, cli.events, cli.seed);
    let drill = Drill {
        binary: std::env::current_exe()?,
        victim: cli.victim,
        kills: cli.kills,
        failpoint: None,
        queue: cli.queue,
        events: cli.events,
        seed: cli.seed,
        over: Duration::from_secs(cli.seconds),
    };
    let outcome = run(&drill).await?;
    print(&outcome);
    Ok(if outcome.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(outcome: &Outcome) {
    let ledger = &outcome.verdict.ledger;
    println!(
        "kills {}, given up by senders {}, dead letters {}",
        outcome.kills, outcome.given_up, outcome.dead
    );
    println!("queue empty {:.1} s after the last fault", outcome.recovered_in.as_secs_f64());
    println!(
        "attempted {}  accepted {}  effective {}  lost {}  duplicated {}  unexpected {}",
        ledger.attempted,
        ledger.accepted,
        ledger.effective,
        ledger.lost,
        ledger.duplicated,
        ledger.unexpected
    );
    println!("customers {}, different {}", outcome.verdict.customers, outcome.verdict.customers_different);
    for difference in &outcome.verdict.differences {
        println!("- {difference}");
    }
    println!("{}", if outcome.is_clean() { "clean" } else { "NOT CLEAN" });
}
