//! Requests in the name of privacy, and what they read and delete.

use async_trait::async_trait;
use serde_json::json;
use sqlx_macros::FromRow;
use uuid::Uuid;

use super::codec::{Id, Time};
use super::database::{Database, Tx};
use super::events::EVENT;
use super::orders::ORDER;
use super::statement::Given;
use super::{audit, customers, erasure, read_as};
use crate::domain::customer360::{EventKey, StoredConsent, StoredEvent};
use crate::domain::identity::Identifier;
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::order::OrderRecord;
use crate::domain::time::Timestamp;
use crate::ports::privacy::{AuditEntry, Erased, Erasure, Privacy, PrivacyRequest, Tally};
use crate::ports::store::PrivacyAsks;
use crate::ports::store::{PrivacyRow, StoreError, SuppressionKey};

/// The columns of a request, as it is read.
const REQUEST: &str = "id, brand_id, kind, subject, source, created_at, done_at, result, due_at, customers, events, orders, other_rows";

#[derive(FromRow)]
struct RequestRow {
    id: Id,
    brand_id: BrandId,
    kind: String,
    subject: Option<String>,
    source: String,
    created_at: Time,
    done_at: Option<Time>,
    result: Option<String>,
    due_at: Option<Time>,
    customers: i64,
    events: i64,
    orders: i64,
    other_rows: i64,
}

read_as!(PrivacyRequest: RequestRow);

impl From<RequestRow> for PrivacyRequest {
    fn from(row: RequestRow) -> Self {
        Self {
            id: row.id.0,
            brand: row.brand_id,
            kind: row.kind,
            subject: row.subject,
            source: row.source,
            created_at: row.created_at.0,
            done_at: row.done_at.map(|at| at.0),
            result: row.result,
            due_at: row.due_at.map(|at| at.0),
            so_far: Tally {
                customers: row.customers.cast_unsigned(),
                events: row.events.cast_unsigned(),
                orders: row.orders.cast_unsigned(),
                rows: row.other_rows.cast_unsigned(),
            },
        }
    }
}

/// What is done in the name of privacy.
pub struct SqlPrivacy {
    db: Database,
    suppression: SuppressionKey,
}

impl SqlPrivacy {
    /// In an open database; `suppression` keys what is kept of erased customers.
    pub fn new(db: Database, suppression: SuppressionKey) -> Self {
        Self { db, suppression }
    }
}

#[async_trait]
impl Privacy for SqlPrivacy {
    async fn add_request(&self, row: &PrivacyRow) -> Result<(), StoreError> {
        let mut tx = self.db.brand(row.brand).await?;
        add_requests(&mut tx, std::slice::from_ref(row)).await?;
        tx.commit().await
    }

    async fn open_requests(&self, now: Timestamp, limit: i64) -> Result<Vec<PrivacyRequest>, StoreError> {
        let open = format!(
            "select {REQUEST} from privacy_requests where done_at is null and (due_at is null or due_at <= $1)
            order by created_at, id limit $2"
        );
        self.db.looking().await?.sql(open).bind(now).bind(limit).all().await
    }

    async fn requests(&self, brand: BrandId, limit: i64) -> Result<Vec<PrivacyRequest>, StoreError> {
        let requests = format!(
            "select {REQUEST} from privacy_requests where brand_id = $1 order by created_at desc, id desc limit $2"
        );
        self.db.looking_at(brand).await?.sql(requests).bind(brand).bind(limit).all().await
    }

    async fn request(&self, brand: BrandId, id: Uuid) -> Result<Option<PrivacyRequest>, StoreError> {
        let request = format!("select {REQUEST} from privacy_requests where brand_id = $1 and id = $2");
        self.db.looking_at(brand).await?.sql(request).bind(brand).bind(id).optional().await
    }

