//! How an item is written in a Redis list: one line about it, then its payload, untouched.
//!
//! `<id> <enqueued ms> <attempt> <suspect 0|1> <losses> <priority 0..2>\n<payload>`. The scripts read this line with a
//! pattern and never parse a payload. A dead letter has a line more: `<line>\n<error as a JSON string>\n<payload>`.

use bytes::Bytes;

use crate::ports::queue::{DeadLetter, Item, Priority};

/// Writes an item.
pub fn write(item: &Item) -> Vec<u8> {
    let mut bytes = head(item).into_bytes();
    bytes.extend_from_slice(&item.payload);
    bytes
}

/// Writes a dead letter.
pub fn write_dead(item: &Item, error: &str) -> Vec<u8> {
    let mut bytes = head(item).into_bytes();
    bytes.extend_from_slice(serde_json::Value::from(error).to_string().as_bytes());
    bytes.push(b'\n');
    bytes.extend_from_slice(&item.payload);
    bytes
}

fn head(item: &Item) -> String {
    let Item { id, enqueued_ms, attempt, suspect, losses, priority, .. } = item;
    format!("{id} {enqueued_ms} {attempt} {} {losses} {}\n", u8::from(*suspect), priority.index())
}

/// Reads an item; `None` when it is none of ours.
pub fn read(element: &Bytes) -> Option<Item> {
    let end = element.iter().position(|b| *b == b'\n')?;
    let mut fields = std::str::from_utf8(&element[..end]).ok()?.split(' ');
    let item = Item {
        id: fields.next()?.to_owned(),
        enqueued_ms: fields.next()?.parse().ok()?,
        attempt: fields.next()?.parse().ok()?,
        suspect: fields.next()? == "1",
        losses: fields.next()?.parse().ok()?,
        priority: Priority::at(fields.next()?.parse().ok()?),
        payload: element.slice(end + 1..),
    };
    fields.next().is_none().then_some(item)
}

/// Reads a dead letter.
pub fn read_dead(element: &Bytes, buried_ms: i64) -> Option<DeadLetter> {
    let mut item = read(element)?;
    let end = item.payload.iter().position(|b| *b == b'\n')?;
    let error = serde_json::from_slice(&item.payload[..end]).ok()?;
    item.payload = item.payload.slice(end + 1..);
    Some(DeadLetter { item, error, buried_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_reads_back_as_it_was_written_whatever_its_payload() {
        let item = Item {
            id: "a1".into(),
            enqueued_ms: 12,
            attempt: 3,
            suspect: true,
            losses: 1,
            priority: Priority::Low,
            payload: Bytes::from_static(b"{\n\"a\": \"\xff\"}\n"),
        };
        assert_eq!(read(&write(&item).into()), Some(item.clone()));
        let dead = read_dead(&write_dead(&item, "two\nlines").into(), 7).unwrap();
        assert_eq!((dead.item, dead.error.as_str(), dead.buried_ms), (item, "two\nlines", 7));
        for broken in ["", "x", "a 1 2 3\n", "a b c d e f\npayload", "a 1 0 0 0 1 9\n"] {
            assert_eq!(read(&Bytes::from_static(broken.as_bytes())), None, "{broken:?}");
        }
    }
}
