//! What law asks for, with a secret key: export, erasure, requests, the audit log.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tributary_core::domain::identity::Identifier;
use tributary_core::domain::ids::ProfileId;
use tributary_core::domain::time;
use tributary_core::ports::privacy::{AuditEntry, Erased, Erasure};
use tributary_core::ports::store::StoreError;
use tributary_core::services::export::{self, Pieces};
use tributary_core::services::privacy::{self, RequestEntry};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::customers::{customer_id, identifier_strictly};
use crate::answers::{CustomerExport, RequestExport};
use crate::auth::Secret;
use crate::codes::{BODY, SECRET};
use crate::error::ApiError;
use crate::errors;
use crate::extract::{JsonBody, QueryOf};
use crate::paging::PageAsked;
use crate::state::AppState;

/// Requests that are listed.
const REQUESTS: i64 = 100;
/// The most identifiers of one erasure.
const MAX_IDENTIFIERS: usize = 100;

errors!(ExportErrors: SECRET, &["not_found"]);
errors!(EraseErrors: SECRET, &["not_found", "queue_unavailable"]);
errors!(EraseManyErrors: SECRET, BODY, &["invalid_gzip", "unknown_kind", "invalid_identifier", "queue_unavailable"]);
errors!(RequestsErrors: SECRET);
errors!(StopErrors: SECRET, &["not_found"]);
errors!(AuditErrors: SECRET, &["invalid_query", "invalid_limit", "invalid_after"]);
errors!(UnsuppressErrors: SECRET, &["not_found", "unknown_kind"]);

/// All that is held on a customer: profile, every trait with its source, events as they came, orders, consent, merges.
#[utoipa::path(get, path = "/api/customers/{id}/export", tag = "Privacy", security(("secret_key" = [])),
    params(("id" = String, Path)), responses((status = 200, body = CustomerExport), ExportErrors))]
pub async fn export(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
) -> Result<Response, ApiError> {
    let parsed = customer_id(&id)?;
    let found = export::export(&state.context, secret.brand, parsed, &secret.actor).await?;
    let pieces = found.ok_or_else(|| ApiError::not_found(format!("there is no customer {id:?}")))?;
    Ok(streamed(flowing(pieces)))
}

/// The pieces as they come. An error ends the connection, so that what is cut looks cut.
fn flowing(pieces: Pieces) -> impl Stream<Item = Result<Bytes, StoreError>> + Send {
    stream::unfold(pieces, |mut pieces| async move { Some((pieces.recv().await?, pieces)) })
}

fn streamed(text: impl Stream<Item = Result<Bytes, StoreError>> + Send + 'static) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(text)).into_response()
}

/// What an erasure forgot.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErasedAnswer {
    /// The profiles, including merged ones.
    profiles: Vec<ProfileId>,
    /// How many identifiers are suppressed: later events with them are not stored.
    suppressed: usize,
    /// How many events were deleted.
    events: u64,
    /// How many orders stand without their customer now.
    orders: u64,
}

impl From<Erased> for ErasedAnswer {
    fn from(erased: Erased) -> Self {
        Self {
            profiles: erased.profiles,
            suppressed: erased.identifiers.len(),
            events: erased.events,
            orders: erased.orders,
        }
    }
}

/// Forgets a customer for good: profile, identifiers, events, consent, cached answers, dead letters; orders lose their customer.
#[utoipa::path(delete, path = "/api/customers/{id}", tag = "Privacy", security(("secret_key" = [])),
    params(("id" = String, Path)), responses((status = 200, body = ErasedAnswer), EraseErrors))]
pub async fn erase(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
) -> Result<Json<ErasedAnswer>, ApiError> {
    let parsed = customer_id(&id)?;
    let known = state.context.customer_search.survivor(secret.brand, parsed).await?;
    let known = known.ok_or_else(|| ApiError::not_found(format!("there is no customer {id:?}")))?;
    let what = Erasure { profiles: vec![known], suppress: true, ..Erasure::default() };
    Ok(Json(privacy::erase(&state.context, secret.brand, &what, &secret.actor).await?.into()))
}

/// The identifiers whose customers are erased.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ErasureRequest {
    /// Identifiers, at most 100. Customers who have them are erased; identifiers that no customer has are suppressed, too.
    identifiers: Vec<NamedIdentifier>,
}

