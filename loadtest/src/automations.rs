//! A campaign with a ledger: carts that are left and bought, customers who stay away and come back. Every action that must fire
//! fires once, not before its time, and no other does.

use anyhow::bail;
use clap::Args;
use simulator::actions::campaign;
use stack::campaign;
use stack::client::Client;
use stack::receiver::Receiver;

use crate::report::thousands;
use crate::target::{Target, TargetArgs};

/// The campaign.
#[derive(Args, Debug)]
pub(crate) struct AutomationsArgs {
    /// Customers of the campaign
    #[arg(long, default_value_t = 1000)]
    customers: usize,
    /// Seconds that they act in
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// The campaign's seed: the same seed, the same customers
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs the campaign; `true` when the ledger agrees.
pub(crate) async fn run(args: &TargetArgs, own: &AutomationsArgs) -> anyhow::Result<bool> {
    if args.target.is_some() {
        bail!(
            "automations post to this program, on the loopback: it brings its own system up, so there is no --target"
        );
    }
    // Every third post is refused once: being tried again is part of the picture.
    let receiver = Receiver::start(true).await?;
    let target = Target::bring_up(args, |options| {
        options.outside_args =
            vec!["--allow-private-destinations".into(), "--destination-rate".into(), "1000".into()];
    })
    .await?;
    let client = Client::new(target.access.clone())?;
    eprintln!("setting the automations up");
    campaign::set_up(&client, &receiver).await?;
    let plan = campaign(own.seed, own.customers, i64::from(own.seconds) * 1000);
    eprintln!("sending {} deliveries", plan.acts.len());
    let began = campaign::act(&client, &plan).await?;
    eprintln!("waiting for the carts that were left");
    let verdict = campaign::verdict(&client, &plan, &receiver, began).await?;
    println!("\nAutomations on {}\n", target.name);
    for (what, count) in [
        ("actions due", verdict.due),
        ("missing", verdict.missing),
        ("doubled", verdict.doubled),
        ("too early", verdict.early),
        ("unexpected", verdict.unexpected),
        ("repeated under their key", verdict.repeated),
    ] {
        println!("  {what:<26}{:>10}", thousands(count as u64));
    }
    println!("\n  {}\n", if verdict.is_clean() { "the ledger agrees" } else { "THE LEDGER DOES NOT AGREE" });
    target.close()?;
    Ok(verdict.is_clean())
}
