//! The outbox.

use std::time::Duration;

use async_trait::async_trait;
use sqlx_macros::FromRow;
use uuid::Uuid;

use super::codec::{Id, Json};
use super::database::{Database, Tx};
use super::read_as;
use super::statement::Given;
use crate::domain::ids::BrandId;
use crate::ports::outbox::{Outbox, OutboxStats, Sent, Stage, Staged};
use crate::ports::queue::{Enqueued, Idempotency, NewItem, Priority};
use crate::ports::store::StoreError;

/// The columns of an item, as it is read.
const ITEM: &str =
    "id, queue, priority, delay_ms, keys, digest, ttl_ms, payload, brand_id, public, staged_ms";

#[derive(FromRow)]
struct StagedRow {
    id: Id,
    queue: String,
    priority: i16,
    delay_ms: i64,
    keys: Json<Vec<String>>,
    digest: Option<String>,
    ttl_ms: Option<i64>,
    payload: Vec<u8>,
    brand_id: Option<BrandId>,
    public: bool,
    staged_ms: i64,
}

#[derive(FromRow)]
struct SentRow {
    id: Id,
    queue: String,
    staged_ms: i64,
}

read_as!(Staged: StagedRow, Sent: SentRow);

impl From<StagedRow> for Staged {
    fn from(row: StagedRow) -> Self {
        let (keys, ttl) = (row.keys.0, row.ttl_ms.map(duration));
        Self {
            id: row.id.0,
            queue: row.queue,
            item: NewItem {
                payload: row.payload.into(),
                priority: Priority::at(usize::try_from(row.priority).unwrap_or_default()),
                delay: duration(row.delay_ms),
                brand: row.brand_id,
                public: row.public,
                idempotency: row.digest.map(|digest| Idempotency { keys, digest, ttl }),
            },
            staged_ms: row.staged_ms,
        }
    }
}

impl From<SentRow> for Sent {
    fn from(row: SentRow) -> Self {
        Self { id: row.id.0, queue: row.queue, staged_ms: row.staged_ms }
    }
}

/// The outbox, over all brands: it carries what workers and housekeeping have staged.
pub struct SqlOutbox {
    db: Database,
}

impl SqlOutbox {
    /// The outbox in an open database.
    pub fn new(db: Database) -> Self {
        Self { db }
    }
}

#[async_trait]
impl Outbox for SqlOutbox {
    async fn add(&self, queue: &str, items: &[NewItem], now_ms: i64) -> Result<Vec<Enqueued>, StoreError> {
        let mut tx = self.db.every_brand().await?;
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
        tx.commit().await?;
        Ok(results)
    }

    async fn oldest(
        &self,
        queues: &[&str],
        but: &[BrandId],
        limit: usize,
    ) -> Result<Vec<Staged>, StoreError> {
        let oldest = format!(
            "select {ITEM} from outbox where refused is null and check_ms is null and queue = any($1)
                and (brand_id is null or brand_id <> all($2))
            order by seq limit $3"
        );
        let mut tx = self.db.looking().await?;
        tx.sql(oldest).list(queues.iter().copied()).list(but.iter().copied()).bind(size(limit)).all().await
    }

    async fn waiting_of(&self, brand: BrandId) -> Result<u64, StoreError> {
        let waiting =
            "select count(*) from outbox where refused is null and check_ms is null and brand_id = $1";
        let (waiting,): (i64,) = self.db.looking().await?.sql(waiting).bind(brand).one().await?;
        Ok(waiting.cast_unsigned())
    }

    async fn sent(&self, ids: &[Uuid], check_ms: i64) -> Result<(), StoreError> {
        let sent = "update outbox set check_ms = $2 where id = any($1)";
        self.db.writing().await?.sql(sent).list(ids).bind(check_ms).run().await.map(drop)
    }

    async fn to_check(&self, now_ms: i64, limit: usize) -> Result<Vec<Sent>, StoreError> {
        let to_check =
            "select id, queue, staged_ms from outbox where check_ms <= $1 order by check_ms limit $2";
        self.db.looking().await?.sql(to_check).bind(now_ms).bind(size(limit)).all().await
    }

    async fn forgotten(&self, ids: &[Uuid]) -> Result<(), StoreError> {
        let forgotten = "update outbox set check_ms = null where id = any($1)";
        self.db.writing().await?.sql(forgotten).list(ids).run().await.map(drop)
    }

