//! What is refused, told to whom it concerns: to the operator in the log, now and then, and to the brand whose key or shop it was by
//! `GET /api/refusals`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;
use tributary_core::domain::ids::BrandId;
use tributary_core::ports::brands::{BrandPorts, Refusal};
use tributary_core::ports::world::World;
use tributary_core::sampled::Sampled;

use crate::codes::CODES;
use crate::error::ErrorCode;
use crate::requests;

/// How often what was refused is written to the store.
pub const WRITTEN_EVERY: Duration = Duration::from_secs(5);
/// What senders use: whoever calls the API otherwise sees the answer.
const INGESTION: [&str; 3] = ["/v1/", "/api/events", "/api/webhooks/"];
/// Most rows that wait to be written; what is refused beyond is in the metrics alone.
const MAX_WAITING: usize = 10_000;
/// Refusals of those who are known.
static KNOWN: Sampled = Sampled::new();
/// Webhooks of shops that were not added.
static STRANGERS: Sampled = Sampled::new();

/// What was refused and is not written yet: how often, and when last.
#[derive(Default)]
pub struct Refusals(Mutex<HashMap<Kind, (u64, i64)>>);

/// Whose, who sent it, and the code.
type Kind = (BrandId, String, &'static str);

impl Refusals {
    fn add(&self, brand: BrandId, source: &str, code: &'static str, times: u64, now_ms: i64) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (brand, source.to_owned(), code);
        if waiting.len() >= MAX_WAITING && !waiting.contains_key(&key) {
            return;
        }
        let (count, last) = waiting.entry(key).or_default();
        *count += times;
        *last = now_ms;
    }

    /// Writes what waits; what cannot be written waits on.
    pub async fn write(&self, brand_ports: &BrandPorts) {
        let taken = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if taken.is_empty() {
            return;
        }
        let rows: Vec<Refusal> = taken
            .iter()
            .map(|((brand, source, code), (count, last_ms))| Refusal {
                brand: *brand,
                source: source.clone(),
                code: (*code).to_owned(),
                count: *count,
                last_ms: *last_ms,
            })
            .collect();
        if let Err(error) = brand_ports.refusals.add_refusals(&rows).await {
            tracing::debug!(%error, "what was refused is written later");
            for ((brand, source, code), (count, last_ms)) in taken {
                self.add(brand, &source, code, count, last_ms);
            }
        }
    }
}

/// Whose request it is, as soon as that is known, and what of it was refused besides.
#[derive(Default)]
struct Seen {
    whose: Option<(BrandId, String)>,
    messages: Vec<(&'static str, u64)>,
}

tokio::task_local! {
    static SEEN: RefCell<Seen>;
}

/// Notes whose request this is: from now on a refusal is told to that brand.
pub fn is_of(brand: BrandId, source: impl FnOnce() -> String) {
    requests::concerns(brand);
    let _ = SEEN.try_with(|seen| seen.borrow_mut().whose = Some((brand, source())));
}

/// Notes messages of a request that were refused, while the request was not.
pub fn message(code: &'static str) {
    let _ = SEEN.try_with(|seen| seen.borrow_mut().messages.push((code, 1)));
}

/// Says now and then that webhooks come of a shop that was never added: its owner sees failures, and nobody here would know.
pub fn stranger(domain: &str) {
    if let Some(times) = STRANGERS.happened(1) {
        let domain: String = domain.chars().take(100).collect();
        tracing::warn!(
            times,
            "webhooks come of shops that were not added, at last of {domain:?}: server admin shop add"
        );
    }
}

/// The layer around all routes.
pub async fn noted(
    State((refusals, world)): State<(Arc<Refusals>, World)>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    if !INGESTION.iter().any(|begin| path.starts_with(begin)) {
        return next.run(request).await;
    }
    let work = async {
        let answer = next.run(request).await;
        let Seen { whose, mut messages } = SEEN.with(|seen| std::mem::take(&mut *seen.borrow_mut()));
        let status = answer.status();
        // That there is no such customer is an answer; what this system fails at is its own.
        let refused = status.is_client_error() && status != StatusCode::NOT_FOUND;
        if let Some(ErrorCode(code)) = answer.extensions().get::<ErrorCode>().filter(|_| refused) {
            messages.push((*code, 1));
        }
        let Some((brand, source)) = whose.filter(|_| !messages.is_empty()) else { return answer };
        let now_ms = world.now_ms();
        for (code, times) in &messages {
            refusals.add(brand, &source, code, *times, now_ms);
        }
        if let Some(times) = KNOWN.happened(messages.len() as u64) {
            let code = messages.last().map_or("", |(code, _)| *code);
            let meaning = CODES.iter().find(|known| known.name == code).map_or("", |known| known.meaning);
            tracing::warn!(
                times,
                %brand,
                "what keys and shops send is refused, at last {code} ({meaning}) of {source}; GET /api/refusals lists a brand's"
            );
        }
        answer
    };
    SEEN.scope(RefCell::default(), work).await
}
