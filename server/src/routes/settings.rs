//! A brand's settings and keys, with a secret key.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tributary_core::domain::scopes::{Scope, Scopes};
use tributary_core::domain::settings::BrandSettings;
use tributary_core::domain::time;
use tributary_core::ports::brands::{KeyGrant, KeyKind, KeyRecord, Refusal};
use tributary_core::services::automations::api::{reschedule, segments::refill};
use tributary_core::services::brand_cache::sender_problem;
use tributary_core::services::keys::{self, MAX_KEY_DAYS, MAX_ROTATION_GRACE, ROTATION_GRACE};
use tributary_core::services::privacy::{Action, entry};
use utoipa::{IntoParams, ToSchema};

use crate::auth::Secret;
use crate::codes::{BODY, CODES, SECRET};
use crate::error::ApiError;
use crate::errors;
use crate::extract::{JsonBody, OptionalJsonBody, QueryOf};
use crate::state::AppState;

/// The highest limit of a key, in events or requests a second.
pub const MAX_RATE_LIMIT: u32 = 1_000_000;

errors!(GetErrors: SECRET);
errors!(PutErrors: SECRET, BODY, &["invalid_gzip", "invalid_settings"]);
errors!(NewKeyErrors: SECRET, BODY, &["invalid_gzip", "invalid_settings"]);
errors!(RotateErrors: SECRET, BODY, &["invalid_gzip", "invalid_settings", "not_found"]);
errors!(LimitErrors: SECRET, BODY, &["invalid_gzip", "invalid_settings", "not_found"]);
errors!(KeyErrors: SECRET, &["invalid_query", "not_found"]);

/// The brand's settings, those with their usual values included.
#[utoipa::path(get, path = "/api/settings", tag = "Settings", security(("secret_key" = [])),
    responses((status = 200, body = BrandSettings), GetErrors))]
pub async fn get(State(state): State<AppState>, secret: Secret) -> Result<Json<BrandSettings>, ApiError> {
    Ok(Json(state.context.brand_ports.brands.settings(secret.brand).await?))
}

/// Sets all of the brand's settings: what is left out has its usual value. They hold everywhere within 5 s.
#[utoipa::path(put, path = "/api/settings", tag = "Settings", security(("secret_key" = [])), request_body = BrandSettings,
    responses((status = 200, body = BrandSettings), PutErrors))]
pub async fn put(
    State(state): State<AppState>,
    secret: Secret,
    JsonBody(settings): JsonBody<BrandSettings>,
) -> Result<Json<BrandSettings>, ApiError> {
    set(&state, &secret, settings).await
}

/// Changes some of the brand's settings: what is left out stays, null gives a setting its usual value (JSON Merge Patch, RFC 7396). They
/// hold everywhere within 5 s.
#[utoipa::path(patch, path = "/api/settings", tag = "Settings", security(("secret_key" = [])), request_body = BrandSettings,
    responses((status = 200, body = BrandSettings), PutErrors))]
pub async fn patch(
    State(state): State<AppState>,
    secret: Secret,
    JsonBody(changes): JsonBody<Value>,
) -> Result<Json<BrandSettings>, ApiError> {
    if !changes.is_object() {
        return Err(wrong("the body must be an object of the settings that change".to_owned()));
    }
    let before = state.context.brand_ports.brands.settings(secret.brand).await?;
    let patched = before.patched(changes).map_err(|error| wrong(error.to_string()))?;
    set(&state, &secret, patched).await
}

async fn set(
    state: &AppState,
    secret: &Secret,
    settings: BrandSettings,
) -> Result<Json<BrandSettings>, ApiError> {
    settings.check()?;
    if let Some(wrong) = sender_problem(&state.context.brand_ports, secret.brand, &settings).await? {
        return Err(wrong.into());
    }
    let before = state.context.brand_ports.brands.settings(secret.brand).await?;
    let action = Action { what: "settings", subject: None, details: settings.in_short() };
    let note = entry(&state.context, secret.brand, &secret.actor, action);
    state.context.brand_cache.set(secret.brand, &settings, Some(&note)).await?;
    if before.rfm != settings.rfm {
        refill(&state.context, secret.brand).await?;
    }
    if before.timezone != settings.timezone
        && let Err(error) = reschedule(&state.context, secret.brand).await
    {
        tracing::warn!(%error, "a schedule keeps its old hour once more");
    }
    Ok(Json(settings))
}

/// A key, without its secret text, which is not stored.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyAnswer {
    /// What it is named by.
    id: String,
    kind: KeyKind,
    /// What a secret key may do.
    scopes: Vec<Scope>,
    created_at: String,
    /// When it was last used, to about half a minute; null for never.
    last_used_at: Option<String>,
    /// When it ends, or ended; null for never.
    expires_at: Option<String>,
    /// How many events it may send, or other requests make, a second; null for the usual.
    rate_limit: Option<u32>,
    /// The id of the key that made it; null where the command line did.
    made_by: Option<String>,
}

