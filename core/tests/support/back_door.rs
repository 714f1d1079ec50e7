//! Reading a queue's data past the queue, so that a test sees all of it, and anything that should not be there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

use bytes::Bytes;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection};
use tokio::sync::Mutex;
use tributary_core::adapters::redis::client::RedisClient;
use tributary_core::adapters::redis::element;
use tributary_core::adapters::redis::keys::{Layout, QueueKeys};
use tributary_core::domain::ids::BrandId;
use tributary_core::ports::queue::{Claim, Finished, Item, Outcome, Priority};

/// Everything in a queue.
#[derive(Debug, Default)]
pub struct Raw {
    /// Pending 0-2, released 0-2, suspects; each oldest first.
    pub places: Vec<Vec<Item>>,
    pub delayed: Vec<(i64, Item)>,
    /// Id, end of the lease, items.
    pub batches: Vec<(String, i64, Vec<Item>)>,
    pub dead: Vec<(i64, Item)>,
    /// By stored name: until when, and what is remembered.
    pub claims: BTreeMap<String, (i64, Claim)>,
    pub paused: bool,
    /// Items and bytes by brand, where there are some; of dead letters, too.
    pub shares: BTreeMap<i64, (u64, u64)>,
    pub dead_shares: BTreeMap<i64, (u64, u64)>,
}

/// A way to the data.
pub enum BackDoor {
    File(Box<Mutex<SqliteConnection>>, tempfile::TempDir),
    Redis(Box<(RedisClient, QueueKeys, Layout)>),
}

impl BackDoor {
    pub async fn file(path: PathBuf, folder: tempfile::TempDir) -> Self {
        let file = SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
        Self::File(Box::new(Mutex::new(file)), folder)
    }

    pub fn redis(redis: RedisClient, keys: QueueKeys, layout: Layout) -> Self {
        Self::Redis(Box::new((redis, keys, layout)))
    }

    /// Loses the leases, as a restore from half a backup would.
    pub async fn forget_leases(&self) {
        match self {
            Self::File(file, _) => {
                sqlx::query("delete from leases").execute(&mut *file.lock().await).await.unwrap();
            }
            Self::Redis(held) => {
                let (redis, keys, _) = &**held;
                redis::cmd("DEL").arg(keys.leases()).exec_async(&mut redis.shared()).await.unwrap();
            }
        }
    }

    pub async fn clear(&self) {
        if let Self::Redis(held) = self {
            let (redis, keys, _) = &**held;
            let all: Vec<String> = keys_of(redis, keys).await.into_iter().collect();
            if !all.is_empty() {
                redis::cmd("UNLINK").arg(all).exec_async(&mut redis.shared()).await.unwrap();
            }
        }
    }

    pub async fn read(&self) -> Raw {
        match self {
            Self::File(file, _) => read_file(&mut *file.lock().await).await,
            Self::Redis(held) => {
                let (redis, keys, layout) = &**held;
                read_redis(redis, keys, *layout).await
            }
        }
    }
}

/// Every key of the queue.
async fn keys_of(redis: &RedisClient, keys: &QueueKeys) -> BTreeSet<String> {
    let pattern = format!("{}:*", keys.tag().replace('[', "\\["));
    redis::cmd("KEYS").arg(pattern).query_async(&mut redis.shared()).await.unwrap()
}

fn item(bytes: Vec<u8>) -> Item {
    element::read(&Bytes::from(bytes)).expect("an item of this queue")
}

/// A sorted set with its scores, lowest first.
async fn scored<T: redis::FromRedisValue>(redis: &RedisClient, key: &str) -> Vec<(T, i64)> {
    let mut range = redis::cmd("ZRANGE");
    range.arg(key).arg(0).arg(-1).arg("WITHSCORES").query_async(&mut redis.shared()).await.unwrap()
}

async fn shares(redis: &RedisClient, key: &str) -> BTreeMap<i64, (u64, u64)> {
    let fields: HashMap<String, i64> =
        redis::cmd("HGETALL").arg(key).query_async(&mut redis.shared()).await.unwrap();
    let bytes = |brand: i64| fields.get(&format!("{brand}:b")).copied().unwrap_or_default();
    let brands = fields.iter().filter_map(|(field, items)| Some((field.parse().ok()?, *items)));
    let shares: BTreeMap<i64, (i64, i64)> =
        brands.map(|(brand, items): (i64, i64)| (brand, (items, bytes(brand)))).collect();
    if let Some(all) = fields.get("all") {
        assert_eq!(*all, shares.values().map(|(items, _)| items).sum::<i64>(), "all is the sum");
        assert_eq!(fields["all:b"], shares.values().map(|(_, bytes)| bytes).sum::<i64>(), "all is the sum");
    }
    positive(shares)
}

