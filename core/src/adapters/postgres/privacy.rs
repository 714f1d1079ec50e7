//! Forgetting, and remembering that it was done.

use std::collections::BTreeSet;

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row};
use uuid::Uuid;

use super::customers::{brand_order, consents, stored_event};
use super::db::{begin, begin_for, begin_reading, failed};
use super::processing::{ORDER, uuids};
use crate::domain::customer360::{StoredConsent, StoredEvent};
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::order::OrderRecord;
use crate::domain::time::Timestamp;
use crate::ports::privacy::{AuditEntry, Erased, Erasure, Privacy, PrivacyRequest, Tally};
use crate::ports::store::{PrivacyRow, StoreError, SuppressionKey};

/// The columns of a request, as [`request`] reads them.
const REQUEST: &str = "id, brand_id, kind, subject, source, created_at, done_at, result, due_at, customers, events, orders, other_rows";

/// What is done in the name of privacy on PostgreSQL.
pub struct PgPrivacy {
    pool: PgPool,
    suppression: SuppressionKey,
}

impl PgPrivacy {
    /// In an open pool.
    pub fn new(pool: PgPool, suppression: SuppressionKey) -> Self {
        Self { pool, suppression }
    }
}

#[async_trait]
impl Privacy for PgPrivacy {
    async fn ask(&self, row: &PrivacyRow) -> Result<(), StoreError> {
        sqlx::query("insert into privacy_requests (id, brand_id, message_id, kind, subject, source, created_at, due_at) values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict do nothing")
            .bind(row.id)
            .bind(row.brand.0)
            .bind(&row.message_id)
            .bind(row.kind)
            .bind(&row.subject)
            .bind(&row.source)
            .bind(row.at)
            .bind(row.due)
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        Ok(())
    }

