//! The outbox on PostgreSQL.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::db::{begin, failed};
use crate::domain::ids::BrandId;
use crate::ports::outbox::{Outbox, OutboxStats, Sent, Stage, Staged};
use crate::ports::queue::{Enqueued, Idempotency, NewItem, Priority};
use crate::ports::store::StoreError;

/// The outbox on PostgreSQL.
pub struct PgOutbox {
    pool: sqlx::PgPool,
}

impl PgOutbox {
    /// The outbox in an open pool.
    pub fn new(pool: sqlx::PgPool) -> Self {
        Self { pool }
    }
}

#[async_trait]
impl Outbox for PgOutbox {
    async fn add(&self, queue: &str, items: &[NewItem], now_ms: i64) -> Result<Vec<Enqueued>, StoreError> {
        let mut tx = begin(&self.pool).await?;
        let mut results = vec![Enqueued::Accepted; items.len()];
        let stage = |item: &NewItem| Stage { queue: queue.to_owned(), item: item.clone() };
        // Items with keys are few; they go one by one, because a key may come twice in one call - and in the order of
        // their keys, so that two calls at once do not wait for each other in a circle.
        let mut keyed: Vec<(Vec<String>, usize)> = items
            .iter()
            .enumerate()
            .filter_map(|(at, item)| Some((item.idempotency.as_ref()?.names(), at)))
            .collect();
        keyed.sort();
        for (names, at) in keyed {
            let Some(known) = &items[at].idempotency else { continue };
            let id = insert(&mut tx, &[stage(&items[at])], now_ms).await?[0];
            results[at] = claim(&mut tx, queue, &names, known, id).await?;
        }
        let accepted: Vec<Stage> =
            items.iter().filter(|item| item.idempotency.is_none()).map(stage).collect();
        insert(&mut tx, &accepted, now_ms).await?;
        tx.commit().await.map_err(failed)?;
        Ok(results)
    }

    async fn oldest(
        &self,
        queues: &[&str],
        but: &[BrandId],
        limit: usize,
    ) -> Result<Vec<Staged>, StoreError> {
        let rows = sqlx::query(
            "select * from outbox where refused is null and check_ms is null and queue = any($1)
                and (brand_id is null or brand_id <> all($2))
            order by seq limit $3",
        )
        .bind(queues)
        .bind(but.iter().map(|brand| brand.0).collect::<Vec<_>>())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        rows.iter().map(staged).collect::<Result<_, _>>().map_err(failed)
    }

    async fn waiting_of(&self, brand: BrandId) -> Result<u64, StoreError> {
        let waiting: i64 = sqlx::query_scalar(
            "select count(*) from outbox where refused is null and check_ms is null and brand_id = $1",
        )
        .bind(brand.0)
        .fetch_one(&self.pool)
        .await
        .map_err(failed)?;
        Ok(u64::try_from(waiting).unwrap_or_default())
    }

    async fn sent(&self, ids: &[Uuid], check_ms: i64) -> Result<(), StoreError> {
        sqlx::query("update outbox set check_ms = $2 where id = any($1)")
            .bind(ids)
            .bind(check_ms)
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        Ok(())
    }

    async fn to_check(&self, now_ms: i64, limit: usize) -> Result<Vec<Sent>, StoreError> {
        let rows: Vec<(Uuid, String, i64)> = sqlx::query_as(
            "select id, queue, staged_ms from outbox where check_ms <= $1 order by check_ms limit $2",
        )
        .bind(now_ms)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        Ok(rows.into_iter().map(|(id, queue, staged_ms)| Sent { id, queue, staged_ms }).collect())
    }

    async fn forgotten(&self, ids: &[Uuid]) -> Result<(), StoreError> {
        sqlx::query("update outbox set check_ms = null where id = any($1)")
            .bind(ids)
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        Ok(())
    }

    async fn remove(&self, ids: &[Uuid]) -> Result<(), StoreError> {
        sqlx::query("delete from outbox where id = any($1)")
            .bind(ids)
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        Ok(())
    }

