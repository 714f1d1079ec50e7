//! Customers, with a secret key as Bearer: Customer360, lists, timelines, the history of their identity, merging and splitting.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tributary_core::domain::customer360::{Customer360, EventKey};
use tributary_core::domain::identity::{Identifier, IdentifierKind};
use tributary_core::domain::ids::{BrandId, ProfileId};
use tributary_core::domain::time::from_ms;
use tributary_core::ports::customer_search::{After, Sort};
use tributary_core::services::customer_search::{self, Listed, Listing};
use tributary_core::services::customer360::{self, CustomerRef};
use tributary_core::services::identity::{self, MergeEntry, Preview, Split};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::auth::Secret;
use crate::codes::SECRET;
use crate::error::ApiError;
use crate::errors;
use crate::extract::QueryOf;
use crate::paging::PageAsked;
use crate::state::AppState;

errors!(ReadErrors: SECRET, &["not_found"]);
errors!(ByIdentifierErrors: SECRET, &["not_found", "unknown_kind"]);
errors!(ListErrors: SECRET, &["invalid_query", "invalid_limit", "invalid_after"]);
errors!(TimelineErrors: SECRET, &["not_found", "invalid_query", "invalid_limit", "invalid_after"]);
errors!(ChangeErrors: SECRET, &["not_found", "refused"]);

/// Customer360 of a customer, by id. The id of a merged profile returns the profile that it was merged into.
#[utoipa::path(get, path = "/api/customers/{id}/360", tag = "Customers", security(("secret_key" = [])),
    params(("id" = String, Path, description = "A profile's id, a UUID")),
    responses((status = 200, body = Customer360, headers(("x-cache" = String, description = "hit, miss (the store) or stale (the last known copy, because the database is unavailable)"))), ReadErrors))]
pub async fn by_id(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
) -> Result<Response, ApiError> {
    let parsed = customer_id(&id)?;
    answer(&state, &secret, &CustomerRef::Id(parsed)).await?.ok_or_else(|| nobody(&id))
}

/// Customer360 of the customer who has an identifier.
#[utoipa::path(get, path = "/api/customers/by/{kind}/{value}/360", tag = "Customers", security(("secret_key" = [])),
    params(("kind" = IdentifierKind, Path), ("value" = String, Path, description = "The identifier's value, percent-encoded, in any form that events may have it in")),
    responses((status = 200, body = Customer360), ByIdentifierErrors))]
pub async fn by_identifier(
    State(state): State<AppState>,
    Path((kind, value)): Path<(String, String)>,
    secret: Secret,
) -> Result<Response, ApiError> {
    let nobody = || {
        ApiError::not_found(format!(
            "no customer has the {kind} {value:?}; events of the last seconds may not be processed yet"
        ))
    };
    let identifier = identifier(&state, secret.brand, &kind, &value).await?.ok_or_else(nobody)?;
    answer(&state, &secret, &CustomerRef::Identifier(identifier)).await?.ok_or_else(nobody)
}

async fn answer(
    state: &AppState,
    secret: &Secret,
    asked: &CustomerRef,
) -> Result<Option<Response>, ApiError> {
    let found = customer360::answer(&state.context, state.settings.cache_ttl, secret.brand, asked).await?;
    if let Some((json, _)) = &found {
        let who: Option<Whom> = serde_json::from_slice(json).ok();
        state.looked(secret, "customer_read", who.map(|who| who.id)).await?;
    }
    Ok(found.map(|(json, freshness)| {
        metrics::counter!("tributary_customer360_total", "cache" => freshness.as_str()).increment(1);
        let headers = [
            (header::CONTENT_TYPE.as_str(), "application/json"),
            // It is about a person: no proxy keeps it.
            (header::CACHE_CONTROL.as_str(), "no-store"),
            ("x-cache", freshness.as_str()),
        ];
        (headers, json).into_response()
    }))
}

/// Whom an answer is about.
#[derive(Deserialize)]
struct Whom {
    id: ProfileId,
}

/// Which customers are listed, and in which order.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// The beginning of an e-mail address, telephone number, user id or name (first or last), or the number of an order
    q: Option<String>,
    /// Only customers with this trait: `name:value`, the value as JSON or as plain text
    #[serde(rename = "trait")]
    #[param(rename = "trait")]
    with_trait: Option<String>,
    /// `newest` (default), `oldest`, `last_seen` or `name`
    #[param(pattern = "^(newest|oldest|last_seen|name)$")]
    sort: Option<String>,
    /// The `next` of the page before
    after: Option<String>,
    /// 1 to 100, 20 unless given
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
}

