//! Comparing the system with the ledger: every customer, every event, every cent.

use std::collections::{BTreeMap, HashSet};

use futures::{StreamExt, TryStreamExt, stream};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::Value;
use simulator::Day;
use simulator::ledger::Customer;

use crate::client::Client;

/// Customers read at once.
const AT_ONCE: usize = 8;
/// Events that Customer360 lists.
const LISTED: u64 = 20;
/// Differences that are kept for the report; all are counted.
const DIFFERENCES_KEPT: usize = 20;

/// The ledger's verdict, in events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Sent, repeated deliveries each time.
    pub attempted: u64,
    /// Answered 2xx, repeated deliveries each time.
    pub accepted: u64,
    /// Took effect on the customer they belong to.
    pub effective: u64,
    /// Accepted, and without effect.
    pub lost: u64,
    /// Took effect more than once.
    pub duplicated: u64,
    /// Had effect without having been sent.
    pub unexpected: u64,
}

/// What the comparison found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    pub ledger: Counts,
    /// Different events that were accepted.
    pub events: u64,
    pub customers: usize,
    /// Customers that are not exactly what the ledger says.
    pub customers_different: usize,
    /// The first differences, in words.
    pub differences: Vec<String>,
}

/// Compares the system with the day. `taken` says of each delivery whether it was accepted; `brand_events_before` is what
/// the brand had before, where nobody else sends to it. `compared` is called after each customer.
///
/// # Errors
/// When the system does not answer.
pub async fn verify(
    client: &Client,
    day: &Day,
    taken: &[bool],
    brand_events_before: Option<u64>,
    compared: impl Fn(),
) -> anyhow::Result<Verdict> {
    let mut verdict = Verdict::default();
    let mut accepted: HashSet<&str> = HashSet::new();
    for (delivery, taken) in day.deliveries.iter().zip(taken) {
        let events = delivery.facts.len() as u64;
        verdict.ledger.attempted += events;
        if *taken {
            verdict.ledger.accepted += events;
            accepted.extend(delivery.facts.iter().map(|fact| fact.event.as_str()));
        }
    }
    verdict.events = accepted.len() as u64;
    let comparisons: Vec<Comparison> = stream::iter(&day.ledger.customers)
        .map(|customer| {
            let (client, accepted, compared) = (client.clone(), &accepted, &compared);
            async move {
                let comparison = compare(&client, customer, accepted).await;
                compared();
                comparison
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    for comparison in comparisons {
        verdict.customers += 1;
        verdict.ledger.effective += comparison.effective;
        verdict.ledger.lost += comparison.lost;
        verdict.ledger.duplicated += comparison.duplicated;
        verdict.ledger.unexpected += comparison.unexpected;
        if !comparison.differences.is_empty() {
            verdict.customers_different += 1;
            let room = DIFFERENCES_KEPT.saturating_sub(verdict.differences.len());
            verdict.differences.extend(comparison.differences.into_iter().take(room));
        }
    }
    if let Some(before) = brand_events_before {
        let there = client.brand_events().await?.saturating_sub(before);
        let known = verdict.ledger.effective + verdict.ledger.duplicated;
        verdict.ledger.unexpected = verdict.ledger.unexpected.max(there.saturating_sub(known));
    }
    Ok(verdict)
}

/// Webhooks get another id at reception; the SDKs' events keep theirs.
fn is_sdk_event(event: &str) -> bool {
    event.starts_with("msg-")
}

#[derive(Default)]
struct Comparison {
    effective: u64,
    lost: u64,
    duplicated: u64,
    unexpected: u64,
    differences: Vec<String>,
}

async fn compare(client: &Client, truth: &Customer, accepted: &HashSet<&str>) -> anyhow::Result<Comparison> {
    let (kind, value) = truth.identifiers.first().map_or(("", ""), |(kind, value)| (*kind, value.as_str()));
    let sure = truth.events.iter().filter(|event| accepted.contains(event.as_str())).count() as u64;
    let possible = truth.events.len() as u64;
    let Some(found) = client.read_customer(kind, value).await? else {
        let differences =
            if sure > 0 { vec![format!("{kind} {value}: nobody, with {sure} events")] } else { vec![] };
        return Ok(Comparison { lost: sure, differences, ..Comparison::default() });
    };
    let there = found["events_count"].as_u64().unwrap_or_default();
    let mut seen: HashSet<&str> = HashSet::new();
    let mut comparison = Comparison {
        effective: there.min(possible),
        lost: sure.saturating_sub(there),
        duplicated: there.saturating_sub(possible),
        ..Comparison::default()
    };
    for event in found["recent_events"].as_array().into_iter().flatten() {
        let id = event["message_id"].as_str().unwrap_or_default();
        if event["type"] != "shopify" {
            comparison.unexpected += u64::from(!truth.events.contains(id));
            comparison.duplicated += u64::from(!seen.insert(id));
        }
    }
    // Where the answer lists all events, they are compared one by one: a lost and a doubled one do not cancel out.
    if possible <= LISTED {
        let missing = |event: &&String| {
            is_sdk_event(event) && accepted.contains(event.as_str()) && !seen.contains(event.as_str())
        };
        comparison.lost = comparison.lost.max(truth.events.iter().filter(missing).count() as u64);
    }
    // What was not surely accepted may be there or not: only a customer all of whose events were can be compared whole.
    if sure == possible {
        comparison.differences = differences(truth, &found, &format!("{kind} {value}"));
    }
    Ok(comparison)
}

fn differences(truth: &Customer, found: &Value, who: &str) -> Vec<String> {
    let mut found_differences = Vec::new();
    let mut expect = |what: &str, is: String, should: String| {
        if is != should {
            found_differences.push(format!("{who}: {what} is {is}, should be {should}"));
        }
    };
    expect("events_count", found["events_count"].to_string(), truth.events.len().to_string());
    expect("orders_count", found["orders_count"].to_string(), truth.orders_count().to_string());
    expect("revenue", amounts(&found["revenue"]), cents(&truth.revenue_cents()));
    expect("refunded", amounts(&found["refunded"]), cents(&truth.refunded_cents()));
    let mut identifiers: Vec<String> = found["identifiers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|i| {
            format!("{}={}", i["kind"].as_str().unwrap_or_default(), i["value"].as_str().unwrap_or_default())
        })
        .collect();
    identifiers.sort();
    let mut should: Vec<String> =
        truth.identifiers.iter().map(|(kind, value)| format!("{kind}={value}")).collect();
    should.sort();
    expect("identifiers", identifiers.join(" "), should.join(" "));
    found_differences
}

fn amounts(found: &Value) -> String {
    let amounts: BTreeMap<String, Decimal> = found
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(currency, amount)| Some((currency.clone(), amount.as_str()?.parse().ok()?)))
        .collect();
    written(amounts)
}

fn cents(sums: &BTreeMap<&'static str, i64>) -> String {
    written(sums.iter().map(|(currency, cents)| ((*currency).to_owned(), Decimal::new(*cents, 2))).collect())
}

fn written(amounts: BTreeMap<String, Decimal>) -> String {
    let parts: Vec<String> =
        amounts.into_iter().map(|(currency, amount)| format!("{:.2} {currency}", amount)).collect();
    if parts.is_empty() { "nothing".into() } else { parts.join(" + ") }
}
