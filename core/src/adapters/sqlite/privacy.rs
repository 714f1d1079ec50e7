//! Forgetting, and remembering that it was done.

use std::collections::BTreeSet;

use async_trait::async_trait;
use serde_json::json;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, QueryBuilder, Row, Sqlite, SqliteConnection};
use uuid::Uuid;

use super::customers::{brand_order, consents, profile_id, stored_event};
use super::db::{Db, failed, pieces};
use super::directory::uuid;
use super::processing::ORDER;
use crate::domain::customer360::{StoredConsent, StoredEvent};
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::order::OrderRecord;
use crate::domain::time::{Timestamp, from_ms};
use crate::ports::privacy::{AuditEntry, Erased, Erasure, Privacy, PrivacyRequest, Tally};
use crate::ports::store::{PrivacyRow, StoreError, SuppressionKey};

/// The columns of a request, as [`request`] reads them.
const REQUEST: &str = "id, brand_id, kind, subject, source, created_at, done_at, result, due_at, customers, events, orders, other_rows";

/// What is done in the name of privacy on SQLite.
pub struct SqlitePrivacy {
    db: Db,
    suppression: SuppressionKey,
}

impl SqlitePrivacy {
    /// In an open file.
    pub fn new(db: Db, suppression: SuppressionKey) -> Self {
        Self { db, suppression }
    }
}

#[async_trait]
impl Privacy for SqlitePrivacy {
    async fn ask(&self, row: &PrivacyRow) -> Result<(), StoreError> {
        let statement = sqlx::query("insert into privacy_requests (id, brand_id, message_id, kind, subject, source, created_at, due_at) values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) on conflict do nothing")
            .bind(row.id.to_string())
            .bind(row.brand.0)
            .bind(&row.message_id)
            .bind(row.kind)
            .bind(&row.subject)
            .bind(&row.source)
            .bind(row.at.timestamp_millis())
            .bind(row.due.map(|due| due.timestamp_millis()));
        self.db.execute(statement).await?;
        Ok(())
    }