    async fn refuse(&self, ids: &[Uuid], why: &str) -> Result<(), StoreError> {
        sqlx::query(
            "with forgotten as (delete from outbox_claims where item = any($1))
            update outbox set refused = $2, check_ms = null where id = any($1)",
        )
        .bind(ids)
        .bind(why)
        .execute(&self.pool)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn refused(&self, after: Option<Uuid>, limit: usize) -> Result<Vec<Staged>, StoreError> {
        let rows = sqlx::query(
            "select * from outbox where refused is not null and ($1::uuid is null or id > $1) order by id limit $2",
        )
        .bind(after)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        rows.iter().map(staged).collect::<Result<_, _>>().map_err(failed)
    }

    async fn stats(&self) -> Result<OutboxStats, StoreError> {
        let (waiting, refused, oldest_ms): (i64, i64, Option<i64>) = sqlx::query_as(
            "select (select count(*) from outbox where refused is null and check_ms is null),
                (select count(*) from outbox where refused is not null),
                (select staged_ms from outbox where refused is null and check_ms is null order by seq limit 1)",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(failed)?;
        let positive = |n: i64| u64::try_from(n).unwrap_or_default();
        Ok(OutboxStats { waiting: positive(waiting), refused: positive(refused), oldest_ms })
    }
}

/// Remembers an item's keys. Where one of them is another's, the item is taken out again.
async fn claim(
    tx: &mut PgConnection,
    queue: &str,
    names: &[String],
    known: &Idempotency,
    item: Uuid,
) -> Result<Enqueued, StoreError> {
    for name in names {
        let claimed = sqlx::query(
            "insert into outbox_claims (queue, key, digest, item) values ($1, $2, $3, $4) on conflict do nothing",
        )
        .bind(queue)
        .bind(name)
        .bind(&known.digest)
        .bind(item)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        if claimed.rows_affected() == 1 {
            continue;
        }
        let held: Option<String> =
            sqlx::query_scalar("select digest from outbox_claims where queue = $1 and key = $2")
                .bind(queue)
                .bind(name)
                .fetch_optional(&mut *tx)
                .await
                .map_err(failed)?;
        // its claims go with it
        sqlx::query("delete from outbox where id = $1").bind(item).execute(&mut *tx).await.map_err(failed)?;
        return Ok(match held {
            Some(digest) if digest != known.digest => Enqueued::Conflict,
            _ => Enqueued::Duplicate,
        });
    }
    Ok(Enqueued::Accepted)
}

/// Adds items, in their order; answers their ids.
pub(super) async fn insert(
    tx: &mut PgConnection,
    stages: &[Stage],
    now_ms: i64,
) -> Result<Vec<Uuid>, StoreError> {
    let ids: Vec<Uuid> = stages.iter().map(|_| Uuid::now_v7()).collect();
    if ids.is_empty() {
        return Ok(ids);
    }
    let items = || stages.iter().map(|stage| &stage.item);
    let known = || items().map(|item| item.idempotency.as_ref());
    sqlx::query(
        "insert into outbox (id, queue, priority, delay_ms, keys, digest, ttl_ms, payload, brand_id, public, staged_ms)
        select i, q, p, d, k, g, t, b, brand, public, $11
        from unnest($1::uuid[], $2::text[], $3::smallint[], $4::bigint[], $5::text[], $6::text[], $7::bigint[],
            $8::bytea[], $9::bigint[], $10::boolean[])
            with ordinality as given (i, q, p, d, k, g, t, b, brand, public, place) order by place",
    )
    .bind(&ids)
    .bind(stages.iter().map(|stage| stage.queue.as_str()).collect::<Vec<_>>())
    .bind(items().map(|item| i16::try_from(item.priority.index()).unwrap_or_default()).collect::<Vec<_>>())
    .bind(items().map(|item| ms(item.delay)).collect::<Vec<_>>())
    .bind(items().map(keys).collect::<Vec<_>>())
    .bind(known().map(|known| known.map(|known| known.digest.as_str())).collect::<Vec<_>>())
    .bind(known().map(|known| known.and_then(|known| known.ttl).map(ms)).collect::<Vec<_>>())
    .bind(items().map(|item| &item.payload[..]).collect::<Vec<_>>())
    .bind(items().map(|item| item.brand.map(|brand| brand.0)).collect::<Vec<_>>())
    .bind(items().map(|item| item.public).collect::<Vec<_>>())
    .bind(now_ms)
    .execute(&mut *tx)
    .await
    .map_err(failed)?;
    Ok(ids)
}

fn keys(item: &NewItem) -> String {
    let keys = item.idempotency.as_ref().map(|known| known.keys.as_slice()).unwrap_or_default();
    serde_json::Value::from(keys).to_string()
}

fn staged(row: &PgRow) -> Result<Staged, sqlx::Error> {
    let keys: String = row.try_get("keys")?;
    let keys: Vec<String> = serde_json::from_str(&keys).map_err(|error| sqlx::Error::Decode(error.into()))?;
    let idempotency = match row.try_get::<Option<String>, _>("digest")? {
        Some(digest) => {
            Some(Idempotency { keys, digest, ttl: row.try_get::<Option<i64>, _>("ttl_ms")?.map(duration) })
        }
        None => None,
    };
    Ok(Staged {
        id: row.try_get("id")?,
        queue: row.try_get("queue")?,
        item: NewItem {
            payload: row.try_get::<Vec<u8>, _>("payload")?.into(),
            priority: Priority::at(usize::try_from(row.try_get::<i16, _>("priority")?).unwrap_or_default()),
            delay: duration(row.try_get("delay_ms")?),
            brand: row.try_get::<Option<i64>, _>("brand_id")?.map(BrandId),
            public: row.try_get("public")?,
            idempotency,
        },
        staged_ms: row.try_get("staged_ms")?,
    })
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn duration(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or_default())
}
