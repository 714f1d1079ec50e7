//! Dead letters.

use super::Item;
use crate::domain::ids::BrandId;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The item; the last of its history says why it was buried.
    pub item: Item,
    /// When, in milliseconds since 1970.
    pub buried_ms: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    All,
    Brand(BrandId),
    /// Those of no brand: what cannot be read, or was enqueued by a version that did not say a brand.
    Nobody,
}

/// A place among the dead letters. It stays one when its letter is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadPlace {
    /// When the letter at it was buried.
    pub buried_ms: i64,
    pub id: String,
}

impl std::fmt::Display for DeadPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.buried_ms, self.id)
    }
}

impl DeadPlace {
    /// Reads what [`std::fmt::Display`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let (buried_ms, id) = text.split_once('-')?;
        Some(Self { buried_ms: buried_ms.parse().ok()?, id: id.to_owned() })
    }
}

impl DeadLetter {
    pub fn place(&self) -> DeadPlace {
        DeadPlace { buried_ms: self.buried_ms, id: self.item.id.clone() }
    }

    /// Why it was buried.
    pub fn error(&self) -> &str {
        self.item.history.last().map_or("unknown", |failure| &failure.error)
    }
}

/// Dead letters that one call lists, retries or discards.
pub const MAX_DEAD_PAGE: usize = 100;
