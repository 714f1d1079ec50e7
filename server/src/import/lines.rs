//! Orders as Shopify's APIs give them, one a line: of the REST API, or of a bulk operation of the GraphQL API.
//!
//! A bulk operation writes what is nested in an order as lines of their own, which name their parent by `__parentId` and may stand
//! anywhere behind it. So a file is read once to learn where the children of each parent stand, and again order by order.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Found, Progress, bulk};

/// The longest line, in bytes.
const MAX_LINE_BYTES: usize = 5 * 1024 * 1024;
/// How deep children may have children: an order, its refunds, their transactions.
const MAX_GENERATIONS: usize = 4;

/// The lines of a file, and where the next begins.
struct Reader<R> {
    reader: R,
    byte: u64,
    line: u64,
}

/// A line that was read.
struct Line {
    number: u64,
    byte: u64,
    /// What is too long is left out.
    text: Option<Vec<u8>>,
}

impl<R: BufRead> Reader<R> {
    /// The next line that says something.
    fn next(&mut self) -> std::io::Result<Option<Line>> {
        loop {
            let (byte, number) = (self.byte, self.line);
            let mut text = Vec::new();
            let mut read = (&mut self.reader).take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut text)?;
            if read == 0 {
                return Ok(None);
            }
            let too_long = text.len() > MAX_LINE_BYTES;
            if too_long && text.last() != Some(&b'\n') {
                read += self.reader.skip_until(b'\n')?;
            }
            self.line += 1;
            self.byte += read as u64;
            if !text.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(Line { number, byte, text: (!too_long).then_some(text) }));
            }
        }
    }
}

/// What says where a line of a bulk operation belongs.
#[derive(Deserialize)]
struct Place {
    #[serde(default)]
    id: Value,
    #[serde(rename = "__parentId")]
    parent: Option<String>,
}

/// Where the children of each parent stand: the lines' first bytes.
#[derive(Default)]
struct Children {
    of: HashMap<String, Vec<u64>>,
    orphans: HashSet<String>,
}

impl Children {
    /// Reads a whole file for them. About 100 bytes of memory a child.
    fn find(reader: impl BufRead) -> anyhow::Result<Self> {
        let mut lines = Reader { reader, byte: 0, line: 1 };
        let (mut of, mut ids) = (HashMap::<String, Vec<u64>>::new(), HashSet::new());
        while let Some(line) = lines.next()? {
            let Some(place) = line.text.and_then(|text| serde_json::from_slice::<Place>(&text).ok()) else {
                continue;
            };
            if let Some(parent) = place.parent {
                of.entry(parent).or_default().push(line.byte);
            }
            if let Value::String(id) = place.id {
                ids.insert(id);
            }
        }
        let orphans = of.keys().filter(|parent| !ids.contains(*parent)).cloned().collect();
        Ok(Self { of, orphans })
    }
}

/// Orders, one a line.
pub(super) struct Lines<R> {
    lines: Reader<R>,
    children: Children,
    /// The same file, to read children out of.
    beside: Option<R>,
}

impl Lines<BufReader<File>> {
    pub(super) fn open(path: &Path, progress: &Progress) -> anyhow::Result<Self> {
        let file = || {
            File::open(path).map(BufReader::new).with_context(|| format!("cannot read {}", path.display()))
        };
        let children = Children::find(file()?)?;
        let mut reader = file()?;
        reader.seek(SeekFrom::Start(progress.bytes))?;
        let lines = Reader { reader, byte: progress.bytes, line: progress.line };
        Ok(Self { lines, children, beside: Some(file()?) })
    }
}

impl<R: BufRead + Seek> Lines<R> {
    /// The order in a line; `None` for what is part of another.
    fn order(&mut self, text: &[u8]) -> Result<Option<Value>, String> {
        let mut order: Value = serde_json::from_slice(text).map_err(|error| format!("not JSON: {error}"))?;
        if !order.is_object() {
            return Err("not a JSON object".to_owned());
        }
        if let Some(parent) = order["__parentId"].as_str() {
            return match self.children.orphans.contains(parent) {
                true => Err(format!("its __parentId is {parent}, which this file does not have")),
                false => Ok(None),
            };
        }
        // As some tools write them.
        let is_wrapped =
            order.as_object().is_some_and(|fields| fields.len() == 1 && fields.contains_key("order"));
        if is_wrapped {
            order = order["order"].take();
        }
        if let Some(id) = number_as_written(text) {
            order["id"] = id.into();
        }
        if !bulk::is_graphql(&order) {
            return Ok(Some(order));
        }
        self.gather(&mut order, 0)?;
        bulk::order(order).map(Some)
    }

    /// Puts the children of a node into it.
    fn gather(&mut self, node: &mut Value, generation: usize) -> Result<(), String> {
        let Some(places) = node["id"].as_str().and_then(|id| self.children.of.get(id)).cloned() else {
            return Ok(());
        };
        for place in places {
            let mut child = self.read_at(place)?;
            if generation < MAX_GENERATIONS {
                self.gather(&mut child, generation + 1)?;
            }
            bulk::put(node, child);
        }
        Ok(())
    }

