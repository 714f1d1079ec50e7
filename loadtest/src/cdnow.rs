//! Reading a CDNOW purchase history, in both shapes in which it is passed around.
//!
//! The 1/10 sample has five columns: customer in the full set, customer in the sample, date, number of CDs, dollars. The full
//! set has four, without the sample's number, and perhaps a heading. Columns are separated by blanks.

use std::path::Path;

use anyhow::{Context, bail};
use chrono::NaiveDate;
use rust_decimal::Decimal;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Purchase {
    /// The line of the file, from 1: what makes the purchase unique.
    pub(crate) line: usize,
    /// The customer: the sample's own number where there is one.
    pub(crate) customer: u64,
    pub(crate) date: String,
    pub(crate) cds: u32,
    pub(crate) dollars: Decimal,
}

/// Reads a file.
///
/// # Errors
/// Names the file, the line and what is wrong there.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Purchase>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = String::from_utf8(bytes).with_context(|| format!("{} is not a text file", path.display()))?;
    parse(&text).with_context(|| format!("in {}", path.display()))
}

fn parse(text: &str) -> anyhow::Result<Vec<Purchase>> {
    let mut purchases: Vec<Purchase> = Vec::new();
    let mut columns = None;
    for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line.trim())) {
        if line.is_empty() || (purchases.is_empty() && is_heading(line)) {
            continue;
        }
        let fields: Vec<&str> = line.split_whitespace().collect();
        let expected = *columns.get_or_insert(fields.len());
        if fields.len() != expected || !matches!(fields.len(), 4 | 5) {
            bail!(
                "line {number}: {} columns; there must be 4 (customer date cds dollars) or 5 (with the sample's customer second), the same on every line",
                fields.len()
            );
        }
        purchases.push(purchase(number, &fields).with_context(|| format!("line {number}: {line:?}"))?);
    }
    if purchases.is_empty() {
        bail!("there is no purchase in it");
    }
    Ok(purchases)
}

fn is_heading(line: &str) -> bool {
    line.to_lowercase().starts_with("customer")
}

fn purchase(line: usize, fields: &[&str]) -> anyhow::Result<Purchase> {
    let [date, cds, dollars] = fields[fields.len() - 3..] else { bail!("too few columns") };
    let customer = fields[fields.len() - 4];
    let number = customer.parse().with_context(|| format!("the customer {customer:?} is not a number"))?;
    Ok(Purchase {
        line,
        customer: number,
        date: iso_date(date)?,
        cds: cds.parse().with_context(|| format!("the number of CDs {cds:?} is not a number"))?,
        dollars: amount(dollars)?,
    })
}

fn iso_date(date: &str) -> anyhow::Result<String> {
    let sound = date.len() == 8 && date.bytes().all(|b| b.is_ascii_digit());
    match NaiveDate::parse_from_str(date, "%Y%m%d") {
        Ok(day) if sound => Ok(day.format("%Y-%m-%d").to_string()),
        _ => bail!("the date {date:?} is not a day written yyyymmdd"),
    }
}

fn amount(text: &str) -> anyhow::Result<Decimal> {
    let amount: Decimal =
        text.parse().with_context(|| format!("the amount {text:?} is not a decimal number"))?;
    if amount.is_sign_negative() && !amount.is_zero() {
        bail!("the amount {text:?} is negative");
    }
    Ok(amount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_are_read() {
        let sample = parse(" 00004 0001 19970101  2   29.33\r\n 00021 0002 19970118  1   0.00\r\n").unwrap();
        assert_eq!(sample.len(), 2);
        assert_eq!((sample[0].customer, sample[0].date.as_str(), sample[0].cds), (1, "1997-01-01", 2));
        assert_eq!(sample[1].dollars, Decimal::ZERO);
        let full = parse("customer_id date number_of_cds dollar_value\n00004 19970101 2 29.33\n").unwrap();
        assert_eq!((full[0].customer, full[0].line, full[0].dollars.to_string()), (4, 2, "29.33".to_owned()));
    }

    #[test]
    fn bad_lines_are_named_with_their_reason() {
        let good = "00004 0001 19970101 2 29.33\n";
        let cases = [
            ("", "no purchase"),
            ("00004 0001 19970101 2", "line 2: 4 columns"),
            ("x 0001 19970101 2 29.33 9", "line 2: 6 columns"),
            ("00004 abc 19970101 2 29.33", "is not a number"),
            ("00004 0001 19971301 2 29.33", "yyyymmdd"),
            ("00004 0001 1997011 2 29.33", "yyyymmdd"),
            ("00004 0001 19970229 2 29.33", "yyyymmdd"),
            ("00004 0001 19970101 two 29.33", "number of CDs"),
            ("00004 0001 19970101 2 29,33", "decimal"),
            ("00004 0001 19970101 2 -1.00", "negative"),
        ];
        for (line, reason) in cases {
            let text = if line.is_empty() { String::new() } else { format!("{good}{line}") };
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.contains(reason), "{line:?}: {error}");
            assert!(line.is_empty() || error.contains("line 2"), "{error}");
        }
    }
}