/// A page of customers.
#[derive(Debug, Serialize, ToSchema)]
pub struct CustomerPage {
    /// The customers of this page.
    customers: Vec<Listed>,
    /// Where the next page begins; null after the last. With `trait`, a page may be short and still have a next: 5,000 customers
    /// are looked at for one.
    next: Option<String>,
}

/// Lists and searches customers, a page at a time.
#[utoipa::path(get, path = "/api/customers", tag = "Customers", security(("secret_key" = [])), params(ListQuery),
    responses((status = 200, body = CustomerPage), ListErrors))]
pub async fn list(
    State(state): State<AppState>,
    secret: Secret,
    QueryOf(query): QueryOf<ListQuery>,
) -> Result<Json<CustomerPage>, ApiError> {
    let mut query = query;
    // Stores cannot hold U+0000, so nothing that is searched has one.
    for text in [&mut query.q, &mut query.with_trait].into_iter().flatten() {
        text.retain(|letter| letter != '\0');
    }
    let sort = match query.sort.as_deref() {
        None | Some("newest") => Sort::Newest,
        Some("oldest") => Sort::Oldest,
        Some("last_seen") => Sort::LastSeen,
        Some("name") => Sort::Name,
        Some(other) => {
            let message = format!("sort is {other:?}; it may be newest, oldest, last_seen or name");
            return Err(ApiError::bad_request("invalid_query", message));
        }
    };
    let with_trait = query.with_trait.as_deref().map(|text| {
        let (name, value) = text.split_once(':').ok_or_else(|| {
            ApiError::bad_request("invalid_query", format!("trait is {text:?}; it must be name:value"))
        })?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        Ok::<_, ApiError>((name.to_owned(), value))
    });
    let page = PageAsked::of("after", query.after.as_deref(), query.limit, |text| read_place(text, sort))?;
    let listing = Listing {
        search: query.q.as_deref().and_then(customer_search::search),
        with_trait: with_trait.transpose()?,
        sort,
        after: page.cursor,
        limit: page.limit,
    };
    let page = customer_search::list(&state.context, secret.brand, &listing).await?;
    state.looked(&secret, "customers_listed", None).await?;
    Ok(Json(CustomerPage { customers: page.customers, next: page.next.as_ref().map(write_place) }))
}

/// A place in a list, as `next` and `after` carry it: JSON in URL-safe base64.
#[derive(Serialize, Deserialize)]
struct Place {
    id: ProfileId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ms: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

fn write_place(after: &After) -> String {
    let place =
        Place { id: after.id, ms: after.last_seen.map(|at| at.timestamp_millis()), name: after.name.clone() };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&place).unwrap_or_default())
}

fn read_place(text: &str, sort: Sort) -> Option<After> {
    let place: Option<Place> =
        URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    // A place of a list in another order is none in this one.
    let place = place.filter(|place| match sort {
        Sort::LastSeen => place.ms.is_some(),
        Sort::Name => place.name.as_ref().is_some_and(|name| !name.contains('\0')),
        _ => true,
    });
    place.map(|place| After { id: place.id, last_seen: place.ms.map(from_ms), name: place.name })
}

/// Which part of a timeline.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TimelineQuery {
    /// The `next` of the page before
    before: Option<String>,
    /// 1 to 100, 20 unless given
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
}

/// A page of a customer's events, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct TimelinePage {
    /// The events, as Customer360 lists them.
    #[schema(value_type = Vec<std::collections::BTreeMap<String, Value>>)]
    events: Vec<Value>,
    /// Where the next page begins; null after the last.
    next: Option<String>,
}

/// A customer's events, newest first, a page at a time.
#[utoipa::path(get, path = "/api/customers/{id}/timeline", tag = "Customers", security(("secret_key" = [])),
    params(("id" = String, Path), TimelineQuery), responses((status = 200, body = TimelinePage), TimelineErrors))]
pub async fn timeline(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
    QueryOf(query): QueryOf<TimelineQuery>,
) -> Result<Json<TimelinePage>, ApiError> {
    let parsed = customer_id(&id)?;
    let asked = PageAsked::of("before", query.before.as_deref(), query.limit, |text| {
        let (ms, message): (i64, String) =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        Some(EventKey { timestamp: from_ms(ms), message_id: message.replace('\0', "") })
    })?;
    let found =
        customer_search::timeline(&state.context, secret.brand, parsed, asked.cursor.as_ref(), asked.limit)
            .await?;
    let page = found.ok_or_else(|| nobody(&id))?;
    state.looked(&secret, "timeline_read", Some(parsed)).await?;
    let next = page.next.map(|key| {
        let place = (key.timestamp.timestamp_millis(), key.message_id);
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&place).unwrap_or_default())
    });
    Ok(Json(TimelinePage { events: page.events, next }))
}