/// Without brands that hold nothing.
fn positive(shares: BTreeMap<i64, (i64, i64)>) -> BTreeMap<i64, (u64, u64)> {
    let there = shares.into_iter().filter(|(_, held)| *held != (0, 0));
    there
        .map(|(brand, (n, bytes))| (brand, (u64::try_from(n).unwrap(), u64::try_from(bytes).unwrap())))
        .collect()
}

async fn read_redis(redis: &RedisClient, keys: &QueueKeys, layout: Layout) -> Raw {
    let mut connection = redis.shared();
    let mut raw = Raw::default();
    let mut known: BTreeSet<String> = keys.all().iter().cloned().collect();
    let mut held: BTreeMap<String, Vec<Item>> = BTreeMap::new();
    for place in keys.places() {
        let items = match layout {
            Layout::Lists => {
                let mut elements: Vec<Vec<u8>> = redis::cmd("LRANGE")
                    .arg(place)
                    .arg(0)
                    .arg(-1)
                    .query_async(&mut connection)
                    .await
                    .unwrap();
                elements.reverse();
                elements.into_iter().map(item).collect()
            }
            Layout::Streams => {
                let entries: Vec<(String, Vec<Vec<u8>>)> = redis::cmd("XRANGE")
                    .arg(place)
                    .arg("-")
                    .arg("+")
                    .query_async(&mut connection)
                    .await
                    .unwrap();
                let mut pending = redis::cmd("XPENDING");
                pending.arg(place).arg("workers").arg("-").arg("+").arg(10_000);
                // no group before the first fetch
                let pending: Vec<(String, String, i64, i64)> =
                    pending.query_async(&mut connection).await.unwrap_or_default();
                let holders: HashMap<String, String> =
                    pending.into_iter().map(|(id, consumer, ..)| (id, consumer)).collect();
                let mut waiting = Vec::new();
                for (id, mut fields) in entries {
                    let bytes = fields.swap_remove(1);
                    match holders.get(&id) {
                        Some(batch) => held.entry(batch.clone()).or_default().push(item(bytes)),
                        None => waiting.push(item(bytes)),
                    }
                }
                waiting
            }
        };
        raw.places.push(items);
    }
    let leases: Vec<(String, i64)> = scored(redis, keys.leases()).await;
    for (id, end) in leases {
        let items = match layout {
            Layout::Lists => {
                known.insert(keys.batch(&id));
                let elements: Vec<Vec<u8>> = redis::cmd("LRANGE")
                    .arg(keys.batch(&id))
                    .arg(0)
                    .arg(-1)
                    .query_async(&mut connection)
                    .await
                    .unwrap();
                elements.into_iter().map(item).collect()
            }
            Layout::Streams => held.remove(&id).unwrap_or_default(),
        };
        assert!(!items.is_empty(), "the lease {id} is of an empty batch");
        raw.batches.push((id, end, items));
    }
    assert!(held.is_empty(), "held by nobody who has a lease: {held:?}");
    let delayed: Vec<(Vec<u8>, i64)> = scored(redis, &keys.all()[8]).await;
    raw.delayed = delayed.into_iter().map(|(bytes, due)| (due, item(bytes))).collect();
    let dead: Vec<(String, i64)> = scored(redis, keys.dead()).await;
    let mut letters: HashMap<String, Vec<u8>> =
        redis::cmd("HGETALL").arg(keys.letters()).query_async(&mut connection).await.unwrap();
    for (id, buried) in dead {
        raw.dead.push((buried, item(letters.remove(&id).expect("a letter for every dead id"))));
    }
    assert!(letters.is_empty(), "letters of nobody: {letters:?}");
    raw.shares = shares(redis, keys.shares()).await;
    raw.dead_shares = shares(redis, keys.dead_shares()).await;
    let mut indexed = BTreeSet::new();
    for brand in raw.dead.iter().map(|(_, item)| item.brand.map_or(0, |brand| brand.0)) {
        let key = keys.dead_of(brand);
        if known.insert(key.clone()) {
            indexed.extend(scored::<String>(redis, &key).await);
        }
    }
    let dead: BTreeSet<(String, i64)> = raw.dead.iter().map(|(at, item)| (item.id.clone(), *at)).collect();
    assert_eq!(indexed, dead, "left == right: each brand's index has its letters");
    let prefix = keys.claim("");
    let there = keys_of(redis, keys).await;
    for key in there.iter().filter(|key| key.starts_with(&prefix)) {
        let text: Option<String> = redis::cmd("GET").arg(key).query_async(&mut connection).await.unwrap();
        // it may have ended since the keys were listed
        let Some(text) = text else { continue };
        let mut lines = text.lines();
        let first: Vec<&str> = lines.next().unwrap().split(' ').collect();
        let finished = lines.next().map(|line| {
            let fields: Vec<&str> = line.splitn(3, ' ').collect();
            Finished {
                at_ms: fields[0].parse().unwrap(),
                outcome: Outcome::parse(fields[1]).unwrap(),
                by: fields[2].to_owned(),
            }
        });
        let claim = Claim {
            digest: first[0].to_owned(),
            item: first[1].to_owned(),
            claimed_ms: first[2].parse().unwrap(),
            finished,
        };
        raw.claims.insert(key[prefix.len()..].to_owned(), (first[3].parse().unwrap(), claim));
        known.insert(key.clone());
    }
    // They end by themselves.
    let of_losses = |key: &&String| [":lone:", ":losses:"].iter().any(|of| key.contains(of));
    let strangers: Vec<&String> = there.difference(&known).filter(|key| !of_losses(key)).collect();
    assert!(strangers.is_empty(), "keys that are nobody's: {strangers:?}");
    raw.paused = there.contains(&keys.all()[13]);
    raw
}

