//! Answering for a customer: from the cache, from the store, and when the store is away from the last known copy.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::context::Context;
use crate::domain::customer360::Customer360;
use crate::domain::identity::Identifier;
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::time::from_ms;
use crate::ports::cache::{Cache, CacheError, INVALIDATION_MARK};
use crate::ports::store::{StoreError, SuppressionKey};

/// How long an answer is kept, unless set otherwise.
pub const DEFAULT_TTL: Duration = Duration::from_secs(5 * 60);
/// Keys that are dropped in one call.
const KEYS_AT_ONCE: usize = 1000;
/// How long the last known copy is kept for the time that the store is away.
const LAST_COPY_TTL: Duration = Duration::from_secs(60 * 60);
/// A read of the store that takes longer is given up: less than [`INVALIDATION_MARK`], or an old answer could be cached
/// over a newer invalidation.
const READ_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a question waits for the cache before it is put to the store. A Redis that flushes each write (`appendfsync always`)
/// answers nobody while it flushes; the store does meanwhile.
const CACHE_PATIENCE: Duration = Duration::from_millis(4);
const _: () = assert!(READ_TIMEOUT.as_millis() < INVALIDATION_MARK.as_millis());

/// Whom the question is about.
#[derive(Clone, Debug)]
pub enum Asked {
    /// A profile, by its id or that of a profile merged into it.
    Id(ProfileId),
    /// Whoever has this identifier.
    Identifier(Identifier),
}

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// The cache.
    Hit,
    /// The store.
    Miss,
    /// The last known copy: the store is away.
    Stale,
}

