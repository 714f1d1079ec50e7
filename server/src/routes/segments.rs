//! Segments: who belongs together, with a secret key.

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use tributary_core::domain::automation::segment::SegmentInput;
use tributary_core::domain::ids::ProfileId;
use tributary_core::domain::time::{self, from_ms};
use tributary_core::services::automations::api::segments::{self, Preview, SegmentAnswer};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::customers::{customer_id, limit};
use crate::auth::Secret;
use crate::body::json as read_json;
use crate::body::{self, MAX_BODY_BYTES};
use crate::codes::{BODY, SECRET};
use crate::error::ApiError;
use crate::errors;
use crate::state::AppState;

errors!(ListErrors: SECRET);
errors!(OneErrors: SECRET, &["not_found"]);
errors!(PutErrors: SECRET, BODY, &["invalid_gzip", "invalid_segment", "invalid_expression", "refused"]);
errors!(DeleteErrors: SECRET, &["not_found", "refused"]);
errors!(PreviewErrors: SECRET, BODY, &["invalid_gzip", "invalid_expression"]);
errors!(MembersErrors: SECRET, &["not_found", "invalid_query", "invalid_limit", "invalid_after"]);

/// A brand's segments.
#[derive(Debug, Serialize, ToSchema)]
pub struct SegmentList {
    /// Those that every brand has first, then by name.
    segments: Vec<SegmentAnswer>,
}

/// Lists the brand's segments, with how many belong to each.
#[utoipa::path(get, path = "/api/segments", tag = "Segments", security(("secret_key" = [])),
    responses((status = 200, body = SegmentList), ListErrors))]
pub async fn list(State(state): State<AppState>, secret: Secret) -> Result<Json<SegmentList>, ApiError> {
    Ok(Json(SegmentList { segments: segments::list(&state.context, secret.brand).await? }))
}

/// One segment.
#[utoipa::path(get, path = "/api/segments/{name}", tag = "Segments", security(("secret_key" = [])), params(("name" = String, Path)),
    responses((status = 200, body = SegmentAnswer), OneErrors))]
pub async fn show(
    State(state): State<AppState>,
    Path(name): Path<String>,
    secret: Secret,
) -> Result<Json<SegmentAnswer>, ApiError> {
    Ok(Json(segments::get(&state.context, secret.brand, &name).await?))
}

/// Creates or replaces a segment. Its members are computed in the background, and updated with each event.
#[utoipa::path(put, path = "/api/segments/{name}", tag = "Segments", security(("secret_key" = [])), params(("name" = String, Path)),
    request_body = SegmentInput, responses((status = 200, body = SegmentAnswer), PutErrors))]
pub async fn put(
    State(state): State<AppState>,
    Path(name): Path<String>,
    secret: Secret,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<SegmentAnswer>, ApiError> {
    let bytes = body::read(&headers, body, MAX_BODY_BYTES).await?;
    let input: SegmentInput = read_json(&bytes)?;
    // An expression may name a person, and the log is for good: it is known again by its hash.
    let hash = hex::encode(Sha256::digest(input.expression.as_bytes()));
    let details = json!({"segment": name, "expression_sha256": hash});
    let deed = segments::put(&state.context, secret.brand, &name, input);
    let answer = state.audited(&secret, "segment_written", details, deed).await?;
    Ok(Json(answer))
}

/// A segment that was deleted.
#[derive(Debug, Serialize, ToSchema)]
pub struct Deleted {
    /// Its name.
    deleted: String,
}

/// Takes a segment out. One that starts an automation stays.
#[utoipa::path(delete, path = "/api/segments/{name}", tag = "Segments", security(("secret_key" = [])), params(("name" = String, Path)),
    responses((status = 200, body = Deleted), DeleteErrors))]
pub async fn delete(
    State(state): State<AppState>,
    Path(name): Path<String>,
    secret: Secret,
) -> Result<Json<Deleted>, ApiError> {
    let deed = segments::delete(&state.context, secret.brand, &name);
    state.audited(&secret, "segment_deleted", json!({"segment": name}), deed).await?;
    Ok(Json(Deleted { deleted: name }))
}

/// Of what expression.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PreviewRequest {
    /// A CEL expression.
    expression: String,
}

/// Who would belong to a segment of that expression, of 2000 customers at most. Nothing is changed.
#[utoipa::path(post, path = "/api/segment-preview", tag = "Segments", security(("secret_key" = [])), request_body = PreviewRequest,
    responses((status = 200, body = Preview), PreviewErrors))]
pub async fn preview(
    State(state): State<AppState>,
    secret: Secret,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Preview>, ApiError> {
    let bytes = body::read(&headers, body, MAX_BODY_BYTES).await?;
    let asked: PreviewRequest = read_json(&bytes)?;
    Ok(Json(segments::preview(&state.context, secret.brand, &asked.expression).await?))
}

/// Which part of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Paging {
    /// The `next` of the page before
    after: Option<String>,
    /// 1 to 100; 20 if absent
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
}

