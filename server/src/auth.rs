//! Who asks: the API key of a request, from Basic, Bearer or the body, and what it may do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use moka::sync::Cache;
use tributary_core::domain::ids::BrandId;
use tributary_core::ports::store::StoreError;
use tributary_core::ports::tenants::{KeyGrant, KeyKind, Shop, Tenants};
use tributary_core::services::tenants::hash;

use crate::error::ApiError;

/// How long a key that was found is believed without asking the store.
const KEY_TTL: Duration = Duration::from_secs(30);
/// How long a shop that was found is believed: its secret may rotate.
const SHOP_TTL: Duration = Duration::from_secs(5);
/// How long either is believed while the store is away.
const OUTAGE_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// How long the store may take to refresh what is remembered.
const REFRESH_PATIENCE: Duration = Duration::from_millis(500);
/// How long after it did not answer it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Most keys, and shops, remembered.
const REMEMBERED: u64 = 10_000;

/// Recognises keys and shops, and remembers those it found.
pub struct Keys {
    tenants: Arc<dyn Tenants>,
    grants: Cache<[u8; 32], Found<KeyGrant>>,
    shops: Cache<String, Found<Shop>>,
}

/// What the store said, and when.
#[derive(Clone)]
struct Found<T> {
    value: T,
    at: Instant,
}

impl Keys {
    /// Asks `tenants`.
    pub fn new(tenants: Arc<dyn Tenants>) -> Self {
        Self {
            tenants,
            grants: Cache::builder().max_capacity(REMEMBERED).time_to_live(OUTAGE_TTL).build(),
            shops: Cache::builder().max_capacity(REMEMBERED).time_to_live(OUTAGE_TTL).build(),
        }
    }

    /// The brand whose key this is, if it is of the kind.
    ///
    /// # Errors
    /// 401 for no or an unknown key, 403 for one of the other kind, 503 when the store is away.
    pub async fn brand(&self, key: Option<&str>, kind: KeyKind) -> Result<BrandId, ApiError> {
        let Some(key) = key.filter(|key| !key.is_empty()) else {
            let how = match kind {
                KeyKind::Write => {
                    "send the write key as Basic user name, Bearer token, or writeKey in the body"
                }
                KeyKind::Secret => "send the secret key as a header: Authorization: Bearer sk_…",
            };
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, "no_key", how));
        };
        let grant = self.grant(key).await?.ok_or_else(|| {
            ApiError::new(StatusCode::UNAUTHORIZED, "invalid_key", "this key is not known here")
        })?;
        if grant.kind == kind {
            return Ok(grant.brand);
        }
        let (have, need) = (grant.kind.as_str(), kind.as_str());
        Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "wrong_key",
            format!("this is a {have} key; a {need} key is needed"),
        ))
    }

    /// The shop of that domain.
    ///
    /// # Errors
    /// 503 when the store is away and the shop is not known from before.
    pub async fn shop(&self, domain: &str) -> Result<Option<Shop>, ApiError> {
        let key = domain.to_owned();
        remembered(&self.shops, key, SHOP_TTL, self.tenants.shop(domain)).await
    }

    async fn grant(&self, key: &str) -> Result<Option<KeyGrant>, ApiError> {
        let hash = hash(key);
        remembered(&self.grants, hash, KEY_TTL, self.tenants.key(&hash)).await
    }
}

/// What was found under `key`, if that is younger than `ttl`; else what `ask` finds now. While the store is away, what was
/// found before stays good. What is not found is asked for every time, so that a new key works at once.
async fn remembered<K, T>(
    cache: &Cache<K, Found<T>>,
    key: K,
    ttl: Duration,
    ask: impl Future<Output = Result<Option<T>, StoreError>>,
) -> Result<Option<T>, ApiError>
where
    K: std::hash::Hash + Eq + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    let held = cache.get(&key);
    if let Some(held) = held.as_ref().filter(|held| held.at.elapsed() < ttl) {
        return Ok(Some(held.value.clone()));
    }
    // With a copy in hand nobody waits long: a store that is away may take its time to say so.
    let asked = match &held {
        Some(_) => tokio::time::timeout(REFRESH_PATIENCE, ask).await.unwrap_or_else(|_| {
            Err(StoreError::Unavailable(format!("no answer in {} ms", REFRESH_PATIENCE.as_millis())))
        }),
        None => ask.await,
    };
    match (asked, held) {
        (Ok(Some(value)), _) => {
            cache.insert(key, Found { value: value.clone(), at: Instant::now() });
            Ok(Some(value))
        }
        (Ok(None), _) => {
            cache.invalidate(&key);
            Ok(None)
        }
        (Err(StoreError::Unavailable(_)), Some(held)) => {
            // Believed for a while without asking again.
            let at = Instant::now().checked_sub(ttl.saturating_sub(ASK_AGAIN)).unwrap_or(held.at);
            cache.insert(key, Found { value: held.value.clone(), at });
            Ok(Some(held.value))
        }
        (Err(error), _) => Err(error.into()),
    }
}

/// The key in the headers: `Bearer key`, or `Basic` with the key as user name, with or without the colon.
pub fn from_headers(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim();
    let (scheme, rest) = value.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(rest).ok()?).ok()?;
    let user = decoded.split(':').next().unwrap_or_default();
    (!user.is_empty()).then(|| user.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_however_it_is_sent() {
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        let cases = [
            (basic("wk_1:"), Some("wk_1")),
            (basic("wk_1"), Some("wk_1")),
            (basic("wk_1:ignored"), Some("wk_1")),
            ("bearer  wk_1".to_owned(), Some("wk_1")),
            ("Basic %%%".to_owned(), None),
            ("Digest wk_1".to_owned(), None),
        ];
        for (value, key) in cases {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            assert_eq!(from_headers(&headers).as_deref(), key, "{value}");
        }
    }
}
