//! `server import shopify-orders`: orders from before, out of Shopify's own export (`csv`) or as its APIs give them (`lines`).
//!
//! Each order becomes the webhook that Shopify would have sent, under an id made of the shop, the order and its version, and goes
//! through the queue like any other. So an import can be repeated, and overlaps with webhooks do no harm: what is newer holds.
//! Where it stopped is noted in a file beside the import's, after what comes before is durable in the queue.

mod bulk;
mod csv;
mod lines;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use tributary_core::adapters::folder::draft;
use tributary_core::context::Context;
use tributary_core::domain::envelope::{Envelope, Origin};
use tributary_core::domain::gid;
use tributary_core::domain::identity::Rules;
use tributary_core::domain::ids::BrandId;
use tributary_core::domain::shopify::EXACT_FLOATS;
use tributary_core::ports::queue::{NewItem, QueueError, within_share};
use tributary_core::ports::world::World;

use crate::cli::ServeArgs;

/// Orders that are enqueued at once.
const BATCH: usize = 500;
/// How long to wait when the queue is full or unavailable, and how often.
const WAIT: Duration = Duration::from_secs(2);
/// See [`WAIT`]: ten minutes in all.
const WAITS: u32 = 300;
/// The most bad lines that are told one by one.
const MAX_TOLD: usize = 100;

/// Where an import stands: kept beside its file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Progress {
    /// The import's file had so many bytes: another file is another import.
    file_bytes: u64,
    shop: String,
    /// Everything before this byte is durable in the queue.
    bytes: u64,
    /// The number of the line that begins there, from 1.
    line: u64,
    /// Orders that were enqueued.
    orders: u64,
    /// Lines, or orders of a CSV, that were bad.
    bad: u64,
}

/// An order out of the file.
#[derive(Debug)]
struct Found {
    /// The number of its first line.
    line: u64,
    /// The order as Shopify's API would give it, or what is wrong.
    order: Result<Value, String>,
    /// Where the next begins.
    next_byte: u64,
    next_line: u64,
}

/// Imports `file` for `shop`.
///
/// # Errors
/// When the shop is unknown, the file cannot be read or is none of the two kinds, or the queue stays unavailable.
pub async fn shopify_orders(args: &ServeArgs, file: &Path, shop: &str, restart: bool) -> anyhow::Result<()> {
    args.refuse_missing_folder()?;
    let context = Context::open(&args.backend()?, args.queue.settings()).await?;
    let shop = shop.to_lowercase();
    let known = context.brand_ports.shops.shop(&shop).await?;
    if known.as_ref().is_some_and(|shop| shop.redacted_at.is_some()) {
        bail!("the customers of {shop} were erased at its owner's request; add the shop again to start over");
    }
    let brand = known
        .with_context(|| {
            format!("there is no shop {shop}; add it with: server admin shop add --domain {shop} …")
        })?
        .brand;
    let report = import(&context, brand, &shop, file, restart).await?;
    context.close().await;
    println!("{} orders imported, {} bad", report.orders, report.bad);
    if report.bad > 0 {
        bail!(
            "{} lines were left out; each is named above. Mend them and run again with --restart",
            report.bad
        );
    }
    Ok(())
}

async fn import(
    context: &Context,
    brand: BrandId,
    shop: &str,
    path: &Path,
    restart: bool,
) -> anyhow::Result<Progress> {
    let noted = progress_path(path);
    refuse_link(&noted)?;
    let file_bytes = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    let fresh = Progress { file_bytes, shop: shop.to_owned(), line: 1, ..Progress::default() };
    let before: Option<Progress> =
        fs::read(&noted).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let mut progress = before
        .filter(|before| !restart && before.file_bytes == file_bytes && before.shop == shop)
        .unwrap_or(fresh);
    if progress.bytes > 0 {
        eprintln!("continuing at line {}; --restart starts at line 1", progress.line);
    }
    let mut orders = open(path, &progress)?;
    let bar = ProgressBar::new(file_bytes).with_style(
        ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {msg} {eta}")
            .unwrap_or(ProgressStyle::default_bar()),
    );
    bar.set_position(progress.bytes);
    let mut what_failed = 0;
    let mut seen = Seen::default();
    loop {
        let page: Vec<Found> = orders.by_ref().take(BATCH).collect::<anyhow::Result<_>>()?;
        let Some(last) = page.last() else { break };
        let (next_byte, next_line) = (last.next_byte, last.next_line);
        let mut items = Vec::with_capacity(page.len());
        for found in page {
            match found.order.and_then(|order| item(context, brand, shop, order, found.line, &mut seen)) {
                Ok(item) => items.push(item),
                Err(why) => {
                    progress.bad += 1;
                    what_failed += 1;
                    if what_failed <= MAX_TOLD {
                        bar.suspend(|| eprintln!("line {}: {why}", found.line));
                    }
                }
            }
        }
        progress.orders += items.len() as u64;
        enqueue(context, &items).await?;
        progress.bytes = next_byte;
        progress.line = next_line;
        let text = serde_json::to_vec(&progress)?;
        write_progress(&context.world, &noted, &text)?;
        bar.set_position(progress.bytes);
        bar.set_message(format!("{} orders", progress.orders));
    }
    bar.finish_and_clear();
    // Done: the next run is another import.
    let _ = fs::remove_file(&noted);
    Ok(progress)
}