    async fn stop(
        &self,
        id: Uuid,
        at: Timestamp,
        result: &str,
        note: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let mut tx = self.db.brand(note.brand).await?;
        let stop = "update privacy_requests set done_at = $3, result = $4, subject = null
            where brand_id = $1 and id = $2 and done_at is null and due_at > $3";
        if tx.sql(stop).bind(note.brand).bind(id).bind(at).bind(result).run().await? == 0 {
            return Ok(false);
        }
        bodies_may_come_again(&mut tx, id).await?;
        audit::add(&mut tx, note).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn save_subject(&self, id: Uuid, subject: &str) -> Result<(), StoreError> {
        let remember = "update privacy_requests set subject = $2 where id = $1 and done_at is null";
        self.db.writing().await?.sql(remember).bind(id).bind(subject).run().await.map(drop)
    }

    async fn named_exports(&self, brand: BrandId) -> Result<Vec<PrivacyRequest>, StoreError> {
        let exports = format!(
            "select {REQUEST} from privacy_requests where brand_id = $1 and kind = 'export' and subject is not null"
        );
        self.db.looking_at(brand).await?.sql(exports).bind(brand).all().await
    }

    async fn order_events(
        &self,
        brand: BrandId,
        id: ProfileId,
        after: Option<&EventKey>,
        limit: i64,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        let events = format!(
            "select {EVENT} from orders o
            join events on events.brand_id = o.brand_id and events.shop = o.shop and events.order_id = o.id
                and events.profile_id is null
            where o.profile_id = $1 and o.brand_id = $2"
        );
        let mut tx = self.db.looking_at(brand).await?;
        tx.sql(events)
            .bind(id)
            .bind(brand)
            .filter_two(
                "(events.\"timestamp\", events.message_id) > ",
                after.map(|key| (key.timestamp, &key.message_id)),
            )
            .push(" order by events.\"timestamp\", events.message_id limit ")
            .push_bind(limit)
            .all()
            .await
    }

    async fn complete_request(
        &self,
        id: Uuid,
        at: Timestamp,
        result: &str,
        forget: bool,
    ) -> Result<(), StoreError> {
        let mut tx = self.db.every_brand().await?;
        let done =
            "update privacy_requests set done_at = coalesce(done_at, $2), result = coalesce(result, $3),
            subject = case when $4 then null else subject end where id = $1";
        tx.sql(done).bind(id).bind(at).bind(result).bind(forget).run().await?;
        bodies_may_come_again(&mut tx, id).await?;
        tx.commit().await
    }

    async fn erase(&self, brand: BrandId, what: &Erasure, at: Timestamp) -> Result<Erased, StoreError> {
        erasure::erase(self.db.brand(brand).await?, what, at, &self.suppression).await
    }

    async fn customers_of_shop(
        &self,
        brand: BrandId,
        shop: &str,
        limit: i64,
    ) -> Result<Vec<ProfileId>, StoreError> {
        let customers =
            "select profile_id from events where brand_id = $1 and shop = $2 and profile_id is not null
            union select profile_id from orders where brand_id = $1 and shop = $2 and profile_id is not null
            limit $3";
        self.db.looking_at(brand).await?.sql(customers).bind(brand).bind(shop).bind(limit).scalars().await
    }

    async fn erase_shop(
        &self,
        brand: BrandId,
        shop: &str,
        limit: i64,
        request: Uuid,
    ) -> Result<u64, StoreError> {
        erasure::erase_shop(self.db.brand(brand).await?, shop, limit, request).await
    }

    async fn unsuppress(&self, brand: BrandId, identifiers: &[Identifier]) -> Result<u64, StoreError> {
        let mut tx = self.db.brand(brand).await?;
        let mut lifted = 0;
        for identifier in identifiers {
            let lift = "delete from suppressed where brand_id = $1 and hash = $2";
            let hash = self.suppression.hash(brand, identifier);
            lifted += tx.sql(lift).bind(brand).bind(&hash[..]).run().await?;
        }
        // Who may be known again may ask again, in the same words.
        let again = "delete from webhook_bodies where brand_id = $1 and topic = 'customers/redact'";
        tx.sql(again).bind(brand).run().await?;
        tx.commit().await?;
        Ok(lifted)
    }

    async fn orders(
        &self,
        brand: BrandId,
        id: ProfileId,
        after: Option<&(String, String)>,
        limit: i64,
    ) -> Result<Vec<OrderRecord>, StoreError> {
        let mut tx = self.db.looking_at(brand).await?;
        tx.sql(format!("select {ORDER} from orders where profile_id = $1 and brand_id = $2"))
            .bind(id)
            .bind(brand)
            .filter_two("(shop, id) > ", after.map(|(shop, id)| (shop, id)))
            .push(" order by shop, id limit ")
            .push_bind(limit)
            .all()
            .await
    }

    async fn key_suppressions(&self, limit: i64) -> Result<u64, StoreError> {
        let mut tx = self.db.every_brand().await?;
        let old = "select brand_id, hash from suppressed where not keyed order by brand_id, hash limit $1
            for update skip locked";
        let old: Vec<(BrandId, Vec<u8>)> = tx.sql(old).bind(limit).all().await?;
        for (brand, hash) in &old {
            let keyed = self.suppression.keyed(hash);
            tx.sql("update suppressed set hash = $3, keyed = true where brand_id = $1 and hash = $2 and not keyed")
                .bind(*brand)
                .bind(hash.as_slice())
                .bind(&keyed[..])
                .run()
                .await?;
        }
        tx.commit().await?;
        Ok(old.len() as u64)
    }

    async fn consents(
        &self,
        brand: BrandId,
        id: ProfileId,
        before: Option<&StoredConsent>,
        limit: i64,
    ) -> Result<Vec<StoredConsent>, StoreError> {
        customers::consents(&mut self.db.looking_at(brand).await?, id, before, limit).await
    }

    async fn delete_expired_events(
        &self,
        brand: BrandId,
        before: Timestamp,
        limit: i64,
    ) -> Result<u64, StoreError> {
        let events = "delete from events where (brand_id, message_id) in (
            select brand_id, message_id from events where brand_id = $1 and received_at < $2 limit $3)";
        let bodies = "delete from webhook_bodies where (brand_id, shop, digest, topic) in (
            select brand_id, shop, digest, topic from webhook_bodies where brand_id = $1 and at < $2 limit $3)";
        let mut tx = self.db.brand(brand).await?;
        let expired = tx.sql(events).bind(brand).bind(before).bind(limit).run().await?;
        tx.sql(bodies).bind(brand).bind(before).bind(limit).run().await?;
        tx.commit().await?;
        Ok(expired)
    }

    async fn inactive_profiles(
        &self,
        brand: BrandId,
        before: Timestamp,
        limit: i64,
    ) -> Result<Vec<ProfileId>, StoreError> {
        // A profile's id says when it was made: one that is younger than that was seen since.
        let inactive = "select id from profiles p where brand_id = $1 and merged_into is null and id < $2
                and (last_seen is null or last_seen < $3)
                and not exists (select 1 from events where profile_id = p.id)
                and not exists (select 1 from orders where profile_id = p.id)
            order by id limit $4";
        let youngest = ProfileId::first_at(before.timestamp_millis());
        let mut tx = self.db.looking_at(brand).await?;
        tx.sql(inactive).bind(brand).bind(youngest).bind(before).bind(limit).scalars().await
    }

    async fn append_audit(&self, entries: &[AuditEntry]) -> Result<(), StoreError> {
        let mut tx = self.db.every_brand().await?;
        for entry in entries {
            audit::add(&mut tx, entry).await?;
        }
        tx.commit().await
    }

    async fn audit_log(
        &self,
        brand: BrandId,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<AuditEntry>, StoreError> {
        audit::before(&mut self.db.looking_at(brand).await?, before, limit).await
    }
}

