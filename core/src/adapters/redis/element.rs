//! How an item is written in Redis: one line about it, one with its history, then its payload, untouched.
//!
//! `<id> <enqueued ms> <attempt> <suspect 0|1> <losses> <priority 0..2> <claims, or -> <brand, or 0>\n<history>\n<payload>`, where
//! claims are names with commas between (the brand is missing in elements from before there was one), and the history is JSON objects with commas between. The scripts read the first two lines
//! with a pattern and never parse a payload. A dead letter is written alike; the last of its history says why it died.

use bytes::Bytes;

use crate::domain::ids::BrandId;
use crate::ports::queue::{Failure, Item, MAX_HISTORY, Priority};

const NONE: &str = "-";

pub fn write(item: &Item) -> Vec<u8> {
    let Item { id, enqueued_ms, attempt, suspect, losses, priority, .. } = item;
    let (suspect, priority) = (u8::from(*suspect), priority.index());
    let claims = claims(&item.claims);
    let brand = brand(item.brand);
    let history = history(&item.history);
    let mut bytes = Vec::with_capacity(item.payload.len() + history.len() + claims.len() + 80);
    bytes.extend_from_slice(
        format!("{id} {enqueued_ms} {attempt} {suspect} {losses} {priority} {claims} {brand}\n{history}\n")
            .as_bytes(),
    );
    bytes.extend_from_slice(&item.payload);
    bytes
}

/// A brand as the scripts take it.
pub fn brand(of: Option<BrandId>) -> i64 {
    of.map_or(0, |brand| brand.0)
}

/// Claims as the scripts take them.
pub fn claims(names: &[String]) -> String {
    if names.is_empty() { NONE.into() } else { names.join(",") }
}

fn history(failures: &[Failure]) -> String {
    if failures.is_empty() {
        return String::new();
    }
    // Writing to memory cannot fail, and neither can a number and a text.
    let json = serde_json::to_string(failures).expect("a history is always JSON");
    json[1..json.len() - 1].to_owned()
}

/// Reads an item; `None` when it is none of ours.
pub fn read(element: &Bytes) -> Option<Item> {
    let head = element.iter().position(|b| *b == b'\n')?;
    let body = head + 1 + element[head + 1..].iter().position(|b| *b == b'\n')? + 1;
    let mut fields = std::str::from_utf8(&element[..head]).ok()?.split(' ');
    let item = Item {
        id: fields.next()?.to_owned(),
        enqueued_ms: fields.next()?.parse().ok()?,
        attempt: fields.next()?.parse().ok()?,
        suspect: fields.next()? == "1",
        losses: fields.next()?.parse().ok()?,
        priority: Priority::at(fields.next()?.parse().ok()?),
        claims: match fields.next()? {
            NONE => Vec::new(),
            names => names.split(',').map(str::to_owned).collect(),
        },
        brand: match fields.next() {
            None | Some("0") => None,
            Some(brand) => Some(BrandId(brand.parse().ok()?)),
        },
        history: read_history(&element[head + 1..body - 1])?,
        payload: element.slice(body..),
    };
    fields.next().is_none().then_some(item)
}

fn read_history(line: &[u8]) -> Option<Vec<Failure>> {
    if line.is_empty() {
        return Some(Vec::new());
    }
    let json = [b"[", line, b"]"].concat();
    let mut failures: Vec<Failure> = serde_json::from_slice(&json).ok()?;
    let over = failures.len().saturating_sub(MAX_HISTORY);
    Some(failures.split_off(over))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_reads_back_as_it_was_written_whatever_its_payload() {
        let mut item = Item {
            id: "a1".into(),
            enqueued_ms: 12,
            attempt: 3,
            suspect: true,
            losses: 1,
            priority: Priority::Low,
            claims: vec!["c1".into(), "c2".into()],
            brand: Some(BrandId(7)),
            history: vec![
                Failure { at_ms: 1, error: "two\nlines, \"quoted\"".into() },
                Failure { at_ms: 2, error: String::new() },
            ],
            payload: Bytes::from_static(b"{\n\"a\": \"\xff\"}\n"),
        };
        assert_eq!(read(&write(&item).into()), Some(item.clone()));
        (item.claims, item.history, item.brand) = (Vec::new(), Vec::new(), None);
        assert_eq!(
            read(&Bytes::from_static(b"a 1 0 0 0 1 c\n\n{}")).unwrap().brand,
            None,
            "of an older version"
        );
        assert_eq!(read(&write(&item).into()), Some(item));
        for broken in [
            "",
            "x",
            "a 1 2 3\n\n",
            "a b c d e f g\n\npayload",
            "a 1 0 0 0 1 - b\n\n",
            "a 1 0 0 0 1 - 7 8\n\n",
            "a 1 0 0 0 1 -\nx\n",
            "a 1 0 0 0 1 -\n",
        ] {
            assert_eq!(read(&Bytes::from_static(broken.as_bytes())), None, "{broken:?}");
        }
    }
}