    async fn remove(&self, ids: &[Uuid]) -> Result<(), StoreError> {
        let remove = "delete from outbox where id = any($1)";
        self.db.writing().await?.sql(remove).list(ids).run().await.map(drop)
    }

    async fn refuse(&self, ids: &[Uuid], why: &str) -> Result<(), StoreError> {
        let mut tx = self.db.every_brand().await?;
        tx.sql("delete from outbox_claims where item = any($1)").list(ids).run().await?;
        let refuse = "update outbox set refused = $2, check_ms = null where id = any($1)";
        tx.sql(refuse).list(ids).bind(why).run().await?;
        tx.commit().await
    }

    async fn refused(&self, after: Option<Uuid>, limit: usize) -> Result<Vec<Staged>, StoreError> {
        self.db
            .looking()
            .await?
            .sql(format!("select {ITEM} from outbox where refused is not null"))
            .filter("id > ", after)
            .push(" order by id limit ")
            .push_bind(size(limit))
            .all()
            .await
    }

    async fn stats(&self) -> Result<OutboxStats, StoreError> {
        let stats = "select (select count(*) from outbox where refused is null and check_ms is null),
                (select count(*) from outbox where refused is not null),
                (select staged_ms from outbox where refused is null and check_ms is null order by seq limit 1)";
        let (waiting, refused, oldest_ms): (i64, i64, Option<i64>) =
            self.db.looking().await?.sql(stats).one().await?;
        Ok(OutboxStats { waiting: waiting.cast_unsigned(), refused: refused.cast_unsigned(), oldest_ms })
    }
}

/// Remembers an item's keys. Where one of them is another's, the item is taken out again.
async fn claim(
    tx: &mut Tx,
    queue: &str,
    names: &[String],
    known: &Idempotency,
    item: Uuid,
) -> Result<Enqueued, StoreError> {
    for name in names {
        let claim = "insert into outbox_claims (queue, key, digest, item) values ($1, $2, $3, $4) on conflict do nothing";
        if tx.sql(claim).bind(queue).bind(name).bind(&known.digest).bind(item).run().await? == 1 {
            continue;
        }
        let held = "select digest from outbox_claims where queue = $1 and key = $2";
        let held: Option<String> = tx.sql(held).bind(queue).bind(name).scalar().await?;
        // its claims go with it
        tx.sql("delete from outbox where id = $1").bind(item).run().await?;
        return Ok(match held {
            Some(digest) if digest != known.digest => Enqueued::Conflict,
            _ => Enqueued::Duplicate,
        });
    }
    Ok(Enqueued::Accepted)
}

/// Adds items, in their order. Returns their ids.
pub(super) async fn insert(tx: &mut Tx, stages: &[Stage], now_ms: i64) -> Result<Vec<Uuid>, StoreError> {
    let staged: Vec<(Uuid, &Stage)> = stages.iter().map(|stage| (tx.id(), stage)).collect();
    let given = Given::of(&staged)
        .column("id", |(id, _)| *id)
        .column("queue", |(_, stage)| &stage.queue)
        .column("priority", |(_, stage)| stage.item.priority.index() as i64)
        .column("delay_ms", |(_, stage)| ms(stage.item.delay))
        .column("keys", |(_, stage)| keys(&stage.item))
        .column("digest", |(_, stage)| Some(stage.item.idempotency.as_ref()?.digest.as_str()))
        .column("ttl_ms", |(_, stage)| stage.item.idempotency.as_ref()?.ttl.map(ms))
        .column("payload", |(_, stage)| &stage.item.payload[..])
        .column("brand", |(_, stage)| stage.item.brand)
        .column("public", |(_, stage)| stage.item.public)
        .rows();
    tx.sql(
        "insert into outbox (id, queue, priority, delay_ms, keys, digest, ttl_ms, payload, brand_id, public, staged_ms)
        select id, queue, priority, delay_ms, keys, digest, ttl_ms, payload, brand, public, $1 from {given} order by place",
    )
    .bind(now_ms)
    .given(&given)
    .run()
    .await?;
    Ok(staged.into_iter().map(|(id, _)| id).collect())
}

fn keys(item: &NewItem) -> String {
    let keys = item.idempotency.as_ref().map(|known| known.keys.as_slice()).unwrap_or_default();
    serde_json::Value::from(keys).to_string()
}

fn size(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn duration(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or_default())
}
