//! The identifiers of Tributary's own rows. Identifiers of customers are in [`super::identity`].

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A tenant. Every query of a store is bounded by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BrandId(pub i64);

impl fmt::Display for BrandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A customer's profile: a UUID of version 7, so that the smaller of two ids is the older profile.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(transparent)]
#[schema(value_type = String, format = Uuid)]
pub struct ProfileId(pub Uuid);

impl ProfileId {
    /// The first id that could be made at `now_ms`: every older profile's is smaller.
    pub fn first_at(now_ms: i64) -> Self {
        let ms = u64::try_from(now_ms).unwrap_or(0);
        Self(Uuid::from_u128(u128::from(ms) << 80))
    }

    /// Reads the usual form with hyphens; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }
}

impl fmt::Display for ProfileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