    async fn open_requests(&self, now: Timestamp, limit: i64) -> Result<Vec<PrivacyRequest>, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {REQUEST} from privacy_requests where done_at is null and (due_at is null or due_at <= ?1)
            order by created_at, id limit ?2"
        )))
        .bind(now.timestamp_millis())
        .bind(limit)
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        rows.iter().map(request).collect::<Result<_, _>>().map_err(failed)
    }

    async fn requests(&self, brand: BrandId, limit: i64) -> Result<Vec<PrivacyRequest>, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {REQUEST} from privacy_requests where brand_id = ?1 order by created_at desc, id desc limit ?2"
        )))
        .bind(brand.0)
        .bind(limit)
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        rows.iter().map(request).collect::<Result<_, _>>().map_err(failed)
    }

    async fn request(&self, brand: BrandId, id: Uuid) -> Result<Option<PrivacyRequest>, StoreError> {
        let row = sqlx::query(AssertSqlSafe(format!(
            "select {REQUEST} from privacy_requests where brand_id = ?1 and id = ?2"
        )))
        .bind(brand.0)
        .bind(id.to_string())
        .fetch_optional(&self.db.read)
        .await
        .map_err(failed)?;
        row.map(|row| request(&row)).transpose().map_err(failed)
    }

    async fn stop(
        &self,
        id: Uuid,
        at: Timestamp,
        result: &str,
        note: &AuditEntry,
    ) -> Result<bool, StoreError> {
        let mut tx = self.db.begin().await.map_err(failed)?;
        let stopped = sqlx::query("update privacy_requests set done_at = ?3, result = ?4, subject = null where brand_id = ?1 and id = ?2 and done_at is null and due_at > ?3")
            .bind(note.brand.0)
            .bind(id.to_string())
            .bind(at.timestamp_millis())
            .bind(result)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        if stopped.rows_affected() == 0 {
            return Ok(false);
        }
        bodies_may_come_again(&mut tx, id).await?;
        add_note(&mut tx, note).await?;
        tx.commit().await.map_err(failed)?;
        Ok(true)
    }

    async fn remember(&self, id: Uuid, subject: &str) -> Result<(), StoreError> {
        let statement =
            sqlx::query("update privacy_requests set subject = ?2 where id = ?1 and done_at is null")
                .bind(id.to_string())
                .bind(subject);
        self.db.execute(statement).await?;
        Ok(())
    }

    async fn named_exports(&self, brand: BrandId) -> Result<Vec<PrivacyRequest>, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {REQUEST} from privacy_requests where brand_id = ?1 and kind = 'export' and subject is not null"
        )))
        .bind(brand.0)
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        rows.iter().map(request).collect::<Result<_, _>>().map_err(failed)
    }

    async fn order_events(
        &self,
        brand: BrandId,
        id: ProfileId,
        after: Option<&(Timestamp, String)>,
        limit: i64,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        let rows = sqlx::query(
            "select e.message_id, kind, e.name, \"timestamp\", body, active, source, received_at from orders o
            join events e on e.brand_id = o.brand_id and e.shop = o.shop and e.order_id = o.id and e.profile_id is null
            where o.profile_id = ?1 and o.brand_id = ?2 and (?4 is null or (\"timestamp\", e.message_id) > (?4, ?5))
            order by \"timestamp\", e.message_id limit ?3",
        )
        .bind(id.to_string())
        .bind(brand.0)
        .bind(limit)
        .bind(after.map(|(at, _)| at.timestamp_millis()))
        .bind(after.map(|(_, message)| message.as_str()))
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        rows.iter().map(stored_event).collect::<Result<_, _>>().map_err(failed)
    }

    async fn done(&self, id: Uuid, at: Timestamp, result: &str, forget: bool) -> Result<(), StoreError> {
        let mut tx = self.db.begin().await.map_err(failed)?;
        sqlx::query("update privacy_requests set done_at = coalesce(done_at, ?2), result = coalesce(result, ?3), subject = case when ?4 then null else subject end where id = ?1")
            .bind(id.to_string())
            .bind(at.timestamp_millis())
            .bind(result)
            .bind(forget)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        bodies_may_come_again(&mut tx, id).await?;
        tx.commit().await.map_err(failed)
    }

    async fn erase(&self, brand: BrandId, what: &Erasure, at: Timestamp) -> Result<Erased, StoreError> {
        let mut tx = self.db.begin().await.map_err(failed)?;
        // Everybody who was merged into them, and everything that they were merged into, is one customer.
        let given: Vec<_> = what.identifiers.iter().map(|i| json!([i.kind.as_str(), i.value])).collect();
        let ids: Vec<String> = sqlx::query_scalar(
            "with recursive asked as (
                select id from profiles where id in (select value from json_each(?3)) and brand_id = ?1
                union select i.profile_id from json_each(?2) given join identifiers i
                    on i.brand_id = ?1 and i.kind = given.value ->> 0 and i.value = given.value ->> 1
            ), up as (
                select id, merged_into from profiles where id in (select id from asked) and brand_id = ?1
                union select p.id, p.merged_into from profiles p join up on p.id = up.merged_into and p.brand_id = ?1
            ), tree as (
                select id from up
                union select p.id from profiles p join tree on p.merged_into = tree.id and p.brand_id = ?1
            )
            select id from tree order by id",
        )
        .bind(brand.0)
        .bind(json!(given).to_string())
        .bind(json!(what.profiles).to_string())
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        let all = json!(ids).to_string();
        if what.only_empty {
            // Seen again since it was looked at: then it stays.
            let held: bool = sqlx::query_scalar(
                "select exists (select 1 from events where profile_id in (select value from json_each(?1)))
                    or exists (select 1 from orders where profile_id in (select value from json_each(?1)))",
            )
            .bind(&all)
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
            if held {
                return Ok(Erased::default());
            }
        }
        let owned: Vec<(String, String)> = sqlx::query_as(
            "delete from identifiers where profile_id in (select value from json_each(?1)) returning kind, value",
        )
        .bind(&all)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        let mut forgotten: BTreeSet<Identifier> = owned
            .into_iter()
            .filter_map(|(kind, value)| Some(Identifier { kind: IdentifierKind::parse(&kind)?, value }))
            .collect();
        forgotten.extend(what.identifiers.iter().cloned());
        if what.suppress {
            let rows: Vec<&Identifier> = forgotten.iter().collect();
            for piece in pieces(&rows) {
                let mut insert =
                    QueryBuilder::<Sqlite>::new("insert into suppressed (brand_id, hash, kind, at, keyed) ");
                insert.push_values(piece, |mut row, identifier| {
                    row.push_bind(brand.0)
                        .push_bind(self.suppression.hash(brand, identifier).to_vec())
                        .push_bind(identifier.kind.as_str())
                        .push_bind(at.timestamp_millis())
                        .push("1");
                });
                insert.push(" on conflict do nothing");
                insert.build().execute(&mut *tx).await.map_err(failed)?;
            }
        }
        // Records of merges that were undone may name them, too.
        let gone: Vec<_> = forgotten.iter().map(|i| json!([i.kind.as_str(), i.value])).collect();
        sqlx::query(
            "delete from merges where brand_id = ?1 and undone_at is not null and exists (
                select 1 from json_each(merges.identifiers) held join json_each(?2) gone
                on held.value ->> 'kind' = gone.value ->> 0 and held.value ->> 'value' = gone.value ->> 1)",
        )
        .bind(brand.0)
        .bind(json!(gone).to_string())
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        let customers: i64 = sqlx::query_scalar(
            "select count(*) from profiles where id in (select value from json_each(?1)) and merged_into is null",
        )
        .bind(&all)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
        let mut counts = [0; 3];
        let statements = [
            "delete from events where profile_id in (select value from json_each(?1))",
            "delete from events where rowid in (
                select e.rowid from orders o join events e
                on e.brand_id = o.brand_id and e.shop = o.shop and e.order_id = o.id and e.profile_id is null
                where o.profile_id in (select value from json_each(?1)))",
            "update orders set profile_id = null, origin = null, fulfillments = '{}', erased = true, version = version + 1
                where profile_id in (select value from json_each(?1))",
            "delete from consents where profile_id in (select value from json_each(?1))",
            "delete from merges where survivor in (select value from json_each(?1)) or loser in (select value from json_each(?1))",
            "delete from relations where a in (select value from json_each(?1)) or b in (select value from json_each(?1))",
            "delete from profiles where id in (select value from json_each(?1))",
            "delete from segment_members where profile_id in (select value from json_each(?1))",
            "delete from segment_changes where profile_id in (select value from json_each(?1))",
            "delete from segment_checks where profile_id in (select value from json_each(?1))",
            "delete from automation_runs where profile_id in (select value from json_each(?1))",
            "delete from automation_actions where profile_id in (select value from json_each(?1))",
        ];
        for (at, statement) in statements.into_iter().enumerate() {
            let done = sqlx::query(statement).bind(&all).execute(&mut *tx).await.map_err(failed)?;
            if let Some(count) = counts.get_mut(at) {
                *count = done.rows_affected();
            }
        }
        if let Some(request) = what.request {
            sqlx::query("update privacy_requests set customers = customers + ?2, events = events + ?3, orders = orders + ?4 where id = ?1")
                .bind(request.to_string())
                .bind(customers)
                .bind(counts[0].cast_signed() + counts[1].cast_signed())
                .bind(counts[2].cast_signed())
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(Erased {
            profiles: ids.iter().map(|id| profile_id(id)).collect::<Result<_, _>>().map_err(failed)?,
            identifiers: forgotten.into_iter().collect(),
            events: counts[0] + counts[1],
            orders: counts[2],
        })
    }

    async fn customers_of_shop(
        &self,
        brand: BrandId,
        shop: &str,
        limit: i64,
    ) -> Result<Vec<ProfileId>, StoreError> {
        let ids: Vec<String> = sqlx::query_scalar(
            "select profile_id from events where brand_id = ?1 and shop = ?2 and profile_id is not null
            union select profile_id from orders where brand_id = ?1 and shop = ?2 and profile_id is not null
            limit ?3",
        )
        .bind(brand.0)
        .bind(shop)
        .bind(limit)
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        ids.iter().map(|id| profile_id(id)).collect::<Result<_, _>>().map_err(failed)
    }

    async fn erase_shop(
        &self,
        brand: BrandId,
        shop: &str,
        limit: i64,
        request: Uuid,
    ) -> Result<u64, StoreError> {
        let mut tx = self.db.begin().await.map_err(failed)?;
        let mut gone = 0;
        for statement in [
            "delete from events where (brand_id, message_id) in (select brand_id, message_id from events where brand_id = ?1 and shop = ?2 and profile_id is null limit ?3)",
            "delete from orders where (brand_id, shop, id) in (select brand_id, shop, id from orders where brand_id = ?1 and shop = ?2 and profile_id is null limit ?3)",
            "delete from products where (brand_id, shop, id) in (select brand_id, shop, id from products where brand_id = ?1 and shop = ?2 limit ?3)",
        ] {
            let done = sqlx::query(statement)
                .bind(brand.0)
                .bind(shop)
                .bind(limit)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
            gone += done.rows_affected();
        }
        sqlx::query("update privacy_requests set other_rows = other_rows + ?2 where id = ?1")
            .bind(request.to_string())
            .bind(gone.cast_signed())
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(gone)
    }

    async fn unsuppress(&self, brand: BrandId, identifiers: &[Identifier]) -> Result<u64, StoreError> {
        let mut tx = self.db.begin().await.map_err(failed)?;
        let mut lifted = 0;
        for identifier in identifiers {
            let done = sqlx::query("delete from suppressed where brand_id = ?1 and hash = ?2")
                .bind(brand.0)
                .bind(self.suppression.hash(brand, identifier).to_vec())
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
            lifted += done.rows_affected();
        }
        // Who may be known again may ask again, in the same words.
        sqlx::query("delete from webhook_bodies where brand_id = ?1 and topic = 'customers/redact'")
            .bind(brand.0)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(lifted)
    }

    async fn orders(
        &self,
        brand: BrandId,
        id: ProfileId,
        after: Option<&(String, String)>,
        limit: i64,
    ) -> Result<Vec<OrderRecord>, StoreError> {
        let (shop, order) = after.map(|(shop, order)| (shop.as_str(), order.as_str())).unzip();
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {ORDER} from orders where profile_id = ?1 and brand_id = ?2
                and (?3 is null or (shop, id) > (?3, ?4)) order by shop, id limit ?5"
        )))
        .bind(id.to_string())
        .bind(brand.0)
        .bind(shop)
        .bind(order)
        .bind(limit)
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        rows.iter().map(|row| Ok(brand_order(row)?.1)).collect::<Result<_, sqlx::Error>>().map_err(failed)
    }

    async fn key_suppressions(&self, limit: i64) -> Result<u64, StoreError> {
        let mut tx = self.db.begin().await.map_err(failed)?;
        let old: Vec<(i64, Vec<u8>)> = sqlx::query_as(
            "select brand_id, hash from suppressed where keyed = 0 order by brand_id, hash limit ?1",
        )
        .bind(limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        for (brand, hash) in &old {
            sqlx::query(
                "update suppressed set hash = ?3, keyed = 1 where brand_id = ?1 and hash = ?2 and keyed = 0",
            )
            .bind(brand)
            .bind(hash)
            .bind(self.suppression.keyed(hash).to_vec())
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(old.len() as u64)
    }

    async fn consents(
        &self,
        brand: BrandId,
        id: ProfileId,
        before: Option<&StoredConsent>,
        limit: i64,
    ) -> Result<Vec<StoredConsent>, StoreError> {
        let mut conn = self.db.read.acquire().await.map_err(failed)?;
        consents(&mut conn, brand, id, before, limit).await
    }

    async fn expire(&self, brand: BrandId, before: Timestamp, limit: i64) -> Result<u64, StoreError> {
        let statement = sqlx::query("delete from events where (brand_id, message_id) in (select brand_id, message_id from events where brand_id = ?1 and received_at < ?2 limit ?3)")
            .bind(brand.0)
            .bind(before.timestamp_millis())
            .bind(limit);
        let done = self.db.execute(statement).await?;
        let statement = sqlx::query("delete from webhook_bodies where (brand_id, shop, digest, topic) in (select brand_id, shop, digest, topic from webhook_bodies where brand_id = ?1 and at < ?2 limit ?3)")
            .bind(brand.0)
            .bind(before.timestamp_millis())
            .bind(limit);
        self.db.execute(statement).await?;
        Ok(done.rows_affected())
    }

    async fn forgotten(
        &self,
        brand: BrandId,
        before: Timestamp,
        limit: i64,
    ) -> Result<Vec<ProfileId>, StoreError> {
        // a profile's id says when it was made: one that is younger than that has not been seen for so long
        let ids: Vec<String> = sqlx::query_scalar(
            "select id from profiles p where brand_id = ?1 and merged_into is null and id < ?2
                and (last_seen is null or last_seen < ?3)
                and not exists (select 1 from events where profile_id = p.id)
                and not exists (select 1 from orders where profile_id = p.id)
            order by id limit ?4",
        )
        .bind(brand.0)
        .bind(ProfileId::first_at(before.timestamp_millis()).to_string())
        .bind(before.timestamp_millis())
        .bind(limit)
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        ids.iter().map(|id| profile_id(id)).collect::<Result<_, _>>().map_err(failed)
    }

    async fn note(&self, entries: &[AuditEntry]) -> Result<(), StoreError> {
        let mut tx = self.db.begin().await.map_err(failed)?;
        for entry in entries {
            add_note(&mut tx, entry).await?;
        }
        tx.commit().await.map_err(failed)
    }

    async fn audit_log(
        &self,
        brand: BrandId,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<AuditEntry>, StoreError> {
        let rows = sqlx::query(
            "select id, brand_id, at, actor, action, subject, details from audit_log
            where brand_id = ?1 and (?2 is null or id < ?2) order by id desc limit ?3",
        )
        .bind(brand.0)
        .bind(before.map(|id| id.to_string()))
        .bind(limit)
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        rows.iter().map(entry).collect::<Result<_, _>>().map_err(failed)
    }
}

/// Adds to the audit log, in the transaction of what it speaks of.
pub(super) async fn add_note(tx: &mut SqliteConnection, entry: &AuditEntry) -> Result<(), StoreError> {
    sqlx::query("insert into audit_log (id, brand_id, at, actor, action, subject, details) values (?1, ?2, ?3, ?4, ?5, ?6, ?7)")
        .bind(entry.id.to_string())
        .bind(entry.brand.0)
        .bind(entry.at.timestamp_millis())
        .bind(&entry.actor)
        .bind(&entry.action)
        .bind(entry.subject.as_deref())
        .bind(&entry.details)
        .execute(tx)
        .await
        .map_err(failed)?;
    Ok(())
}

fn request(row: &SqliteRow) -> Result<PrivacyRequest, sqlx::Error> {
    Ok(PrivacyRequest {
        id: uuid(row.try_get("id")?)?,
        brand: BrandId(row.try_get("brand_id")?),
        kind: row.try_get("kind")?,
        subject: row.try_get("subject")?,
        source: row.try_get("source")?,
        created_at: from_ms(row.try_get("created_at")?),
        done_at: row.try_get::<Option<i64>, _>("done_at")?.map(from_ms),
        result: row.try_get("result")?,
        due_at: row.try_get::<Option<i64>, _>("due_at")?.map(from_ms),
        so_far: tally(row)?,
    })
}

fn tally(row: &SqliteRow) -> Result<Tally, sqlx::Error> {
    let count = |name: &str| Ok::<_, sqlx::Error>(row.try_get::<i64, _>(name)?.cast_unsigned());
    Ok(Tally {
        customers: count("customers")?,
        events: count("events")?,
        orders: count("orders")?,
        rows: count("other_rows")?,
    })
}

/// A shop's redaction says the same each time: once one has ended, the next is another.
async fn bodies_may_come_again(tx: &mut SqliteConnection, request: Uuid) -> Result<(), StoreError> {
    sqlx::query(
        "delete from webhook_bodies where topic = 'shop/redact' and (brand_id, message_id) in (
            select brand_id, message_id from privacy_requests where id = ?1)",
    )
    .bind(request.to_string())
    .execute(&mut *tx)
    .await
    .map_err(failed)?;
    Ok(())
}

fn entry(row: &SqliteRow) -> Result<AuditEntry, sqlx::Error> {
    Ok(AuditEntry {
        id: uuid(row.try_get("id")?)?,
        brand: BrandId(row.try_get("brand_id")?),
        at: from_ms(row.try_get("at")?),
        actor: row.try_get("actor")?,
        action: row.try_get("action")?,
        subject: row.try_get("subject")?,
        details: row.try_get("details")?,
    })
}
