//! A brand's settings and keys, with a secret key.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tributary_core::domain::settings::BrandSettings;
use tributary_core::domain::time;
use tributary_core::ports::tenants::{KeyKind, KeyRecord};
use tributary_core::services::automations::admin::{refill, reschedule};
use tributary_core::services::privacy::{Action, note};
use tributary_core::services::tenants::{ROTATION_GRACE, new_key, rotate_key};
use utoipa::ToSchema;

use super::segment::json as read_json;
use crate::auth::Secret;
use crate::body::{self, MAX_BATCH_BYTES};
use crate::codes::{BODY, SECRET};
use crate::error::ApiError;
use crate::errors;
use crate::state::AppState;

/// The highest limit of a key, in requests a second.
pub const MAX_RATE_LIMIT: u32 = 1_000_000;

errors!(GetErrors: SECRET);
errors!(PutErrors: SECRET, BODY, &["invalid_gzip", "invalid_settings"]);
errors!(NewKeyErrors: SECRET, BODY, &["invalid_gzip", "invalid_settings"]);
errors!(RotateErrors: SECRET, BODY, &["invalid_gzip", "not_found"]);
errors!(LimitErrors: SECRET, BODY, &["invalid_gzip", "invalid_settings", "not_found"]);
errors!(KeyErrors: SECRET, &["not_found"]);

/// The brand's settings.
#[utoipa::path(get, path = "/api/settings", tag = "Settings", security(("secret_key" = [])),
    responses((status = 200, body = BrandSettings), GetErrors))]
pub async fn get(State(state): State<AppState>, secret: Secret) -> Result<Json<BrandSettings>, ApiError> {
    Ok(Json(state.context.tenants.settings(secret.brand).await?))
}

/// Sets all of the brand's settings: what is left out has its usual value. They hold everywhere within 5 s.
#[utoipa::path(put, path = "/api/settings", tag = "Settings", security(("secret_key" = [])), request_body = BrandSettings,
    responses((status = 200, body = BrandSettings), PutErrors))]
pub async fn put(
    State(state): State<AppState>,
    secret: Secret,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<BrandSettings>, ApiError> {
    let bytes = body::read(&headers, body, MAX_BATCH_BYTES).await?;
    let settings: BrandSettings = read_json(&bytes)?;
    settings.check()?;
    let before = state.context.tenants.settings(secret.brand).await?;
    state.context.brands.set(secret.brand, &settings).await?;
    if before.rfm != settings.rfm {
        refill(&state.context, secret.brand).await?;
    }
    if before.timezone != settings.timezone
        && let Err(error) = reschedule(&state.context, secret.brand).await
    {
        tracing::warn!(%error, "a schedule keeps its old hour once more");
    }
    let details = settings.in_short();
    note(&state.context, secret.brand, &secret.actor, Action { what: "settings", subject: None, details })
        .await?;
    Ok(Json(settings))
}

/// A key, without its text, which nobody has.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyAnswer {
    /// What it is named by.
    id: String,
    kind: KeyKind,
    created_at: String,
    /// When it was last used, to about half a minute; null for never.
    last_used_at: Option<String>,
    /// When it ends, or ended; null for never.
    expires_at: Option<String>,
    /// How many requests a second it may make; null for any number.
    rate_limit: Option<u32>,
}

impl From<KeyRecord> for KeyAnswer {
    fn from(key: KeyRecord) -> Self {
        Self {
            id: key.id,
            kind: key.grant.kind,
            created_at: time::format(key.created_at),
            last_used_at: key.last_used_at.map(time::format),
            expires_at: key.grant.expires_at.map(time::format),
            rate_limit: key.grant.rate_limit,
        }
    }
}

/// The brand's keys.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyList {
    /// The oldest first, also those that have ended.
    keys: Vec<KeyAnswer>,
}

/// Lists the brand's keys.
#[utoipa::path(get, path = "/api/keys", tag = "Settings", security(("secret_key" = [])),
    responses((status = 200, body = KeyList), GetErrors))]
pub async fn keys(State(state): State<AppState>, secret: Secret) -> Result<Json<KeyList>, ApiError> {
    // What this process knows of their use is told now, so that the list is not behind.
    state.keys.tell_used().await;
    let keys = state.context.tenants.keys(secret.brand).await?;
    Ok(Json(KeyList { keys: keys.into_iter().map(KeyAnswer::from).collect() }))
}

/// What kind of key.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    kind: KeyKind,
    /// How many requests a second it may make, for each server process; any number, if absent.
    #[serde(default)]
    rate_limit: Option<u32>,
}

/// A key's text, shown only now.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyText {
    /// The key.
    key: String,
}

/// Makes a key. Its text is in the answer, and nowhere else.
#[utoipa::path(post, path = "/api/keys", tag = "Settings", security(("secret_key" = [])), request_body = NewKey,
    responses((status = 201, body = KeyText), NewKeyErrors))]