impl From<KeyRecord> for KeyAnswer {
    fn from(key: KeyRecord) -> Self {
        Self {
            id: key.id,
            kind: key.grant.kind,
            scopes: key.grant.scopes.iter().collect(),
            created_at: time::format(key.created_at),
            last_used_at: key.last_used_at.map(time::format),
            expires_at: key.grant.expires_at.map(time::format),
            rate_limit: key.grant.rate_limit,
            made_by: key.made_by,
        }
    }
}

/// The keys of a brand, without their texts.
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
    let keys = state.context.brand_ports.keys.keys(secret.brand).await?;
    Ok(Json(KeyList { keys: keys.into_iter().map(KeyAnswer::from).collect() }))
}

/// What kind of key.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    kind: KeyKind,
    /// What a secret key may do, of what the key that makes it may; all of that, if absent. A write key has no scopes.
    #[serde(default)]
    scopes: Option<Vec<Scope>>,
    /// How many events it may send, or other requests make, a second, for each server process; the usual, if absent.
    #[serde(default)]
    #[schema(minimum = 1)]
    rate_limit: Option<u32>,
    /// After how many days it ends, 1 to 3650. If absent: a secret key after as many as the operator has set, if any; a write
    /// key never.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 3650)]
    expires_in_days: Option<u32>,
}

/// A key's text, shown only now.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyText {
    /// The text of the key: shown in this answer, and never again.
    key: String,
}

/// Makes a key, which may do no more than the one that makes it. Its text is in the answer, and nowhere else.
#[utoipa::path(post, path = "/api/keys", tag = "Settings", security(("secret_key" = [])), request_body = NewKey,
    responses((status = 201, body = KeyText), NewKeyErrors))]
pub async fn add_key(
    State(state): State<AppState>,
    secret: Secret,
    JsonBody(asked): JsonBody<NewKey>,
) -> Result<(StatusCode, Json<KeyText>), ApiError> {
    check_limit(asked.rate_limit)?;
    let scopes = match (asked.kind, asked.scopes) {
        (KeyKind::Write, Some(scopes)) if !scopes.is_empty() => {
            return Err(wrong("a write key has no scopes: it sends events, and nothing else".to_owned()));
        }
        (KeyKind::Write, _) => Scopes::NONE,
        (KeyKind::Secret, None) => secret.may,
        (KeyKind::Secret, Some(scopes)) => scopes.into_iter().collect(),
    };
    if asked.kind == KeyKind::Secret && scopes.is_empty() {
        return Err(wrong(format!("a secret key needs at least one scope of: {}", Scopes::all())));
    }
    let days = asked.expires_in_days;
    if days.is_some_and(|days| !(1..=MAX_KEY_DAYS).contains(&days)) {
        return Err(wrong(format!("expires_in_days may be 1 to {MAX_KEY_DAYS}")));
    }
    let expires_at = keys::expiry(state.context.world.now(), asked.kind, days, state.settings.key_days);
    let grant = KeyGrant {
        scopes,
        rate_limit: asked.rate_limit,
        expires_at,
        ..KeyGrant::new(secret.brand, asked.kind)
    };
    let key = keys::add_key(&state.context, grant, secret.maker()).await?;
    Ok((StatusCode::CREATED, Json(KeyText { key })))
}

/// Requests and messages of a key or a shop that were refused for one reason.
#[derive(Debug, Serialize, ToSchema)]
pub struct RefusalAnswer {
    /// Who sent them: `key ID` or `shop DOMAIN`.
    source: String,
    /// The code of the answer.
    code: String,
    /// What the code means, in a sentence.
    meaning: &'static str,
    /// How many there have been.
    count: u64,
    /// When the last was.
    last_at: String,
}

/// What was refused of a brand in the last days.
#[derive(Debug, Serialize, ToSchema)]
pub struct RefusalList {
    /// The refusals, the newest first.
    refusals: Vec<RefusalAnswer>,
}

/// Lists what was refused of the brand's keys and shops, with its reason: requests, and messages of batches. Anybody may send with a key that
/// pages show, and name a shop. What is refused is listed within 5 s.
#[utoipa::path(get, path = "/api/refusals", tag = "Settings", security(("secret_key" = [])),
    responses((status = 200, body = RefusalList), GetErrors))]