/// Somebody who belongs to a segment.
#[derive(Debug, Serialize, ToSchema)]
pub struct MemberAnswer {
    /// The customer.
    id: ProfileId,
    /// Since when.
    since: String,
}

/// A page of members.
#[derive(Debug, Serialize, ToSchema)]
pub struct MemberPage {
    /// By id.
    customers: Vec<MemberAnswer>,
    /// Where the next page begins; null after the last.
    next: Option<ProfileId>,
}

/// Who belongs to a segment.
#[utoipa::path(get, path = "/api/segments/{name}/customers", tag = "Segments", security(("secret_key" = [])),
    params(("name" = String, Path), Paging), responses((status = 200, body = MemberPage), MembersErrors))]
pub async fn members(
    State(state): State<AppState>,
    Path(name): Path<String>,
    secret: Secret,
    paging: Result<Query<Paging>, QueryRejection>,
) -> Result<Json<MemberPage>, ApiError> {
    let Query(paging) = paging.map_err(invalid_query)?;
    let limit = limit(paging.limit)?;
    let after =
        paging.after.as_deref().map(|text| ProfileId::parse(text).ok_or_else(invalid_after)).transpose()?;
    segments::get(&state.context, secret.brand, &name).await?;
    let page = state.context.automations.members(secret.brand, &name, after, limit as i64).await?;
    let next = page.last().filter(|_| page.len() == limit).map(|(id, _)| *id);
    let member = |(id, since)| MemberAnswer { id, since: time::format(from_ms(since)) };
    Ok(Json(MemberPage { customers: page.into_iter().map(member).collect(), next }))
}

/// Somebody who came into a segment or went out of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChangeAnswer {
    /// The customer.
    customer: ProfileId,
    /// The segment.
    segment: String,
    /// `entered` or `left`.
    change: &'static str,
    /// When.
    at: String,
}

/// A page of changes.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChangePage {
    /// Newest first.
    changes: Vec<ChangeAnswer>,
    /// Where the next page begins; null after the last.
    next: Option<Uuid>,
}

/// Who came into a segment and who went out of it, newest first.
#[utoipa::path(get, path = "/api/segments/{name}/changes", tag = "Segments", security(("secret_key" = [])),
    params(("name" = String, Path), Paging), responses((status = 200, body = ChangePage), MembersErrors))]
pub async fn changes(
    State(state): State<AppState>,
    Path(name): Path<String>,
    secret: Secret,
    paging: Result<Query<Paging>, QueryRejection>,
) -> Result<Json<ChangePage>, ApiError> {
    let page = Page::of(paging)?;
    segments::get(&state.context, secret.brand, &name).await?;
    changes_of(&state, &secret, Some(&name), None, page).await
}

/// The segments that a customer came into and went out of, newest first.
#[utoipa::path(get, path = "/api/customers/{id}/segments", tag = "Segments", security(("secret_key" = [])),
    params(("id" = String, Path), Paging), responses((status = 200, body = ChangePage), MembersErrors))]
pub async fn of_customer(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
    paging: Result<Query<Paging>, QueryRejection>,
) -> Result<Json<ChangePage>, ApiError> {
    let page = Page::of(paging)?;
    let asked = customer_id(&id)?;
    let known = state.context.directory.survivor(secret.brand, asked).await?;
    let known = known.ok_or_else(|| ApiError::not_found(format!("there is no customer {id:?}")))?;
    changes_of(&state, &secret, None, Some(known), page).await
}

/// A page that was asked for.
struct Page {
    limit: usize,
    before: Option<Uuid>,
}

impl Page {
    fn of(paging: Result<Query<Paging>, QueryRejection>) -> Result<Self, ApiError> {
        let Query(paging) = paging.map_err(invalid_query)?;
        Ok(Self { limit: limit(paging.limit)?, before: cursor(paging.after.as_deref())? })
    }
}

async fn changes_of(
    state: &AppState,
    secret: &Secret,
    segment: Option<&str>,
    profile: Option<ProfileId>,
    Page { limit, before }: Page,
) -> Result<Json<ChangePage>, ApiError> {
    let page =
        state.context.automations.changes(secret.brand, segment, profile, before, limit as i64).await?;
    let next = page.last().filter(|_| page.len() == limit).map(|change| change.id);
    let changes = page
        .into_iter()
        .map(|change| ChangeAnswer {
            customer: change.profile,
            segment: change.segment,
            change: if change.entered { "entered" } else { "left" },
            at: time::format(from_ms(change.at_ms)),
        })
        .collect();
    Ok(Json(ChangePage { changes, next }))
}

pub(super) fn cursor(after: Option<&str>) -> Result<Option<Uuid>, ApiError> {
    after.map(|text| Uuid::try_parse(text).map_err(|_| invalid_after())).transpose()
}

fn invalid_after() -> ApiError {
    ApiError::bad_request("invalid_after", "invalid cursor: after must be the next of the previous page")
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
pub(super) fn invalid_query(rejection: QueryRejection) -> ApiError {
    ApiError::bad_request("invalid_query", rejection.body_text())
}
