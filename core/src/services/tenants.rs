//! Making and recognising API keys.

use std::fmt::Write;
use std::time::Duration;

use rand::Rng;
use sha2::{Digest, Sha256};

use crate::domain::ids::BrandId;
use crate::domain::time::Timestamp;
use crate::ports::store::StoreError;
use crate::ports::tenants::{KeyGrant, KeyKind, Tenants};

/// Random bytes in a key: 160 bits, too many to guess, so a plain hash protects them.
const KEY_BYTES: usize = 20;

/// Makes a key, stores its hash, and answers the key itself: the only time that anyone sees it.
///
/// # Errors
/// The store's own.
pub async fn new_key(tenants: &dyn Tenants, brand: BrandId, kind: KeyKind) -> Result<String, StoreError> {
    granted(tenants, KeyGrant::new(brand, kind)).await
}

/// How long the old key stays good after a rotation, unless told otherwise.
pub const ROTATION_GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// Makes a key like an old one, which ends after `grace`. `None` when the brand has no such key, or it has ended.
///
/// # Errors
/// The store's own.
pub async fn rotate_key(
    tenants: &dyn Tenants,
    brand: BrandId,
    id: &str,
    now: Timestamp,
    grace: Duration,
) -> Result<Option<String>, StoreError> {
    let old = tenants.keys(brand).await?.into_iter().find(|key| key.id == id);
    let Some(old) = old.filter(|key| key.grant.expires_at.is_none_or(|end| end > now)) else {
        return Ok(None);
    };
    let key = granted(tenants, KeyGrant { expires_at: None, ..old.grant }).await?;
    tenants.end_key(brand, id, now + grace).await?;
    Ok(Some(key))
}

async fn granted(tenants: &dyn Tenants, grant: KeyGrant) -> Result<String, StoreError> {
    let kind = grant.kind;
    let mut random = [0_u8; KEY_BYTES];
    rand::rng().fill_bytes(&mut random);
    let mut key = match kind {
        KeyKind::Write => String::from("wk_"),
        KeyKind::Secret => String::from("sk_"),
    };
    for byte in random {
        let _ = write!(key, "{byte:02x}");
    }
    tenants.add_key(&hash(&key), grant).await?;
    Ok(key)
}

/// What is stored of a key.
pub fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}