    async fn open_requests(&self, now: Timestamp, limit: i64) -> Result<Vec<PrivacyRequest>, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {REQUEST} from privacy_requests where done_at is null and (due_at is null or due_at <= $1)
            order by created_at, id limit $2"
        )))
        .bind(now)
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        rows.iter().map(request).collect::<Result<_, _>>().map_err(failed)
    }

    async fn requests(&self, brand: BrandId, limit: i64) -> Result<Vec<PrivacyRequest>, StoreError> {
        let mut tx = begin_reading(&self.pool, brand).await?;
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {REQUEST} from privacy_requests where brand_id = $1 order by created_at desc, id desc limit $2"
        )))
        .bind(brand.0)
        .bind(limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        rows.iter().map(request).collect::<Result<_, _>>().map_err(failed)
    }

    async fn request(&self, brand: BrandId, id: Uuid) -> Result<Option<PrivacyRequest>, StoreError> {
        let mut tx = begin_reading(&self.pool, brand).await?;
        let row = sqlx::query(AssertSqlSafe(format!(
            "select {REQUEST} from privacy_requests where brand_id = $1 and id = $2"
        )))
        .bind(brand.0)
        .bind(id)
        .fetch_optional(&mut *tx)
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
        let mut tx = begin_for(&self.pool, note.brand).await?;
        let stopped = sqlx::query("update privacy_requests set done_at = $3, result = $4, subject = null where brand_id = $1 and id = $2 and done_at is null and due_at > $3")
            .bind(note.brand.0)
            .bind(id)
            .bind(at)
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
        sqlx::query("update privacy_requests set subject = $2 where id = $1 and done_at is null")
            .bind(id)
            .bind(subject)
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        Ok(())
    }

    async fn named_exports(&self, brand: BrandId) -> Result<Vec<PrivacyRequest>, StoreError> {
        let mut tx = begin_reading(&self.pool, brand).await?;
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {REQUEST} from privacy_requests where brand_id = $1 and kind = 'export' and subject is not null"
        )))
        .bind(brand.0)
        .fetch_all(&mut *tx)
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
        let mut tx = begin_reading(&self.pool, brand).await?;
        let rows = sqlx::query(
            "select e.message_id, kind, e.name, \"timestamp\", body::text as body, active, source, received_at from orders o
            join events e on e.brand_id = o.brand_id and e.shop = o.shop and e.order_id = o.id and e.profile_id is null
            where o.profile_id = $1 and o.brand_id = $2
                and ($4::timestamptz is null or (\"timestamp\", e.message_id) > ($4, $5))
            order by \"timestamp\", e.message_id limit $3",
        )
        .bind(id.0)
        .bind(brand.0)
        .bind(limit)
        .bind(after.map(|(at, _)| *at))
        .bind(after.map(|(_, message)| message.as_str()))
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        rows.iter().map(stored_event).collect::<Result<_, _>>().map_err(failed)
    }

    async fn done(&self, id: Uuid, at: Timestamp, result: &str, forget: bool) -> Result<(), StoreError> {
        let mut tx = begin(&self.pool).await?;
        sqlx::query("update privacy_requests set done_at = coalesce(done_at, $2), result = coalesce(result, $3), subject = case when $4 then null else subject end where id = $1")
            .bind(id)
            .bind(at)
            .bind(result)
            .bind(forget)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        bodies_may_come_again(&mut tx, id).await?;
        tx.commit().await.map_err(failed)
    }

    async fn erase(&self, brand: BrandId, what: &Erasure, at: Timestamp) -> Result<Erased, StoreError> {
        let mut tx = begin_for(&self.pool, brand).await?;
        // Claimed first, under nobody's name: a transaction that claims one of them just now is waited for, and its profile
        // found; one that claims it later waits for this one, and sees what is suppressed.
        let nobody = Uuid::now_v7();
        let mut identifiers = what.identifiers.clone();
        identifiers.sort();
        let kinds: Vec<&str> = identifiers.iter().map(|i| i.kind.as_str()).collect();
        let values: Vec<&str> = identifiers.iter().map(|i| i.value.as_str()).collect();
        sqlx::query(
            "insert into identifiers (brand_id, kind, value, profile_id, origin)
            select $1, k, v, $4, $4 from unnest($2::text[], $3::text[]) with ordinality as given (k, v, place) order by place
            on conflict do nothing",
        )
        .bind(brand.0)
        .bind(&kinds)
        .bind(&values)
        .bind(nobody)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        // Everybody who was merged into them, and everything that they were merged into, is one customer.
        let ids = tree(&mut tx, brand, &kinds, &values, &what.profiles).await?;
        sqlx::query("select 1 from profiles where id = any($1) order by id for update")
            .bind(&ids)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        // Whoever was merged between the look and the lock is seen now.
        if tree(&mut tx, brand, &kinds, &values, &what.profiles).await? != ids {
            return Err(StoreError::Conflict("a profile was merged meanwhile".into()));
        }
        if what.only_empty {
            // Seen again since it was looked at: then it stays.
            let held: bool = sqlx::query_scalar(
                "select exists (select 1 from events where profile_id = any($1))
                    or exists (select 1 from orders where profile_id = any($1))",
            )
            .bind(&ids)
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
            if held {
                return Ok(Erased::default());
            }
        }
        let owned: Vec<(String, String)> = sqlx::query_as(
            "delete from identifiers where profile_id = any($1) or profile_id = $2 returning kind, value",
        )
        .bind(&ids)
        .bind(nobody)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        let mut forgotten: BTreeSet<Identifier> = owned
            .into_iter()
            .filter_map(|(kind, value)| Some(Identifier { kind: IdentifierKind::parse(&kind)?, value }))
            .collect();
        forgotten.extend(what.identifiers.iter().cloned());
        if what.suppress {
            sqlx::query(
                "insert into suppressed (brand_id, hash, kind, at, keyed)
                select $1, h, k, $4, true from unnest($2::bytea[], $3::text[]) as given (h, k) on conflict do nothing",
            )
            .bind(brand.0)
            .bind(forgotten.iter().map(|i| self.suppression.hash(brand, i).to_vec()).collect::<Vec<_>>())
            .bind(forgotten.iter().map(|i| i.kind.as_str()).collect::<Vec<_>>())
            .bind(at)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        }
        // Records of merges that were undone may name them, too.
        sqlx::query(
            "delete from merges m where brand_id = $1 and undone_at is not null and exists (
                select 1 from json_array_elements(m.identifiers) held
                join unnest($2::text[], $3::text[]) as gone (k, v) on held ->> 'kind' = k and held ->> 'value' = v)",
        )
        .bind(brand.0)
        .bind(forgotten.iter().map(|i| i.kind.as_str()).collect::<Vec<_>>())
        .bind(forgotten.iter().map(|i| i.value.as_str()).collect::<Vec<_>>())
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        let customers: i64 =
            sqlx::query_scalar("select count(*) from profiles where id = any($1) and merged_into is null")
                .bind(&ids)
                .fetch_one(&mut *tx)
                .await
                .map_err(failed)?;
        let mut counts = [0; 3];
        let statements = [
            "delete from events where profile_id = any($1)",
            "delete from events e using orders o where o.profile_id = any($1) and e.profile_id is null
                and e.brand_id = o.brand_id and e.shop = o.shop and e.order_id = o.id",
            "update orders set profile_id = null, origin = null, fulfillments = '{}', erased = true, version = version + 1
                where profile_id = any($1)",
            "delete from consents where profile_id = any($1)",
            "delete from merges where survivor = any($1) or loser = any($1)",
            "delete from relations where a = any($1) or b = any($1)",
            "delete from profiles where id = any($1)",
            "delete from segment_members where profile_id = any($1)",
            "delete from segment_changes where profile_id = any($1)",
            "delete from segment_checks where profile_id = any($1)",
            "delete from automation_runs where profile_id = any($1)",
            "delete from automation_actions where profile_id = any($1)",
        ];
        for (at, statement) in statements.into_iter().enumerate() {
            let done = sqlx::query(statement).bind(&ids).execute(&mut *tx).await.map_err(failed)?;
            if let Some(count) = counts.get_mut(at) {
                *count = done.rows_affected();
            }
        }
        if let Some(request) = what.request {
            sqlx::query("update privacy_requests set customers = customers + $2, events = events + $3, orders = orders + $4 where id = $1")
                .bind(request)
                .bind(customers)
                .bind(counts[0].cast_signed() + counts[1].cast_signed())
                .bind(counts[2].cast_signed())
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(Erased {
            profiles: ids.into_iter().map(ProfileId).collect(),
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
        let mut tx = begin_reading(&self.pool, brand).await?;
        let ids: Vec<Uuid> = sqlx::query_scalar(
            "select profile_id from events where brand_id = $1 and shop = $2 and profile_id is not null
            union select profile_id from orders where brand_id = $1 and shop = $2 and profile_id is not null
            limit $3",
        )
        .bind(brand.0)
        .bind(shop)
        .bind(limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        Ok(ids.into_iter().map(ProfileId).collect())
    }

    async fn erase_shop(
        &self,
        brand: BrandId,
        shop: &str,
        limit: i64,
        request: Uuid,
    ) -> Result<u64, StoreError> {
        let mut tx = begin_for(&self.pool, brand).await?;
        let mut gone = 0;
        for statement in [
            "delete from events where ctid = any(array(select ctid from events where brand_id = $1 and shop = $2 and profile_id is null limit $3))",
            "delete from orders where ctid = any(array(select ctid from orders where brand_id = $1 and shop = $2 and profile_id is null limit $3))",
            "delete from products where ctid = any(array(select ctid from products where brand_id = $1 and shop = $2 limit $3))",
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
        sqlx::query("update privacy_requests set other_rows = other_rows + $2 where id = $1")
            .bind(request)
            .bind(gone.cast_signed())
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(gone)
    }

    async fn unsuppress(&self, brand: BrandId, identifiers: &[Identifier]) -> Result<u64, StoreError> {
        let mut tx = begin_for(&self.pool, brand).await?;
        let mut lifted = 0;
        for identifier in identifiers {
            let done = sqlx::query("delete from suppressed where brand_id = $1 and hash = $2")
                .bind(brand.0)
                .bind(self.suppression.hash(brand, identifier).to_vec())
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
            lifted += done.rows_affected();
        }
        // Who may be known again may ask again, in the same words.
        sqlx::query("delete from webhook_bodies where brand_id = $1 and topic = 'customers/redact'")
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
        let mut tx = begin_reading(&self.pool, brand).await?;
        let (shop, order) = after.map(|(shop, order)| (shop.as_str(), order.as_str())).unzip();
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {ORDER} from orders where profile_id = $1 and brand_id = $2
                and ($3::text is null or (shop, id) > ($3, $4)) order by shop, id limit $5"
        )))
        .bind(id.0)
        .bind(brand.0)
        .bind(shop)
        .bind(order)
        .bind(limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        rows.iter().map(|row| Ok(brand_order(row)?.1)).collect::<Result<_, sqlx::Error>>().map_err(failed)
    }

    async fn key_suppressions(&self, limit: i64) -> Result<u64, StoreError> {
        let mut tx = begin(&self.pool).await?;
        let old: Vec<(i64, Vec<u8>)> = sqlx::query_as(
            "select brand_id, hash from suppressed where not keyed order by brand_id, hash limit $1 for update skip locked",
        )
        .bind(limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        for (brand, hash) in &old {
            sqlx::query("update suppressed set hash = $3, keyed = true where brand_id = $1 and hash = $2 and not keyed")
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
        let mut tx = begin_reading(&self.pool, brand).await?;
        consents(&mut tx, brand, id, before, limit).await
    }

    async fn expire(&self, brand: BrandId, before: Timestamp, limit: i64) -> Result<u64, StoreError> {
        let done = sqlx::query("delete from events where ctid = any(array(select ctid from events where brand_id = $1 and received_at < $2 limit $3))")
            .bind(brand.0)
            .bind(before)
            .bind(limit)
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        sqlx::query("delete from webhook_bodies where ctid = any(array(select ctid from webhook_bodies where brand_id = $1 and at < $2 limit $3))")
            .bind(brand.0)
            .bind(before)
            .bind(limit)
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        Ok(done.rows_affected())
    }

    async fn forgotten(
        &self,
        brand: BrandId,
        before: Timestamp,
        limit: i64,
    ) -> Result<Vec<ProfileId>, StoreError> {
        let mut tx = begin_reading(&self.pool, brand).await?;
        // a profile's id says when it was made: one that is younger than that has not been seen for so long
        let ids: Vec<Uuid> = sqlx::query_scalar(
            "select id from profiles p where brand_id = $1 and merged_into is null and id < $2
                and (last_seen is null or last_seen < $3)
                and not exists (select 1 from events where profile_id = p.id)
                and not exists (select 1 from orders where profile_id = p.id)
            order by id limit $4",
        )
        .bind(brand.0)
        .bind(ProfileId::first_at(before.timestamp_millis()).0)
        .bind(before)
        .bind(limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        Ok(ids.into_iter().map(ProfileId).collect())
    }

    async fn note(&self, entries: &[AuditEntry]) -> Result<(), StoreError> {
        let mut tx = begin(&self.pool).await?;
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
        let mut tx = begin_reading(&self.pool, brand).await?;
        let rows = sqlx::query(
            "select id, brand_id, at, actor, action, subject, details from audit_log
            where brand_id = $1 and ($2::uuid is null or id < $2) order by id desc limit $3",
        )
        .bind(brand.0)
        .bind(before)
        .bind(limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        rows.iter().map(entry).collect::<Result<_, _>>().map_err(failed)
    }
}

/// Adds to the audit log, in the transaction of what it speaks of.
pub(super) async fn add_note(tx: &mut PgConnection, entry: &AuditEntry) -> Result<(), StoreError> {
    sqlx::query("insert into audit_log (id, brand_id, at, actor, action, subject, details) values ($1, $2, $3, $4, $5, $6, $7)")
        .bind(entry.id)
        .bind(entry.brand.0)
        .bind(entry.at)
        .bind(&entry.actor)
        .bind(&entry.action)
        .bind(entry.subject.as_deref())
        .bind(&entry.details)
        .execute(tx)
        .await
        .map_err(failed)?;
    Ok(())
}

/// The profiles that are asked for, what they were merged into, and everybody who was merged into these.
async fn tree(
    tx: &mut PgConnection,
    brand: BrandId,
    kinds: &[&str],
    values: &[&str],
    profiles: &[ProfileId],
) -> Result<Vec<Uuid>, StoreError> {
    sqlx::query_scalar(
        "with recursive asked as (
                select id from profiles where id = any($4) and brand_id = $1
                union select i.profile_id from identifiers i join unnest($2::text[], $3::text[]) as given (k, v)
                    on i.brand_id = $1 and i.kind = k and i.value = v
            ), up as (
                select id, merged_into from profiles where id in (select id from asked) and brand_id = $1
                union select p.id, p.merged_into from profiles p join up on p.id = up.merged_into and p.brand_id = $1
            ), tree as (
                select id from up
                union select p.id from profiles p join tree on p.merged_into = tree.id and p.brand_id = $1
            )
            select id from tree order by id",
    )
    .bind(brand.0)
    .bind(kinds)
    .bind(values)
    .bind(uuids(profiles))
    .fetch_all(tx)
    .await
    .map_err(failed)
}

fn request(row: &PgRow) -> Result<PrivacyRequest, sqlx::Error> {
    Ok(PrivacyRequest {
        id: row.try_get("id")?,
        brand: BrandId(row.try_get("brand_id")?),
        kind: row.try_get("kind")?,
        subject: row.try_get("subject")?,
        source: row.try_get("source")?,
        created_at: row.try_get("created_at")?,
        done_at: row.try_get("done_at")?,
        result: row.try_get("result")?,
        due_at: row.try_get("due_at")?,
        so_far: tally(row)?,
    })
}

fn tally(row: &PgRow) -> Result<Tally, sqlx::Error> {
    let count = |name: &str| Ok::<_, sqlx::Error>(row.try_get::<i64, _>(name)?.cast_unsigned());
    Ok(Tally {
        customers: count("customers")?,
        events: count("events")?,
        orders: count("orders")?,
        rows: count("other_rows")?,
    })
}

/// A shop's redaction says the same each time: once one has ended, the next is another.
async fn bodies_may_come_again(tx: &mut PgConnection, request: Uuid) -> Result<(), StoreError> {
    sqlx::query(
        "delete from webhook_bodies where topic = 'shop/redact' and (brand_id, message_id) in (
            select brand_id, message_id from privacy_requests where id = $1)",
    )
    .bind(request)
    .execute(&mut *tx)
    .await
    .map_err(failed)?;
    Ok(())
}

fn entry(row: &PgRow) -> Result<AuditEntry, sqlx::Error> {
    Ok(AuditEntry {
        id: row.try_get("id")?,
        brand: BrandId(row.try_get("brand_id")?),
        at: row.try_get("at")?,
        actor: row.try_get("actor")?,
        action: row.try_get("action")?,
        subject: row.try_get("subject")?,
        details: row.try_get("details")?,
    })
}
