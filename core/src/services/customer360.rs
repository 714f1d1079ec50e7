//! Answering for a customer: from the cache, from the store, and when the store is unavailable from the last known copy.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::context::Context;
pub use crate::domain::customer360::CustomerRef;
use crate::domain::customer360::{Customer360, Revision};
use crate::domain::identity::Identifier;
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::time::from_ms;
use crate::ports::cache::{Cache, CacheError};
use crate::ports::fault::Fault;
use crate::ports::store::{StoreError, SuppressionKey};

/// How long an answer is kept, unless set otherwise.
pub const DEFAULT_TTL: Duration = Duration::from_secs(5 * 60);
/// Keys that are dropped in one call.
const KEYS_AT_ONCE: usize = 1000;
/// How long the last known copy is kept for the time that the store is unavailable.
const LAST_COPY_TTL: Duration = Duration::from_secs(60 * 60);
/// A read of the store that takes longer is given up.
const READ_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a question waits for the store before the last known copy is looked for.
const STALE_AFTER: Duration = Duration::from_secs(1);
/// The same, while the store is known to be unavailable.
const STALE_SOON: Duration = Duration::from_millis(50);
/// How long a question waits for the cache before it is put to the store. A Redis that flushes each write (`appendfsync always`)
/// answers nobody while it flushes; the store does meanwhile.
const CACHE_PATIENCE: Duration = Duration::from_millis(4);

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheStatus {
    Hit,
    Miss,
    /// The last known copy: the store is unavailable.
    Stale,
}

impl CacheStatus {
    /// The value of the header `x-cache`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Stale => "stale",
        }
    }
}

/// The key of a profile's cached answer.
pub fn answer_key(brand: BrandId, id: ProfileId) -> String {
    format!("{brand}:c360:{id}")
}

/// The key of a profile's last known copy.
fn last_copy_key(brand: BrandId, id: ProfileId) -> String {
    format!("{brand}:c360-last:{id}")
}

/// The key of what a question led to: asked only while the store is unavailable.
fn alias_key(key: &SuppressionKey, brand: BrandId, asked: &CustomerRef) -> String {
    match asked {
        CustomerRef::Id(id) => format!("{brand}:c360-way:id:{id}"),
        // Hashed: a key stays for some seconds after an erasure, and says nothing of the person then.
        CustomerRef::Identifier(i) => {
            format!("{brand}:c360-way:{}", hex::encode(key.hash(brand, i)))
        }
    }
}

/// The key of the mark that a profile was erased: there for as long as a reader could still write what it read before.
fn gone_key(brand: BrandId, id: ProfileId) -> String {
    format!("{brand}:c360-gone:{id}")
}

/// Forgets everything about customers who were erased.
///
/// # Errors
/// When the cache is unavailable.
pub(crate) async fn forget(
    context: &Context,
    brand: BrandId,
    ids: &[ProfileId],
    identifiers: &[Identifier],
) -> Result<(), CacheError> {
    let mut keys = aliases(&context.suppression, brand, ids, identifiers);
    for id in ids {
        context.cache.put(&gone_key(brand, *id), Bytes::from_static(b"1"), LAST_COPY_TTL).await?;
        keys.extend([answer_key(brand, *id), last_copy_key(brand, *id)]);
    }
    for keys in keys.chunks(KEYS_AT_ONCE) {
        context.cache.remove(keys).await?;
    }
    Ok(())
}

/// The keys of what may lead to these profiles, or from these identifiers.
pub(crate) fn aliases(
    key: &SuppressionKey,
    brand: BrandId,
    ids: &[ProfileId],
    identifiers: &[Identifier],
) -> Vec<String> {
    let by_id = ids.iter().map(|id| alias_key(key, brand, &CustomerRef::Id(*id)));
    by_id
        .chain(identifiers.iter().map(|i| alias_key(key, brand, &CustomerRef::Identifier(i.clone()))))
        .collect()
}

