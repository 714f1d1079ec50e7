//! Reading customers in numbers: lists, timelines, the history of their identity.

use async_trait::async_trait;

use super::store::StoreError;
use crate::domain::customer360::{EventKey, StoredEvent};
use crate::domain::history::Merge;
use crate::domain::identity::Identifier;
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::profile::Profile;
use crate::domain::time::Timestamp;

/// The most merges that are read of one customer.
pub const MAX_HISTORY: i64 = 500;
/// The most customers that each way of searching brings in.
pub const MAX_FOUND: i64 = 1000;

/// What to look for, each in the form it is kept in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// E-mail addresses and telephone numbers that begin so.
    pub identifier: Option<String>,
    /// User ids that begin so, as they are written.
    pub user_id: Option<String>,
    /// Names, first or last name first, that begin so; lower case.
    pub name: Option<String>,
    /// Orders that are called one of these.
    pub orders: Vec<String>,
}

/// The order of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    /// The youngest profile first.
    #[default]
    Newest,
    /// The oldest profile first.
    Oldest,
    /// Who was there last, first.
    LastSeen,
    /// By name, from A; who has none is left out.
    Name,
}

/// A place in a list: after this customer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct After {
    pub id: ProfileId,
    /// When they were last there, where that is the order.
    pub last_seen: Option<Timestamp>,
    /// Their name, where that is the order.
    pub name: Option<String>,
}

impl After {
    pub fn of(profile: &Profile) -> Self {
        Self { id: profile.id, last_seen: profile.last_seen, name: profile.names().map(|(name, _)| name) }
    }
}

#[async_trait]
pub trait CustomerSearch: Send + Sync {
    /// A page of a brand's customers, at most `limit`.
    async fn list(
        &self,
        brand: BrandId,
        search: Option<&Search>,
        sort: Sort,
        after: Option<&After>,
        limit: i64,
    ) -> Result<Vec<Profile>, StoreError>;

    /// The identifiers of these profiles, of no others.
    async fn identifiers(
        &self,
        brand: BrandId,
        ids: &[ProfileId],
    ) -> Result<Vec<(ProfileId, Identifier)>, StoreError>;

    /// The profile itself, or the one that it was merged into.
    async fn survivor(&self, brand: BrandId, id: ProfileId) -> Result<Option<ProfileId>, StoreError>;

    /// A customer's events before that key, newest first, at most `limit`.
    async fn timeline(
        &self,
        brand: BrandId,
        id: ProfileId,
        before: Option<&EventKey>,
        limit: i64,
    ) -> Result<Vec<StoredEvent>, StoreError>;

    /// The merges that made a customer, and those that were undone, newest first, at most [`MAX_HISTORY`].
    async fn merges(&self, brand: BrandId, id: ProfileId) -> Result<Vec<Merge>, StoreError>;

    async fn merge(&self, brand: BrandId, id: uuid::Uuid) -> Result<Option<Merge>, StoreError>;
}