impl Freshness {
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

/// The key of what a question leads to. A merge makes no entry wrong: a profile that was merged away leads on. A split drops
/// those that it makes wrong.
fn way_key(key: &SuppressionKey, brand: BrandId, asked: &Asked) -> String {
    match asked {
        Asked::Id(id) => format!("{brand}:c360-way:id:{id}"),
        // Hashed: a key stays for some seconds after an erasure, and says nothing of the person then.
        Asked::Identifier(i) => {
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
/// When the cache is away.
pub(crate) async fn forget(
    context: &Context,
    brand: BrandId,
    ids: &[ProfileId],
    identifiers: &[Identifier],
) -> Result<(), CacheError> {
    let mut keys = ways(&context.suppression, brand, ids, identifiers);
    for id in ids {
        context.cache.replace(&gone_key(brand, *id), Bytes::from_static(b"1"), LAST_COPY_TTL).await?;
        keys.extend([answer_key(brand, *id), last_copy_key(brand, *id)]);
    }
    for keys in keys.chunks(KEYS_AT_ONCE) {
        context.cache.invalidate(keys).await?;
    }
    Ok(())
}

/// The keys of what may lead to these profiles, or from these identifiers.
pub(crate) fn ways(
    key: &SuppressionKey,
    brand: BrandId,
    ids: &[ProfileId],
    identifiers: &[Identifier],
) -> Vec<String> {
    let by_id = ids.iter().map(|id| way_key(key, brand, &Asked::Id(*id)));
    by_id.chain(identifiers.iter().map(|i| way_key(key, brand, &Asked::Identifier(i.clone())))).collect()
}

/// The answer, as JSON; `None` when nobody of this brand is meant.
///
/// # Errors
/// When the store is away and there is no copy, or it refuses.
pub async fn answer(
    context: &Context,
    ttl: Duration,
    brand: BrandId,
    asked: &Asked,
) -> Result<Option<(Bytes, Freshness)>, StoreError> {
    let way = match tokio::time::timeout(CACHE_PATIENCE, look_up(context, brand, asked)).await {
        Ok(LookUp::Answer(held)) => return Ok(Some((held, Freshness::Hit))),
        Ok(LookUp::Way(way)) => way,
        Err(_) => None,
    };
    let deadline = tokio::time::Instant::now() + READ_TIMEOUT;
    match tokio::time::timeout_at(deadline, read(context, brand, asked, way)).await {
        Ok(Ok(Some(found))) => {
            let json =
                Bytes::from(serde_json::to_vec(&found).map_err(|e| StoreError::Invalid(e.to_string()))?);
            let leads_on = !matches!(asked, Asked::Id(own) if *own == found.id);
            // Only if it was found just now, so that no way is handed on for ever.
            let way = (leads_on && way.is_none()).then(|| way_key(&context.suppression, brand, asked));
            let kept = remember(context.cache.clone(), ttl, brand, found.id, json.clone(), way);
            // Beside the answer, which need not wait for it; and under the same deadline: an answer that is put late could lie over a
            // newer invalidation.
            tokio::spawn(tokio::time::timeout_at(deadline, kept));
            Ok(Some((json, Freshness::Miss)))
        }
        Ok(Ok(None)) => Ok(None),
        Ok(Err(error @ StoreError::Invalid(_))) => Err(error),
        Ok(Err(away)) => last_copy(context, brand, asked, way).await.ok_or(away).map(Some),
        Err(_) => {
            let away = StoreError::Unavailable(format!("no answer in {} s", READ_TIMEOUT.as_secs()));
            last_copy(context, brand, asked, way).await.ok_or(away).map(Some)
        }
    }
}

/// What the cache knows of a question.
enum LookUp {
    Answer(Bytes),
    /// The profile that it led to before, if any.
    Way(Option<ProfileId>),
}

async fn look_up(context: &Context, brand: BrandId, asked: &Asked) -> LookUp {
    if let Asked::Id(id) = asked
        && let Some(held) = cached(context, &answer_key(brand, *id)).await
    {
        return LookUp::Answer(held);
    }
    let way = known_way(context, brand, asked).await;
    if let Some(id) = way
        && let Some(held) = cached(context, &answer_key(brand, id)).await
    {
        return LookUp::Answer(held);
    }
    LookUp::Way(way)
}

/// The profile that the question led to before.
async fn known_way(context: &Context, brand: BrandId, asked: &Asked) -> Option<ProfileId> {
    let noted = cached(context, &way_key(&context.suppression, brand, asked)).await?;
    ProfileId::parse(std::str::from_utf8(&noted).ok()?)
}

async fn read(
    context: &Context,
    brand: BrandId,
    asked: &Asked,
    way: Option<ProfileId>,
) -> Result<Option<Customer360>, StoreError> {
    let id = match (way, asked) {
        (Some(id), _) => id,
        (None, Asked::Id(id)) => *id,
        (None, Asked::Identifier(identifier)) => match context.store.owner(brand, identifier).await? {
            Some(id) => id,
            None => return Ok(None),
        },
    };
    let now = from_ms(context.clock.now_ms());
    Ok(context.store.customer(brand, id).await?.map(|record| Customer360::of(record, now)))
}

async fn remember(
    cache: Arc<dyn Cache>,
    ttl: Duration,
    brand: BrandId,
    id: ProfileId,
    json: Bytes,
    way: Option<String>,
) {
    let (answer, copy) = (answer_key(brand, id), last_copy_key(brand, id));
    let kept = async move {
        let way_kept = async {
            match &way {
                // Put, so that it cannot lie over a split that was made since it was found.
                Some(way) => cache.put(way, id.to_string().into(), LAST_COPY_TTL).await,
                None => Ok(()),
            }
        };
        tokio::try_join!(
            cache.put(&answer, json.clone(), ttl),
            cache.replace(&copy, json, LAST_COPY_TTL),
            way_kept
        )?;
        // Read before the customer was erased, and written after: it must go again.
        if cache.get(&gone_key(brand, id)).await?.is_some() {
            let keys: Vec<String> = [answer, copy].into_iter().chain(way).collect();
            cache.invalidate(&keys).await?;
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

async fn last_copy(
    context: &Context,
    brand: BrandId,
    asked: &Asked,
    way: Option<ProfileId>,
) -> Option<(Bytes, Freshness)> {
    let id = match (way, asked) {
        (Some(id), _) => id,
        (None, Asked::Id(id)) => *id,
        // The cache may only have been slow before.
        (None, Asked::Identifier(_)) => known_way(context, brand, asked).await?,
    };
    Some((cached(context, &last_copy_key(brand, id)).await?, Freshness::Stale))
}
