//! Segments: who belongs together, with a secret key.

use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use tributary_core::domain::automation::segment::SegmentInput;
use tributary_core::domain::ids::ProfileId;
use tributary_core::domain::time::{self, from_ms};
use tributary_core::ports::automations::Member;
use tributary_core::services::automations::api::segments::{self, Preview, SegmentAnswer};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::customers::customer_id;
use crate::auth::Secret;
use crate::codes::{BODY, SECRET};
use crate::error::ApiError;
use crate::errors;
use crate::extract::{JsonBody, QueryOf};
use crate::paging::PageAsked;
use crate::state::AppState;

errors!(ListErrors: SECRET);
errors!(OneErrors: SECRET, &["not_found"]);
errors!(PutErrors: SECRET, BODY, &["invalid_gzip", "invalid_segment", "invalid_expression", "refused"]);
errors!(DeleteErrors: SECRET, &["not_found", "refused"]);
errors!(PreviewErrors: SECRET, BODY, &["invalid_gzip", "invalid_expression"]);
errors!(MembersErrors: SECRET, &["not_found", "invalid_query", "invalid_limit", "invalid_after"]);

/// All segments of a brand, in one answer.
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

/// One segment, with the number of its members.
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
    JsonBody(input): JsonBody<SegmentInput>,
) -> Result<Json<SegmentAnswer>, ApiError> {
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
    /// The name of the segment that is deleted.
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

/// The expression whose members are counted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PreviewRequest {
    /// A CEL expression over a customer.
    expression: String,
}

/// Who would belong to a segment of that expression, of 2000 customers at most. Nothing is changed.
#[utoipa::path(post, path = "/api/segment-preview", tag = "Segments", security(("secret_key" = [])), request_body = PreviewRequest,
    responses((status = 200, body = Preview), PreviewErrors))]
pub async fn preview(
    State(state): State<AppState>,
    secret: Secret,
    JsonBody(asked): JsonBody<PreviewRequest>,
) -> Result<Json<Preview>, ApiError> {
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
    /// The id of the customer.
    id: ProfileId,
    /// Since when the customer belongs to it, as ISO 8601.
    since: String,
}

/// A page of members.
#[derive(Debug, Serialize, ToSchema)]
pub struct MemberPage {
    /// The members of this page, by id.
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
    QueryOf(paging): QueryOf<Paging>,
) -> Result<Json<MemberPage>, ApiError> {
    let asked = PageAsked::of("after", paging.after.as_deref(), paging.limit, ProfileId::parse)?;
    segments::get(&state.context, secret.brand, &name).await?;
    let page = state.context.automations.members(secret.brand, &name, asked.cursor, asked.rows()).await?;
    let next = asked.next(&page, |member| member.profile);
    let member =
        |member: Member| MemberAnswer { id: member.profile, since: time::format(from_ms(member.since_ms)) };
    Ok(Json(MemberPage { customers: page.into_iter().map(member).collect(), next }))
}

/// Somebody who came into a segment or went out of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChangeAnswer {
    /// The id of the customer.
    customer: ProfileId,
    /// The name of the segment.
    segment: String,
    /// `entered` where the customer came to belong to it, `left` where not any more.
    change: &'static str,
    /// When it happened, as ISO 8601.
    at: String,
}

/// A page of changes.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChangePage {
    /// The changes, newest first.
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
    QueryOf(paging): QueryOf<Paging>,
) -> Result<Json<ChangePage>, ApiError> {
    let page = paging.page()?;
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
    QueryOf(paging): QueryOf<Paging>,
) -> Result<Json<ChangePage>, ApiError> {
    let page = paging.page()?;
    let asked = customer_id(&id)?;
    let known = state.context.customer_search.survivor(secret.brand, asked).await?;
    let known = known.ok_or_else(|| ApiError::not_found(format!("there is no customer {id:?}")))?;
    changes_of(&state, &secret, None, Some(known), page).await
}

impl Paging {
    fn page(&self) -> Result<PageAsked<Uuid>, ApiError> {
        PageAsked::by_id("after", self.after.as_deref(), self.limit)
    }
}

async fn changes_of(
    state: &AppState,
    secret: &Secret,
    segment: Option<&str>,
    profile: Option<ProfileId>,
    asked: PageAsked<Uuid>,
) -> Result<Json<ChangePage>, ApiError> {
    let changes =
        state.context.automations.changes(secret.brand, segment, profile, asked.cursor, asked.rows());
    let page = changes.await?;
    let next = asked.next(&page, |change| change.id);
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
