//! Making and recognising API keys.

use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::context::Context;
use crate::domain::ids::BrandId;
use crate::domain::scopes::Scopes;
use crate::domain::time::{self, Timestamp};
use crate::ports::brands::{BrandPorts, Ended, KeyGrant, KeyKind, KeyRecord, NewKey, key_id};
use crate::ports::store::StoreError;
use crate::ports::world::World;
use crate::services::privacy::{Action, entry};

/// Random bytes in a key: 160 bits, too many to guess, so a plain hash protects them.
const KEY_BYTES: usize = 20;
/// How long the old key stays good after a rotation, unless told otherwise.
pub const ROTATION_GRACE: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest grace of a rotation: a key is rotated because somebody else may have it.
pub const MAX_ROTATION_GRACE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// The longest life of a key that ends by itself, in days.
pub const MAX_KEY_DAYS: u32 = 3650;

/// When a key ends that is made now: after `days`, or else a secret key after the `usual` ones; `None` for never, and for beyond what a
/// time can say.
pub fn expiry(now: Timestamp, kind: KeyKind, days: Option<u32>, usual: Option<u32>) -> Option<Timestamp> {
    let days = days.or(usual.filter(|_| kind == KeyKind::Secret))?;
    now.checked_add_signed(chrono::TimeDelta::try_days(i64::from(days))?)
}

/// Who makes, rotates or revokes a key.
#[derive(Clone, Copy, Debug)]
pub struct Maker<'a> {
    /// As the audit log names them.
    pub actor: &'a str,
    /// The id of their key; `None` for the command line.
    pub key: Option<&'a str>,
    /// What they may do: no key that they make may do more, and none that may do more is theirs to end.
    pub may: Scopes,
    /// When their key ends, if it does: none that they make ends later.
    pub until: Option<Timestamp>,
    /// How often a second their key may ask, where it has a limit: no secret key that they make may ask more often.
    pub limit: Option<u32>,
}

impl Maker<'_> {
    /// Whether they may do all of that themselves.
    fn covers(&self, scopes: Scopes) -> Result<(), KeyError> {
        let lacking = self.may.lacking(scopes);
        if lacking.is_empty() { Ok(()) } else { Err(KeyError::TooMuch(lacking)) }
    }

    /// The limit of a key of that kind, where this one is asked for.
    fn limited(&self, kind: KeyKind, asked: Option<u32>) -> Option<u32> {
        if kind == KeyKind::Secret { least(asked, self.limit) } else { asked }
    }
}

