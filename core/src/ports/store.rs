//! The store of customers: one transaction a batch on the way in, one answer a customer on the way out.
//!
//! [`StoreTx`] offers the steps of [`crate::services::process`], each one statement over the whole batch. The steps' order
//! is the lock order: identifiers are claimed before profiles are locked, both sorted, so two workers never wait for each
//! other in a circle. Where a worker still loses a race, the store answers [`StoreError::Conflict`] and the batch is run again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use async_trait::async_trait;
use hmac::{Hmac, KeyInit, Mac};
use rust_decimal::Decimal;
use sha2::{Digest, Sha256};

use crate::domain::customer360::{Asked, CustomerRecord, Revision};
use crate::domain::event::{Consent, Event, Product, Source};
use crate::domain::history::{Merge, Retold, Snapshot};
use crate::domain::identity::{Counts, Identifier, Standing};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::json::is_default;
use crate::domain::order::{Order, OrderRecord, Part, UNKNOWN_CURRENCY};
use crate::domain::profile::Profile;
use crate::domain::time::Timestamp;
use crate::domain::version::{Version, Versions};
use crate::ports::outbox::Stage;
use crate::ports::privacy::AuditEntry;

/// Why a store did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another transaction was faster. Nothing was changed; run the transaction again.
    #[error("another transaction was faster: {0}")]
    Conflict(String),
    /// A profile was merged under a fencing token as high as the transaction's, or higher. Nothing was changed; run it
    /// again under a token above [`Store::last_fence`].
    #[error("a fencing token is too old: {0}")]
    Fenced(i64),
    /// It cannot be reached, or did not answer in time. Try again later.
    #[error("the store cannot be reached: {0}")]
    Unavailable(String),
    /// It refused the data. Trying again will not help.
    #[error("the store refused the data: {0}")]
    Invalid(String),
}

/// An identifier of a brand.
pub type BrandIdentifier = (BrandId, Identifier);

/// An identifier that is to belong to a profile. Claims sort by their identifiers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// The identifier.
    pub identifier: BrandIdentifier,
    /// Whose it is to be.
    pub profile: ProfileId,
    /// Who says so.
    pub source: Source,
}

/// An event with the profile it belongs to, if to any.
#[derive(Clone, Copy, Debug)]
pub struct EventRow<'a> {
    /// The event.
    pub event: &'a Event,
    /// Whose it is.
    pub profile: Option<ProfileId>,
}

/// Which order: `(brand, shop, Shopify's id)`.
pub type OrderKey = (BrandId, String, String);

/// An order of a brand.
pub type BrandOrder = (BrandId, OrderRecord);

/// The columns of an order that are made of several of its fields, or written as JSON.
pub(crate) struct OrderColumns<'a> {
    pub(crate) currency: &'a str,
    pub(crate) total: Decimal,
    pub(crate) gift_cards: Decimal,
    pub(crate) items: String,
    pub(crate) presentment: Option<String>,
    pub(crate) refunds: String,
    pub(crate) fulfillments: String,
    pub(crate) parts: Option<String>,
}

/// What is known of an order's state beside its values and its newest version, as JSON.
#[derive(Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub(crate) struct OrderParts {
    #[serde(skip_serializing_if = "is_default")]
    sequence: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    current_total: Option<Decimal>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    older: BTreeMap<Part, Version>,
}

impl OrderParts {
    fn of(order: &Order, versions: &Versions<Part>) -> Self {
        Self {
            sequence: versions.newest().sequence,
            current_total: order.current_total,
            older: versions.older().clone(),
        }
    }

    /// Puts what is known into an order that was read of the rest, and its versions together.
    pub(crate) fn complete(self, order: &mut Order, at_ms: i64, message_id: String) -> Versions<Part> {
        order.current_total = self.current_total;
        Versions::new(Version { at_ms, sequence: self.sequence, message_id }, self.older)
    }
}

