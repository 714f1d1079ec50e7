//! Reading a request's body: whole, within a limit, unpacked where it is gzip. The content type is ignored, because browsers
//! send `text/plain` to spare themselves a preflight request.

use std::io::Read;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ApiError;

/// The largest body of an ingestion call, unpacked: RudderStack's limit for a batch. (Segment's is 500 KB, but its Node SDK does not keep
/// it.)
pub const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;
/// The largest body of any other call, unpacked.
pub const MAX_BODY_BYTES: usize = 500 * 1024;
pub const MAX_WEBHOOK_BYTES: usize = 5 * 1024 * 1024;
/// How long a client may take to send a body.
pub const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// The most bytes of bodies that a process holds at once, as they came.
pub const MAX_HELD_BYTES: usize = 256 * 1024 * 1024;
/// What the budget counts in.
const UNIT: usize = 1024;
/// What is left of [`MAX_HELD_BYTES`], in units.
static HELD: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(MAX_HELD_BYTES / UNIT)));

/// A body that was read. It counts against [`MAX_HELD_BYTES`] as long as it is there.
pub struct Whole {
    bytes: Bytes,
    _held: Option<OwnedSemaphorePermit>,
}

impl Deref for Whole {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads a body of at most `limit` bytes, also after unpacking.
///
/// # Errors
/// `payload_too_large`, `invalid_gzip` or `invalid_body`, all 400; `body_timeout`, 408; `overloaded`, 503.
pub async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Whole, ApiError> {
    let packed = read_raw(body, limit).await?;
    let gzip = headers
        .get(header::CONTENT_ENCODING)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"gzip"));
    if !gzip {
        return Ok(packed);
    }
    // As much as it may become: a few bytes may be many.
    let mut held = hold(limit)?;
    let bytes = unpack(&packed, limit)?;
    let kept = held.split(units(bytes.len()));
    Ok(Whole { bytes, _held: kept })
}

fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT)
}

/// A part of the budget.
fn hold(bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
    let wanted = u32::try_from(units(bytes)).unwrap_or(u32::MAX);
    HELD.clone().try_acquire_many_owned(wanted).map_err(|_| {
        metrics::counter!("tributary_bodies_refused_total").increment(1);
        ApiError::unavailable("overloaded", "the server handles too many requests; retry in a moment")
    })
}

/// Reads a body of at most `limit` bytes as it is: what a signature is over.
///
/// # Errors
/// `payload_too_large` or `invalid_body`, both 400; `body_timeout`, 408; `overloaded`, 503.
pub async fn read_raw(body: Body, limit: usize) -> Result<Whole, ApiError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the sender is another machine, which goes by its own time"
    )]
    let Ok(read) = tokio::time::timeout(READ_TIMEOUT, gathered(body, limit)).await else {
        let message = format!("the body did not arrive within {} s", READ_TIMEOUT.as_secs());
        return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message));
    };
    read
}

async fn gathered(mut body: Body, limit: usize) -> Result<Whole, ApiError> {
    let mut bytes = BytesMut::new();
    let mut held: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            ApiError::bad_request("invalid_body", format!("the body could not be read: {error}"))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(too_large(limit));
        }
        bytes.extend_from_slice(&data);
        let has = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let permit = hold(units(bytes.len()).saturating_sub(has) * UNIT)?;
        match &mut held {
            Some(held) => held.merge(permit),
            None => held = Some(permit),
        }
    }
    Ok(Whole { bytes: bytes.freeze(), _held: held })
}

/// Reads a body as JSON of that shape, for the routes of secret keys.
///
/// # Errors
/// `invalid_json`; `invalid_text` where a text or a name has U+0000 in it, which PostgreSQL cannot hold.
pub fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let read = serde_path_to_error::deserialize(&mut json).map_err(|error| misshapen(&error))?;
    json.end()
        .map_err(|error| ApiError::bad_request("invalid_json", format!("the body is not JSON: {error}")))?;
    match has_nul(bytes) {
        false => Ok(read),
        true => {
            Err(ApiError::bad_request("invalid_text", "the body contains U+0000, which cannot be stored"))
        }
    }
}

/// What is wrong, in which field.
fn misshapen(error: &serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let (path, inner) = (error.path().to_string(), error.inner());
    if !inner.is_data() {
        let what = if inner.is_eof() { "it is empty, or ends early".to_owned() } else { inner.to_string() };
        return ApiError::bad_request("invalid_json", format!("the body is not JSON: {what}"));
    }
    let whole = inner.to_string();
    let what = whole.rsplit_once(" at line ").map_or(&*whole, |(what, _)| what);
    let what = what.replace("a sequence", "a list").replace("type: sequence", "type: list");
    let what = what.replace("type: map", "type: object");
    // A step says itself where it is.
    let at = if path == "." || what.starts_with("step ") { String::new() } else { format!("{path}: ") };
    ApiError::bad_request("invalid_json", format!("the body is not of the right shape: {at}{what}"))
}

/// Whether sound JSON has U+0000 in a text: only written as an escape can it.
fn has_nul(json: &[u8]) -> bool {
    let mut at = 0;
    while let Some(escape) = json[at..].iter().position(|byte| *byte == b'\\').map(|found| at + found) {
        if json[escape + 1..].starts_with(b"u0000") {
            return true;
        }
        at = (escape + 2).min(json.len());
    }
    false
}

fn unpack(packed: &[u8], limit: usize) -> Result<Bytes, ApiError> {
    let mut unpacked = Vec::with_capacity((packed.len() * 4).min(limit));
    // One byte more than allowed shows that there is more, without unpacking a bomb.
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    MultiGzDecoder::new(packed)
        .take(most)
        .read_to_end(&mut unpacked)
        .map_err(|error| ApiError::bad_request("invalid_gzip", format!("the body is not gzip: {error}")))?;
    if unpacked.len() > limit { Err(too_large(limit)) } else { Ok(unpacked.into()) }
}

fn too_large(limit: usize) -> ApiError {
    ApiError::bad_request("payload_too_large", format!("the body has more than {limit} bytes"))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_nul_is_found_however_it_is_written_and_only_where_it_is_one() {
        for (text, refused) in [
            (r#"{"a":["x\u0000y"]}"#, true),
            (r#"{"\u0000":1}"#, true),
            (r#"{"a":"\\\u0000"}"#, true),
            (r#"{"a":"\\u0000"}"#, false),
            (r#"{"a":"\u00001"}"#, true),
            (r#"{"a":"\n\u0001"}"#, false),
        ] {
            assert_eq!(json::<Value>(text.as_bytes()).is_err(), refused, "{text}");
        }
    }
}
