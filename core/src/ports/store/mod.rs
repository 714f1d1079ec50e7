//! The store of customers: one transaction a batch on the way in, one answer a customer on the way out.
//!
//! [`StoreTx`] offers the steps of [`crate::services::events`], each one statement over the whole batch. The steps' order
//! is the lock order: identifiers are claimed before profiles are locked, both sorted, so two workers never wait for each
//! other in a circle. Where a worker still loses a race, the store answers [`StoreError::Conflict`] and the batch is run again.

mod events;
mod identifiers;
mod merges;
mod orders;
mod profiles;

use async_trait::async_trait;
use std::error::Error;
use std::fmt;

pub use self::events::{BodyRow, EventId, EventRow, EventsTx, KnownEvents};
pub use self::identifiers::{BrandIdentifier, Claim, IdentifiersTx, Owned, SuppressionKey};
pub use self::merges::{GivenBack, MergeRow, MergesTx, Move, Relation, RelationKind};
pub use self::orders::{BrandOrder, ConsentRow, OrderKey, OrdersTx, ProductRow};
pub use self::profiles::ProfilesTx;
use crate::domain::customer360::{CustomerRecord, CustomerRef, Revision};
use crate::domain::event::ShopSubject;
use crate::domain::event::Subject;
use crate::domain::identity::Identifier;
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::time::Timestamp;
use crate::ports::fault::Fault;
use crate::ports::outbox::Stage;
use crate::ports::privacy::AuditEntry;

/// Why a store did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// Another transaction was faster. Nothing was changed; run the transaction again.
    Conflict(String),
    /// A profile was merged under a fencing token as high as the transaction's, or higher. Nothing was changed; run it
    /// again under a token above [`Store::last_fence`].
    Fenced(i64),
    /// It cannot be reached, or did not answer in time. Try again later.
    Unavailable(Fault),
    /// It refused the data. Trying again will not help.
    Invalid(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict(why) => write!(f, "another transaction was faster: {why}"),
            Self::Fenced(token) => write!(f, "a fencing token is too old: {token}"),
            Self::Unavailable(fault) => write!(f, "the store cannot be reached: {fault}"),
            Self::Invalid(why) => write!(f, "the store refused the data: {why}"),
        }
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unavailable(fault) => fault.source(),
            _ => None,
        }
    }
}

/// A request in the name of privacy, to be carried out by [`crate::services::privacy`].
#[derive(Clone, Debug)]
pub struct PrivacyRow {
    pub id: uuid::Uuid,
    pub brand: BrandId,
    /// What makes two deliveries one request.
    pub message_id: String,
    pub asks: PrivacyAsks,
    pub source: String,
    pub at: Timestamp,
    /// When it may be carried out; `None` for at once.
    pub due: Option<Timestamp>,
}

/// What a request asks for, and of whom.
#[derive(Clone, Debug)]
pub enum PrivacyAsks {
    Export(Subject),
    Erase(Subject),
    /// All customers of a shop.
    EraseShop(ShopSubject),
}

/// The store in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct StoreStats {
    /// Profiles that are not merged away.
    pub profiles: i64,
    /// Events that took effect.
    pub events: i64,
    /// Orders, of any state.
    pub orders: i64,
}

#[async_trait]
pub trait Store: Send + Sync {
    /// Opens a transaction over the rows of every brand, for the workers. Dropping it undoes it.
    async fn begin(&self) -> Result<Box<dyn StoreTx>, StoreError>;

    /// Opens a transaction over one brand's rows. Dropping it undoes it.
    async fn begin_for(&self, brand: BrandId) -> Result<Box<dyn StoreTx>, StoreError>;

    /// The profile that owns an identifier.
    async fn owner(&self, brand: BrandId, identifier: &Identifier) -> Result<Option<ProfileId>, StoreError>;

    /// Whom a question is about now, and of which revision; `None` for nobody of this brand.
    async fn revision(&self, brand: BrandId, asked: &CustomerRef) -> Result<Option<Revision>, StoreError>;

    /// All of a customer; follows a merged-away profile to where it went. `None` for nobody of this brand.
    async fn customer(&self, brand: BrandId, id: ProfileId) -> Result<Option<CustomerRecord>, StoreError>;

    /// The topics under which a shop's body has taken effect.
    async fn body_topics(
        &self,
        brand: BrandId,
        shop: &str,
        digest: &[u8; 32],
    ) -> Result<Vec<String>, StoreError>;

    /// The highest fencing token that a profile was merged under; 0 where none was.
    async fn last_fence(&self) -> Result<i64, StoreError>;

    /// The brand in numbers.
    async fn stats(&self, brand: BrandId) -> Result<StoreStats, StoreError>;

    async fn ping(&self) -> Result<(), StoreError>;

    /// What its own clock says, in milliseconds since 1970.
    async fn now_ms(&self) -> Result<i64, StoreError>;
}

/// The steps of one transaction. Each is one statement, whatever the batch's size.
#[async_trait]
pub trait StoreTx: IdentifiersTx + ProfilesTx + EventsTx + OrdersTx + MergesTx {
    /// Adds requests in the name of privacy that are not there yet.
    async fn add_requests(&mut self, rows: &[PrivacyRow]) -> Result<(), StoreError>;

    /// Adds jobs to the outbox: they are there if and only if the transaction commits.
    async fn stage(&mut self, stages: &[Stage], now_ms: i64) -> Result<(), StoreError>;

    /// Adds to the audit log what the transaction does: it stands there if and only if that is done.
    async fn append_audit(&mut self, entry: &AuditEntry) -> Result<(), StoreError>;

    /// Makes all of it durable, or none.
    async fn commit(self: Box<Self>) -> Result<(), StoreError>;
}
