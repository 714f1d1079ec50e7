//! What routes take out of a request: who asks, from where, and whether they may see what concerns all brands.

use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequest, FromRequestParts, OptionalFromRequestParts, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use tributary_core::ports::brands::{KeyGrant, KeyKind, key_id};
use tributary_core::services::keys::hash;

use crate::auth::{Peer, Secret, bearer};
use crate::body::{self, MAX_BODY_BYTES};
use crate::error::ApiError;
use crate::inside::Inside;
use crate::scopes;
use crate::state::AppState;

impl FromRequestParts<AppState> for Peer {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Self::Rejection> {
        Ok(Self::of(parts))
    }
}

impl FromRequestParts<AppState> for Secret {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let key = bearer(&parts.headers);
        let grant = match state.keys.grant_of(key.as_deref(), KeyKind::Secret, Peer::of(parts)).await {
            Ok(grant) => grant,
            Err(error) => {
                state.refused(key.as_deref(), &error).await?;
                return Err(error);
            }
        };
        let Some(scope) = scopes::of_request(parts) else {
            tracing::error!(method = %parts.method, path = parts.uri.path(), "a route has no scope, and is closed");
            return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "this route is closed"));
        };
        let key = key_id(&hash(&key.unwrap_or_default()));
        let actor = format!("key {key}");
        if !grant.scopes.has(scope) {
            state.looks.count(&state.context, (grant.brand, &actor), "key_refused_scope", None).await?;
            return Err(ApiError::missing_scope(scope.as_str(), grant.scopes));
        }
        let KeyGrant { brand, scopes: may, expires_at: until, rate_limit: limit, .. } = grant;
        Ok(Self { brand, actor, key, may, until, limit })
    }
}

/// For routes that say more to a secret key: without one they answer, too; with one that is no good they do not.
impl OptionalFromRequestParts<AppState> for Secret {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Option<Self>, ApiError> {
        match bearer(&parts.headers) {
            Some(_) => <Self as FromRequestParts<AppState>>::from_request_parts(parts, state).await.map(Some),
            None => Ok(None),
        }
    }
}

impl FromRequestParts<AppState> for Inside {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        match Self::may(parts, state.settings.monitor) {
            true => Ok(Self),
            false => Err(ApiError::new(
                StatusCode::UNAUTHORIZED,
                "no_key",
                "this concerns all brands: ask on the port of --monitor-bind, or with the monitor's key as a Bearer token",
            )),
        }
    }
}

/// For routes that say more to them.
impl OptionalFromRequestParts<AppState> for Inside {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Option<Self>, ApiError> {
        Ok(Self::may(parts, state.settings.monitor).then_some(Self))
    }
}

/// A JSON body of at most [`MAX_BODY_BYTES`], also after unpacking: for routes that take no events.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<AppState> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &AppState) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = body::read(&parts.headers, body, MAX_BODY_BYTES).await?;
        Ok(Self(body::json(&bytes)?))
    }
}

/// The same, where the body may be empty: then everything in it has its usual value.
pub struct OptionalJsonBody<T>(pub T);

impl<T: DeserializeOwned + Default> FromRequest<AppState> for OptionalJsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &AppState) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = body::read(&parts.headers, body, MAX_BODY_BYTES).await?;
        Ok(Self(if bytes.is_empty() { T::default() } else { body::json(&bytes)? }))
    }
}

/// The parameters of an address.
pub struct QueryOf<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<AppState> for QueryOf<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, ApiError> {
        let query = Query::<T>::try_from_uri(&parts.uri);
        let refused =
            |rejection: QueryRejection| ApiError::bad_request("invalid_query", rejection.body_text());
        query.map(|Query(query)| Self(query)).map_err(refused)
    }
}
