//! Segments, and who belongs to them.

use std::collections::HashMap;

use async_trait::async_trait;
use uuid::Uuid;

use crate::domain::automation::segment::{Change, SegmentRow};
use crate::domain::ids::{BrandId, ProfileId};
use crate::ports::store::StoreError;

/// Somebody who belongs to a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub profile: ProfileId,
    /// Milliseconds since 1970.
    pub since_ms: i64,
}

/// When a customer's segments are to be evaluated again, because time may change them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    pub brand: BrandId,
    pub profile: ProfileId,
    /// Milliseconds since 1970; `None` for never.
    pub due_ms: Option<i64>,
}

#[async_trait]
pub trait Segments: Send + Sync {
    /// The brand's own segments, by name.
    async fn segments(&self, brand: BrandId) -> Result<Vec<SegmentRow>, StoreError>;

    /// Takes a segment out, with its members. Answers whether it was there.
    async fn delete_segment(&self, brand: BrandId, name: &str) -> Result<bool, StoreError>;

    /// Who belongs to a segment, by id: those after `after`.
    async fn members(
        &self,
        brand: BrandId,
        segment: &str,
        after: Option<ProfileId>,
        limit: i64,
    ) -> Result<Vec<Member>, StoreError>;

    /// How many belong to each segment that anybody belongs to.
    async fn member_counts(&self, brand: BrandId) -> Result<HashMap<String, i64>, StoreError>;

    /// Who came into a segment and who went, newest first: those before `before`. Of all segments, if none is named; of all
    /// customers, if none is.
    async fn changes(
        &self,
        brand: BrandId,
        segment: Option<&str>,
        profile: Option<ProfileId>,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<Change>, StoreError>;

    /// Customers by id: those after `after`. Not those who were merged away.
    async fn profiles(
        &self,
        brand: BrandId,
        after: Option<ProfileId>,
        limit: i64,
    ) -> Result<Vec<ProfileId>, StoreError>;
}

/// Segments, in a transaction.
#[async_trait]
pub trait SegmentsTx: Send {
    /// Brands whose customers have never been asked what they belong to: they count as asked from now on.
    async fn take_unfilled(&mut self) -> Result<Vec<BrandId>, StoreError>;

    /// Writes who came into segments and who went.
    async fn change_members(&mut self, changes: &[Change]) -> Result<(), StoreError>;

    /// Writes when time may next change somebody's segments; `None`: never.
    async fn set_checks(&mut self, checks: &[Check]) -> Result<(), StoreError>;

    /// Writes a segment, new or changed.
    async fn save_segment(&mut self, row: &SegmentRow) -> Result<(), StoreError>;

    /// Takes customers whose segments time may have changed.
    async fn take_due_checks(
        &mut self,
        now_ms: i64,
        limit: i64,
    ) -> Result<Vec<(BrandId, ProfileId)>, StoreError>;
}
