//! The queue alone, on a private Redis (lists and streams, `appendfsync` everysec and always) and on SQLite:
//! items a second through enqueue, fetch and ack, by batch size; how soon an idle worker has an item; how soon the items
//! of a worker that was killed are delivered again. `cargo run --release -p tributary-core --example queue_speed`

use std::io::BufRead;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backends::redis::{Fsync, Redis};
use backends::services::Services;
use bytes::Bytes;
use tributary_core::adapters::redis::client::RedisClient;
use tributary_core::adapters::redis::keys::Layout;
use tributary_core::adapters::redis::queue::RedisQueue;
use tributary_core::adapters::sqlite::db::Db;
use tributary_core::adapters::sqlite::queue::SqliteQueue;
use tributary_core::ports::queue::{NewItem, Queue, QueueSettings};
use tributary_core::ports::world::World;

/// Batch sizes, with the items of a run: enough for some tenths of a second.
const BATCHES: [(usize, usize); 3] = [(1, 4_000), (100, 100_000), (500, 200_000)];
const LANES: usize = 2;
const RUNS: usize = 3;
/// About what a track call has in its envelope.
const PAYLOAD_BYTES: usize = 400;
/// Items that an idle worker waits for.
const IDLE_SAMPLES: usize = 1000;
/// Kills whose items are waited for.
const KILLS: usize = 5;
/// The lease of the killed.
const LEASE: Duration = Duration::from_secs(2);
/// How often workers look for leases that ran out.
const RECLAIM_EVERY: Duration = Duration::from_millis(500);
/// The first argument of the process that is killed.
const HOLD: &str = "hold";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [role, url, space, layout] = args.as_slice()
        && role == HOLD
    {
        return hold(url, space, layout).await;
    }
    println!("{PAYLOAD_BYTES} bytes an item, {LANES} lanes, medians of {RUNS} runs\n");
    println!(
        "items/s  {:<22} {:>8} {:>10} {:>12} {:>10}",
        "", "batch", "enqueue", "fetch + ack", "all three"
    );
    for fsync in [Fsync::EverySecond, Fsync::Always] {
        let redis = Redis::start(fsync).await?;
        for layout in [Layout::Lists, Layout::Streams] {
            let queue = on_redis(&redis.url(), &Services::fresh_key_space(), layout).await?;
            throughput(&format!("{}, {}", layout.as_str(), fsync.as_str()), queue).await?;
        }
    }
    let folder = tempfile::tempdir()?;
    throughput("SQLite, FULL", on_sqlite(&folder, "a").await?).await?;

    println!("\nfrom enqueue to an idle worker's hands, {IDLE_SAMPLES} items, ms");
    let redis = Redis::start(Fsync::EverySecond).await?;
    for layout in [Layout::Lists, Layout::Streams] {
        let queue = on_redis(&redis.url(), &Services::fresh_key_space(), layout).await?;
        idle(&format!("{}, everysec", layout.as_str()), queue).await?;
    }
    idle("SQLite, FULL", on_sqlite(&folder, "b").await?).await?;

    println!("\nfrom kill -9 to the next worker's hands, lease {} s, {KILLS} kills, s", LEASE.as_secs());
    for layout in [Layout::Lists, Layout::Streams] {
        redelivery(&redis.url(), layout).await?;
    }
    Ok(())
}

async fn on_redis(url: &str, space: &str, layout: Layout) -> anyhow::Result<Arc<dyn Queue>> {
    let client = RedisClient::connect(url, space).await?;
    let settings = QueueSettings { lease: LEASE, ..QueueSettings::default() };
    Ok(Arc::new(RedisQueue::new(client, "events", layout, settings, World::real())))
}

async fn on_sqlite(folder: &tempfile::TempDir, name: &str) -> anyhow::Result<Arc<dyn Queue>> {
    let world = World::real();
    let db = Db::open_queue(&folder.path().join(name)).await?;
    Ok(Arc::new(SqliteQueue::new(db, QueueSettings::default(), world)))
}

async fn throughput(name: &str, queue: Arc<dyn Queue>) -> anyhow::Result<()> {
    for (batch, items) in BATCHES {
        let (mut put, mut taken, mut all) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..RUNS {
            let began = Instant::now();
            let producers: Vec<_> =
                (0..LANES).map(|_| tokio::spawn(produce(queue.clone(), batch, items / LANES))).collect();
            for producer in producers {
                producer.await??;
            }
            let put_in = began.elapsed();
            let consumers: Vec<_> = (0..LANES).map(|_| tokio::spawn(consume(queue.clone(), batch))).collect();
            let mut count = 0;
            for consumer in consumers {
                count += consumer.await??;
            }
            let all_in = began.elapsed();
            anyhow::ensure!(count == items, "{count} of {items} items came out");
            let rate = |took: Duration| items as f64 / took.as_secs_f64();
            put.push(rate(put_in));
            taken.push(rate(all_in - put_in));
            all.push(rate(all_in));
        }
        println!(
            "         {name:<22} {batch:>8} {:>10.0} {:>12.0} {:>10.0}",
            median(put),
            median(taken),
            median(all)
        );
    }
    Ok(())
}

