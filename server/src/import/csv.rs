//! Shopify's order export.

use std::collections::VecDeque;
use std::io::{Read, Seek};

use anyhow::bail;
use serde_json::{Value, json};
use tributary_core::domain::order::SUM;
use tributary_core::domain::time;

use super::{Found, Progress};

/// Shopify's order export: a line an item; the first line of an order has all of it, further lines only an item.
pub(super) struct Csv<R> {
    rows: ::csv::Reader<R>,
    columns: Vec<String>,
    /// The first row of the next order.
    ahead: Option<::csv::StringRecord>,
    /// Rows that could not be read: their lines and why.
    broken: VecDeque<(u64, String)>,
}

/// The columns without which it is no order export.
const NEEDED: [&str; 5] = ["Name", "Id", "Total", "Currency", "Created at"];

impl<R: Read + Seek> Csv<R> {
    pub(super) fn open(file: R, progress: &Progress) -> anyhow::Result<Self> {
        let mut rows = ::csv::ReaderBuilder::new().flexible(true).from_reader(file);
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
            let mut place = ::csv::Position::new();
            place.set_byte(progress.bytes).set_line(progress.line);
            rows.seek(place)?;
        }
        let mut orders = Self { rows, columns, ahead: None, broken: VecDeque::new() };
        orders.ahead = orders.row()?;
        Ok(orders)
    }

    fn row(&mut self) -> anyhow::Result<Option<::csv::StringRecord>> {
        let mut row = ::csv::StringRecord::new();
        loop {
            let line = self.rows.position().line();
            match self.rows.read_record(&mut row) {
                Ok(true) => return Ok(Some(row)),
                Ok(false) => return Ok(None),
                Err(error) if matches!(error.kind(), ::csv::ErrorKind::Utf8 { .. }) => {
                    self.broken
                        .push_back((error.position().map_or(line, ::csv::Position::line), error.to_string()));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn field<'r>(&self, row: &'r ::csv::StringRecord, name: &str) -> Option<&'r str> {
        let at = self.columns.iter().position(|column| column == name)?;
        row.get(at).map(str::trim).filter(|text| !text.is_empty())
    }
}

impl<R: Read + Seek> Iterator for Csv<R> {
    type Item = anyhow::Result<Found>;

    fn next(&mut self) -> Option<Self::Item> {
        let first = self.ahead.take();
        let end = |position: Option<&::csv::Position>, rows: &::csv::Reader<R>| {
            position.map_or((rows.position().byte(), rows.position().line()), |p| (p.byte(), p.line()))
        };
        if let Some((line, why)) = self.broken.pop_front() {
            self.ahead = first;
            let (next_byte, next_line) = end(self.ahead.as_ref().and_then(|row| row.position()), &self.rows);
            return Some(Ok(Found { line, order: Err(why), next_byte, next_line }));
        }
        let first = first?;
        let line = first.position().map_or(0, ::csv::Position::line);
        let mut items = vec![first.clone()];
        loop {
            match self.row() {
                Ok(Some(row)) if self.belongs(&row, &first) => items.push(row),
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
    /// Whether a row is a further one of the order that begins with `first`: it leaves the order's fields empty, or repeats them, as
    /// spreadsheets do that fill cells down.
    fn belongs(&self, row: &::csv::StringRecord, first: &::csv::StringRecord) -> bool {
        let same = |name: &str| self.field(row, name).map(|value| self.field(first, name) == Some(value));
        match (same("Name"), same("Id")) {
            (Some(name), id) => name && id.unwrap_or(true),
            (None, id) => id.unwrap_or(false),
        }
    }

    /// The order as Shopify's API would give it.
    fn order(&self, row: &::csv::StringRecord, items: &[::csv::StringRecord]) -> Result<Value, String> {
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
            "customer": self.customer(row),
            "billing_address": self.address(row, "Billing"),
            "shipping_address": self.address(row, "Shipping"),
            "line_items": lines,
            "refunds": refunds,
        }))
    }

    /// The customer of an order; null where the row names none.
    fn customer(&self, row: &::csv::StringRecord) -> Value {
        let text = |name: &str| self.field(row, name).map(str::to_owned);
        let (first_name, last_name) = match text("Billing Name").or_else(|| text("Shipping Name")) {
            Some(name) => match name.split_once(' ') {
                Some((first, last)) => (Some(first.to_owned()), Some(last.to_owned())),
                None => (Some(name), None),
            },
            None => (None, None),
        };
        if text("Email").is_none() && first_name.is_none() {
            return Value::Null;
        }
        let accepts = text("Accepts Marketing").map(|said| said.eq_ignore_ascii_case("yes"));
        json!({"email": text("Email"), "first_name": first_name, "last_name": last_name,
               "accepts_marketing": accepts, "default_address": self.address(row, "Billing")})
    }

    fn address(&self, row: &::csv::StringRecord, kind: &str) -> Value {
        let text = |name: &str| self.field(row, &format!("{kind} {name}"));
        json!({"city": text("City"), "country_code": text("Country"), "zip": text("Zip"), "phone": text("Phone")})
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const HEAD: &str = "Name,Email,Financial Status,Paid at,Currency,Total,Created at,Lineitem quantity,Lineitem name,Lineitem price,Refunded Amount,Id,Billing Name,Accepts Marketing\n";

    fn read(text: &str) -> Vec<Found> {
        let orders = Csv::open(Cursor::new(text.to_owned()), &Progress::default()).unwrap();
        orders.collect::<anyhow::Result<_>>().unwrap()
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
    fn rows_that_repeat_the_orders_fields_are_its_rows() {
        let row = |name: &str, id: &str, item: &str| {
            format!(
                "{name},a@example.com,paid,,USD,30.00,2026-01-02 09:59:00 -0500,1,{item},10.00,,{id},,no\n"
            )
        };
        let text = [
            HEAD.to_owned(),
            row("#1", "11", "Mug"),
            row("#1", "11", "Pot"),
            row("", "11", "Pan"),
            row("#2", "12", "Pin"),
        ];
        let found = read(&text.concat());
        let counts: Vec<usize> = found
            .iter()
            .map(|found| found.order.as_ref().unwrap()["line_items"].as_array().unwrap().len())
            .collect();
        assert_eq!(counts, [3, 1]);
    }
}