/// How a request is stored: its kind, and its subject as JSON.
fn stored(asks: &PrivacyAsks) -> (&'static str, String) {
    match asks {
        PrivacyAsks::Export(subject) => ("export", json!(subject).to_string()),
        PrivacyAsks::Erase(subject) => ("erase", json!(subject).to_string()),
        PrivacyAsks::EraseShop(shop) => ("erase_shop", json!(shop).to_string()),
    }
}

/// Adds requests that are not there yet.
pub(super) async fn add_requests(tx: &mut Tx, rows: &[PrivacyRow]) -> Result<(), StoreError> {
    let given = Given::of(rows)
        .column("id", |row| row.id)
        .column("brand", |row| row.brand)
        .column("message", |row| &row.message_id)
        .column("kind", |row| stored(&row.asks).0)
        .column("subject", |row| stored(&row.asks).1)
        .column("source", |row| &row.source)
        .column("made", |row| row.at)
        .column("due", |row| row.due)
        .rows();
    tx.sql(
        "insert into privacy_requests (id, brand_id, message_id, kind, subject, source, created_at, due_at)
        select id, brand, message, kind, subject, source, made, due from {given} where true on conflict do nothing",
    )
    .given(&given)
    .run()
    .await?;
    Ok(())
}

/// A shop's redaction says the same each time: once one has ended, the next is another.
async fn bodies_may_come_again(tx: &mut Tx, request: Uuid) -> Result<(), StoreError> {
    let again = "delete from webhook_bodies where topic = 'shop/redact' and (brand_id, message_id) in (
        select brand_id, message_id from privacy_requests where id = $1)";
    tx.sql(again).bind(request).run().await.map(drop)
}
