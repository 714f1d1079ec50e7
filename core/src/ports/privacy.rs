//! What the stores do in the name of privacy: forget, and remember that they did.

use async_trait::async_trait;
use uuid::Uuid;

use super::store::{PrivacyRow, StoreError};
use crate::domain::customer360::{EventKey, StoredConsent, StoredEvent};
use crate::domain::identity::Identifier;
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::order::OrderRecord;
use crate::domain::time::Timestamp;

/// A request that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrivacyRequest {
    pub id: Uuid,
    pub brand: BrandId,
    /// `export`, `erase` or `erase_shop`.
    pub kind: String,
    /// Whom it is about, as JSON; gone when an erasure is done.
    pub subject: Option<String>,
    pub source: String,
    pub created_at: Timestamp,
    /// When it was carried out, if it was.
    pub done_at: Option<Timestamp>,
    /// What came of it, as JSON.
    pub result: Option<String>,
    /// When it may be carried out, where that is not at once.
    pub due_at: Option<Timestamp>,
    /// What it has erased so far.
    pub so_far: Tally,
}

/// What a request has erased, over all its rounds, counted in the transactions that erased it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// Customers, each once, whatever profiles had been merged into them.
    pub customers: u64,
    pub events: u64,
    /// Orders that lost their customer.
    pub orders: u64,
    /// Rows of a shop that belonged to no customer: events, orders, products.
    pub rows: u64,
}

/// What an erasure is to forget.
#[derive(Clone, Debug, Default)]
pub struct Erasure {
    /// Profiles; who was merged into them goes along.
    pub profiles: Vec<ProfileId>,
    /// Identifiers; whoever has them goes along.
    pub identifiers: Vec<Identifier>,
    /// Whether what comes later under their identifiers is not kept either.
    pub suppress: bool,
    /// Only if they have neither events nor orders; else nothing is done.
    pub only_empty: bool,
    /// The request that asks for it: what is erased is added to its tally.
    pub request: Option<Uuid>,
}

/// What an erasure forgot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// The profiles, also those that had been merged away.
    pub profiles: Vec<ProfileId>,
    pub identifiers: Vec<Identifier>,
    /// How many events were deleted.
    pub events: u64,
    /// How many orders stand without their customer now.
    pub orders: u64,
}

/// An entry of the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// Its id: grows with time.
    pub id: Uuid,
    pub brand: BrandId,
    pub at: Timestamp,
    /// Who: a key's id, a shop, the command line, Tributary itself.
    pub actor: String,
    pub action: String,
    /// To whom: a profile's id. Never an identifier of a person.
    pub subject: Option<String>,
    /// The rest, as JSON.
    pub details: String,
}

#[async_trait]
pub trait Privacy: Send + Sync {
    /// Adds a request that is not there yet.
    async fn add_request(&self, row: &PrivacyRow) -> Result<(), StoreError>;

    /// Requests that wait to be carried out and are due, the oldest first.
    async fn open_requests(&self, now: Timestamp, limit: i64) -> Result<Vec<PrivacyRequest>, StoreError>;

    /// A brand's requests, the newest first, at most `limit`.
    async fn requests(&self, brand: BrandId, limit: i64) -> Result<Vec<PrivacyRequest>, StoreError>;

    async fn request(&self, brand: BrandId, id: Uuid) -> Result<Option<PrivacyRequest>, StoreError>;

    /// Ends a request of a brand's that is not due yet, and adds to the audit log, in one transaction. Answers whether there was one.
    async fn stop(
        &self,
        id: Uuid,
        at: Timestamp,
        result: &str,
        note: &AuditEntry,
    ) -> Result<bool, StoreError>;

    /// Adds what is found out about a request's subject before it is carried out, so that it can be done again.
    async fn save_subject(&self, id: Uuid, subject: &str) -> Result<(), StoreError>;

    /// A brand's data requests that still name their subject.
    async fn named_exports(&self, brand: BrandId) -> Result<Vec<PrivacyRequest>, StoreError>;

    /// Events of nobody that are about a customer's orders, oldest first, after that key, at most `limit`.
    async fn order_events(
        &self,
        brand: BrandId,
        id: ProfileId,
        after: Option<&EventKey>,
        limit: i64,
    ) -> Result<Vec<StoredEvent>, StoreError>;

    /// Notes that a request was carried out; `forget` its subject, too.
    async fn complete_request(
        &self,
        id: Uuid,
        at: Timestamp,
        result: &str,
        forget: bool,
    ) -> Result<(), StoreError>;

    /// Forgets customers, in one transaction: profiles, identifiers, events, consents, merges; orders lose their customer.
    async fn erase(&self, brand: BrandId, what: &Erasure, at: Timestamp) -> Result<Erased, StoreError>;

    /// Customers with events or orders of a shop, at most `limit`.
    async fn customers_of_shop(
        &self,
        brand: BrandId,
        shop: &str,
        limit: i64,
    ) -> Result<Vec<ProfileId>, StoreError>;

    /// Deletes what is left of a shop that belongs to no customer: events, orders, products. At most `limit` of each;
    /// answers how many, and adds them to the request's tally.
    async fn erase_shop(
        &self,
        brand: BrandId,
        shop: &str,
        limit: i64,
        request: Uuid,
    ) -> Result<u64, StoreError>;

    /// Allows identifiers of erased customers and bodies of redactions again. Returns how many were suppressed.
    async fn unsuppress(&self, brand: BrandId, identifiers: &[Identifier]) -> Result<u64, StoreError>;

    /// A customer's orders, by id, after an order, at most `limit`.
    async fn orders(
        &self,
        brand: BrandId,
        id: ProfileId,
        after: Option<&(String, String)>,
        limit: i64,
    ) -> Result<Vec<OrderRecord>, StoreError>;

    /// Keys what is kept of erased customers' identifiers from before there was a key, at most `limit`. Answers how many.
    async fn key_suppressions(&self, limit: i64) -> Result<u64, StoreError>;

    /// What a customer said of consent, newest first, from before that statement, at most `limit`.
    async fn consents(
        &self,
        brand: BrandId,
        id: ProfileId,
        before: Option<&StoredConsent>,
        limit: i64,
    ) -> Result<Vec<StoredConsent>, StoreError>;

    /// Deletes events that were received before a time, at most `limit`, and forgets webhooks' bodies from before. Answers how many
    /// events.
    async fn delete_expired_events(
        &self,
        brand: BrandId,
        before: Timestamp,
        limit: i64,
    ) -> Result<u64, StoreError>;

    /// Profiles without events and orders that were last there before a time, at most `limit`.
    async fn inactive_profiles(
        &self,
        brand: BrandId,
        before: Timestamp,
        limit: i64,
    ) -> Result<Vec<ProfileId>, StoreError>;

    /// Adds to the audit log: all of it, or none.
    async fn append_audit(&self, entries: &[AuditEntry]) -> Result<(), StoreError>;

    /// The audit log of a brand before an entry, newest first, at most `limit`.
    async fn audit_log(
        &self,
        brand: BrandId,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<AuditEntry>, StoreError>;
}
