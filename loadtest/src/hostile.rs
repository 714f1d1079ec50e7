//! One brand does everything at once that could bring a system down; another must not feel it.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use stack::hostile::{WATCHED, drill};

use crate::report::thousands;
use crate::target::{Target, TargetArgs};

/// How many times its quiet 99th percentile the victim's may be.
const TIMES: f64 = 2.0;
/// Milliseconds within which it may be any number of times that: who waits so long in quiet waits for one flush of the disk, and in an
/// attack for the one before it, too. The bounds of the KPI day begin at 50 ms.
const UNNOTICED_MS: f64 = 20.0;

/// The drill.
#[derive(Args, Debug)]
pub(crate) struct HostileArgs {
    /// Seconds in quiet, to compare with
    #[arg(long, default_value_t = 30)]
    quiet: u64,
    /// Seconds of the attack
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Only these attacks, by their number: S3,S9
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

/// Runs the drill; `true` when the victim did not feel it.
pub(crate) async fn run(args: &TargetArgs, own: &HostileArgs) -> anyhow::Result<bool> {
    if args.target.is_some() {
        bail!("the drill attacks: it brings its own system up, so there is no --target");
    }
    let target = Target::bring_up(args, |options| {
        options.outside_args =
            ["--allow-private-destinations", "--allow-http-destinations", "--destination-rate", "1000"]
                .map(str::to_owned)
                .to_vec();
        options.server_args = vec!["--sender-limit".into(), SENDER_LIMIT.into()];
    })
    .await?;
    let system = target.system()?;
    eprintln!("{} s in quiet, then {} s of attacks", own.quiet, own.seconds);
    let (quiet, seconds) = (Duration::from_secs(own.quiet), Duration::from_secs(own.seconds));
    let outcome = drill(system, quiet, seconds, &own.only).await?;
    println!("\nOne hostile brand on {}\n", target.name);
    println!("  {:<46}{:>10}", "what it tried", "times");
    for (what, times) in &outcome.tried {
        println!("  {what:<46}{:>10}", thousands(*times));
    }
    let answers: Vec<String> =
        outcome.answered.iter().map(|(status, count)| format!("{status}: {}", thousands(*count))).collect();
    println!("\n  it was answered (0: not at all)  {}\n", answers.join("  "));
    println!("  {:<14}{:>18}{:>18}{:>8}", "the other", "quiet p50/p99 ms", "attacked p50/p99", "ratio");
    let mut good = outcome.failures.is_empty();
    for what in WATCHED {
        let ((_, q50, q99), (count, a50, a99)) = (outcome.quiet.of(what), outcome.attacked.of(what));
        let ratio = a99 / q99.max(0.001);
        let holds = count > 0 && (ratio <= TIMES || a99 <= UNNOTICED_MS);
        good &= holds;
        println!(
            "  {what:<14}{:>18}{:>18}{ratio:>8.2}{}",
            format!("{q50:.1} / {q99:.1}"),
            format!("{a50:.1} / {a99:.1}"),
            if holds { "" } else { "  FELT IT" }
        );
    }
    for failure in outcome.failures.iter().take(10) {
        println!("  FAILED: {failure}");
    }
    println!("\n  {}\n", if good { "nobody else felt it" } else { "SOMEBODY ELSE FELT IT" });
    target.close()?;
    Ok(good)
}

/// Events a second that the hostile brand's write key and shop may send: what a shop of its size would be given.
const SENDER_LIMIT: &str = "1000";
