//! Making and recognising API keys.

use std::fmt::Write;

use rand::Rng;
use sha2::{Digest, Sha256};

use crate::domain::ids::BrandId;
use crate::ports::store::StoreError;
use crate::ports::tenants::{KeyGrant, KeyKind, Tenants};

/// Random bytes in a key: 160 bits, too many to guess, so a plain hash protects them.
const KEY_BYTES: usize = 20;

/// Makes a key, stores its hash, and answers the key itself: the only time that anyone sees it.
///
/// # Errors
/// The store's own.
pub async fn new_key(tenants: &dyn Tenants, brand: BrandId, kind: KeyKind) -> Result<String, StoreError> {
    let mut random = [0_u8; KEY_BYTES];
    rand::rng().fill_bytes(&mut random);
    let mut key = match kind {
        KeyKind::Write => String::from("wk_"),
        KeyKind::Secret => String::from("sk_"),
    };
    for byte in random {
        let _ = write!(key, "{byte:02x}");
    }
    tenants.add_key(&hash(&key), KeyGrant { brand, kind }).await?;
    Ok(key)
}

/// What is stored of a key.
pub fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}