/// How a customer's profile came to be.
#[derive(Debug, Serialize, ToSchema)]
pub struct IdentityHistory {
    /// The merges, newest first, also those that were undone.
    merges: Vec<MergeEntry>,
}

/// The merges that made a customer, newest first.
#[utoipa::path(get, path = "/api/customers/{id}/identity", tag = "Identity", security(("secret_key" = [])),
    params(("id" = String, Path)), responses((status = 200, body = IdentityHistory), ReadErrors))]
pub async fn history(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
) -> Result<Json<IdentityHistory>, ApiError> {
    let parsed = customer_id(&id)?;
    let merges = identity::history(&state.context, secret.brand, parsed).await?.ok_or_else(|| nobody(&id))?;
    Ok(Json(IdentityHistory { merges }))
}

/// What merging two customers would make; changes nothing.
#[utoipa::path(get, path = "/api/customers/{id}/merge/{other}", tag = "Identity", security(("secret_key" = [])),
    params(("id" = String, Path), ("other" = String, Path)), responses((status = 200, body = Preview), ChangeErrors))]
pub async fn preview(
    State(state): State<AppState>,
    Path((id, other)): Path<(String, String)>,
    secret: Secret,
) -> Result<Json<Preview>, ApiError> {
    let (a, b) = (customer_id(&id)?, customer_id(&other)?);
    Ok(Json(identity::preview(&state.context, secret.brand, a, b).await?))
}

/// What a merge came to.
#[derive(Debug, Serialize, ToSchema)]
pub struct Merged {
    /// The customer who is both now: the older profile.
    id: ProfileId,
    /// The merge, by which it can be undone.
    merge: Uuid,
}

/// Makes one customer of two, whatever the limits say.
#[utoipa::path(post, path = "/api/customers/{id}/merge/{other}", tag = "Identity", security(("secret_key" = [])),
    params(("id" = String, Path), ("other" = String, Path)), responses((status = 200, body = Merged), ChangeErrors))]
pub async fn merge(
    State(state): State<AppState>,
    Path((id, other)): Path<(String, String)>,
    secret: Secret,
) -> Result<Json<Merged>, ApiError> {
    let (a, b) = (customer_id(&id)?, customer_id(&other)?);
    let (id, merge) = identity::merge_two(&state.context, secret.brand, a, b, &secret.actor).await?;
    Ok(Json(Merged { id, merge }))
}

/// Undoes a merge: what moved goes back, and the two are kept apart from then on.
#[utoipa::path(post, path = "/api/merges/{merge}/split", tag = "Identity", security(("secret_key" = [])),
    params(("merge" = String, Path, description = "The merge's id, from the history of identity")),
    responses((status = 200, body = Split), ChangeErrors))]
pub async fn split(
    State(state): State<AppState>,
    Path(merge): Path<String>,
    secret: Secret,
) -> Result<Json<Split>, ApiError> {
    let unknown = || ApiError::not_found(format!("there is no merge {merge:?}; a merge's id is a UUID"));
    let id = Uuid::try_parse(&merge).map_err(|_| unknown())?;
    Ok(Json(identity::split(&state.context, secret.brand, id, &secret.actor).await?))
}

fn nobody(id: &str) -> ApiError {
    ApiError::not_found(format!("there is no customer {id:?}; a customer's id is a UUID"))
}

pub(super) fn customer_id(id: &str) -> Result<ProfileId, ApiError> {
    ProfileId::parse(id).ok_or_else(|| nobody(id))
}

/// An identifier in its normal form, by the brand's rules; `None` when it cannot identify anybody.
pub(super) async fn identifier(
    state: &AppState,
    brand: BrandId,
    kind: &str,
    value: &str,
) -> Result<Option<Identifier>, ApiError> {
    let known = IdentifierKind::parse(kind).ok_or_else(|| {
        let kinds = IdentifierKind::ALL.map(IdentifierKind::as_str).join(", ");
        ApiError::bad_request("unknown_kind", format!("{kind:?} is no kind of identifier; there are {kinds}"))
    })?;
    // While the store is unavailable the usual rules serve: what is cached can be answered.
    let rules = state.context.brand_cache.rules(brand).await.unwrap_or_default();
    Ok(rules.identifier(known, value))
}

/// The same, for what must not go by other rules than the brand's.
pub(super) async fn identifier_strictly(
    state: &AppState,
    brand: BrandId,
    kind: &str,
    value: &str,
) -> Result<Option<Identifier>, ApiError> {
    state.context.brand_cache.rules(brand).await?;
    identifier(state, brand, kind, value).await
}