/// The smaller of two bounds, of which none is none.
fn least<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Why a key was not made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KeyError {
    /// The brand has no such key that works.
    #[error("this brand has no key {0:?} that works")]
    Unknown(String),
    /// Whoever asks may not do these things, and so no key of theirs may.
    #[error("the key would be allowed what this key is not: {0}")]
    TooMuch(Scopes),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes a key of a kind that may do all that such a key can, and answers its text. For set-ups: nobody is noted.
///
/// # Errors
/// The store's own.
pub async fn new_key(
    brand_ports: &BrandPorts,
    world: &World,
    brand: BrandId,
    kind: KeyKind,
) -> Result<String, StoreError> {
    let text = random(world, kind);
    let key = NewKey { hash: &hash(&text), grant: KeyGrant::new(brand, kind), made_by: None, replaces: None };
    brand_ports.keys.add_key(&key, Timestamp::UNIX_EPOCH, None).await?;
    Ok(text)
}

/// Makes a key, stores its hash, and answers the key itself: the only time that anyone sees it. It ends no later than its maker's, and
/// may ask no more often.
///
/// # Errors
/// [`KeyError::TooMuch`] where it would be allowed more than its maker.
pub async fn add_key(context: &Context, grant: KeyGrant, maker: Maker<'_>) -> Result<String, KeyError> {
    make(context, grant, maker, None).await
}

/// Makes a key like an old one, which ends after `grace`. The new one ends by itself as [`expiry`] says, after the `usual` days.
///
/// # Errors
/// [`KeyError::Unknown`] where the brand has no such key, or it has ended; [`KeyError::TooMuch`] where it may do more than
/// whoever asks.
pub async fn rotate_key(
    context: &Context,
    brand: BrandId,
    id: &str,
    (grace, usual): (Duration, Option<u32>),
    maker: Maker<'_>,
) -> Result<String, KeyError> {
    let now = context.world.now();
    let works = |key: &KeyRecord| key.id == id && key.grant.expires_at.is_none_or(|end| end > now);
    let old = context.brand_ports.keys.keys(brand).await?.into_iter().find(works);
    let old = old.ok_or_else(|| KeyError::Unknown(id.to_owned()))?;
    let expires_at = expiry(now, old.grant.kind, None, usual);
    make(context, KeyGrant { expires_at, ..old.grant }, maker, Some((id, grace))).await
}

/// Ends a key, and with `cascade` every key that goes back to it. Answers which ended besides, and which of these live on.
///
/// # Errors
/// [`KeyError::Unknown`] where the brand has no such key; [`KeyError::TooMuch`] where it may do more than whoever asks.
pub async fn revoke_key(
    context: &Context,
    brand: BrandId,
    id: &str,
    cascade: bool,
    maker: Maker<'_>,
) -> Result<Ended, KeyError> {
    within(context, brand, id, maker).await?;
    let details = json!({"key": id, "cascade": cascade});
    let note = entry(context, brand, maker.actor, Action { what: "key_revoked", subject: None, details });
    let ended =
        context.brand_ports.keys.revoke_key(brand, id, context.world.now(), cascade, Some(&note)).await?;
    ended.ok_or_else(|| KeyError::Unknown(id.to_owned()))
}

/// Limits how many events a second a key may send, or other requests make, or lifts the limit, as far as whoever asks has none. Answers
/// the limit.
///
/// # Errors
/// [`KeyError::Unknown`] where the brand has no such key; [`KeyError::TooMuch`] where it may do more than whoever asks.
pub async fn limit_key(
    context: &Context,
    brand: BrandId,
    id: &str,
    limit: Option<u32>,
    maker: Maker<'_>,
) -> Result<Option<u32>, KeyError> {
    let kind = within(context, brand, id, maker).await?;
    let limit = maker.limited(kind, limit);
    let details = json!({"key": id, "rate_limit": limit});
    let note = entry(context, brand, maker.actor, Action { what: "key_limited", subject: None, details });
    match context.brand_ports.keys.limit_key(brand, id, limit, Some(&note)).await? {
        true => Ok(limit),
        false => Err(KeyError::Unknown(id.to_owned())),
    }
}

/// The kind of a key that may do no more than whoever asks.
async fn within(context: &Context, brand: BrandId, id: &str, maker: Maker<'_>) -> Result<KeyKind, KeyError> {
    let key = context.brand_ports.keys.keys(brand).await?.into_iter().find(|key| key.id == id);
    let KeyGrant { kind, scopes, .. } = key.ok_or_else(|| KeyError::Unknown(id.to_owned()))?.grant;
    maker.covers(scopes)?;
    Ok(kind)
}

async fn make(
    context: &Context,
    grant: KeyGrant,
    maker: Maker<'_>,
    replaces: Option<(&str, Duration)>,
) -> Result<String, KeyError> {
    maker.covers(grant.scopes)?;
    let grant = KeyGrant {
        expires_at: least(grant.expires_at, maker.until),
        rate_limit: maker.limited(grant.kind, grant.rate_limit),
        ..grant
    };
    let now = context.world.now();
    let text = random(&context.world, grant.kind);
    let hash = hash(&text);
    let mut details = json!({
        "key": key_id(&hash), "kind": grant.kind, "scopes": grant.scopes.to_string(), "rate_limit": grant.rate_limit,
        "expires_at": grant.expires_at.map(time::format),
    });
    let what = match replaces {
        None => "key_added",
        Some((old, grace)) => {
            details["replaces"] = old.into();
            details["grace_s"] = grace.as_secs().into();
            "key_rotated"
        }
    };
    let note = entry(context, grant.brand, maker.actor, Action { what, subject: None, details });
    let replaces = replaces.map(|(old, grace)| (old, now + grace.min(MAX_ROTATION_GRACE)));
    let key = NewKey { hash: &hash, grant, made_by: maker.key, replaces };
    match context.brand_ports.keys.add_key(&key, now, Some(&note)).await? {
        true => Ok(text),
        false => Err(KeyError::Unknown(
            replaces.map_or(maker.key, |(old, _)| Some(old)).unwrap_or_default().to_owned(),
        )),
    }
}

fn random(world: &World, kind: KeyKind) -> String {
    let random = world.bytes::<KEY_BYTES>();
    let prefix = match kind {
        KeyKind::Write => "wk_",
        KeyKind::Secret => "sk_",
    };
    format!("{prefix}{}", hex::encode(random))
}

/// What is stored of a key.
pub fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}
