//! The queue alone: enqueue, fetch and ack in batches of 500, on a private Redis, with `appendfsync` everysec and always,
//! and on SQLite. `cargo run --release -p tributary-core --example queue_speed`

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use stack::redis::{Fsync, Redis};
use stack::services::Services;
use tributary_core::adapters::redis::client::RedisClient;
use tributary_core::adapters::redis::keys::Layout;
use tributary_core::adapters::redis::queue::RedisQueue;
use tributary_core::adapters::sqlite::db::Db;
use tributary_core::adapters::sqlite::queue::SqliteQueue;
use tributary_core::ports::clock::{Clock, SystemClock};
use tributary_core::ports::queue::{NewItem, Queue, QueueSettings};

const ITEMS: usize = 200_000;
const BATCH: usize = 500;
const LANES: usize = 2;
const RUNS: usize = 3;
/// About what a track call has in its envelope.
const PAYLOAD_BYTES: usize = 400;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    println!(
        "{ITEMS} items of {PAYLOAD_BYTES} bytes in batches of {BATCH}, {LANES} lanes, medians of {RUNS} runs, items/s\n"
    );
    println!("  {:<22} {:>10} {:>12} {:>10}", "", "enqueue", "fetch + ack", "all three");
    for fsync in [Fsync::EverySecond, Fsync::Always] {
        let redis = Redis::start(fsync).await?;
        let client = RedisClient::connect(&redis.url(), &Services::fresh_key_space()).await?;
        let queue = Arc::new(RedisQueue::new(
            client,
            "events",
            Layout::Lists,
            QueueSettings::default(),
            Arc::new(SystemClock),
        ));
        measure(&format!("Redis, {}", fsync.as_str()), queue).await?;
    }
    let folder = tempfile::tempdir()?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let db = Db::open_queue(&folder.path().join("queue.db")).await?;
    measure("SQLite, FULL", Arc::new(SqliteQueue::new(db, QueueSettings::default(), clock))).await
}

async fn measure(name: &str, queue: Arc<dyn Queue>) -> anyhow::Result<()> {
    let (mut put, mut taken, mut all) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let began = Instant::now();
        let producers: Vec<_> = (0..LANES).map(|_| tokio::spawn(produce(queue.clone()))).collect();
        for producer in producers {
            producer.await??;
        }
        let put_in = began.elapsed();
        let consumers: Vec<_> = (0..LANES).map(|_| tokio::spawn(consume(queue.clone()))).collect();
        let mut count = 0;
        for consumer in consumers {
            count += consumer.await??;
        }
        let all_in = began.elapsed();
        anyhow::ensure!(count == ITEMS, "{count} of {ITEMS} items came out");
        put.push(rate(put_in));
        taken.push(rate(all_in - put_in));
        all.push(rate(all_in));
    }
    println!("  {name:<22} {:>10.0} {:>12.0} {:>10.0}", median(put), median(taken), median(all));
    Ok(())
}

async fn produce(queue: Arc<dyn Queue>) -> anyhow::Result<()> {
    let item = NewItem { payload: Bytes::from(vec![b'x'; PAYLOAD_BYTES]), ..NewItem::default() };
    let batch = vec![item; BATCH];
    for _ in 0..ITEMS / LANES / BATCH {
        queue.enqueue(&batch).await?;
    }
    Ok(())
}

async fn consume(queue: Arc<dyn Queue>) -> anyhow::Result<usize> {
    let mut count = 0;
    while let Some(batch) = queue.fetch(BATCH, Duration::ZERO).await? {
        count += batch.items.len();
        queue.ack(&batch, &[]).await?;
    }
    Ok(count)
}

fn rate(took: Duration) -> f64 {
    ITEMS as f64 / took.as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
