//! `server import shopify-orders`: orders from before, out of Shopify's own export (CSV) or as its API gives them (NDJSON).
//!
//! Each order becomes the webhook that Shopify would have sent, under an id made of the shop, the order and its version, and goes
//! through the queue like any other. So an import can be repeated, and overlaps with webhooks do no harm: what is newer holds.
//! Where it stopped is noted in a file beside the import's, after what comes before is durable in the queue.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tributary_core::adapters::folder::draft;
use tributary_core::context::Context;
use tributary_core::domain::envelope::{Envelope, Origin};
use tributary_core::domain::identity::Rules;
use tributary_core::domain::ids::BrandId;
use tributary_core::domain::order::SUM;
use tributary_core::domain::time;
use tributary_core::ports::queue::{NewItem, QueueError, within_share};

use crate::cli::ServeArgs;

/// Orders that are enqueued at once.
const BATCH: usize = 500;
/// How long to wait when the queue is full or away, and how often.
const WAIT: Duration = Duration::from_secs(2);
/// See [`WAIT`]: ten minutes in all.
const WAITS: u32 = 300;
/// The longest line of NDJSON, in bytes.
const MAX_LINE_BYTES: usize = 5 * 1024 * 1024;
/// The most bad lines that are told one by one.
const MAX_TOLD: usize = 100;

