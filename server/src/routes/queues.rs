//! `/api/queues/…`, with a secret key: a queue in numbers, its dead letters, pause, and what is remembered of a webhook.
//!
//! All brands share a queue: a key sees and touches its own brand's dead letters, and only where there is but one brand may
//! a key pause the queue. `server queues` is for who runs the system, and may do all of it.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tributary_core::context::{AUTOMATIONS_QUEUE, EVENTS_QUEUE};
use tributary_core::domain::ids::BrandId;
use tributary_core::domain::shopify::webhook_key;
use tributary_core::ports::queue::{Claim, DeadPlace, Queue, Scope};
use tributary_core::services::queues::{self, Letter, Page, Which};

use crate::answers::{Discarded, OwnPart, Paused, QueueReport, QueueReports, Retried, WholeQueue};
use crate::auth::Secret;
use crate::codes::SECRET;
use crate::error::ApiError;
use crate::errors;
use crate::extract::QueryOf;
use crate::paging::PageAsked;
use crate::state::AppState;

/// Which page of the dead letters is listed.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Paging {
    after: Option<String>,
    limit: Option<usize>,
}

/// Which delivery: the headers that Shopify sent.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeliveryIds {
    shop: String,
    webhook_id: String,
}

errors!(AllErrors: SECRET, &["queue_unavailable"]);
errors!(OneErrors: SECRET, &["not_found", "queue_unavailable"]);
errors!(ListErrors: SECRET, &["not_found", "invalid_query", "invalid_limit", "invalid_after", "queue_unavailable"]);
errors!(PauseErrors: SECRET, &["not_found", "shared_queue", "queue_unavailable"]);
errors!(ClaimErrors: SECRET, &["not_found", "invalid_query", "queue_unavailable"]);

type Answer<T> = Result<Json<T>, ApiError>;

/// Statistics and rates of every queue, and the outbox, where items wait for a queue that is unavailable. Where there are other brands,
/// of each queue what this one holds.
#[utoipa::path(get, path = "/api/queues", tag = "Queues", security(("secret_key" = [])),
    responses((status = 200, body = QueueReports), AllErrors))]
pub async fn all(State(state): State<AppState>, secret: Secret) -> Answer<QueueReports> {
    let alone = is_alone(&state, secret.brand).await;
    // The store may be unavailable; the queue's numbers are wanted then more than ever.
    let outbox = if alone { Some(state.context.outbox.stats().await.ok()) } else { None };
    let of = async |name| report(&state, name, secret.brand, alone).await;
    Ok(Json(QueueReports {
        outbox,
        events: of(EVENTS_QUEUE).await?,
        automations: of(AUTOMATIONS_QUEUE).await?,
    }))
}

/// One queue in numbers, with its rates; where there are other brands, what this one holds of it.
#[utoipa::path(get, path = "/api/queues/{queue}", tag = "Queues", security(("secret_key" = [])),
    params(("queue" = String, Path)), responses((status = 200, body = QueueReport), OneErrors))]
pub async fn one(
    State(state): State<AppState>,
    Path(name): Path<String>,
    secret: Secret,
) -> Answer<QueueReport> {
    let alone = is_alone(&state, secret.brand).await;
    Ok(Json(report(&state, &name, secret.brand, alone).await?))
}

/// The brand's dead letters, newest first.
#[utoipa::path(get, path = "/api/queues/{queue}/dead", tag = "Queues", security(("secret_key" = [])),
    params(("queue" = String, Path), Paging), responses((status = 200, body = Page), ListErrors))]
pub async fn list(
    State(state): State<AppState>,
    Path(name): Path<String>,
    secret: Secret,
    QueryOf(paging): QueryOf<Paging>,
) -> Answer<Page> {
    let brand = secret.brand;
    let asked = PageAsked::of("after", paging.after.as_deref(), paging.limit, DeadPlace::parse)?;
    let queue = queue(&state, &name)?;
    let page = queues::letters(&**queue, Scope::Brand(brand), asked.cursor, asked.limit).await?;
    state.looked(&secret, "dead_letters_read", None).await?;
    Ok(Json(page))
}