pub async fn refusals(State(state): State<AppState>, secret: Secret) -> Result<Json<RefusalList>, ApiError> {
    state.refusals.write(&state.context.brand_ports).await;
    let rows = state.context.brand_ports.refusals.refusals(secret.brand).await?;
    let meaning =
        |code: &str| CODES.iter().find(|known| known.name == code).map_or("", |known| known.meaning);
    let answer = |row: Refusal| RefusalAnswer {
        meaning: meaning(&row.code),
        source: row.source,
        code: row.code,
        count: row.count,
        last_at: time::format(time::from_ms(row.last_ms)),
    };
    Ok(Json(RefusalList { refusals: rows.into_iter().map(answer).collect() }))
}

/// For how long the old one stays good.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rotation {
    /// How long the old key stays good, in seconds, at most a week; a day, if absent.
    grace_s: Option<u32>,
}

/// Makes a key like an old one, which ends after a grace.
#[utoipa::path(post, path = "/api/keys/{key}/rotate", tag = "Settings", security(("secret_key" = [])),
    params(("key" = String, Path, description = "The key's id, from the list")), request_body = Option<Rotation>,
    responses((status = 201, body = KeyText), RotateErrors))]
pub async fn rotate(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
    OptionalJsonBody(rotation): OptionalJsonBody<Rotation>,
) -> Result<(StatusCode, Json<KeyText>), ApiError> {
    let lives = (rotation.grace()?, state.settings.key_days);
    let key = keys::rotate_key(&state.context, secret.brand, &id, lives, secret.maker()).await?;
    state.keys.forget_keys();
    Ok((StatusCode::CREATED, Json(KeyText { key })))
}

impl Rotation {
    /// The grace that a body asks for, or the usual one.
    pub(super) fn grace(&self) -> Result<Duration, ApiError> {
        let grace = self.grace_s.map_or(ROTATION_GRACE, |seconds| Duration::from_secs(seconds.into()));
        if grace > MAX_ROTATION_GRACE {
            let (asked, most) = (grace.as_secs(), MAX_ROTATION_GRACE.as_secs());
            return Err(wrong(format!("grace_s is {asked}; it may be 0 to {most}")));
        }
        Ok(grace)
    }
}

/// How many requests or events a key may send.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyLimit {
    /// Requests a second, for each server process; null for any number.
    #[schema(minimum = 1)]
    rate_limit: Option<u32>,
}

/// Limits how many events a key may send, or other requests make, a second.
#[utoipa::path(put, path = "/api/keys/{key}", tag = "Settings", security(("secret_key" = [])), params(("key" = String, Path)),
    request_body = KeyLimit, responses((status = 200, body = KeyLimitSet), LimitErrors))]
pub async fn limit_key(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
    JsonBody(KeyLimit { rate_limit }): JsonBody<KeyLimit>,
) -> Result<Json<KeyLimitSet>, ApiError> {
    check_limit(rate_limit)?;
    let rate_limit = keys::limit_key(&state.context, secret.brand, &id, rate_limit, secret.maker()).await?;
    state.keys.forget_keys();
    Ok(Json(KeyLimitSet { rate_limit }))
}

/// A limit that was set.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyLimitSet {
    rate_limit: Option<u32>,
}

/// Whether keys that this one has made are revoked, too.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Revocation {
    /// Whether every key that it made ends, too, and those that these made. For a key that somebody else may have had
    #[serde(default)]
    cascade: bool,
}

/// A key that was revoked.
#[derive(Debug, Serialize, ToSchema)]
pub struct Revoked {
    /// The id of the key that was revoked.
    revoked: String,
    /// The keys that it made, or those made, and that ended with it.
    also_revoked: Vec<String>,
    /// The keys that it made, or those made, and that still work.
    still_living: Vec<String>,
}

/// Revokes a key: it works no longer than 5 s, on any server. The answer says which of the keys that it made live on.
#[utoipa::path(delete, path = "/api/keys/{key}", tag = "Settings", security(("secret_key" = [])), params(("key" = String, Path), Revocation),
    responses((status = 200, body = Revoked), KeyErrors))]
pub async fn revoke(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
    QueryOf(asked): QueryOf<Revocation>,
) -> Result<Json<Revoked>, ApiError> {
    let ended = keys::revoke_key(&state.context, secret.brand, &id, asked.cascade, secret.maker()).await?;
    state.keys.forget_keys();
    Ok(Json(Revoked { revoked: id, also_revoked: ended.also, still_living: ended.living }))
}

fn check_limit(limit: Option<u32>) -> Result<(), ApiError> {
    match limit {
        Some(limit) if !(1..=MAX_RATE_LIMIT).contains(&limit) => Err(wrong(format!(
            "rate_limit is {limit}; it may be 1 to {MAX_RATE_LIMIT}, or null. Revoke a key to stop it"
        ))),
        _ => Ok(()),
    }
}

fn wrong(message: String) -> ApiError {
    ApiError::bad_request("invalid_settings", message)
}