fn progress_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".progress");
    name.into()
}

/// A link in the place of the progress file was put there by somebody: whatever it leads to is not ours to write.
fn refuse_link(noted: &Path) -> anyhow::Result<()> {
    match fs::symlink_metadata(noted) {
        Ok(found) if !found.is_file() => bail!(
            "{} is not a plain file, and is where the progress of an import is kept: take it away, or copy the orders into a \
             folder that nobody else writes to",
            noted.display()
        ),
        _ => Ok(()),
    }
}

fn write_progress(world: &World, noted: &Path, text: &[u8]) -> anyhow::Result<()> {
    let what_failed = || format!("cannot write {}", noted.display());
    let (mut file, draft) = draft(noted, world).with_context(what_failed)?;
    let moved = file.write_all(text).and_then(|()| fs::rename(&draft, noted));
    if moved.is_err() {
        let _ = fs::remove_file(&draft);
    }
    moved.with_context(what_failed)
}

/// An order as the item that its webhook would have become.
fn item(
    context: &Context,
    brand: BrandId,
    shop: &str,
    mut order: Value,
    line: u64,
    seen: &mut Seen,
) -> Result<NewItem, String> {
    let id = order_id(&order["id"])?;
    order["id"] = id.as_str().into();
    complete(&order)?;
    let version = ["updated_at", "created_at"].into_iter().find_map(|field| order[field].as_str());
    let version = version.unwrap_or_default().to_owned();
    let body = RawValue::from_string(order.to_string()).map_err(|error| error.to_string())?;
    let digest = digest(body.get());
    seen.check(&id, &version, &digest, line)?;
    let envelope = Envelope {
        trace: None,
        brand,
        received_ms: context.world.now_ms(),
        origin: Origin::Shopify {
            shop: Cow::Borrowed(shop),
            // The order is placed when it was placed; what became of it is in its state.
            topic: Cow::Borrowed("orders/create"),
            message_id: format!("import:{shop}:{id}:{version}:{digest}").into(),
            triggered_at: None,
        },
        body: &body,
    };
    // Said now, with the line's number, rather than by a dead letter later.
    envelope.decode(&Rules::default()).map_err(|rejection| rejection.message)?;
    Ok(NewItem { payload: envelope.encode().into(), brand: Some(brand), ..NewItem::default() })
}

