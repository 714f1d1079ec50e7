//! `loadtest speed`: how much a system takes and how fast it answers, measured from outside.
//!
//! The load generator shares the machine with what it measures, so it is kept light: plain HTTP/1.1 connections, bodies
//! made beforehand. Its figures are floors; compare them only with others of the same run.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use clap::Args;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::value::RawValue;
use simulator::delivery::To;
use simulator::{Plan, simulate};
use stack::client::Client;
use stack::system::Access;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::report::thousands;
use crate::target::{DRAIN_TIMEOUT, Stack, Target, TargetArgs};

const BATCH: usize = 100;
/// Most events that a measurement of capacity sends, and over how many connections.
const CAPACITY_EVENTS: usize = 400_000;
/// See [`CAPACITY_EVENTS`].
const CAPACITY_CONNECTIONS: usize = 4;
/// Customers read for the response times.
const READS: usize = 2000;
/// Events a second that come in while customers are read.
const BACKGROUND: usize = 2000;

/// How long and how wide to measure.
#[derive(Args, Debug)]
pub(crate) struct SpeedArgs {
    /// Events to send in each throughput measurement
    #[arg(long, default_value_t = 200_000)]
    events: usize,
    /// Connections of the single posts
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// How often each throughput is measured; the median is reported
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

#[derive(Debug, Serialize)]
struct Figure {
    what: &'static str,
    unit: &'static str,
    value: f64,
    all: Vec<f64>,
}

/// Measures; `true` when everything that was sent is there afterwards.
pub(crate) async fn run(target: &TargetArgs, args: &SpeedArgs, out: &Path) -> anyhow::Result<bool> {
    if target.target.is_some() {
        bail!("speed fills a system with made-up customers: it brings its own up, see --stack");
    }
    let workers_apart = target.stack == Stack::Services;
    let mut target = Target::open_for_speed(target).await?;
    let client = Client::new(target.access.clone())?;
    let sender = Sender { access: Arc::new(target.access.clone()) };
    let rounds = args.runs * 3;
    let day = simulate(&Plan {
        events: args.events * rounds + BACKGROUND * 60,
        duplicates_percent: 0,
        ..Plan::default()
    });
    let events = messages(&day);
    let mut rest = events.as_slice();
    let mut next = |count: usize| {
        let (taken, left) = rest.split_at(count.min(rest.len()));
        rest = left;
        taken
    };
    let mut sent = 0;
    let mut figures = Vec::new();

    // Without workers, where they can be left out: what ingestion alone takes.
    let (mut singles, mut batches, mut drained) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.runs {
        let chunk = next(args.events / 4);
        singles.push(rate(chunk.len(), sender.post(&single(chunk), args.connections).await?));
        let more = next(args.events);
        batches.push(rate(more.len(), sender.post(&batched(more), 4).await?));
        sent += chunk.len() + more.len();
        let began = Instant::now();
        target.start_workers()?;
        client.drain(DRAIN_TIMEOUT, |_| {}).await?;
        drained.push(rate(chunk.len() + more.len(), began.elapsed()));
        target.stop_workers()?;
    }
    figures.push(median("single-event posts", "posts/s", singles));
    figures.push(median("batches of 100", "events/s", batches));
    if workers_apart {
        figures.push(median("processing the backlog", "events/s", drained));
    }
    target.start_workers()?;
    let mut end_to_end = Vec::new();
    for _ in 0..args.runs {
        let chunk = next(args.events);
        let began = Instant::now();
        sender.post(&batched(chunk), 4).await?;
        client.drain(DRAIN_TIMEOUT, |_| {}).await?;
        end_to_end.push(rate(chunk.len(), began.elapsed()));
        sent += chunk.len();
    }
    figures.push(median("end to end, from first post to empty queue", "events/s", end_to_end));

    figures.extend(reading(&sender, next(BACKGROUND * 60), &day).await?);
    client.drain(DRAIN_TIMEOUT, |_| {}).await?;
    let there = usize::try_from(client.brand_events().await?)?;
    print(&target.name, &figures);
    std::fs::create_dir_all(out)?;
    std::fs::write(out.join("speed.json"), serde_json::to_string_pretty(&figures)?)?;
    println!(
        "\n  {} events were sent before the background load, {} are there",
        thousands(sent as u64),
        thousands(there as u64)
    );
    target.close()?;
    Ok(there >= sent)
}

/// How long Customer360 takes while events are processed.
async fn reading(
    sender: &Sender,
    background: &[String],
    day: &simulator::Day,
) -> anyhow::Result<Vec<Figure>> {
    let loading = tokio::spawn(pace(sender.clone(), background.to_vec()));
    let (cold, warm) = read(sender, day).await?;
    loading.abort();
    let mut figures = Vec::new();
    for (what, times) in [("Customer360 cold, p50", &cold), ("Customer360 warm, p50", &warm)] {
        figures.push(single_figure(what, times.value_at_quantile(0.5)));
    }
    for (what, times) in [("Customer360 cold, p99", &cold), ("Customer360 warm, p99", &warm)] {
        figures.push(single_figure(what, times.value_at_quantile(0.99)));
    }
    Ok(figures)
}

/// Sends as much as a system takes for so long, and waits until all of it is processed; answers how many events a second that were, from the
/// first post to the empty queue.
pub(crate) async fn sustained(access: &Access, seed: u64, time: Duration) -> anyhow::Result<f64> {
    let day = simulate(&Plan { seed, events: CAPACITY_EVENTS, duplicates_percent: 0, ..Plan::default() });
    let posts: Arc<[Post]> = batched(&messages(&day)).into();
    let (sender, client) = (Sender { access: Arc::new(access.clone()) }, Client::new(access.clone())?);
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..CAPACITY_CONNECTIONS {
        let (sender, posts, next) = (sender.clone(), posts.clone(), next.clone());
        running.spawn(async move {
            let mut connection = sender.connect().await?;
            let mut sent = 0;
            while began.elapsed() < time
                && let Some((path, body)) = posts.get(next.fetch_add(1, Ordering::Relaxed))
            {
                sender
                    .call(&mut connection, Method::POST, path, &sender.access.write_key, body.clone())
                    .await?;
                sent += BATCH;
            }
            anyhow::Ok(sent)
        });
    }
    let mut sent = 0;
    while let Some(ended) = running.join_next().await {
        sent += ended??;
    }
    client.drain(DRAIN_TIMEOUT, |_| {}).await?;
    Ok(rate(sent, began.elapsed()))
}

/// Every message of the day's SDKs, one by one.
fn messages(day: &simulator::Day) -> Vec<String> {
    #[derive(serde::Deserialize)]
    struct Batch<'a> {
        #[serde(borrow)]
        batch: Vec<&'a RawValue>,
    }
    let mut messages = Vec::new();
    for delivery in &day.deliveries {
        match &delivery.to {
            To::Segment { path: "batch" } => {
                let batch: Batch<'_> =
                    serde_json::from_str(&delivery.body).expect("the simulator writes JSON");
                messages.extend(batch.batch.iter().map(|message| message.get().to_owned()));
            }
            To::Segment { .. } => messages.push(delivery.body.clone()),
            To::Shopify { .. } => {}
        }
    }
    messages
}