impl<'a> OrderColumns<'a> {
    pub(crate) fn of(record: &'a OrderRecord) -> Result<Self, StoreError> {
        fn json<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
            serde_json::to_string(value).map_err(|error| StoreError::Invalid(format!("an order: {error}")))
        }
        let order = record.order();
        Ok(Self {
            currency: order.map_or(UNKNOWN_CURRENCY, |order| &order.currency),
            total: order.map_or(Decimal::ZERO, |order| order.total),
            gift_cards: order.map_or(Decimal::ZERO, Order::gift_cards),
            items: json(&order.map_or(&[][..], |order| &order.items))?,
            presentment: order.and_then(|order| order.presentment.as_ref()).map(json).transpose()?,
            refunds: json(&record.refunds)?,
            fulfillments: json(&record.fulfillments)?,
            parts: record
                .state
                .as_ref()
                .map(|(order, versions)| OrderParts::of(order, versions))
                .filter(|parts| *parts != OrderParts::default())
                .map(|parts| json(&parts))
                .transpose()?,
        })
    }
}

/// What makes a hash of an identifier whose owner was erased: it is known again, and who has a dump without the key cannot try addresses
/// against it. One key for the system, for good: nobody can make the hashes anew. It is never shown.
#[derive(Clone)]
pub struct SuppressionKey([u8; 32]);

impl SuppressionKey {
    /// That key.
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

/// What a delivery says of a product.
#[derive(Clone, Debug)]
pub struct ProductRow<'a> {
    /// Whose product.
    pub brand: BrandId,
    /// Of which shop.
    pub shop: &'a str,
    /// What it says.
    pub product: Product,
}

/// What an event says of consent.
#[derive(Clone, Copy, Debug)]
pub struct ConsentRow<'a> {
    /// Of which brand.
    pub brand: BrandId,
    /// The event.
    pub message_id: &'a str,
    /// Whose consent.
    pub profile: ProfileId,
    /// Who told it.
    pub source: Source,
    /// What comes later of two with the same time.
    pub sequence: i64,
    /// What it says.
    pub consent: &'a Consent,
}

/// A merge, as it is recorded before it is done.
#[derive(Clone, Debug)]
pub struct MergeRow {
    /// Its id.
    pub id: uuid::Uuid,
    /// Of which brand.
    pub brand: BrandId,
    /// What moves.
    pub moved: Move,
    /// When.
    pub at: Timestamp,
    /// The event that linked the two.
    pub message_id: String,
    /// The profile that is given up, as it was: [`crate::domain::history::Snapshot`] as JSON.
    pub state: String,
}

impl MergeRow {
    /// `loser`, as it is now, goes into `survivor`.
    pub fn new(loser: &Profile, survivor: ProfileId, message_id: String, at: Timestamp) -> Self {
        Self {
            id: uuid::Uuid::now_v7(),
            brand: loser.brand,
            moved: Move { from: loser.id, into: survivor },
            at,
            message_id,
            state: serde_json::json!(Snapshot::of(loser)).to_string(),
        }
    }
}

/// How two profiles are related that are not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RelationKind {
    /// A split took them apart: no event joins them again.
    Split,
    /// A link between them was refused by a limit.
    Refused,
}

impl RelationKind {
    /// The name in the stores and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Split => "split",
            Self::Refused => "refused",
        }
    }

    /// The kind of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Split, Self::Refused].into_iter().find(|kind| kind.as_str() == name)
    }
}

/// Two profiles that are related and not one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// Of which brand.
    pub brand: BrandId,
    /// The older profile.
    pub a: ProfileId,
    /// The younger one.
    pub b: ProfileId,
    /// How.
    pub kind: RelationKind,
    /// Why, for people.
    pub reason: String,
    /// Since when.
    pub at: Timestamp,
}

/// What a split gave back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GivenBack {
    /// The identifiers.
    pub identifiers: Vec<Identifier>,
    /// How many events.
    pub events: u64,
    /// How many orders.
    pub orders: u64,
}