/// Shopify's number of an order, out of what a file says. A spreadsheet writes a long number with an exponent, and other tools as a
/// floating one: what was lost by that is not guessed, since two orders could become one.
fn order_id(what_failed: &Value) -> Result<String, String> {
    let written = match what_failed {
        Value::String(text) => text.trim().trim_start_matches('\'').to_owned(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    };
    let number = match gid::parts(&written) {
        Some(("Order", _)) => gid::id(&written).unwrap_or_default(),
        Some(_) => return Err(format!("{written:?} is no order")),
        None => &written,
    };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number(number) {
        return Ok(number.to_owned());
    }
    if number.is_empty() {
        return Err("the order has no id".to_owned());
    }
    let rewritten =
        "a spreadsheet or a tool has rewritten it, and what it was is lost; take the file as Shopify gave it";
    match number.split_once('.') {
        Some((whole, fraction)) if is_number(whole) && fraction.bytes().all(|byte| byte == b'0') => {
            match whole.parse::<u64>() {
                Ok(id) if id < EXACT_FLOATS => Ok(whole.to_owned()),
                _ => Err(format!("the id is {number:?}: {rewritten}")),
            }
        }
        _ if number.starts_with(|first: char| first.is_ascii_digit()) && number.contains(['e', 'E']) => {
            Err(format!("the id is {number:?}: {rewritten}"))
        }
        _ => Err(format!("the id is {number:?}; an order's id has digits only")),
    }
}

/// Whether an order says when it was placed, and what was sold: without them it would be one of nothing, placed now.
fn complete(order: &Value) -> Result<(), String> {
    let what_failed =
        |fields: &[&str]| fields.iter().any(|field| order[*field].is_string() || order[*field].is_number());
    let set = &order["total_price_set"]["shop_money"];
    if !what_failed(&["created_at", "processed_at"]) {
        return Err("the order has no created_at (of GraphQL: createdAt)".to_owned());
    }
    if !what_failed(&["total_price"]) && set["amount"].is_null() {
        let wanted =
            "the order has no total_price (of GraphQL: totalPriceSet { shopMoney { amount currencyCode } })";
        return Err(wanted.to_owned());
    }
    if !what_failed(&["currency"]) && set["currency_code"].is_null() {
        return Err("the order has no currency (of GraphQL: currencyCode)".to_owned());
    }
    Ok(())
}

/// The orders of a file so far: one that stands there twice, in one version and with different content, was torn apart.
#[derive(Default)]
struct Seen(HashMap<(String, String), (String, u64)>);

impl Seen {
    fn check(&mut self, id: &str, version: &str, digest: &str, line: u64) -> Result<(), String> {
        let before = self.0.entry((id.to_owned(), version.to_owned()));
        let (known, at) = before.or_insert_with(|| (digest.to_owned(), line));
        match known == digest {
            true => Ok(()),
            false => Err(format!(
                "the order {id} stands on line {at} already, with other content; its rows must follow each other"
            )),
        }
    }
}

/// Tells two exports of one order apart that were made at different times.
fn digest(body: &str) -> String {
    hex::encode(&Sha256::digest(body.as_bytes())[..6])
}

async fn enqueue(context: &Context, items: &[NewItem]) -> anyhow::Result<()> {
    if items.is_empty() {
        return Ok(());
    }
    for _ in 0..WAITS {
        match context.queue.enqueue(items).await.and_then(within_share) {
            Ok(_) => return Ok(()),
            // Full: workers are behind. Away: it may come back.
            Err(QueueError::Full { .. } | QueueError::OverShare | QueueError::Unavailable(_)) => {
                context.world.sleep(WAIT).await
            }
            Err(error) => return Err(error.into()),
        }
    }
    bail!(
        "the queue accepted nothing for {} minutes; run the import again to continue from here",
        WAIT.as_secs() * u64::from(WAITS) / 60
    )
}

type Orders = Box<dyn Iterator<Item = anyhow::Result<Found>> + Send>;

fn open(path: &Path, progress: &Progress) -> anyhow::Result<Orders> {
    let kind = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_lowercase();
    match kind.as_str() {
        "ndjson" | "jsonl" => Ok(Box::new(lines::Lines::open(path, progress)?)),
        "csv" => {
            let file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok(Box::new(csv::Csv::open(file, progress)?))
        }
        other => {
            bail!(
                "{} ends in {other:?}; it must be .csv (Shopify's order export), .ndjson or .jsonl",
                path.display()
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_id_is_what_shopify_gave_or_none() {
        let good = [
            (json!(7123), "7123"),
            (json!("7123"), "7123"),
            (json!(" '7123 "), "7123"),
            (json!("7123.0"), "7123"),
            (json!("gid://shopify/Order/7123"), "7123"),
            (json!(9_007_199_254_740_993_u64), "9007199254740993"),
        ];
        for (what_failed, id) in good {
            assert_eq!(order_id(&what_failed).as_deref(), Ok(id), "{what_failed}");
        }
        for bad in [
            json!("1.67185E+13"),
            json!("7e3"),
            json!("9007199254740993.0"),
            json!("7.5"),
            json!("#1001"),
            json!("7,123"),
            json!("gid://shopify/DraftOrder/7"),
            json!(""),
            json!(null),
            json!(-7),
        ] {
            assert!(order_id(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_order_of_nothing_is_named_and_so_is_one_that_was_torn_apart() {
        assert!(
            complete(&json!({"created_at": "2026-01-01", "total_price": "1.00", "currency": "EUR"})).is_ok()
        );
        for lacks in [
            json!({"total_price": "1.00", "currency": "EUR"}),
            json!({"created_at": "2026-01-01", "currency": "EUR"}),
            json!({"created_at": "2026-01-01", "total_price": "1.00"}),
        ] {
            assert!(complete(&lacks).is_err(), "{lacks}");
        }
        let mut seen = Seen::default();
        assert!(seen.check("1", "v1", "a", 2).is_ok() && seen.check("1", "v1", "a", 3).is_ok());
        assert!(seen.check("1", "v2", "b", 4).is_ok(), "a newer version is another state");
        assert!(seen.check("1", "v1", "b", 5).unwrap_err().contains("line 2"));
    }
}
