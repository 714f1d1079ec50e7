//! Rows of items, letters and claims.

use std::time::Duration;

use bytes::Bytes;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::domain::ids::BrandId;
use crate::ports::fault::Fault;
use crate::ports::queue::{Claim, DeadLetter, Failure, Finished, Item, Outcome, Priority, QueueError};

/// The columns of an item or a dead letter.
pub(super) const ITEM: &str =
    "id, enqueued_ms, attempt, suspect, losses, priority, brand, claims, history, body,
    (select payload from bodies where bodies.id = body) as payload";

pub(super) fn item(row: &SqliteRow) -> Result<Item, sqlx::Error> {
    let (claims, history): (String, String) = (row.try_get("claims")?, row.try_get("history")?);
    Ok(Item {
        id: row.try_get("id")?,
        enqueued_ms: row.try_get("enqueued_ms")?,
        attempt: row.try_get("attempt")?,
        suspect: row.try_get("suspect")?,
        losses: row.try_get("losses")?,
        priority: Priority::at(usize::try_from(row.try_get::<i64, _>("priority")?).unwrap_or(usize::MAX)),
        brand: row.try_get::<Option<i64>, _>("brand")?.map(BrandId),
        claims: claims.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        history: match history.as_str() {
            "[]" => Vec::new(),
            text => serde_json::from_str(text).map_err(|error| sqlx::Error::Decode(error.into()))?,
        },
        payload: Bytes::from(row.try_get::<Vec<u8>, _>("payload")?),
    })
}

pub(super) fn dead_letter(row: &SqliteRow) -> Result<DeadLetter, sqlx::Error> {
    Ok(DeadLetter { item: item(row)?, buried_ms: row.try_get("buried_ms")? })
}

pub(super) fn claim(row: &SqliteRow) -> Result<Claim, sqlx::Error> {
    let outcome: Option<String> = row.try_get("outcome")?;
    let finished = match outcome.as_deref().and_then(Outcome::parse) {
        Some(outcome) => {
            Some(Finished { at_ms: row.try_get("finished_ms")?, outcome, by: row.try_get("by")? })
        }
        None => None,
    };
    Ok(Claim {
        item: row.try_get("item")?,
        digest: row.try_get("digest")?,
        claimed_ms: row.try_get("claimed_ms")?,
        finished,
    })
}

pub(super) fn written(history: &[Failure]) -> String {
    // Numbers and texts: writing them to memory cannot fail.
    serde_json::to_string(history).expect("a history is always JSON")
}

pub(super) fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn failed(error: sqlx::Error) -> QueueError {
    match &error {
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
            QueueError::Unexpected(error.to_string())
        }
        _ => QueueError::Unavailable(Fault::of(error)),
    }
}

pub(super) fn positive(n: i64) -> u64 {
    u64::try_from(n).unwrap_or_default()
}

pub(super) fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(super) fn number(brand: Option<BrandId>) -> i64 {
    brand.map_or(0, |brand| brand.0)
}