/// The answer, as JSON; `None` when nobody of this brand is meant.
///
/// An answer out of the cache says of which revision of the customer it is, and is given only where the store says that this is the one
/// that is committed. So nothing depends on whether a cached answer was dropped, by a worker that may have died after its commit, or on a
/// cache that has kept what it had.
///
/// # Errors
/// When the store is unavailable and there is no copy, or it refuses.
#[tracing::instrument(name = "customer360", skip_all, fields(brand = brand.0))]
pub async fn answer(
    context: &Context,
    ttl: Duration,
    brand: BrandId,
    asked: &CustomerRef,
) -> Result<Option<(Bytes, CacheStatus)>, StoreError> {
    let began = context.world.monotonic();
    let read = async {
        let Some(now) = context.store.revision(brand, asked).await? else { return Ok(None) };
        if let Some(held) = held(context, brand, &now).await {
            return Ok(Some((held, CacheStatus::Hit)));
        }
        let Some(record) = context.store.customer(brand, now.id).await? else { return Ok(None) };
        // Read after the revision, it is as new or newer: what is kept as of the revision is never older.
        let found = Customer360::of(record, from_ms(context.world.now_ms()));
        let json = serde_json::to_vec(&found).map_err(|error| StoreError::Invalid(error.to_string()))?;
        let json = Bytes::from(json);
        // Merged meanwhile, it is another's.
        if found.id == now.id {
            let leads_on = !matches!(asked, CustomerRef::Id(own) if *own == now.id);
            let alias = leads_on.then(|| alias_key(&context.suppression, brand, asked));
            // Beside the answer, which need not wait for it.
            tokio::spawn(remember(context.cache.clone(), ttl, brand, now, json.clone(), alias));
        }
        Ok(Some((json, CacheStatus::Miss)))
    };
    let mut read = std::pin::pin!(read);
    // Nobody waits long for a store that is unavailable where there is a copy; least of all whoever asks after somebody has found out.
    let is_unavailable = context.store_health.was_unavailable();
    let patience = if is_unavailable { STALE_SOON } else { STALE_AFTER };
    let in_time = context.world.timeout(patience, &mut read).await;
    if in_time.is_err() {
        // Found out by whoever waited long: a store that is only slow must not be taken to be unavailable for good.
        if !is_unavailable {
            context.store_health.note_unavailable();
        }
        if let Some(copy) = last_copy(context, brand, asked).await {
            return Ok(Some(copy));
        }
    }
    let answer = match in_time {
        Ok(answer) => answer,
        Err(_) => {
            let rest = READ_TIMEOUT.saturating_sub(context.world.since(began));
            context
                .world
                .timeout(rest, read)
                .await
                .unwrap_or_else(|_| Err(StoreError::Unavailable(Fault::no_answer(READ_TIMEOUT))))
        }
    };
    match answer {
        Err(error) if !matches!(error, StoreError::Invalid(_)) => {
            context.store_health.note_unavailable();
            last_copy(context, brand, asked).await.ok_or(error).map(Some)
        }
        answer => answer,
    }
}

/// What a cached answer begins with: of which revision it is.
fn stamp(revision: &Revision) -> String {
    let Revision { profile, orders: (count, sum), .. } = revision;
    format!("{profile}.{count}.{sum}\n")
}

/// The cached answer of that very revision, if the cache has it soon enough.
async fn held(context: &Context, brand: BrandId, now: &Revision) -> Option<Bytes> {
    let key = answer_key(brand, now.id);
    let kept = context.world.timeout(CACHE_PATIENCE, cached(context, &key)).await.ok()??;
    let stamp = stamp(now);
    kept.starts_with(stamp.as_bytes()).then(|| kept.slice(stamp.len()..))
}

async fn remember(
    cache: Arc<dyn Cache>,
    ttl: Duration,
    brand: BrandId,
    revision: Revision,
    json: Bytes,
    alias: Option<String>,
) {
    let id = revision.id;
    let (answer, copy) = (answer_key(brand, id), last_copy_key(brand, id));
    let stamped: Bytes = [stamp(&revision).as_bytes(), &json[..]].concat().into();
    let kept = async move {
        let alias_kept = async {
            match &alias {
                Some(alias) => cache.put(alias, id.to_string().into(), LAST_COPY_TTL).await,
                None => Ok(()),
            }
        };
        tokio::try_join!(
            cache.put(&answer, stamped, ttl),
            cache.put(&copy, json, LAST_COPY_TTL),
            alias_kept
        )?;
        // Read before the customer was erased, and written after: it must go again.
        if cache.get(&gone_key(brand, id)).await?.is_some() {
            let keys: Vec<String> = [answer, copy].into_iter().chain(alias).collect();
            cache.remove(&keys).await?;
        }
        Ok::<(), CacheError>(())
    };
    if let Err(error) = kept.await {
        tracing::debug!(%error, "an answer was not cached");
    }
}

async fn cached(context: &Context, key: &str) -> Option<Bytes> {
    context.cache.get(key).await.unwrap_or_else(|error| {
        tracing::debug!(%error, "going on without the cache");
        None
    })
}

/// The last known copy, by the alias that the question had before.
async fn last_copy(context: &Context, brand: BrandId, asked: &CustomerRef) -> Option<(Bytes, CacheStatus)> {
    let alias = cached(context, &alias_key(&context.suppression, brand, asked)).await;
    let led = alias.and_then(|noted| ProfileId::parse(std::str::from_utf8(&noted).ok()?));
    let id = match (led, asked) {
        (Some(id), _) => id,
        (None, CustomerRef::Id(id)) => *id,
        (None, CustomerRef::Identifier(_)) => return None,
    };
    Some((cached(context, &last_copy_key(brand, id)).await?, CacheStatus::Stale))
}