pub async fn add_key(
    State(state): State<AppState>,
    secret: Secret,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<KeyText>), ApiError> {
    let bytes = body::read(&headers, body, MAX_BATCH_BYTES).await?;
    let asked: NewKey = read_json(&bytes)?;
    check_limit(asked.rate_limit)?;
    let tenants = &*state.context.tenants;
    let key = new_key(tenants, secret.brand, asked.kind).await?;
    let id = tributary_core::ports::tenants::key_id(&tributary_core::services::tenants::hash(&key));
    if asked.rate_limit.is_some() {
        tenants.limit_key(secret.brand, &id, asked.rate_limit).await?;
    }
    let details = json!({"key": id, "kind": asked.kind, "rate_limit": asked.rate_limit});
    note(&state.context, secret.brand, &secret.actor, Action { what: "key_added", subject: None, details })
        .await?;
    Ok((StatusCode::CREATED, Json(KeyText { key })))
}

/// How to rotate.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rotation {
    /// How long the old key stays good, in seconds; a day, if absent.
    grace_s: Option<u32>,
}

/// Makes a key like an old one, which ends after a grace.
#[utoipa::path(post, path = "/api/keys/{key}/rotate", tag = "Settings", security(("secret_key" = [])),
    params(("key" = String, Path, description = "The key's id, from the list")), request_body = Rotation,
    responses((status = 201, body = KeyText), RotateErrors))]
pub async fn rotate(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<KeyText>), ApiError> {
    let bytes = body::read(&headers, body, MAX_BATCH_BYTES).await?;
    let rotation: Rotation = if bytes.is_empty() { Rotation::default() } else { read_json(&bytes)? };
    let grace = rotation.grace_s.map_or(ROTATION_GRACE, |seconds| Duration::from_secs(seconds.into()));
    let now = state.context.clock.now();
    let key = rotate_key(&*state.context.tenants, secret.brand, &id, now, grace).await?;
    let key = key.ok_or_else(|| no_key(&id))?;
    state.keys.forget_keys();
    let details = json!({"key": id, "grace_s": grace.as_secs()});
    note(&state.context, secret.brand, &secret.actor, Action { what: "key_rotated", subject: None, details })
        .await?;
    Ok((StatusCode::CREATED, Json(KeyText { key })))
}

/// How often.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyLimit {
    /// Requests a second, for each server process; null for any number.
    rate_limit: Option<u32>,
}

/// Limits how many requests a second a key may make.
#[utoipa::path(put, path = "/api/keys/{key}", tag = "Settings", security(("secret_key" = [])), params(("key" = String, Path)),
    request_body = KeyLimit, responses((status = 200, body = KeyLimitSet), LimitErrors))]
pub async fn limit_key(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<KeyLimitSet>, ApiError> {
    let bytes = body::read(&headers, body, MAX_BATCH_BYTES).await?;
    let KeyLimit { rate_limit } = read_json(&bytes)?;
    check_limit(rate_limit)?;
    if !state.context.tenants.limit_key(secret.brand, &id, rate_limit).await? {
        return Err(no_key(&id));
    }
    state.keys.forget_keys();
    let details = json!({"key": id, "rate_limit": rate_limit});
    note(&state.context, secret.brand, &secret.actor, Action { what: "key_limited", subject: None, details })
        .await?;
    Ok(Json(KeyLimitSet { rate_limit }))
}

/// A limit that was set.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyLimitSet {
    rate_limit: Option<u32>,
}

/// A key that was revoked.
#[derive(Debug, Serialize, ToSchema)]
pub struct Revoked {
    /// Its id.
    revoked: String,
}

/// Revokes a key: it works no longer than 5 s, on any server.
#[utoipa::path(delete, path = "/api/keys/{key}", tag = "Settings", security(("secret_key" = [])), params(("key" = String, Path)),
    responses((status = 200, body = Revoked), KeyErrors))]
pub async fn revoke(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
) -> Result<Json<Revoked>, ApiError> {
    if !state.context.tenants.end_key(secret.brand, &id, state.context.clock.now()).await? {
        return Err(no_key(&id));
    }
    state.keys.forget_keys();
    let details = json!({"key": id});
    note(&state.context, secret.brand, &secret.actor, Action { what: "key_revoked", subject: None, details })
        .await?;
    Ok(Json(Revoked { revoked: id }))
}

fn check_limit(limit: Option<u32>) -> Result<(), ApiError> {
    match limit {
        Some(limit) if !(1..=MAX_RATE_LIMIT).contains(&limit) => {
            let message = format!(
                "rate_limit is {limit}; it may be 1 to {MAX_RATE_LIMIT}, or null. Revoke a key to stop it"
            );
            Err(ApiError::bad_request("invalid_settings", message))
        }
        _ => Ok(()),
    }
}

fn no_key(id: &str) -> ApiError {
    ApiError::not_found(format!("this brand has no key {id:?} that works"))
}