/// A request in the name of privacy, to be carried out by [`crate::services::privacy`].
#[derive(Clone, Debug)]
pub struct PrivacyRow {
    /// Its id.
    pub id: uuid::Uuid,
    /// Of which brand.
    pub brand: BrandId,
    /// What makes two deliveries one request.
    pub message_id: String,
    /// `export`, `erase` or `erase_shop`.
    pub kind: &'static str,
    /// Whom it is about: [`crate::domain::event::Subject`] as JSON, or a shop's domain.
    pub subject: String,
    /// Who asked.
    pub source: String,
    /// When.
    pub at: Timestamp,
    /// When it may be carried out; `None` for at once.
    pub due: Option<Timestamp>,
}

/// All that a profile owns goes from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Move {
    /// The profile that gives.
    pub from: ProfileId,
    /// The profile that takes.
    pub into: ProfileId,
}

/// Events that have taken effect, by `(brand, message_id)`, with the profile they belong to now, if to any.
pub type KnownEvents = HashMap<(BrandId, String), Option<ProfileId>>;

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

/// A webhook's body that took effect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BodyRow<'e> {
    /// Of which brand.
    pub brand: BrandId,
    /// Of which shop.
    pub shop: &'e str,
    /// The body's SHA-256.
    pub digest: [u8; 32],
    /// Under which topic.
    pub topic: &'e str,
    /// As which event.
    pub message_id: &'e str,
}

/// The store port.
#[async_trait]
pub trait Store: Send + Sync {
    /// Opens a transaction. Dropping it undoes it.
    async fn begin(&self) -> Result<Box<dyn StoreTx>, StoreError>;

    /// The profile that owns an identifier.
    async fn owner(&self, brand: BrandId, identifier: &Identifier) -> Result<Option<ProfileId>, StoreError>;

    /// Whom a question is about now, and of which revision; `None` for nobody of this brand.
    async fn revision(&self, brand: BrandId, asked: &Asked) -> Result<Option<Revision>, StoreError>;

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

    /// Whether it answers.
    async fn ping(&self) -> Result<(), StoreError>;

    /// What its own clock says, in milliseconds since 1970.
    async fn now_ms(&self) -> Result<i64, StoreError>;
}

/// The steps of one transaction. Each is one statement, whatever the batch's size.
#[async_trait]
pub trait StoreTx: Send {
    /// Which of these `(brand, message_id)` have taken effect before, and on whom.
    async fn known_events(&mut self, events: &[Event]) -> Result<KnownEvents, StoreError>;

