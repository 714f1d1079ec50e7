//! What Redis answers, read.

use bytes::Bytes;
use redis::{ErrorKind, RedisError, Value};

use crate::ports::fault::Fault;
use crate::ports::queue::{Claim, Finished, MAX_DEAD_PAGE, Outcome, QueueError};
/// Reads `<digest> <item> <claimed ms> <until ms>`, and a second line `<ms> <outcome> <by>` once it is finished.
pub(super) fn read_claim(text: &str) -> Option<Claim> {
    let (first, second) = text.split_once('\n').map_or((text, None), |(first, rest)| (first, Some(rest)));
    let mut fields = first.split(' ');
    let (digest, item) = (fields.next()?.to_owned(), fields.next()?.to_owned());
    let claimed_ms = fields.next()?.parse().ok()?;
    let finished = match second {
        None => None,
        Some(line) => {
            let mut fields = line.splitn(3, ' ');
            Some(Finished {
                at_ms: fields.next()?.parse().ok()?,
                outcome: Outcome::parse(fields.next()?)?,
                by: fields.next()?.to_owned(),
            })
        }
    };
    Some(Claim { item, digest, claimed_ms, finished })
}

pub(super) fn page(ids: &[String]) -> &[String] {
    &ids[..ids.len().min(MAX_DEAD_PAGE)]
}

pub(super) fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

pub(super) fn byte_strings(answer: Value) -> Result<Vec<Bytes>, QueueError> {
    let Value::Array(values) = answer else { return Err(unexpected(format!("{answer:?}"))) };
    values
        .into_iter()
        .map(|value| match value {
            Value::BulkString(bytes) => Ok(Bytes::from(bytes)),
            other => Err(unexpected(format!("{other:?}"))),
        })
        .collect()
}

/// What goes wrong on the way to Redis is an outage, also an answer that was cut and cannot be parsed.
pub(super) fn failed(error: RedisError) -> QueueError {
    match error.kind() {
        ErrorKind::UnexpectedReturnType => unexpected(error),
        _ => QueueError::Unavailable(Fault::of(error)),
    }
}

pub(super) fn unexpected(what: impl ToString) -> QueueError {
    QueueError::Unexpected(what.to_string())
}
