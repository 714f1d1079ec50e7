//! The commands of `server queues`: looking after the queues from a terminal, for every brand.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tributary_core::context::Context;
use tributary_core::domain::time::from_ms;
use tributary_core::ports::queue::{Queue, Scope};
use tributary_core::ports::world::World;
use tributary_core::services::queues::{self, RateMeter, Which};

use crate::cli::{Chosen, DeadCommand, QueuesArgs, QueuesCommand, ServeArgs};

/// Over how long `stats` watches for its rates.
const WATCHED: Duration = Duration::from_secs(2);
/// Characters of an error in a list.
const ERROR_CHARS: usize = 70;

/// Runs a command. Results go to stdout, words to stderr.
///
/// # Errors
/// When there is no such queue or letter, or the queue fails.
pub async fn run(args: &ServeArgs, command: QueuesArgs) -> anyhow::Result<()> {
    args.refuse_missing_folder()?;
    let context = Context::open(&args.backend()?, args.queue.settings()).await?;
    let name = &command.name;
    let queue = &**context
        .queue_named(name)
        .with_context(|| format!("there is no queue {name:?}; there are events and automations"))?;
    let mut out = std::io::stdout().lock();
    match command.command {
        QueuesCommand::Stats => {
            stats(&context.world, &mut out, name, queue).await?;
            let outbox = context.outbox.stats().await?;
            writeln!(out, "\noutbox: {} waiting, {} refused", outbox.waiting, outbox.refused)?;
        }
        QueuesCommand::Dead(command) => dead(&mut out, queue, command).await?,
        QueuesCommand::Pause => {
            queue.set_paused(true).await?;
            eprintln!("paused: workers fetch nothing from {name} until: server queues resume --name {name}");
        }
        QueuesCommand::Resume => {
            queue.set_paused(false).await?;
            eprintln!("resumed");
        }
        QueuesCommand::Audit => {
            let found = queue.repair().await?;
            writeln!(out, "strays {}  repaired {}", found.strays, found.repaired)?;
        }
        QueuesCommand::Claim { key } => match queue.claim(&key).await? {
            Some(claim) => writeln!(out, "{}", serde_json::to_string_pretty(&claim)?)?,
            None => bail!("nothing is remembered of {key:?}"),
        },
    }
    Ok(())
}

async fn stats(world: &World, out: &mut impl Write, name: &str, queue: &dyn Queue) -> anyhow::Result<()> {
    let meter = RateMeter::new(world.clone());
    meter.sample(&queue.stats().await?);
    world.sleep(WATCHED).await;
    let stats = queue.stats().await?;
    let rates = meter.rates(&stats);
    let paused = if stats.paused { "  (paused)" } else { "" };
    writeln!(out, "{name}{paused}\n")?;
    writeln!(out, "  {:<12} {:>12}   oldest {} ms", "pending", stats.pending, stats.oldest_age_ms)?;
    writeln!(out, "  {:<12} {:>12}", "in flight", stats.in_flight)?;
    writeln!(out, "  {:<12} {:>12}", "delayed", stats.delayed)?;
    writeln!(out, "  {:<12} {:>12}", "bytes", stats.bytes)?;
    writeln!(out, "  {:<12} {:>12}", "dead", stats.dead)?;
    writeln!(out, "\n  {:<12} {:>12} {:>12}", "", "ever", "a second")?;
    let rows = [
        ("enqueued", stats.enqueued, Some(rates.enqueued_per_s)),
        ("done", stats.acked, Some(rates.acked_per_s)),
        ("retried", stats.retried, Some(rates.retried_per_s)),
        ("buried", stats.buried, Some(rates.buried_per_s)),
        ("duplicates", stats.duplicates, None),
        ("conflicts", stats.conflicts, None),
        ("reclaimed", stats.reclaimed, None),
        ("discarded", stats.discarded, None),
        ("dropped", stats.dropped, None),
        ("strays", stats.strays, None),
    ];
    for (what, ever, rate) in rows {
        let rate = rate.map(|rate| format!("{rate:.1}")).unwrap_or_default();
        writeln!(out, "  {what:<12} {ever:>12} {rate:>12}")?;
    }
    Ok(())
}

async fn dead(out: &mut impl Write, queue: &dyn Queue, command: DeadCommand) -> anyhow::Result<()> {
    match command {
        DeadCommand::List { after, limit } => {
            let page = queues::letters(queue, Scope::All, after, usize::from(limit)).await?;
            for letter in &page.letters {
                let buried = from_ms(letter.buried_ms).format("%Y-%m-%d %H:%M:%S");
                let error: String = letter.error.replace('\n', " ").chars().take(ERROR_CHARS).collect();
                writeln!(
                    out,
                    "{}  {buried}  tries {:>2}  losses {}  {error}",
                    letter.id, letter.attempts, letter.losses
                )?;
            }
            match page.next {
                Some(next) => eprintln!("there may be more: --after {next}"),
                None if page.letters.is_empty() => eprintln!("no dead letters"),
                None => {}
            }
        }
        DeadCommand::Show { id } => {
            let letter = queues::letter(queue, Scope::All, &id).await?;
            let letter = letter.with_context(|| format!("there is no dead letter {id:?}"))?;
            writeln!(out, "{}", serde_json::to_string_pretty(&letter)?)?;
        }
        DeadCommand::Retry(chosen) => {
            let back = queues::retry(queue, Scope::All, which(chosen)).await?;
            writeln!(out, "{back} put back")?;
        }
        DeadCommand::Discard(chosen) => {
            let gone = queues::discard(queue, Scope::All, which(chosen)).await?;
            writeln!(out, "{gone} discarded")?;
        }
    }
    Ok(())
}

fn which(chosen: Chosen) -> Which {
    if chosen.all { Which::All } else { Which::Ids(chosen.ids) }
}