async fn produce(queue: Arc<dyn Queue>, batch: usize, items: usize) -> anyhow::Result<()> {
    let item = NewItem { payload: Bytes::from(vec![b'x'; PAYLOAD_BYTES]), ..NewItem::default() };
    let items_of_a_call = vec![item; batch];
    for _ in 0..items / batch {
        queue.enqueue(&items_of_a_call).await?;
    }
    Ok(())
}

async fn consume(queue: Arc<dyn Queue>, batch: usize) -> anyhow::Result<usize> {
    let mut count = 0;
    while let Some(batch) = queue.fetch(batch, Duration::ZERO).await? {
        count += batch.items.len();
        queue.ack(&batch, &[]).await?;
    }
    Ok(count)
}

async fn idle(name: &str, queue: Arc<dyn Queue>) -> anyhow::Result<()> {
    let (seen, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    let worker = {
        let queue = queue.clone();
        tokio::spawn(async move {
            loop {
                if let Some(batch) = queue.fetch(1, Duration::from_secs(1)).await? {
                    let _ = seen.send(Instant::now());
                    queue.ack(&batch, &[]).await?;
                }
            }
            #[expect(unreachable_code, reason = "says what the errors are")]
            anyhow::Ok(())
        })
    };
    let item = [NewItem { payload: Bytes::from(vec![b'x'; PAYLOAD_BYTES]), ..NewItem::default() }];
    let mut waits = Vec::with_capacity(IDLE_SAMPLES);
    for _ in 0..IDLE_SAMPLES {
        // long enough for the worker to be asleep again
        tokio::time::sleep(Duration::from_millis(3)).await;
        let began = Instant::now();
        queue.enqueue(&item).await?;
        let arrived = arrivals.recv().await.ok_or_else(|| anyhow::anyhow!("the worker ended"))?;
        waits.push((arrived - began).as_secs_f64() * 1000.0);
    }
    worker.abort();
    waits.sort_by(f64::total_cmp);
    let at = |part: f64| waits[(waits.len() as f64 * part) as usize];
    println!("         {name:<22} p50 {:>6.2}   p99 {:>6.2}", at(0.5), at(0.99));
    Ok(())
}

/// Takes an item, beats as a worker does, and is killed.
async fn hold(url: &str, space: &str, layout: &str) -> anyhow::Result<()> {
    let layout = if layout == Layout::Lists.as_str() { Layout::Lists } else { Layout::Streams };
    let queue = on_redis(url, space, layout).await?;
    let batch = loop {
        if let Some(batch) = queue.fetch(1, Duration::from_secs(1)).await? {
            break batch;
        }
    };
    println!("{HOLD}s");
    loop {
        tokio::time::sleep(LEASE / 3).await;
        queue.beat(std::slice::from_ref(&batch.id)).await?;
    }
}

async fn redelivery(url: &str, layout: Layout) -> anyhow::Result<()> {
    let mut waits = Vec::new();
    for kill in 0..KILLS {
        let space = Services::fresh_key_space();
        let queue = on_redis(url, &space, layout).await?;
        queue.enqueue(&[NewItem { payload: Bytes::from_static(b"x"), ..NewItem::default() }]).await?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args([HOLD, url, &space, layout.as_str()]).stdout(Stdio::piped());
        let mut holder = command.spawn()?;
        let mut line = String::new();
        if let Some(out) = holder.stdout.take() {
            std::io::BufReader::new(out).read_line(&mut line)?;
        }
        // after no beat, some, and just before the next
        tokio::time::sleep(LEASE.mul_f64(0.23 * kill as f64)).await;
        holder.kill()?;
        let killed = Instant::now();
        let reclaimer = {
            let queue = queue.clone();
            tokio::spawn(async move {
                loop {
                    let _ = queue.reclaim().await;
                    tokio::time::sleep(RECLAIM_EVERY).await;
                }
            })
        };
        while queue.fetch(1, Duration::from_secs(1)).await?.is_none() {}
        waits.push(killed.elapsed().as_secs_f64());
        reclaimer.abort();
        holder.wait()?;
    }
    let most = waits.iter().copied().fold(0.0, f64::max);
    println!("         {:<22} median {:>5.2}   most {most:>5.2}", layout.as_str(), median(waits));
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