/// One dead letter, with its history and what was enqueued.
#[utoipa::path(get, path = "/api/queues/{queue}/dead/{id}", tag = "Queues", security(("secret_key" = [])),
    params(("queue" = String, Path), ("id" = String, Path)), responses((status = 200, body = Letter), OneErrors))]
pub async fn show(
    State(state): State<AppState>,
    Path((name, id)): Path<(String, String)>,
    secret: Secret,
) -> Answer<Letter> {
    let brand = secret.brand;
    let found = queues::letter(&**queue(&state, &name)?, Scope::Brand(brand), &id).await?;
    let letter = found.ok_or_else(|| no_letter(&id))?;
    state.looked(&secret, "dead_letters_read", None).await?;
    Ok(Json(letter))
}

/// Puts one dead letter back to pending.
#[utoipa::path(post, path = "/api/queues/{queue}/dead/{id}/retry", tag = "Queues", security(("secret_key" = [])),
    params(("queue" = String, Path), ("id" = String, Path)), responses((status = 200, body = Retried), OneErrors))]
pub async fn retry_one(
    State(state): State<AppState>,
    Path((name, id)): Path<(String, String)>,
    secret: Secret,
) -> Answer<Retried> {
    let retried = retried(&state, &secret, &name, Some(&id)).await?;
    if retried == 0 { Err(no_letter(&id)) } else { Ok(Json(Retried { retried })) }
}

/// Puts all the brand's dead letters back to pending.
#[utoipa::path(post, path = "/api/queues/{queue}/dead/retry", tag = "Queues", security(("secret_key" = [])),
    params(("queue" = String, Path)), responses((status = 200, body = Retried), OneErrors))]
pub async fn retry_all(
    State(state): State<AppState>,
    Path(name): Path<String>,
    secret: Secret,
) -> Answer<Retried> {
    Ok(Json(Retried { retried: retried(&state, &secret, &name, None).await? }))
}

/// Discards one dead letter.
#[utoipa::path(delete, path = "/api/queues/{queue}/dead/{id}", tag = "Queues", security(("secret_key" = [])),
    params(("queue" = String, Path), ("id" = String, Path)), responses((status = 200, body = Discarded), OneErrors))]
pub async fn discard_one(
    State(state): State<AppState>,
    Path((name, id)): Path<(String, String)>,
    secret: Secret,
) -> Answer<Discarded> {
    let discarded = discarded(&state, &secret, &name, Some(&id)).await?;
    if discarded == 0 { Err(no_letter(&id)) } else { Ok(Json(Discarded { discarded })) }
}

/// Discards all the brand's dead letters.
#[utoipa::path(delete, path = "/api/queues/{queue}/dead", tag = "Queues", security(("secret_key" = [])),
    params(("queue" = String, Path)), responses((status = 200, body = Discarded), OneErrors))]
pub async fn discard_all(
    State(state): State<AppState>,
    Path(name): Path<String>,
    secret: Secret,
) -> Answer<Discarded> {
    Ok(Json(Discarded { discarded: discarded(&state, &secret, &name, None).await? }))
}

/// Puts one of the brand's dead letters back, or all, and answers how many.
async fn retried(state: &AppState, secret: &Secret, name: &str, id: Option<&str>) -> Result<u64, ApiError> {
    let (which, details) = chosen(name, id);
    let deed = queues::retry(&**queue(state, name)?, Scope::Brand(secret.brand), which);
    state.audited(secret, "dead_letters_retried", details, deed).await
}

/// Discards one of the brand's dead letters, or all, and answers how many.
async fn discarded(state: &AppState, secret: &Secret, name: &str, id: Option<&str>) -> Result<u64, ApiError> {
    let (which, details) = chosen(name, id);
    let deed = queues::discard(&**queue(state, name)?, Scope::Brand(secret.brand), which);
    state.audited(secret, "dead_letters_discarded", details, deed).await
}

/// One letter or all, and how the audit log says it.
fn chosen(name: &str, id: Option<&str>) -> (Which, Value) {
    let which = id.map_or(Which::All, |id| Which::Ids(vec![id.to_owned()]));
    (which, json!({"queue": name, "letter": id.unwrap_or("all")}))
}

