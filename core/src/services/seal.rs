//! Secrets that must be kept as they are - shops' client secrets, what signs webhooks and links - lie sealed in the store: who
//! reads a dump, a backup or a disk without the key reads none of them. AES-256-GCM, under a key that is kept elsewhere; what is
//! sealed for one row opens in no other.

use crate::ports::world::World;
use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// What a sealed text begins with. A text that does not is from before secrets were sealed.
const PREFIX: &str = "sealed:1:";
/// Bytes of a key's hash that tell which key it was.
const ID_BYTES: usize = 4;
/// Bytes of the nonce, which stands before what is sealed.
const NONCE_BYTES: usize = 12;

/// A key that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not {KEY_BYTES} bytes in base64; make one with: head -c {KEY_BYTES} /dev/urandom | base64")]
pub struct KeyFault;

/// Why a sealed text cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It was sealed under another key.
    #[error("a secret was sealed under the key {sealed}, and here is {here}")]
    OtherKey {
        sealed: String,
        /// The ids of the keys that are here.
        here: String,
    },
    /// Somebody has changed it, or moved it from another row.
    #[error("a sealed secret was changed, or belongs to another row")]
    Broken,
}

/// A key. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey([u8; KEY_BYTES]);

impl SecretKey {
    /// A key in base64.
    ///
    /// # Errors
    /// [`KeyFault`], which says how to make one.
    pub fn parse(text: &str) -> Result<Self, KeyFault> {
        let bytes = STANDARD.decode(text.trim()).map_err(|_| KeyFault)?;
        bytes.try_into().map(Self).map_err(|_| KeyFault)
    }

    pub fn random(world: &World) -> Self {
        Self(world.bytes())
    }

    /// The key as configuration has it, in base64.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// What tells it from others, and says nothing of it.
    pub fn id(&self) -> String {
        let digest = Sha256::new().chain_update(b"tributary key id").chain_update(self.0).finalize();
        hex::encode(&digest[..ID_BYTES])
    }

    fn cipher(&self) -> Result<RandomizedNonceKey, SealError> {
        RandomizedNonceKey::new(&AES_256_GCM, &self.0).map_err(|_| SealError::Broken)
    }
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SecretKey").field(&self.id()).finish()
    }
}

/// The keys of a system: the first seals, each may open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretKeys {
    current: SecretKey,
    previous: Vec<SecretKey>,
}

impl SecretKeys {
    /// `current` seals; what the `previous` ones sealed is opened, too.
    pub fn new(current: SecretKey, previous: Vec<SecretKey>) -> Self {
        Self { current, previous }
    }

    /// Seals a text for `place`: what names its table, brand and row.
    ///
    /// # Errors
    /// Hardly: where the cipher refuses.
    pub fn seal(&self, text: &str, place: &str) -> Result<String, SealError> {
        let mut bytes = text.as_bytes().to_vec();
        let cipher = self.current.cipher()?;
        let sealed = cipher.seal_in_place_append_tag(Aad::from(place.as_bytes()), &mut bytes);
        let nonce = sealed.map_err(|_| SealError::Broken)?;
        let whole = [&nonce.as_ref()[..], &bytes].concat();
        Ok(format!("{PREFIX}{}:{}", self.current.id(), STANDARD.encode(whole)))
    }

    /// The text that was sealed for `place`; one that never was, as it is.
    ///
    /// # Errors
    /// [`SealError`]
    pub fn open(&self, held: &str, place: &str) -> Result<String, SealError> {
        let Some(rest) = held.strip_prefix(PREFIX) else { return Ok(held.to_owned()) };
        let (id, sealed) = rest.split_once(':').ok_or(SealError::Broken)?;
        let all = || std::iter::once(&self.current).chain(&self.previous);
        let key = all().find(|key| key.id() == id).ok_or_else(|| SealError::OtherKey {
            sealed: id.to_owned(),
            here: all().map(SecretKey::id).collect::<Vec<_>>().join(" and "),
        })?;
        let mut bytes = STANDARD.decode(sealed).map_err(|_| SealError::Broken)?;
        if bytes.len() < NONCE_BYTES {
            return Err(SealError::Broken);
        }
        let mut text = bytes.split_off(NONCE_BYTES);
        let nonce = Nonce::try_assume_unique_for_key(&bytes).map_err(|_| SealError::Broken)?;
        let opened = key.cipher()?.open_in_place(nonce, Aad::from(place.as_bytes()), &mut text);
        let opened = opened.map_err(|_| SealError::Broken)?;
        String::from_utf8(opened.to_vec()).map_err(|_| SealError::Broken)
    }

    /// Whether a text is sealed under the key that seals now.
    pub fn is_fresh(&self, held: &str) -> bool {
        held.strip_prefix(PREFIX).is_some_and(|rest| rest.starts_with(&format!("{}:", self.current.id())))
    }
}

/// Whether a text is sealed.
pub fn is_sealed(held: &str) -> bool {
    held.starts_with(PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_under_its_key_at_its_place_alone() {
        let (old, new) = (SecretKey::random(&World::real()), SecretKey::random(&World::real()));
        let keys = SecretKeys::new(old.clone(), Vec::new());
        let sealed = keys.seal("shpss_secret", "shops/1/a").unwrap();
        assert!(is_sealed(&sealed) && !sealed.contains("shpss") && keys.is_fresh(&sealed));
        assert_ne!(sealed, keys.seal("shpss_secret", "shops/1/a").unwrap(), "a nonce of its own each time");
        assert_eq!(keys.open(&sealed, "shops/1/a").unwrap(), "shpss_secret");
        assert_eq!(keys.open(&sealed, "shops/2/a").unwrap_err(), SealError::Broken);
        assert_eq!(keys.open("plain", "shops/1/a").unwrap(), "plain", "from before");
        let strange = SecretKeys::new(new.clone(), Vec::new()).open(&sealed, "shops/1/a").unwrap_err();
        assert!(strange.to_string().contains(&old.id()) && strange.to_string().contains(&new.id()));
        let rotated = SecretKeys::new(new, vec![old]);
        assert_eq!(rotated.open(&sealed, "shops/1/a").unwrap(), "shpss_secret");
        assert!(!rotated.is_fresh(&sealed));
        let mut broken = sealed.clone();
        broken.replace_range(sealed.len() - 6..sealed.len() - 4, "AB");
        assert!(broken == sealed || keys.open(&broken, "shops/1/a").is_err());
        for text in [PREFIX.to_owned(), format!("{PREFIX}:"), format!("{PREFIX}{}:AA", keys.current.id())] {
            assert!(keys.open(&text, "p").is_err(), "{text}");
        }
    }

    #[test]
    fn a_key_that_is_none_says_how_to_make_one() {
        for text in ["", "short", "!!!!", &STANDARD.encode([1; 31])] {
            assert!(SecretKey::parse(text).unwrap_err().to_string().contains("/dev/urandom"), "{text:?}");
        }
        let key = SecretKey::parse(&format!("{}\n", STANDARD.encode([1; 32]))).unwrap();
        assert_eq!(SecretKey::parse(&key.to_base64()).unwrap(), key);
        assert!(!format!("{key:?}").contains(&key.to_base64()));
    }
}
