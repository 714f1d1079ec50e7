//! `loadtest replay --cdnow FILE`: real purchases go in as signed Shopify orders and come out of Customer360, to the cent.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use futures::{StreamExt, TryStreamExt, stream};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use stack::client::{Client, TRIES};

use crate::cdnow::{self, Purchase};
use crate::progress;
use crate::report::thousands;
use crate::target::{DRAIN_TIMEOUT, Target, TargetArgs};

/// Calls under way at once.
const AT_ONCE: usize = 16;
/// Differences that are printed; all are counted.
const SHOWN: usize = 20;
/// Customers in the table.
const BEST: usize = 5;

/// What to replay.
#[derive(Args, Debug)]
pub(crate) struct ReplayArgs {
    /// A CDNOW purchase history, sample or full set
    #[arg(long)]
    cdnow: PathBuf,
}

/// What a customer bought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bought {
    orders: u64,
    revenue: Decimal,
}

/// Replays a file; `true` when every customer came out as they went in.
pub(crate) async fn run(target: &TargetArgs, args: &ReplayArgs) -> anyhow::Result<bool> {
    let purchases = cdnow::read(&args.cdnow)?;
    let mut truth: BTreeMap<u64, Bought> = BTreeMap::new();
    for purchase in &purchases {
        let bought = truth.entry(purchase.customer).or_default();
        bought.orders += 1;
        bought.revenue += purchase.dollars;
    }
    let target = Target::open(target).await?;
    let client = Client::new(target.access.clone())?;
    send(&client, &purchases).await?;
    client.drain(DRAIN_TIMEOUT, |_| {}).await?;
    let found = read(&client, &truth).await?;
    let same = print(&target.name, &truth, &found);
    target.close()?;
    Ok(same)
}

async fn send(client: &Client, purchases: &[Purchase]) -> anyhow::Result<()> {
    let bar = progress::bar("sending orders", purchases.len());
    stream::iter(purchases)
        .map(Ok)
        .try_for_each_concurrent(AT_ONCE, |purchase| {
            let (client, bar) = (client.clone(), bar.clone());
            async move {
                deliver(&client, purchase).await?;
                bar.inc(1);
                anyhow::Ok(())
            }
        })
        .await?;
    bar.finish();
    Ok(())
}

async fn deliver(client: &Client, purchase: &Purchase) -> anyhow::Result<()> {
    let body = order(purchase).to_string();
    let webhook_id = format!("cdnow-{}", purchase.line);
    let request = || client.webhook(client.http(), "orders/create", &webhook_id, body.clone());
    if client.persist(request).await.with_context(|| format!("the order of line {}", purchase.line))? {
        return Ok(());
    }
    bail!("line {}: the order was not taken in {TRIES} tries", purchase.line)
}

fn order(purchase: &Purchase) -> Value {
    let at = format!("{}T12:00:00Z", purchase.date);
    let each = purchase.dollars / Decimal::from(purchase.cds.max(1));
    json!({
        "id": 1_000_000_000 + purchase.line,
        "name": format!("#{}", purchase.line),
        "created_at": at,
        "updated_at": at,
        "currency": "USD",
        "total_price": purchase.dollars.to_string(),
        "financial_status": "paid",
        "customer": {"id": purchase.customer},
        "line_items": [{"title": "CD", "quantity": purchase.cds, "price": each.round_dp(2).to_string()}],
    })
}

async fn read(client: &Client, truth: &BTreeMap<u64, Bought>) -> anyhow::Result<BTreeMap<u64, Bought>> {
    let bar = progress::bar("reading Customer360", truth.len());
    let found = stream::iter(truth.keys().copied())
        .map(|customer| {
            let (client, bar) = (client.clone(), bar.clone());
            async move {
                let answer = client.read_customer("shopify_customer_id", &customer.to_string()).await?;
                bar.inc(1);
                anyhow::Ok((customer, answer.map(|answer| bought(&answer)).transpose()?.unwrap_or_default()))
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    bar.finish();
    Ok(found)
}

fn bought(answer: &Value) -> anyhow::Result<Bought> {
    let revenue = answer["revenue"].as_object().context("an answer without revenue")?;
    if revenue.keys().any(|currency| currency != "USD") {
        bail!("revenue in another currency than was sent: {revenue:?}");
    }
    Ok(Bought {
        orders: answer["orders_count"].as_u64().context("an answer without orders_count")?,
        revenue: revenue.get("USD").and_then(Value::as_str).unwrap_or("0").parse()?,
    })
}

fn print(target: &str, truth: &BTreeMap<u64, Bought>, found: &BTreeMap<u64, Bought>) -> bool {
    let sum = |of: &BTreeMap<u64, Bought>| {
        of.values().fold(Bought::default(), |sum, b| Bought {
            orders: sum.orders + b.orders,
            revenue: sum.revenue + b.revenue,
        })
    };
    let there = found.values().filter(|bought| bought.orders > 0).count();
    let (sent, out) = (sum(truth), sum(found));
    println!("\nReplay on {target}\n");
    println!("  {:<16} {:>14} {:>14}", "", "file", "Customer360");
    println!("  {:<16} {:>14} {:>14}", "customers", thousands(truth.len() as u64), thousands(there as u64));
    println!("  {:<16} {:>14} {:>14}", "orders", thousands(sent.orders), thousands(out.orders));
    println!("  {:<16} {:>14} {:>14}\n", "revenue, USD", money(sent.revenue), money(out.revenue));
    let mut best: Vec<_> = truth.keys().collect();
    best.sort_by_key(|customer| std::cmp::Reverse(found.get(customer).map(|b| b.revenue)));
    println!("  {:<16} {:>14} {:>14}", "best customers", "orders", "revenue, USD");
    for customer in best.into_iter().take(BEST) {
        let bought = found.get(customer).copied().unwrap_or_default();
        println!("  {customer:<16} {:>14} {:>14}", thousands(bought.orders), money(bought.revenue));
    }
    let different: Vec<_> =
        truth.iter().filter(|(customer, bought)| found.get(customer) != Some(bought)).collect();
    println!("\n  {} of {} customers differ", different.len(), thousands(truth.len() as u64));
    for (customer, should) in different.iter().take(SHOWN) {
        let is = found.get(customer).copied().unwrap_or_default();
        println!(
            "  - customer {customer}: {} orders, {} USD; should be {} orders, {} USD",
            is.orders,
            money(is.revenue),
            should.orders,
            money(should.revenue)
        );
    }
    different.is_empty()
}

/// `6552.7` as `6,552.70`.
fn money(amount: Decimal) -> String {
    let text = format!("{amount:.2}");
    let (whole, cents) = text.split_once('.').unwrap_or((&text, "00"));
    format!("{}.{cents}", whole.parse().map_or_else(|_| whole.to_owned(), thousands))
}