/// An identifier, in any form that events may have it in.
#[derive(Debug, Deserialize, ToSchema)]
pub struct NamedIdentifier {
    kind: String,
    value: String,
}

/// Forgets whoever has these identifiers, and keeps anybody from coming back under them.
#[utoipa::path(post, path = "/api/privacy/erasures", tag = "Privacy", security(("secret_key" = [])),
    request_body = ErasureRequest, responses((status = 200, body = ErasedAnswer), EraseManyErrors))]
pub async fn erase_identifiers(
    State(state): State<AppState>,
    secret: Secret,
    JsonBody(asked): JsonBody<ErasureRequest>,
) -> Result<Json<ErasedAnswer>, ApiError> {
    if asked.identifiers.is_empty() || asked.identifiers.len() > MAX_IDENTIFIERS {
        let message = format!("identifiers must be 1 to {MAX_IDENTIFIERS}");
        return Err(ApiError::bad_request("invalid_json", message));
    }
    let mut identifiers: Vec<Identifier> = Vec::new();
    for NamedIdentifier { kind, value } in &asked.identifiers {
        identifiers.push(identifier_strictly(&state, secret.brand, kind, value).await?.ok_or_else(|| {
            let message =
                format!("the {kind} {value:?} cannot identify anybody, so nothing is held under it");
            ApiError::bad_request("invalid_identifier", message)
        })?);
    }
    let what = Erasure { identifiers, suppress: true, ..Erasure::default() };
    Ok(Json(privacy::erase(&state.context, secret.brand, &what, &secret.actor).await?.into()))
}

/// The suppression that no longer holds.
#[derive(Debug, Serialize, ToSchema)]
pub struct Unsuppressed {
    /// How many identifiers may be known again.
    lifted: u64,
}

/// Lets an identifier be known again whose owner was erased.
#[utoipa::path(delete, path = "/api/privacy/suppressions/{kind}/{value}", tag = "Privacy", security(("secret_key" = [])),
    params(("kind" = String, Path), ("value" = String, Path)), responses((status = 200, body = Unsuppressed), UnsuppressErrors))]
pub async fn unsuppress(
    State(state): State<AppState>,
    Path((kind, value)): Path<(String, String)>,
    secret: Secret,
) -> Result<Json<Unsuppressed>, ApiError> {
    let not_suppressed = || ApiError::not_found(format!("the {kind} {value:?} is not suppressed"));
    let identifier =
        identifier_strictly(&state, secret.brand, &kind, &value).await?.ok_or_else(not_suppressed)?;
    match privacy::unsuppress(&state.context, secret.brand, &[identifier], &secret.actor).await? {
        0 => Err(not_suppressed()),
        lifted => Ok(Json(Unsuppressed { lifted })),
    }
}

/// Requests in the name of privacy.
#[derive(Debug, Serialize, ToSchema)]
pub struct Requests {
    /// The newest hundred, newest first.
    requests: Vec<RequestEntry>,
}

/// The requests that Shopify has made: data requests and redactions.
#[utoipa::path(get, path = "/api/privacy/requests", tag = "Privacy", security(("secret_key" = [])),
    responses((status = 200, body = Requests), RequestsErrors))]
pub async fn requests(State(state): State<AppState>, secret: Secret) -> Result<Json<Requests>, ApiError> {
    let found = state.context.privacy.requests(secret.brand, REQUESTS).await?;
    Ok(Json(Requests { requests: found.iter().map(RequestEntry::from).collect() }))
}

/// The request that will not be carried out.
#[derive(Debug, Serialize, ToSchema)]
pub struct Stopped {
    /// The id of the request that was stopped.
    stopped: Uuid,
}

/// Stops a request that waits: it is never carried out. Only a shop's redaction waits.
#[utoipa::path(post, path = "/api/privacy/requests/{request}/stop", tag = "Privacy", security(("secret_key" = [])),
    params(("request" = String, Path)), responses((status = 200, body = Stopped), StopErrors))]
pub async fn stop(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
) -> Result<Json<Stopped>, ApiError> {
    let unknown = || ApiError::not_found(format!("there is no request {id:?} that waits"));
    let parsed = Uuid::try_parse(&id).map_err(|_| unknown())?;
    match privacy::stop(&state.context, secret.brand, parsed, &secret.actor).await? {
        true => Ok(Json(Stopped { stopped: parsed })),
        false => Err(unknown()),
    }
}