fn row_item(row: &SqliteRow) -> Item {
    let claims: String = row.get("claims");
    Item {
        id: row.get("id"),
        enqueued_ms: row.get("enqueued_ms"),
        attempt: row.get("attempt"),
        suspect: row.get("suspect"),
        losses: row.get("losses"),
        priority: Priority::at(usize::try_from(row.get::<i64, _>("priority")).unwrap()),
        brand: row.get::<Option<i64>, _>("brand").map(BrandId),
        claims: claims.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        history: serde_json::from_str(row.get("history")).unwrap(),
        payload: Bytes::from(row.get::<Vec<u8>, _>("payload")),
    }
}

async fn read_file(file: &mut SqliteConnection) -> Raw {
    let mut raw = Raw::default();
    let ready = "from items join bodies on bodies.id = body where batch is null and not_before_ms = 0";
    let mut places = Vec::new();
    for released in [0, 1] {
        for priority in 0..3 {
            places
                .push(format!("{ready} and suspect = 0 and released = {released} and priority = {priority}"));
        }
    }
    places.push(format!("{ready} and suspect = 1"));
    for place in places {
        let rows = sqlx::query(AssertSqlSafe(format!("select items.*, payload {place} order by place")))
            .fetch_all(&mut *file)
            .await
            .unwrap();
        raw.places.push(rows.iter().map(row_item).collect());
    }
    let delayed = sqlx::query("select items.*, payload from items join bodies on bodies.id = body where batch is null and not_before_ms > 0")
        .fetch_all(&mut *file)
        .await
        .unwrap();
    raw.delayed = delayed.iter().map(|row| (row.get("not_before_ms"), row_item(row))).collect();
    let leases: Vec<(String, i64)> =
        sqlx::query_as("select batch, deadline_ms from leases").fetch_all(&mut *file).await.unwrap();
    for (id, end) in leases {
        let rows = sqlx::query(
            "select items.*, payload from items join bodies on bodies.id = body where batch = ?1",
        )
        .bind(&id)
        .fetch_all(&mut *file)
        .await
        .unwrap();
        assert!(!rows.is_empty(), "the lease {id} is of an empty batch");
        raw.batches.push((id, end, rows.iter().map(row_item).collect()));
    }
    let astray: i64 = sqlx::query_scalar(
        "select count(*) from items where batch is not null and batch not in (select batch from leases)",
    )
    .fetch_one(&mut *file)
    .await
    .unwrap();
    assert_eq!(astray, 0, "held by nobody who has a lease");
    let bodies: (i64, i64) = sqlx::query_as(
        "select count(*), (select count(*) from items) + (select count(*) from dead) from bodies",
    )
    .fetch_one(&mut *file)
    .await
    .unwrap();
    assert_eq!(bodies.0, bodies.1, "a payload stays as long as its item or dead letter, and no longer");
    let dead = sqlx::query("select dead.*, payload from dead join bodies on bodies.id = body")
        .fetch_all(&mut *file)
        .await
        .unwrap();
    raw.dead = dead.iter().map(|row| (row.get("buried_ms"), row_item(row))).collect();
    let claims = sqlx::query("select * from claims").fetch_all(&mut *file).await.unwrap();
    for row in &claims {
        let outcome: Option<String> = row.get("outcome");
        let claim = Claim {
            digest: row.get("digest"),
            item: row.get("item"),
            claimed_ms: row.get("claimed_ms"),
            finished: outcome.map(|outcome| Finished {
                at_ms: row.get("finished_ms"),
                outcome: Outcome::parse(&outcome).unwrap(),
                by: row.get("by"),
            }),
        };
        raw.claims.insert(row.get("key"), (row.get("until_ms"), claim));
    }
    let held: Vec<(i64, i64, i64, i64, i64)> =
        sqlx::query_as("select brand, items, bytes, dead, dead_bytes from shares")
            .fetch_all(&mut *file)
            .await
            .unwrap();
    raw.shares = positive(held.iter().map(|row| (row.0, (row.1, row.2))).collect());
    raw.dead_shares = positive(held.iter().map(|row| (row.0, (row.3, row.4))).collect());
    raw.paused =
        sqlx::query_scalar("select exists (select 1 from paused)").fetch_one(&mut *file).await.unwrap();
    raw
}