/// A path and a body to post.
type Post = (&'static str, Bytes);

fn single(messages: &[String]) -> Vec<Post> {
    messages.iter().map(|message| ("/api/events", Bytes::from(message.clone()))).collect()
}

fn batched(messages: &[String]) -> Vec<Post> {
    messages
        .chunks(BATCH)
        .map(|chunk| ("/v1/batch", Bytes::from(format!("{{\"batch\":[{}]}}", chunk.join(",")))))
        .collect()
}

/// Sends over plain connections.
#[derive(Clone)]
struct Sender {
    access: Arc<Access>,
}

impl Sender {
    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(self.host()).await?;
        stream.set_nodelay(true)?;
        let (requests, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(requests)
    }

    fn host(&self) -> &str {
        self.access.url.trim_start_matches("http://")
    }

    /// Posts everything over `connections`, and answers how long it took.
    async fn post(&self, posts: &[Post], connections: usize) -> anyhow::Result<Duration> {
        let posts: Arc<[Post]> = posts.into();
        let next = Arc::new(AtomicUsize::new(0));
        let began = Instant::now();
        let mut running = JoinSet::new();
        for _ in 0..connections {
            let (sender, posts, next) = (self.clone(), posts.clone(), next.clone());
            running.spawn(async move {
                let mut connection = sender.connect().await?;
                while let Some((path, body)) = posts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    sender
                        .call(&mut connection, Method::POST, path, &sender.access.write_key, body.clone())
                        .await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(ended) = running.join_next().await {
            ended??;
        }
        Ok(began.elapsed())
    }

    /// One call; an answer that is not 2xx is an error.
    async fn call(
        &self,
        connection: &mut SendRequest<Full<Bytes>>,
        method: Method,
        path: &str,
        key: &str,
        body: Bytes,
    ) -> anyhow::Result<bool> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.host())
            .header(AUTHORIZATION, format!("Bearer {key}"))
            .body(Full::new(body))?;
        connection.ready().await?;
        let response = connection.send_request(request).await?;
        let (status, hit) =
            (response.status(), response.headers().get("x-cache").is_some_and(|v| v == "hit"));
        let answer = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!("{path}: {status} {}", String::from_utf8_lossy(&answer));
        }
        Ok(hit)
    }
}

/// Posts [`BACKGROUND`] events a second, until it is stopped or has none left.
async fn pace(sender: Sender, messages: Vec<String>) -> anyhow::Result<()> {
    let mut connection = sender.connect().await?;
    let mut tick = tokio::time::interval(Duration::from_secs_f64(20.0 / BACKGROUND as f64));
    for chunk in messages.chunks(20) {
        tick.tick().await;
        let (path, body) = batched(chunk).remove(0);
        sender.call(&mut connection, Method::POST, path, &sender.access.write_key, body).await?;
    }
    Ok(())
}

/// Reads customers twice each, one after the other: the first time from the store, the second from the cache.
async fn read(sender: &Sender, day: &simulator::Day) -> anyhow::Result<(Histogram<u64>, Histogram<u64>)> {
    let (mut cold, mut warm) = (Histogram::new(3)?, Histogram::new(3)?);
    let mut connection = sender.connect().await?;
    let step = (day.ledger.customers.len() / READS / 2).max(1);
    // The first half of the day's customers: those whom the measurements above have brought in.
    for customer in day.ledger.customers.iter().take(day.ledger.customers.len() / 2).step_by(step) {
        let found = customer.identifiers.iter().find(|(kind, _)| *kind == "anonymous_id");
        let Some((kind, value)) = found else { continue };
        let path = Client::customer_path(kind, value);
        for _ in 0..2 {
            let began = Instant::now();
            let key = &sender.access.secret_key;
            let Ok(hit) = sender.call(&mut connection, Method::GET, &path, key, Bytes::new()).await else {
                break;
            };
            let times = if hit { &mut warm } else { &mut cold };
            times.record(u64::try_from(began.elapsed().as_micros())?)?;
        }
    }
    if cold.len() < READS as u64 / 4 || warm.len() < READS as u64 / 4 {
        bail!("too few customers were found: {} cold, {} warm", cold.len(), warm.len());
    }
    Ok((cold, warm))
}

fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

fn median(what: &'static str, unit: &'static str, mut all: Vec<f64>) -> Figure {
    all.sort_by(f64::total_cmp);
    let value = all.get(all.len() / 2).copied().unwrap_or_default();
    Figure { what, unit, value, all }
}

fn single_figure(what: &'static str, us: u64) -> Figure {
    let value = us as f64 / 1000.0;
    Figure { what, unit: "ms", value, all: vec![value] }
}

fn print(name: &str, figures: &[Figure]) {
    println!("\nSpeed on {name}, medians\n");
    for Figure { what, unit, value, all } in figures {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate for people")]
        let written =
            |value: f64| if *unit == "ms" { format!("{value:.2}") } else { thousands(value as u64) };
        let spread: Vec<String> = all.iter().map(|value| written(*value)).collect();
        println!("  {what:<44} {:>10} {unit:<9} ({})", written(*value), spread.join(", "));
    }
}