/// Where an import stands: kept beside its file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Progress {
    /// The import's file had so many bytes: another file is another import.
    file_bytes: u64,
    /// For which shop.
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
/// When the shop is unknown, the file cannot be read or is none of the two kinds, or the queue stays away.
pub async fn shopify_orders(args: &ServeArgs, file: &Path, shop: &str, restart: bool) -> anyhow::Result<()> {
    let context = Context::open(&args.backend()?, args.queue.settings()).await?;
    let shop = shop.to_lowercase();
    let known = context.tenants.shop(&shop).await?;
    if known.as_ref().is_some_and(|shop| shop.redacted_at.is_some()) {
        bail!("the customers of {shop} were erased at its owner's request; add the shop again to begin anew");
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
        eprintln!("going on at line {}; --restart begins at the beginning", progress.line);
    }
    let mut orders = open(path, &progress)?;
    let bar = ProgressBar::new(file_bytes).with_style(
        ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {msg} {eta}")
            .unwrap_or(ProgressStyle::default_bar()),
    );
    bar.set_position(progress.bytes);
    let mut told = 0;
    loop {
        let page: Vec<Found> = orders.by_ref().take(BATCH).collect::<anyhow::Result<_>>()?;
        let Some(last) = page.last() else { break };
        let (next_byte, next_line) = (last.next_byte, last.next_line);
        let mut items = Vec::with_capacity(page.len());
        for found in page {
            match found.order.and_then(|order| item(context, brand, shop, &order)) {
                Ok(item) => items.push(item),
                Err(why) => {
                    progress.bad += 1;
                    told += 1;
                    if told <= MAX_TOLD {
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
        write_progress(&noted, &text)?;
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

fn write_progress(noted: &Path, text: &[u8]) -> anyhow::Result<()> {
    let told = || format!("cannot write {}", noted.display());
    let (mut file, draft) = draft(noted).with_context(told)?;
    let moved = file.write_all(text).and_then(|()| fs::rename(&draft, noted));
    if moved.is_err() {
        let _ = fs::remove_file(&draft);
    }
    moved.with_context(told)
}

/// An order as the item that its webhook would have become.
fn item(context: &Context, brand: BrandId, shop: &str, order: &Value) -> Result<NewItem, String> {
    let id = match &order["id"] {
        Value::String(id) if !id.is_empty() => id.clone(),
        Value::Number(id) => id.to_string(),
        _ => return Err("the order has no id".to_owned()),
    };
    let version = ["updated_at", "created_at"].into_iter().find_map(|field| order[field].as_str());
    let body = RawValue::from_string(order.to_string()).map_err(|error| error.to_string())?;
    let envelope = Envelope {
        brand,
        received_ms: context.clock.now_ms(),
        origin: Origin::Shopify {
            shop: Cow::Borrowed(shop),
            // The order is placed when it was placed; what became of it is in its state.
            topic: Cow::Borrowed("orders/create"),
            message_id: format!("import:{shop}:{id}:{}:{}", version.unwrap_or_default(), digest(body.get()))
                .into(),
            triggered_at: None,
        },
        body: &body,
    };
    // Said now, with the line's number, rather than by a dead letter later.
    envelope.decode(&Rules::default()).map_err(|rejection| rejection.message)?;
    Ok(NewItem { payload: envelope.encode().into(), brand: Some(brand), ..NewItem::default() })
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
                tokio::time::sleep(WAIT).await
            }
            Err(error) => return Err(error.into()),
        }
    }
    bail!(
        "the queue took nothing for {} minutes; run the import again, and it goes on here",
        WAIT.as_secs() * u64::from(WAITS) / 60
    )
}

type Orders = Box<dyn Iterator<Item = anyhow::Result<Found>> + Send>;

fn open(path: &Path, progress: &Progress) -> anyhow::Result<Orders> {
    let kind = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_lowercase();
    let file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    match kind.as_str() {
        "ndjson" | "jsonl" => {
            let mut reader = BufReader::new(file);
            reader.seek(SeekFrom::Start(progress.bytes))?;
            Ok(Box::new(Lines { reader, byte: progress.bytes, line: progress.line }))
        }
        "csv" => Ok(Box::new(Csv::open(file, progress)?)),
        other => {
            bail!("{} ends in {other:?}; it must be .csv (Shopify's order export) or .ndjson", path.display())
        }
    }
}

/// Orders, one a line.
struct Lines<R> {
    reader: R,
    byte: u64,
    line: u64,
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = anyhow::Result<Found>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut text = Vec::new();
            let mut limited = (&mut self.reader).take(MAX_LINE_BYTES as u64 + 1);
            let mut read = match limited.read_until(b'\n', &mut text) {
                Ok(0) => return None,
                Ok(read) => read,
                Err(error) => return Some(Err(error.into())),
            };
            let too_long = text.len() > MAX_LINE_BYTES;
            if too_long && text.last() != Some(&b'\n') {
                match self.reader.skip_until(b'\n') {
                    Ok(rest) => read += rest,
                    Err(error) => return Some(Err(error.into())),
                }
            }
            let line = self.line;
            self.line += 1;
            self.byte += read as u64;
            if text.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let order = match too_long {
                true => Err(format!("longer than {MAX_LINE_BYTES} bytes")),
                false => serde_json::from_slice::<Value>(&text)
                    .map_err(|error| format!("not JSON: {error}"))
                    .and_then(|value| match value {
                        // As some tools write them.
                        Value::Object(mut fields) if fields.len() == 1 && fields.contains_key("order") => {
                            Ok(fields.remove("order").unwrap_or_default())
                        }
                        Value::Object(_) => Ok(value),
                        _ => Err("not a JSON object".to_owned()),
                    }),
            };
            return Some(Ok(Found { line, order, next_byte: self.byte, next_line: self.line }));
        }
    }
}

/// Shopify's order export: a line an item; the first line of an order has all of it, further lines only an item.
struct Csv<R> {
    rows: csv::Reader<R>,
    columns: Vec<String>,
    /// The first row of the next order.
    ahead: Option<csv::StringRecord>,
    /// Rows that could not be read: their lines and why.
    broken: VecDeque<(u64, String)>,
}

/// The columns without which it is no order export.
const NEEDED: [&str; 5] = ["Name", "Id", "Total", "Currency", "Created at"];

impl<R: Read + Seek> Csv<R> {
    fn open(file: R, progress: &Progress) -> anyhow::Result<Self> {
        let mut rows = csv::ReaderBuilder::new().flexible(true).from_reader(file);
        let columns: Vec<String> = rows
            .headers()?
            .iter()
            .map(|name| name.trim_start_matches('\u{feff}').trim().to_owned())
            .collect();
        for needed in NEEDED {
            if !columns.iter().any(|column| column == needed) {
                bail!("the file has no column {needed:?}: is it Shopify's order export?");
            }
        }
        if progress.bytes > 0 {
            let mut place = csv::Position::new();
            place.set_byte(progress.bytes).set_line(progress.line);
            rows.seek(place)?;
        }
        let mut csv = Self { rows, columns, ahead: None, broken: VecDeque::new() };
        csv.ahead = csv.row()?;
        Ok(csv)
    }

    fn row(&mut self) -> anyhow::Result<Option<csv::StringRecord>> {
        let mut row = csv::StringRecord::new();
        loop {
            let line = self.rows.position().line();
            match self.rows.read_record(&mut row) {
                Ok(true) => return Ok(Some(row)),
                Ok(false) => return Ok(None),
                Err(error) if matches!(error.kind(), csv::ErrorKind::Utf8 { .. }) => {
                    self.broken
                        .push_back((error.position().map_or(line, csv::Position::line), error.to_string()));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn field<'r>(&self, row: &'r csv::StringRecord, name: &str) -> Option<&'r str> {
        let at = self.columns.iter().position(|column| column == name)?;
        row.get(at).map(str::trim).filter(|text| !text.is_empty())
    }
}

impl<R: Read + Seek> Iterator for Csv<R> {
    type Item = anyhow::Result<Found>;

    fn next(&mut self) -> Option<Self::Item> {
        let first = self.ahead.take();
        let end = |position: Option<&csv::Position>, rows: &csv::Reader<R>| {
            position.map_or((rows.position().byte(), rows.position().line()), |p| (p.byte(), p.line()))
        };
        if let Some((line, why)) = self.broken.pop_front() {
            self.ahead = first;
            let (next_byte, next_line) = end(self.ahead.as_ref().and_then(|row| row.position()), &self.rows);
            return Some(Ok(Found { line, order: Err(why), next_byte, next_line }));
        }
        let first = first?;
        let line = first.position().map_or(0, csv::Position::line);
        let mut items = vec![first.clone()];
        loop {
            match self.row() {
                Ok(Some(row))
                    if self.field(&row, "Name") == self.field(&first, "Name")
                        && self.field(&row, "Id").is_none() =>
                {
                    items.push(row);
                }
                Ok(ahead) => {
                    self.ahead = ahead;
                    break;
                }
                Err(error) => return Some(Err(error)),
            }
            if !self.broken.is_empty() {
                break;
            }
        }
        let order = self.order(&first, &items);
        let (next_byte, next_line) = end(self.ahead.as_ref().and_then(|row| row.position()), &self.rows);
        Some(Ok(Found { line, order, next_byte, next_line }))
    }
}

impl<R: Read + Seek> Csv<R> {
    /// The order as Shopify's API would give it.
    fn order(&self, row: &csv::StringRecord, items: &[csv::StringRecord]) -> Result<Value, String> {
        let text = |name: &str| self.field(row, name).map(str::to_owned);
        let instant = |name: &str| -> Result<Option<String>, String> {
            text(name)
                .map(|written| {
                    let at =
                        time::parse(&written).ok_or(format!("{name} is {written:?}, which is no time"))?;
                    Ok(time::format(at))
                })
                .transpose()
        };
        if row.len() < self.columns.len() {
            return Err(format!("{} columns; the file has {}", row.len(), self.columns.len()));
        }
        let id = text("Id").ok_or("the order has no Id")?;
        let created_at = instant("Created at")?.ok_or("the order has no Created at")?;
        let latest = [instant("Paid at")?, instant("Fulfilled at")?, instant("Cancelled at")?];
        let updated_at = latest.into_iter().flatten().chain([created_at.clone()]).max();
        let (first_name, last_name) = match text("Billing Name").or_else(|| text("Shipping Name")) {
            Some(name) => match name.split_once(' ') {
                Some((first, last)) => (Some(first.to_owned()), Some(last.to_owned())),
                None => (Some(name), None),
            },
            None => (None, None),
        };
        let address = |kind: &str| {
            json!({"city": text(&format!("{kind} City")), "country_code": text(&format!("{kind} Country")),
                   "zip": text(&format!("{kind} Zip")), "phone": text(&format!("{kind} Phone"))})
        };
        let accepts = text("Accepts Marketing").map(|said| said.eq_ignore_ascii_case("yes"));
        let mut customer = Map::new();
        if text("Email").is_some() || first_name.is_some() {
            customer.insert("email".into(), json!(text("Email")));
            customer.insert("first_name".into(), json!(first_name));
            customer.insert("last_name".into(), json!(last_name));
            customer.insert("accepts_marketing".into(), json!(accepts));
            customer.insert("default_address".into(), address("Billing"));
        }
        let lines: Vec<Value> = items
            .iter()
            .filter(|row| self.field(row, "Lineitem name").is_some())
            .map(|row| {
                let quantity = self.field(row, "Lineitem quantity").and_then(|text| text.parse::<i64>().ok());
                json!({"title": self.field(row, "Lineitem name"), "quantity": quantity.unwrap_or(1),
                       "price": self.field(row, "Lineitem price"), "sku": self.field(row, "Lineitem sku")})
            })
            .collect();
        let refunded = text("Refunded Amount").filter(|amount| amount.parse::<f64>() != Ok(0.0));
        let refunds: Vec<Value> = refunded
            .into_iter()
            .map(|amount| {
                json!({"id": SUM, "created_at": updated_at,
                       "transactions": [{"kind": "refund", "status": "success", "amount": amount}]})
            })
            .collect();
        Ok(json!({
            "id": id,
            "name": text("Name"),
            "email": text("Email"),
            "phone": text("Phone"),
            "currency": text("Currency"),
            "total_price": text("Total"),
            "created_at": created_at,
            "updated_at": updated_at,
            "cancelled_at": instant("Cancelled at")?,
            "financial_status": text("Financial Status"),
            "fulfillment_status": text("Fulfillment Status"),
            "tags": text("Tags"),
            "note": text("Notes"),
            "customer": if customer.is_empty() { Value::Null } else { Value::Object(customer) },
            "billing_address": address("Billing"),
            "shipping_address": address("Shipping"),
            "line_items": lines,
            "refunds": refunds,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    const HEAD: &str = "Name,Email,Financial Status,Paid at,Currency,Total,Created at,Lineitem quantity,Lineitem name,Lineitem price,Refunded Amount,Id,Billing Name,Accepts Marketing\n";

    fn read(text: &str) -> Vec<Found> {
        let csv = Csv::open(Cursor::new(text.to_owned()), &Progress::default()).unwrap();
        csv.collect::<anyhow::Result<_>>().unwrap()
    }

    #[test]
    fn an_order_of_several_lines_is_one_and_a_bad_one_is_named_by_its_line() {
        let text = format!(
            "{HEAD}#1001,a@example.com,paid,2026-01-02 10:00:00 -0500,USD,30.00,2026-01-02 09:59:00 -0500,1,Mug,10.00,5.00,11,Ada Lovelace,yes\n\
             #1001,a@example.com,,,,,,2,\"Pot, large\",10.00,,,,\n\
             #1002,b@example.com,paid,,USD,7.00,yesterday,1,Mug,7.00,0.00,12,,no\n\
             #1003,,pending,,USD,7.00,2026-01-03 09:59:00 -0500,1,Mug,7.00,0.00,13,,no\n"
        );
        let found = read(&text);
        assert_eq!(found.iter().map(|f| f.line).collect::<Vec<_>>(), [2, 4, 5]);
        let first = found[0].order.as_ref().unwrap();
        assert_eq!(first["line_items"].as_array().unwrap().len(), 2);
        assert_eq!(first["updated_at"], "2026-01-02T15:00:00.000Z");
        assert_eq!(first["customer"]["last_name"], "Lovelace");
        assert_eq!(first["refunds"][0]["transactions"][0]["amount"], "5.00");
        assert!(found[1].order.as_ref().unwrap_err().contains("yesterday"));
        assert_eq!(found[2].order.as_ref().unwrap()["refunds"], json!([]));
        // From where the second began, the same rest.
        let place = Progress { bytes: found[0].next_byte, line: found[0].next_line, ..Progress::default() };
        let rest: Vec<Found> =
            Csv::open(Cursor::new(text), &place).unwrap().collect::<anyhow::Result<_>>().unwrap();
        assert_eq!(rest.iter().map(|f| f.line).collect::<Vec<_>>(), [4, 5]);
        assert!(Csv::open(Cursor::new("a,b\n1,2\n"), &Progress::default()).is_err());
    }

    #[test]
    fn lines_of_json_are_read_and_bad_ones_named() {
        let text = "{\"id\":1}\n\n{\"order\":{\"id\":2}}\nnot json\n[1]\n{\"id\":3}";
        let lines = Lines { reader: Cursor::new(text), byte: 0, line: 1 };
        let found: Vec<Found> = lines.collect::<anyhow::Result<_>>().unwrap();
        let told: Vec<(u64, bool)> = found.iter().map(|f| (f.line, f.order.is_ok())).collect();
        assert_eq!(told, [(1, true), (3, true), (4, false), (5, false), (6, true)]);
        assert_eq!(found[1].order.as_ref().unwrap()["id"], 2);
        assert_eq!(found[4].next_byte, text.len() as u64);
    }
}