    fn read_at(&mut self, byte: u64) -> Result<Value, String> {
        let what_failed = |error: std::io::Error| format!("cannot read what belongs to it: {error}");
        let reader = self.beside.as_mut().ok_or("there is nothing to read what belongs to it from")?;
        // Children stand near each other: what is read already is kept.
        reader.seek(SeekFrom::Start(byte)).map_err(what_failed)?;
        let mut text = Vec::new();
        reader.take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut text).map_err(what_failed)?;
        serde_json::from_slice(&text).map_err(|error| format!("what belongs to it is not JSON: {error}"))
    }
}

/// The id of a line where that is a number, digit by digit: a floating one is not what it was.
fn number_as_written(text: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Id<'a> {
        #[serde(borrow)]
        id: Option<&'a RawValue>,
        #[serde(borrow)]
        order: Option<&'a RawValue>,
    }
    let found: Id<'_> = serde_json::from_slice(text).ok()?;
    let id = match (found.id, found.order) {
        (Some(id), _) => id,
        (None, inner) => serde_json::from_str::<Id<'_>>(inner?.get()).ok()?.id?,
    };
    Some(id.get().to_owned()).filter(|id| id.starts_with(|first: char| first.is_ascii_digit()))
}

impl<R: BufRead + Seek> Iterator for Lines<R> {
    type Item = anyhow::Result<Found>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = match self.lines.next() {
                Ok(line) => line?,
                Err(error) => return Some(Err(error.into())),
            };
            let order = match line.text {
                None => Err(format!("longer than {MAX_LINE_BYTES} bytes")),
                Some(text) => match self.order(&text) {
                    Ok(None) => continue,
                    Ok(Some(order)) => Ok(order),
                    Err(why) => Err(why),
                },
            };
            let (next_byte, next_line) = (self.lines.byte, self.lines.line);
            return Some(Ok(Found { line: line.number, order, next_byte, next_line }));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn read(text: &str) -> Vec<Found> {
        let lines = Lines {
            lines: Reader { reader: Cursor::new(text), byte: 0, line: 1 },
            children: Children::find(Cursor::new(text)).unwrap(),
            beside: Some(Cursor::new(text)),
        };
        lines.collect::<anyhow::Result<_>>().unwrap()
    }

    #[test]
    fn lines_of_json_are_read_and_bad_ones_named() {
        let text = "{\"id\":1}\n\n{\"order\":{\"id\":2}}\nnot json\n[1]\n{\"id\":3.0}\n{\"id\":1.6E+13}";
        let found = read(text);
        let what_failed: Vec<(u64, bool)> = found.iter().map(|f| (f.line, f.order.is_ok())).collect();
        assert_eq!(what_failed, [(1, true), (3, true), (4, false), (5, false), (6, true), (7, true)]);
        let id = |at: usize| found[at].order.as_ref().unwrap()["id"].clone();
        assert_eq!([id(1), id(4), id(5)], ["2", "3.0", "1.6E+13"].map(Value::from));
        assert_eq!(found[5].next_byte, text.len() as u64);
    }

    #[test]
    fn a_bulk_operations_lines_come_together_wherever_they_stand() {
        let lines = [
            r#"{"id":"gid://shopify/Order/1","createdAt":"2026-02-01T10:00:00Z","totalPriceSet":{"shopMoney":{"amount":"12.0","currencyCode":"EUR"}}}"#,
            r#"{"id":"gid://shopify/Order/2","createdAt":"2026-02-01T10:00:00Z","totalPriceSet":{"shopMoney":{"amount":"5.0","currencyCode":"EUR"}}}"#,
            r#"{"id":"gid://shopify/LineItem/11","title":"Mug","quantity":2,"__parentId":"gid://shopify/Order/1"}"#,
            r#"{"title":"Pot","quantity":1,"__parentId":"gid://shopify/Order/1"}"#,
            r#"{"id":"gid://shopify/LineItem/12","title":"Lost","quantity":1,"__parentId":"gid://shopify/Order/9"}"#,
            r#"{"id":"gid://shopify/Refund/5","createdAt":"2026-02-02T10:00:00Z","__parentId":"gid://shopify/Order/2"}"#,
            r#"{"id":"gid://shopify/OrderTransaction/6","kind":"REFUND","status":"SUCCESS","amountSet":{"shopMoney":{"amount":"5.0","currencyCode":"EUR"}},"__parentId":"gid://shopify/Refund/5"}"#,
            r#"{"id":"gid://shopify/Customer/3","email":"a@example.com"}"#,
        ];
        let found = read(&lines.join("\n"));
        let what_failed: Vec<(u64, bool)> = found.iter().map(|f| (f.line, f.order.is_ok())).collect();
        assert_eq!(what_failed, [(1, true), (2, true), (5, false), (8, false)]);
        let [first, second] = [0, 1].map(|at| found[at].order.as_ref().unwrap());
        assert_eq!(first["line_items"].as_array().unwrap().len(), 2);
        let paid = &second["refunds"][0]["transactions"][0];
        assert_eq!(
            (&paid["kind"], &paid["amount_set"]["shop_money"]["amount"]),
            (&"refund".into(), &"5.0".into())
        );
    }
}
