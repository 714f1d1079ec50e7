//! One enqueue, fetch and ack of a batch, by layout and batch size, with criterion's statistics: for comparing a change with
//! what was before. `cargo bench -p tributary-core` (the throughput of many at once: `--example queue_speed`).

#![allow(missing_docs, clippy::unwrap_used, reason = "criterion's macros, and a bench may panic")]

use std::sync::Arc;
use std::time::Duration;

use backends::redis::{Fsync, Redis};
use backends::services::Services;
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;
use tributary_core::adapters::redis::client::RedisClient;
use tributary_core::adapters::redis::keys::Layout;
use tributary_core::adapters::redis::queue::RedisQueue;
use tributary_core::adapters::sqlite::db::Db;
use tributary_core::adapters::sqlite::queue::SqliteQueue;
use tributary_core::ports::queue::{Acked, NewItem, Queue, QueueSettings};
use tributary_core::ports::world::World;

fn rounds(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let redis = runtime.block_on(Redis::start(Fsync::EverySecond)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let queues: Vec<(&str, Arc<dyn Queue>)> = runtime.block_on(async {
        let on_redis = async |layout: Layout| {
            let client = RedisClient::connect(&redis.url(), &Services::fresh_key_space()).await.unwrap();
            RedisQueue::new(client, "events", layout, QueueSettings::default(), World::real())
        };
        let db = Db::open_queue(&folder.path().join("queue.db")).await.unwrap();
        let sqlite = SqliteQueue::new(db, QueueSettings::default(), World::real());
        vec![
            ("lists", Arc::new(on_redis(Layout::Lists).await) as Arc<dyn Queue>),
            ("streams", Arc::new(on_redis(Layout::Streams).await)),
            ("sqlite", Arc::new(sqlite)),
        ]
    });
    let mut group = criterion.benchmark_group("enqueue, fetch, ack");
    for size in [1, 100, 500] {
        let item = NewItem { payload: Bytes::from(vec![b'x'; 400]), ..NewItem::default() };
        let items = vec![item; size];
        group.throughput(Throughput::Elements(size as u64));
        for (name, queue) in &queues {
            group.bench_with_input(BenchmarkId::new(*name, size), &items, |bencher, items| {
                bencher.to_async(&runtime).iter(|| async {
                    queue.enqueue(items).await.unwrap();
                    let batch = queue.fetch(size, Duration::ZERO).await.unwrap().unwrap();
                    assert_eq!(queue.ack(&batch, &[]).await.unwrap(), Acked::Done);
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, rounds);
criterion_main!(benches);
