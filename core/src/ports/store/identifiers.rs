//! Whose an identifier is.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::StoreError;
use crate::domain::event::Source;
use crate::domain::identity::{Counts, Identifier};
use crate::domain::ids::{BrandId, ProfileId};

/// An identifier of a brand. They sort by brand, kind and value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BrandIdentifier {
    pub brand: BrandId,
    pub identifier: Identifier,
}

impl BrandIdentifier {
    pub fn new(brand: BrandId, identifier: Identifier) -> Self {
        Self { brand, identifier }
    }
}

/// Whose an identifier is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    pub identifier: BrandIdentifier,
    pub profile: ProfileId,
    /// The most trusted source that says so.
    pub source: Source,
}

/// An identifier that is to belong to a profile. Claims sort by their identifiers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    pub identifier: BrandIdentifier,
    /// Whose it is to be.
    pub profile: ProfileId,
    pub source: Source,
}

/// What makes a hash of an identifier whose owner was erased: it is known again, and who has a dump without the key cannot try addresses
/// against it. One key for the system, for good: nobody can make the hashes again. It is never shown.
#[derive(Clone)]
pub struct SuppressionKey([u8; 32]);

impl SuppressionKey {
    pub fn new(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// What is kept of an identifier.
    pub fn hash(&self, brand: BrandId, identifier: &Identifier) -> [u8; 32] {
        let text = format!("{brand}:{}:{}", identifier.kind.as_str(), identifier.value);
        self.keyed(&Sha256::digest(text))
    }

    /// The same of what was kept before there was a key: SHA-256 alone.
    pub fn keyed(&self, of_old: &[u8]) -> [u8; 32] {
        // A key of less than a block is a block with zeros behind it.
        let mut block = [0; 64];
        block[..32].copy_from_slice(&self.0);
        Hmac::<Sha256>::new(&block.into()).chain_update(of_old).finalize().into_bytes().into()
    }
}

impl std::fmt::Debug for SuppressionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SuppressionKey")
    }
}

/// Identifiers, in a transaction.
#[async_trait]
pub trait IdentifiersTx: Send {
    /// The owners of those identifiers that have one, and who says that they are theirs.
    async fn owners(&mut self, identifiers: &[BrandIdentifier]) -> Result<Vec<Owned>, StoreError>;

    /// Gives identifiers that had no owner to profiles. Answers those it gave; the others were given away by another
    /// transaction meanwhile, for whose end it waited. `claims` must be sorted.
    async fn claim(&mut self, claims: &[Claim]) -> Result<Vec<BrandIdentifier>, StoreError>;

    /// Takes identifiers away from profiles that only a public key gave them to: before `claim` gives them to others.
    /// [`StoreError::Conflict`] when one went elsewhere meanwhile.
    async fn disown(&mut self, from: &[(BrandIdentifier, ProfileId)]) -> Result<(), StoreError>;

    /// Notes that a trusted source says of identifiers, too, that they are their profile's. The profiles are locked. Answers those of
    /// which no trusted source had said it before.
    async fn raise(
        &mut self,
        raised: &[(BrandIdentifier, Source)],
    ) -> Result<Vec<BrandIdentifier>, StoreError>;

    /// How many identifiers these profiles own by a trusted source's word; without those that own none.
    async fn trusted_counts(&mut self, ids: &[ProfileId]) -> Result<HashMap<ProfileId, Counts>, StoreError>;

    /// Those of these identifiers that belonged to customers who were erased.
    async fn suppressed(
        &mut self,
        identifiers: &[BrandIdentifier],
    ) -> Result<HashSet<BrandIdentifier>, StoreError>;
}