/// Pauses the queue: workers fetch nothing from it until it is resumed.
#[utoipa::path(post, path = "/api/queues/{queue}/pause", tag = "Queues", security(("secret_key" = [])),
    params(("queue" = String, Path)), responses((status = 200, body = Paused), PauseErrors))]
pub async fn pause(state: State<AppState>, name: Path<String>, secret: Secret) -> Answer<Paused> {
    set_paused(state, name, secret, true).await
}

/// Resumes the queue: workers fetch from it again.
#[utoipa::path(post, path = "/api/queues/{queue}/resume", tag = "Queues", security(("secret_key" = [])),
    params(("queue" = String, Path)), responses((status = 200, body = Paused), PauseErrors))]
pub async fn resume(state: State<AppState>, name: Path<String>, secret: Secret) -> Answer<Paused> {
    set_paused(state, name, secret, false).await
}

async fn set_paused(
    State(state): State<AppState>,
    Path(name): Path<String>,
    secret: Secret,
    paused: bool,
) -> Answer<Paused> {
    let brand = secret.brand;
    let queue = queue(&state, &name)?;
    if !has_no_other(&state, brand).await? {
        let message =
            "other brands share this queue: only the operator may pause it, with server queues pause";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "shared_queue", message));
    }
    let what = if paused { "queue_paused" } else { "queue_resumed" };
    state.audited(&secret, what, json!({"queue": name}), queue.set_paused(paused)).await?;
    tracing::warn!(queue = name, paused, %brand, "a queue was paused or resumed over HTTP");
    Ok(Json(Paused { paused }))
}

/// What is remembered of a webhook's first delivery: when it came, and when, by what and how it ended.
#[utoipa::path(get, path = "/api/queues/{queue}/claims", tag = "Queues", security(("secret_key" = [])),
    params(("queue" = String, Path), DeliveryIds), responses((status = 200, body = Claim), ClaimErrors))]
pub async fn claim(
    State(state): State<AppState>,
    Path(name): Path<String>,
    secret: Secret,
    QueryOf(ids): QueryOf<DeliveryIds>,
) -> Answer<Claim> {
    let brand = secret.brand;
    let queue = queue(&state, &name)?;
    let domain = ids.shop.to_lowercase();
    let nothing = || ApiError::not_found("there is no record of this delivery");
    if state.keys.shop(&domain).await?.is_none_or(|shop| shop.brand != brand) {
        return Err(nothing());
    }
    let key = webhook_key(&domain, &ids.webhook_id);
    queue.claim(&key).await?.map(Json).ok_or_else(nothing)
}

fn queue<'s>(state: &'s AppState, name: &str) -> Result<&'s Arc<dyn Queue>, ApiError> {
    state.context.queue_named(name).ok_or_else(|| {
        let names = state.context.queues().map(|(name, _)| name).join(" and ");
        ApiError::not_found(format!("there is no queue {name:?}; there are {names}"))
    })
}

/// Whether there is no brand but this one.
async fn has_no_other(state: &AppState, brand: BrandId) -> Result<bool, ApiError> {
    Ok(state.context.brand_ports.brands.brands().await?.iter().all(|(other, _)| *other == brand))
}

/// The same; where nobody can say, no.
async fn is_alone(state: &AppState, brand: BrandId) -> bool {
    has_no_other(state, brand).await.unwrap_or_default()
}

/// What a brand holds, and whether the queue is paused. A brand that is alone sees the whole queue, and the events queue's rates:
/// else other brands' volumes stood in it.
async fn report(state: &AppState, name: &str, brand: BrandId, alone: bool) -> Result<QueueReport, ApiError> {
    let queue = queue(state, name)?;
    let stats = queue.stats().await?;
    let held = queue.held_by(brand).await?;
    if !alone {
        return Ok(QueueReport::Own(OwnPart { paused: stats.paused, held }));
    }
    let rates = (name == EVENTS_QUEUE).then(|| state.rates.rates(&stats));
    Ok(QueueReport::Whole(Box::new(WholeQueue { stats, held, rates })))
}

fn no_letter(id: &str) -> ApiError {
    ApiError::not_found(format!("there is no dead letter {id:?} of this brand"))
}
