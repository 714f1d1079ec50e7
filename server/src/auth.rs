//! Who asks: the API key of a request, from Basic, Bearer or the body, what it may do, and how often.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use moka::sync::Cache;
use tributary_core::domain::event::Source;
use tributary_core::domain::ids::BrandId;
use tributary_core::domain::scopes::{Scope, Scopes};
use tributary_core::domain::time::Timestamp;
use tributary_core::ports::brands::{BrandPorts, KeyGrant, KeyKind, Shop, key_id};
use tributary_core::ports::world::World;
use tributary_core::remembered::Remembered;
use tributary_core::sampled::Sampled;
use tributary_core::services::keys::{Maker, hash};

use crate::bucket::Bucket;
use crate::error::ApiError;
use crate::refusals;

/// How long a key that was found is believed without asking the store: a key that is revoked works no longer than that.
const KEY_TTL: Duration = Duration::from_secs(5);
/// How often the store is told when keys were last used.
pub const USED_EVERY: Duration = Duration::from_secs(30);
/// How long a shop that was found is believed: its secret may rotate.
const SHOP_TTL: Duration = Duration::from_secs(5);
/// How long a key is refused without asking the store that it did not know.
const UNKNOWN_TTL: Duration = Duration::from_secs(1);
/// Keys that the store does not know, a second, that one address may try: each of them costs a statement.
const UNKNOWN_LIMIT: NonZeroU32 = NonZeroU32::new(50).unwrap();
/// Most keys, and shops, remembered.
const REMEMBERED: u64 = 10_000;

/// Recognises keys and shops, and remembers those it found.
pub struct Keys {
    brand_ports: BrandPorts,
    world: World,
    grants: Remembered<[u8; 32], KeyGrant>,
    shops: Remembered<String, Shop>,
    /// The bucket of each key and shop that has a limit.
    buckets: Cache<[u8; 32], Arc<Bucket>>,
    /// What a write key or a shop may send that has no limit of its own.
    sender_limit: Option<NonZeroU32>,
    /// Keys that the store did not know a moment ago.
    unknown: Remembered<[u8; 32], ()>,
    /// What addresses may try of such keys.
    strangers: Cache<IpAddr, Arc<Bucket>>,
    /// Keys that were used since the store was told.
    used: Mutex<HashMap<[u8; 32], Timestamp>>,
    unknown_said: Sampled,
}

/// Where a request comes from, as far as addresses tell people apart: of IPv6, the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(IpAddr);

impl Peer {
    pub(crate) fn of(parts: &Parts) -> Self {
        let address = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
        Self(match address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)).to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
            short => short,
        })
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Sender {
    pub brand: BrandId,
    /// How far they are believed.
    pub source: Source,
    key: [u8; 32],
    limit: Option<NonZeroU32>,
}

/// Who asks with a secret key that may do what the route does ([`crate::scopes`]): an extractor.
#[derive(Clone, Debug)]
pub struct Secret {
    pub brand: BrandId,
    /// The key, as the audit log names it.
    pub actor: String,
    pub key: String,
    /// All that the key may do.
    pub may: Scopes,
    pub(crate) until: Option<Timestamp>,
    pub(crate) limit: Option<u32>,
}

impl Secret {
    /// The same, for the keys that it makes.
    pub fn maker(&self) -> Maker<'_> {
        Maker {
            actor: &self.actor,
            key: Some(&self.key),
            may: self.may,
            until: self.until,
            limit: self.limit,
        }
    }
}

impl Keys {
    /// Asks `brand_ports`. A write key or a shop without a limit of its own has `sender_limit`.
    pub fn new(brand_ports: BrandPorts, world: World, sender_limit: Option<NonZeroU32>) -> Self {
        Self {
            brand_ports,
            sender_limit,
            unknown: Remembered::new(world.clone(), REMEMBERED),
            strangers: Cache::new(REMEMBERED),
            unknown_said: Sampled::new(),
            buckets: Cache::new(REMEMBERED),
            used: Mutex::default(),
            grants: Remembered::new(world.clone(), REMEMBERED),
            shops: Remembered::new(world.clone(), REMEMBERED),
            world,
        }
    }

