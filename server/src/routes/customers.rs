//! Customer360: `/api/customers/{id}/360` and `/api/customers/by/{kind}/{value}/360`, with a secret key as Bearer.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use tributary_core::domain::identity::{Identifier, IdentifierKind};
use tributary_core::domain::ids::{BrandId, ProfileId};
use tributary_core::ports::tenants::KeyKind;
use tributary_core::services::customer360::{self, Asked};

use crate::auth;
use crate::error::ApiError;
use crate::state::AppState;

/// The customer of that id, or of a profile merged into theirs.
pub async fn by_id(
    State(state): State<AppState>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let brand = state.keys.brand(auth::from_headers(&headers).as_deref(), KeyKind::Secret).await?;
    let nobody = || ApiError::not_found(format!("there is no customer {id:?}; a customer's id is a UUID"));
    let parsed = ProfileId::parse(&id).ok_or_else(nobody)?;
    answer(&state, brand, &Asked::Id(parsed)).await?.ok_or_else(nobody)
}

/// The customer who has that identifier.
pub async fn by_identifier(
    State(state): State<AppState>,
    Path((kind, value)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let brand = state.keys.brand(auth::from_headers(&headers).as_deref(), KeyKind::Secret).await?;
    let known = IdentifierKind::parse(&kind).ok_or_else(|| {
        let kinds = IdentifierKind::ALL.map(IdentifierKind::as_str).join(", ");
        ApiError::bad_request("unknown_kind", format!("{kind:?} is no kind of identifier; there are {kinds}"))
    })?;
    let nobody = || ApiError::not_found(format!("no customer has the {kind} {value:?}"));
    let identifier = Identifier::new(known, &value).ok_or_else(nobody)?;
    answer(&state, brand, &Asked::Identifier(identifier)).await?.ok_or_else(nobody)
}

async fn answer(state: &AppState, brand: BrandId, asked: &Asked) -> Result<Option<Response>, ApiError> {
    let found = customer360::answer(&state.context, state.settings.cache_ttl, brand, asked).await?;
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