/// All that is held on whom a data request is about: an export of each customer.
#[utoipa::path(get, path = "/api/privacy/requests/{request}/export", tag = "Privacy", security(("secret_key" = [])),
    params(("request" = String, Path)), responses((status = 200, body = RequestExport), ExportErrors))]
pub async fn request_export(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
) -> Result<Response, ApiError> {
    let unknown = || ApiError::not_found(format!("there is no data request {id:?}"));
    let parsed = Uuid::try_parse(&id).map_err(|_| unknown())?;
    let request = state.context.privacy.request(secret.brand, parsed).await?;
    let request = request.filter(|request| request.kind == "export").ok_or_else(unknown)?;
    let customers = privacy::subjects(&state.context, &request).await?;
    let head = format!("{{\"request\":{},\"customers\":[", json!(RequestEntry::from(&request)));
    let (context, brand, actor) = (state.context.clone(), secret.brand, secret.actor.clone());
    let bodies = stream::iter(customers).then(move |customer| {
        let (context, actor) = (context.clone(), actor.clone());
        async move { export::export(&context, brand, customer, &actor).await }
    });
    // Whoever was erased meanwhile is left out.
    let bodies = bodies.filter_map(|begun| async move { begun.transpose() });
    let bodies = bodies.enumerate().flat_map(|(at, begun)| {
        let comma = stream::iter((at > 0).then(|| Ok(Bytes::from_static(b","))));
        let body = match begun {
            Ok(pieces) => flowing(pieces).left_stream(),
            Err(error) => stream::iter([Err(error)]).right_stream(),
        };
        comma.chain(body)
    });
    let text = stream::iter([Ok(Bytes::from(head))])
        .chain(bodies)
        .chain(stream::iter([Ok(Bytes::from_static(b"]}"))]));
    Ok(streamed(text))
}

/// Which part of the log.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// The `next` of the page before
    before: Option<String>,
    /// 1 to 100, 20 unless given
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
}

/// An entry of the audit log.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditAnswer {
    id: Uuid,
    /// When it happened, as ISO 8601.
    at: String,
    /// Who: `key ID`, `shopify SHOP`, `command line`.
    actor: String,
    /// `merge`, `split`, `export`, `erase`, `unsuppress`, `request_stopped`, `settings`, `email_domains`, `shop_added`; `key_added`, `key_rotated`,
    /// `key_limited`, `key_revoked`, `key_refused`, `key_refused_scope`; `signing_secret_read`, `signing_secret_rotated`;
    /// `automation_made`, `automation_edited`, `automation_activated`, `automation_paused`, `automation_deleted`,
    /// `segment_written`, `segment_deleted`, `run_cancelled`, `run_retried`; `dead_letters_read`, `dead_letters_retried`,
    /// `dead_letters_discarded`, `queue_paused`, `queue_resumed`; `customer_read`, `timeline_read`, `customers_listed`; and
    /// `not_done`, where what the entry before announced was not done.
    action: String,
    /// The profile's id, where one is meant.
    subject: Option<String>,
    /// Further details, by the kind of action.
    details: Value,
}

impl From<AuditEntry> for AuditAnswer {
    fn from(entry: AuditEntry) -> Self {
        Self {
            id: entry.id,
            at: time::format(entry.at),
            actor: entry.actor,
            action: entry.action,
            subject: entry.subject,
            details: serde_json::from_str(&entry.details).unwrap_or_default(),
        }
    }
}

/// A page of the audit log.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditPage {
    /// The entries, newest first.
    entries: Vec<AuditAnswer>,
    /// Where the next page begins; null after the last.
    next: Option<Uuid>,
}

/// Who did what to whom, newest first.
#[utoipa::path(get, path = "/api/privacy/audit", tag = "Privacy", security(("secret_key" = [])), params(AuditQuery),
    responses((status = 200, body = AuditPage), AuditErrors))]
pub async fn audit(
    State(state): State<AppState>,
    secret: Secret,
    QueryOf(query): QueryOf<AuditQuery>,
) -> Result<Json<AuditPage>, ApiError> {
    let asked = PageAsked::by_id("before", query.before.as_deref(), query.limit)?;
    let page = state.context.privacy.audit_log(secret.brand, asked.cursor, asked.rows()).await?;
    let next = asked.next(&page, |entry| entry.id);
    Ok(Json(AuditPage { entries: page.into_iter().map(AuditAnswer::from).collect(), next }))
}