    /// What this key may do, if it is of the kind.
    ///
    /// # Errors
    /// 401 for no or an unknown key or one that has ended, 403 for one of the other kind, 429 for one that comes too often,
    /// 503 when the store is unavailable.
    pub async fn grant_of(&self, key: Option<&str>, kind: KeyKind, from: Peer) -> Result<KeyGrant, ApiError> {
        let (hash, grant) = self.found(key, kind, from).await?;
        if grant.kind == kind {
            if let Some(limit) = grant.rate_limit.and_then(NonZeroU32::new) {
                self.charge_bucket(hash, limit, 1, "requests")?;
            }
            self.note_used(hash);
            return Ok(grant);
        }
        let (have, need) = (grant.kind.as_str(), kind.as_str());
        Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "wrong_key",
            format!("this is a {have} key; a {need} key is needed"),
        ))
    }

    /// Who sends events with this key. What they send has to be charged ([`Keys::charge`]).
    ///
    /// # Errors
    /// As [`Keys::grant_of`]; 403 for a secret key without the scope `write`.
    pub async fn sender(&self, key: Option<&str>, from: Peer) -> Result<Sender, ApiError> {
        let (hash, grant) = self.found(key, KeyKind::Write, from).await?;
        let source = match grant.kind {
            KeyKind::Write => Source::Public,
            KeyKind::Secret if grant.scopes.has(Scope::Write) => Source::Secret,
            KeyKind::Secret => {
                let message = "this secret key may not send events: it has not the scope write";
                return Err(ApiError::new(StatusCode::FORBIDDEN, "wrong_key", message));
            }
        };
        let usual = self.sender_limit.filter(|_| grant.kind == KeyKind::Write);
        let limit = grant.rate_limit.and_then(NonZeroU32::new).or(usual);
        self.note_used(hash);
        Ok(Sender { brand: grant.brand, source, key: hash, limit })
    }

    /// Charges a sender for what [`crate::bucket::cost`] says.
    ///
    /// # Errors
    /// 429 when it has sent more than it may.
    pub fn charge(&self, sender: &Sender, cost: u32) -> Result<(), ApiError> {
        match sender.limit {
            Some(limit) => self.charge_bucket(sender.key, limit, cost, "events"),
            None => Ok(()),
        }
    }

    /// The same of a shop.
    ///
    /// # Errors
    /// 429 when it has sent more than it may.
    pub fn charge_shop(&self, domain: &str, cost: u32) -> Result<(), ApiError> {
        match self.sender_limit {
            Some(limit) => self.charge_bucket(hash(&format!("shop {domain}")), limit, cost, "events"),
            None => Ok(()),
        }
    }

    fn note_used(&self, hash: [u8; 32]) {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(hash, self.world.now());
    }

    async fn found(
        &self,
        key: Option<&str>,
        kind: KeyKind,
        from: Peer,
    ) -> Result<([u8; 32], KeyGrant), ApiError> {
        let Some(key) = key.filter(|key| !key.is_empty()) else {
            let how = match kind {
                KeyKind::Write => {
                    "send the write key as Basic user name, Bearer token, or writeKey in the body"
                }
                KeyKind::Secret => "send the secret key as a header: Authorization: Bearer sk_…",
            };
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, "no_key", how));
        };
        let hash = hash(key);
        let now = self.world.now();
        let unknown =
            || ApiError::new(StatusCode::UNAUTHORIZED, "invalid_key", "unknown, revoked or expired API key");
        let is_new = self.known(&hash).is_none();
        let stranger = || {
            self.strangers.get_with(from.0, || Arc::new(Bucket::new(UNKNOWN_LIMIT, self.world.monotonic())))
        };
        if is_new {
            if self.unknown.fresh(&hash).is_some() {
                self.count_unknown();
                return Err(unknown());
            }
            stranger().room(self.world.monotonic()).map_err(|wait| {
                self.count_unknown();
                ApiError::rate_limited(wait, "too many requests with unknown keys from this address")
            })?;
        }
        match self.grant(&hash).await? {
            None => {
                self.count_unknown();
                self.unknown.put(hash, (), UNKNOWN_TTL, UNKNOWN_TTL);
                // There was room a moment ago; that there is none now is for the next one.
                let _ = stranger().take(self.world.monotonic(), 1);
                Err(unknown())
            }
            Some(grant) => {
                refusals::is_of(grant.brand, || format!("key {}", key_id(&hash)));
                match grant.expires_at.is_some_and(|end| end <= now) {
                    true => Err(unknown()),
                    false => Ok((hash, grant)),
                }
            }
        }
    }

    /// Counts a key that is not known, and says now and then that such come.
    fn count_unknown(&self) {
        metrics::counter!("tributary_unknown_keys_total").increment(1);
        if let Some(times) = self.unknown_said.happened(1) {
            tracing::warn!(
                times,
                "requests with unknown keys arrive; tributary_unknown_keys_total counts them"
            );
        }
    }

    /// The shop of that domain.
    ///
    /// # Errors
    /// 503 when the store is unavailable and the shop is not known from before.
    pub async fn shop(&self, domain: &str) -> Result<Option<Shop>, ApiError> {
        let key = domain.to_owned();
        Ok(self.shops.refreshed(key, SHOP_TTL, self.brand_ports.shops.shop(domain)).await?)
    }

    /// Forgets what it knows of keys: a change of this process' own holds at once.
    pub fn forget_keys(&self) {
        self.grants.forget_all();
        self.unknown.forget_all();
    }

    /// Tells the store when keys were last used.
    pub async fn tell_used(&self) {
        let drained = std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner));
        if drained.is_empty() {
            return;
        }
        let used: Vec<(String, Timestamp)> = drained.iter().map(|(hash, at)| (key_id(hash), *at)).collect();
        if let Err(error) = self.brand_ports.keys.keys_used(&used).await {
            tracing::debug!(%error, "when keys were last used is written later");
            let mut waiting = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            for (hash, at) in drained {
                waiting.entry(hash).or_insert(at);
            }
        }
    }

    /// What is remembered of a key, also of one that has ended.
    pub(crate) fn known(&self, hash: &[u8; 32]) -> Option<KeyGrant> {
        self.grants.kept(hash)
    }

    async fn grant(&self, hash: &[u8; 32]) -> Result<Option<KeyGrant>, ApiError> {
        Ok(self.grants.refreshed(*hash, KEY_TTL, self.brand_ports.keys.key(hash)).await?)
    }

    /// Charges the bucket of a key or a shop.
    fn charge_bucket(&self, of: [u8; 32], limit: NonZeroU32, cost: u32, what: &str) -> Result<(), ApiError> {
        let known = self.buckets.get(&of).filter(|bucket| bucket.per_second() == limit);
        let bucket = known.unwrap_or_else(|| {
            let bucket = Arc::new(Bucket::new(limit, self.world.monotonic()));
            self.buckets.insert(of, bucket.clone());
            bucket
        });
        bucket.take(self.world.monotonic(), cost).map_err(|wait| {
            metrics::counter!("tributary_over_limit_total").increment(1);
            ApiError::rate_limited(wait, &format!("{limit} {what} a second may come"))
        })
    }
}

/// The key in the headers as `Bearer key` alone: how secret keys are sent. Browsers keep Basic, and add it to what any page sends.
pub fn bearer(headers: &HeaderMap) -> Option<String> {
    let (scheme, rest) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| rest.trim().to_owned())
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
    fn a_secret_key_is_a_bearer_token_and_nothing_else() {
        for (value, key) in [("Bearer sk_1", Some("sk_1")), ("Basic c2tfMTo=", None), ("sk_1", None)] {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            assert_eq!(bearer(&headers).as_deref(), key, "{value}");
        }
    }

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
