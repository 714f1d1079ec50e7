//! Profiles, and the fencing tokens that they were merged under.

use std::collections::HashMap;

use async_trait::async_trait;

use super::StoreError;
use crate::domain::identity::Standing;
use crate::domain::ids::ProfileId;
use crate::domain::profile::Profile;

/// Profiles, in a transaction.
#[async_trait]
pub trait ProfilesTx: Send {
    /// Locks profiles and reads them. `ids` must be sorted.
    async fn lock(&mut self, ids: &[ProfileId]) -> Result<Vec<Profile>, StoreError>;

    /// Writes profiles, new and old.
    async fn save_profiles(&mut self, profiles: &[Profile]) -> Result<(), StoreError>;

    /// Where profiles stand, without locking them.
    async fn standings(&mut self, ids: &[ProfileId]) -> Result<HashMap<ProfileId, Standing>, StoreError>;

    /// Stamps profiles, which this transaction has locked, with a fencing token. [`StoreError::Fenced`] unless the token is
    /// strictly higher than each one's last; so one token commits once a profile. Without a token it draws the next one.
    async fn fence(&mut self, ids: &[ProfileId], token: Option<i64>) -> Result<(), StoreError>;
}