    /// For each of these bodies, the topics under which it has taken effect; until this transaction ends, no other one is told of them.
    async fn body_topics(&mut self, rows: &[BodyRow<'_>]) -> Result<Vec<Vec<String>>, StoreError>;

    /// Notes that bodies take effect. `rows` must be sorted. [`StoreError::Conflict`] when one did meanwhile, by another transaction.
    async fn claim_bodies(&mut self, rows: &[BodyRow<'_>], at: Timestamp) -> Result<(), StoreError>;

    /// The owners of those identifiers that have one, and who says that they are theirs.
    async fn owners(
        &mut self,
        identifiers: &[BrandIdentifier],
    ) -> Result<Vec<(BrandIdentifier, ProfileId, Source)>, StoreError>;

    /// Gives identifiers that had no owner to profiles. Answers those it gave; the others were given away by another
    /// transaction meanwhile, for whose end it waited. `claims` must be sorted.
    async fn claim(&mut self, claims: &[Claim]) -> Result<Vec<BrandIdentifier>, StoreError>;

    /// Takes identifiers away from profiles that only a public key gave them to: before [`StoreTx::claim`] gives them to others.
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

    /// Locks profiles and reads them. `ids` must be sorted.
    async fn lock(&mut self, ids: &[ProfileId]) -> Result<Vec<Profile>, StoreError>;

    /// Adds events; answers the message ids of those that were not there yet. `rows` must be sorted by message id.
    async fn add_events(&mut self, rows: &[EventRow<'_>]) -> Result<HashSet<(BrandId, String)>, StoreError>;

    /// Writes profiles, new and old.
    async fn save_profiles(&mut self, profiles: &[Profile]) -> Result<(), StoreError>;

    /// Those of these identifiers that belonged to customers who were erased.
    async fn suppressed(
        &mut self,
        identifiers: &[BrandIdentifier],
    ) -> Result<HashSet<BrandIdentifier>, StoreError>;

    /// Where profiles stand, without locking them.
    async fn standings(&mut self, ids: &[ProfileId]) -> Result<HashMap<ProfileId, Standing>, StoreError>;

    /// The relations that speak of any of these profiles.
    async fn relations(
        &mut self,
        ids: &[ProfileId],
    ) -> Result<BTreeSet<(ProfileId, ProfileId, RelationKind)>, StoreError>;

    /// Adds relations. The profiles are locked, and are saved as related.
    async fn relate(&mut self, relations: &[Relation]) -> Result<(), StoreError>;

    /// Records merges with what is about to move: before [`StoreTx::move_owned`].
    async fn record_merges(&mut self, merges: &[MergeRow]) -> Result<(), StoreError>;

    /// Moves identifiers, events, orders and consents between profiles; where `related`, relations too.
    async fn move_owned(&mut self, moves: &[Move], related: bool) -> Result<(), StoreError>;

    /// What is known of these orders. `keys` must be sorted.
    async fn orders(&mut self, keys: &[OrderKey]) -> Result<Vec<BrandOrder>, StoreError>;

    /// Writes orders. [`StoreError::Conflict`] when another transaction wrote one since it was read. `rows` must be sorted.
    async fn save_orders(&mut self, rows: &[BrandOrder]) -> Result<(), StoreError>;

    /// Writes products where they are newer than what is there; one that was deleted stays deleted. `rows` holds each product once, sorted.
    async fn save_products(&mut self, rows: &[ProductRow<'_>]) -> Result<(), StoreError>;

    /// Adds what customers said of consent.
    async fn save_consents(&mut self, rows: &[ConsentRow<'_>]) -> Result<(), StoreError>;

    /// Adds requests in the name of privacy that are not there yet.
    async fn ask(&mut self, rows: &[PrivacyRow]) -> Result<(), StoreError>;

    /// Empties events that must not say anything: they are about somebody who was erased.
    async fn blank_events(&mut self, events: &[(BrandId, String)]) -> Result<(), StoreError>;

    /// Takes out of a recorded merge what a split below it has taken out of its profile.
    async fn rewrite_merge(&mut self, merge: &Merge) -> Result<(), StoreError>;

    /// Gives back to `to` what came first to it, or to a profile merged into it, and belongs to `from` now. Both are locked.
    async fn give_back(&mut self, from: ProfileId, to: ProfileId) -> Result<GivenBack, StoreError>;

    /// The events of a profile after `(timestamp, message id)`, oldest first, at most `limit`.
    async fn events_of(
        &mut self,
        id: ProfileId,
        after: Option<&(Timestamp, String)>,
        limit: i64,
    ) -> Result<Vec<Retold>, StoreError>;

    /// Marks a merge as undone. [`StoreError::Conflict`] when it is already.
    async fn undo_merge(&mut self, id: uuid::Uuid, at: Timestamp) -> Result<(), StoreError>;

    /// Stamps profiles, which this transaction has locked, with a fencing token. [`StoreError::Fenced`] unless the token is
    /// strictly higher than each one's last; so one token commits once a profile. Without a token it draws the next one.
    async fn fence(&mut self, ids: &[ProfileId], token: Option<i64>) -> Result<(), StoreError>;

    /// Adds jobs to the outbox: they are there if and only if the transaction commits.
    async fn stage(&mut self, stages: &[Stage], now_ms: i64) -> Result<(), StoreError>;

    /// Adds to the audit log what the transaction does: it stands there if and only if that is done.
    async fn note(&mut self, entry: &AuditEntry) -> Result<(), StoreError>;

    /// Makes all of it durable, or none.
    async fn commit(self: Box<Self>) -> Result<(), StoreError>;
}
