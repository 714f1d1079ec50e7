//! One brand does everything at once that could bring a system down, and another is watched meanwhile: how long its events, customers,
//! webhooks and automations take, against how long they take in quiet.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tributary_core::priority;

use crate::campaign::call;
use crate::client::Client;
use crate::receiver::{Receiver, now_ms};
use crate::system::{Access, System};

/// How long a server may believe what it knew of automations before.
const HEARD_WITHIN: Duration = Duration::from_secs(6);
/// Between two of the victim's rounds.
const ROUND: Duration = Duration::from_millis(100);
/// How long the victim waits for anything.
const PATIENCE: Duration = Duration::from_secs(20);
/// Ports that take connections and never answer.
const SILENT_PORTS: usize = 40;
/// Connections that send half a header.
const HALF_OPEN: usize = 150;

/// What is watched of the victim.
pub const WATCHED: [&str; 5] = ["ingestion", "visible", "customer360", "webhook", "automation"];

/// How long things took, in milliseconds.
#[derive(Clone, Debug, Default)]
pub struct Times(BTreeMap<&'static str, Vec<f64>>);

impl Times {
    fn note(&mut self, what: &'static str, took: Duration) {
        self.0.entry(what).or_default().push(took.as_secs_f64() * 1000.0);
    }

    /// How many there are, the median and the 99th percentile, in milliseconds.
    pub fn of(&self, what: &str) -> (usize, f64, f64) {
        let mut all = self.0.get(what).cloned().unwrap_or_default();
        all.sort_by(f64::total_cmp);
        let at = |part: usize| all.get((all.len() * part / 100).min(all.len().saturating_sub(1))).copied();
        (all.len(), at(50).unwrap_or_default(), at(99).unwrap_or_default())
    }
}

/// What a drill came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub quiet: Times,
    /// While the other brand attacked.
    pub attacked: Times,
    /// What of the victim's was refused or did not come.
    pub failures: Vec<String>,
    /// What the attacker tried, and how often.
    pub tried: BTreeMap<&'static str, u64>,
    /// By status, what it was answered: 0 for nothing.
    pub answered: BTreeMap<u16, u64>,
}

/// Runs a drill against a system that was brought up for it: `--allow-private-destinations` and `--allow-http-destinations` among its
/// outside arguments. Of the attacks, those whose name begins with one of `only`; all, where there is none.
///
/// # Errors
/// When the system cannot be set up, or the victim is refused while nobody attacks.
pub async fn drill(
    system: &System,
    quiet: Duration,
    attack: Duration,
    only: &[String],
) -> anyhow::Result<Outcome> {
    let receiver = Receiver::start(false).await?;
    let victim = Client::new(system.access.clone())?;
    automation(&victim, "Ping", &[json!({"do": "webhook", "url": format!("{}/ping", receiver.url)})]).await?;
    let attacker = Arc::new(Attacker::new(system).await?);
    sleep(HEARD_WITHIN).await;
    let mut failures = Vec::new();
    // Once to be warm.
    watch(&victim, &receiver, Duration::from_secs(3), &mut failures).await;
    failures.clear();
    let before = watch(&victim, &receiver, quiet, &mut failures).await;
    if !failures.is_empty() {
        bail!("the victim is refused while nobody attacks: {failures:?}");
    }
    let stop = CancellationToken::new();
    // Attackers are elsewhere in the world: what they do takes nothing from the system under attack, nor from whoever watches it.
    let attackers = priority::runtime("attackers").context("threads for the attackers")?;
    let mut attacks = attacker.clone().begin(only, &stop, attackers.handle());
    let during = watch(&victim, &receiver, attack, &mut failures).await;
    stop.cancel();
    while let Some(ended) = attacks.join_next().await {
        ended?;
    }
    attackers.shutdown_background();
    let answered = attacker.answered.lock().await.clone();
    let tried = attacker.tried.iter().map(|(name, count)| (*name, count.load(Ordering::Relaxed))).collect();
    Ok(Outcome { quiet: before, attacked: during, failures, tried, answered })
}

async fn automation(client: &Client, event: &str, steps: &[Value]) -> anyhow::Result<()> {
    let definition = json!({"name": event, "trigger": {"on": "event", "event": event}, "reentry": {"mode": "always"}, "steps": steps});
    let made = call(client, "POST", "/api/automations", Some(&definition)).await?;
    let id = made["id"].as_str().context("an automation without an id")?;
    call(client, "POST", &format!("/api/automations/{id}/activate"), None).await?;
    Ok(())
}

/// Lives as a small shop does, and notes how long things take.
async fn watch(client: &Client, receiver: &Receiver, over: Duration, failures: &mut Vec<String>) -> Times {
    let mut times = Times::default();
    let mut rounds = JoinSet::new();
    let mut fired: HashMap<String, i64> = HashMap::new();
    let end = Instant::now() + over;
    while Instant::now() < end {
        let user = format!("v{}", uuid::Uuid::now_v7().simple());
        fired.insert(user.clone(), now_ms());
        rounds.spawn(round(client.clone(), user));
        sleep(ROUND).await;
    }
    while let Some(round) = rounds.join_next().await {
        match round {
            Ok(Ok(round)) => round.into_iter().for_each(|(what, took)| times.note(what, took)),
            Ok(Err(error)) => failures.push(format!("{error:#}")),
            Err(error) => failures.push(error.to_string()),
        }
    }
    let due = Instant::now() + PATIENCE;
    loop {
        let hooks = receiver.hooks();
        let user = |body: &Value| body["data"]["event"]["properties"]["user"].as_str().map(str::to_owned);
        let arrived: HashMap<String, i64> =
            hooks.iter().filter_map(|hook| Some((user(&hook.body)?, hook.at_ms))).collect();
        let missing = fired.keys().filter(|user| !arrived.contains_key(*user)).count();
        if missing > 0 && Instant::now() < due {
            sleep(ROUND).await;
            continue;
        }
        if missing > 0 {
            failures.push(format!("{missing} of {} automations did not fire", fired.len()));
        }
        for (user, began) in &fired {
            if let Some(at) = arrived.get(user) {
                let took = u64::try_from(at - began).unwrap_or_default();
                times.note("automation", Duration::from_millis(took));
            }
        }
        return times;
    }
}

/// One event, until it is seen; one webhook.
async fn round(client: Client, user: String) -> anyhow::Result<Vec<(&'static str, Duration)>> {
    let Access { url, write_key, .. } = client.access().clone();
    let mut took = Vec::new();
    let event = json!({"event": "Ping", "userId": user, "properties": {"user": user}});
    let began = Instant::now();
    let post = client.http().post(format!("{url}/v1/track")).basic_auth(&write_key, Some(""));
    success(post.body(event.to_string())).await.context("ingestion")?;
    took.push(("ingestion", began.elapsed()));
    loop {
        let asked = Instant::now();
        let answer = client.customer(client.http(), "user_id", &user).send().await.context("customer360")?;
        took.push(("customer360", asked.elapsed()));
        match answer.status().as_u16() {
            200 => break,
            404 if began.elapsed() < PATIENCE => sleep(Duration::from_millis(20)).await,
            status => bail!("customer360: {status} after {} ms", began.elapsed().as_millis()),
        }
    }
    took.push(("visible", began.elapsed()));
    let order = json!({"id": now_ms(), "email": format!("{user}@shop.example"), "total_price": "10.00", "currency": "EUR",
        "created_at": "2026-11-01T12:00:00Z", "updated_at": "2026-11-01T12:00:00Z"});
    let began = Instant::now();
    success(client.webhook(client.http(), "orders/create", &user, order.to_string()))
        .await
        .context("webhook")?;
    took.push(("webhook", began.elapsed()));
    Ok(took)
}

async fn success(request: RequestBuilder) -> anyhow::Result<()> {
    let answer = request.send().await?;
    let status = answer.status();
    if !status.is_success() {
        bail!("{status} {}", answer.text().await.unwrap_or_default());
    }
    Ok(())
}

/// The other brand, with its keys and a shop.
struct Attacker {
    client: Client,
    tried: BTreeMap<&'static str, AtomicU64>,
    answered: tokio::sync::Mutex<BTreeMap<u16, u64>>,
}

/// What it does, and how long it rests between two tries.
const ATTACKS: [(&str, u64); 14] = [
    ("S1 deep templates", 100),
    ("S2 templates that grow", 200),
    ("S3 expressions that loop", 200),
    ("S3 expressions that grow", 200),
    ("S5 times of the future", 20),
    ("S6 signed bodies elsewhere", 50),
    ("S7 numbers that overflow", 100),
    ("S8 bad messages", 100),
    ("S9 large events on one customer", 100),
    ("S9 exports of that customer", 500),
    ("S10 half headers and large bodies", 1000),
    ("S14 numbers of all brands", 50),
    ("S15 receivers that never answer", 250),
    ("S16 small requests that unpack, unknown keys", 20),
];

impl Attacker {
    async fn new(system: &System) -> anyhow::Result<Self> {
        let brand = "hostile";
        system.admin(&["brand", "add", brand])?;
        let write_key = system.admin(&["key", "add", "--brand", brand, "--kind", "write"])?;
        let secret_key = system.admin(&["key", "add", "--brand", brand, "--kind", "secret"])?;
        let (shop_domain, shop_secret) = ("hostile.myshopify.com".to_owned(), "hostile-secret".to_owned());
        system.admin(&[
            "shop",
            "add",
            "--brand",
            brand,
            "--domain",
            &shop_domain,
            "--secret",
            &shop_secret,
        ])?;
        let access =
            Access { url: system.access.url.clone(), write_key, secret_key, shop_domain, shop_secret };
        let client = Client::new(access)?;
        for _ in 0..SILENT_PORTS {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
            let port = listener.local_addr()?.port();
            tokio::spawn(async move {
                let mut held = Vec::new();
                while let Ok((socket, _)) = listener.accept().await {
                    held.push(socket);
                }
            });
            let step = json!({"do": "webhook", "url": format!("http://127.0.0.1:{port}/")});
            automation(&client, "Hang", &[step]).await?;
        }
        // What expressions of S3 look at.
        let events: Vec<Value> = (0..100)
            .map(|n| json!({"type": "track", "event": "V", "userId": "m", "properties": {"big": "b".repeat(3000), "n": n}}))
            .collect();
        for _ in 0..2 {
            let send = client.http().post(format!("{}/v1/batch", client.access().url));
            let body = json!({"batch": events}).to_string();
            success(send.basic_auth(&client.access().write_key, Some("")).body(body)).await?;
        }
        let tried = ATTACKS.iter().map(|(name, _)| (*name, AtomicU64::default())).collect();
        Ok(Self { client, tried, answered: tokio::sync::Mutex::default() })
    }

    fn begin(self: Arc<Self>, only: &[String], stop: &CancellationToken, on: &Handle) -> JoinSet<()> {
        let mut attacks = JoinSet::new();
        let meant =
            |name: &str| only.is_empty() || only.iter().any(|one| name.starts_with(&format!("{one} ")));
        for (name, rest) in ATTACKS.into_iter().filter(|(name, _)| meant(name)) {
            let (this, stop) = (self.clone(), stop.clone());
            let attack = async move {
                let mut held = Vec::new();
                for n in 0_u64.. {
                    tokio::select! {
                        () = this.once(name, n, &mut held) => {}
                        () = stop.cancelled() => return,
                    }
                    this.tried[name].fetch_add(1, Ordering::Relaxed);
                    tokio::select! {
                        () = sleep(Duration::from_millis(rest)) => {}
                        () = stop.cancelled() => return,
                    }
                }
            };
            attacks.spawn_on(attack, on);
        }
        attacks
    }

    async fn once(&self, name: &str, n: u64, held: &mut Vec<TcpStream>) {
        let _ = self.write_definitions(name, n).await
            || self.send_bodies(name, n).await
            || self.hold_connections(name, n, held).await
            || self.guess_keys(n).await;
    }

    /// Templates and expressions. Returns whether `name` is one of these.
    async fn write_definitions(&self, name: &str, n: u64) -> bool {
        match name {
            "S1 deep templates" => {
                let chains = [
                    "-",
                    "not ",
                    "1~",
                    "1+",
                    "1**",
                    "a|string|",
                    "a.b.",
                    "a()",
                    "a[0]",
                    "1 and ",
                    "1 if 1 else ",
                ];
                let chain = chains[n as usize % chains.len()];
                self.template(&format!("{{{{ {}1 }}}}", chain.repeat(6000))).await;
            }
            "S2 templates that grow" => {
                let texts = [
                    "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s|length }}",
                    "{% for i in range(100000) %}{% for j in range(100000) %}{{ i * j }}{% endfor %}{% endfor %}",
                    "{{ ('x' * 1000000000)|length }}",
                    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
                ];
                self.template(texts[n as usize % texts.len()]).await;
            }
            "S3 expressions that loop" => {
                self.preview(
                    "(events+events+events).exists(a, (events+events+events).exists(b, a.name != b.name))",
                )
                .await;
            }
            "S3 expressions that grow" => {
                self.preview("events.map(a, events.map(b, a.properties.big + b.properties.big + a.properties.big)).size() > 0").await;
            }
            _ => return false,
        }
        true
    }

    /// Messages and webhooks. Returns whether `name` is one of these.
    async fn send_bodies(&self, name: &str, n: u64) -> bool {
        match name {
            "S5 times of the future" => {
                let told = json!({"userId": "f", "timestamp": "9999-12-31T00:00:00Z",
                    "traits": {"email": format!("f{n}@x.example"), "emailMarketingConsent": true}});
                self.write("/v1/identify", told.to_string()).await;
            }
            "S6 signed bodies elsewhere" => {
                let topics = ["products/update", "shop/redact", "customers/redact", "orders/create"];
                let body = json!({"id": n % 7, "title": "a product"}).to_string();
                let (topic, id) = (topics[n as usize % topics.len()], format!("w{n}"));
                self.tell(self.client.webhook(self.client.http(), topic, &id, body)).await;
            }
            "S7 numbers that overflow" => {
                let settings = [
                    json!({"rfm": {"recency_days": [1, 2, 3, 4_294_967_295_u32]}}),
                    json!({"retention_days": 4_294_967_295_u32}),
                    json!({"shop_redaction_hours": u64::MAX}),
                ];
                self.secret("PUT", "/api/settings", &settings[n as usize % settings.len()]).await;
                let order = json!({"id": n, "email": "o@x.example", "total_price": "99999999999999999999999999", "currency": "EUR",
                    "created_at": "0001-01-01T00:00:00Z", "updated_at": "9999-12-31T23:59:59Z"});
                let id = format!("o{n}");
                self.tell(self.client.webhook(self.client.http(), "orders/create", &id, order.to_string()))
                    .await;
                self.preview("rfm.recency >= 1").await;
            }
            "S8 bad messages" => {
                let bad = json!({"type": "track", "userId": "u", "properties": {"x": "z".repeat(30_000)}});
                let batch =
                    [vec![json!({"type": "track", "event": "ok", "userId": "u"})], vec![bad; 15]].concat();
                self.write("/v1/batch", json!({"batch": batch}).to_string()).await;
            }
            "S9 large events on one customer" => {
                let large = json!({"type": "track", "event": "L", "userId": "l", "properties": {"x": "y".repeat(28_000)}});
                self.write("/v1/batch", json!({"batch": vec![large; 15]}).to_string()).await;
            }
            _ => return false,
        }
        true
    }

    /// Exports, half requests, numbers, receivers that hang. Returns whether `name` is one of these.
    async fn hold_connections(&self, name: &str, n: u64, held: &mut Vec<TcpStream>) -> bool {
        match name {
            "S9 exports of that customer" => {
                let path = format!("{}{}", self.client.access().url, Client::customer_path("user_id", "l"));
                let asked =
                    self.client.http().get(path).bearer_auth(&self.client.access().secret_key).send().await;
                let Ok(found) = asked else { return true };
                let Ok(found) = found.json::<Value>().await else { return true };
                if let Some(id) = found["id"].as_str() {
                    self.secret("GET", &format!("/api/customers/{id}/export"), &Value::Null).await;
                }
            }
            "S10 half headers and large bodies" => {
                let address = self.client.access().url.trim_start_matches("http://").to_owned();
                held.retain(|socket| socket.peer_addr().is_ok());
                while held.len() < HALF_OPEN {
                    let Ok(mut socket) = TcpStream::connect(&address).await else { break };
                    let _ = socket.write_all(b"POST /api/webhooks/shopify HTTP/1.1\r\nHost: x\r\n").await;
                    held.push(socket);
                }
                if n.is_multiple_of(12) {
                    held.clear();
                }
                let url = format!("{}/api/webhooks/shopify", self.client.access().url);
                self.tell(self.client.http().post(url).body(vec![b'x'; 5_000_000])).await;
            }
            "S14 numbers of all brands" => {
                let paths = ["/metrics", "/readyz", "/api/monitoring/health", "/api/monitoring/queues"];
                let url = format!("{}{}", self.client.access().url, paths[n as usize % paths.len()]);
                self.tell(self.client.http().get(url).header("x-forwarded-for", "203.0.113.7")).await;
            }
            "S15 receivers that never answer" => {
                // Each sets off all of the automations.
                self.write("/v1/track", json!({"event": "Hang", "userId": format!("h{n}")}).to_string())
                    .await;
            }
            _ => return false,
        }
        true
    }

    /// Keys that are none, and batches that are too large.
    async fn guess_keys(&self, n: u64) -> bool {
        let url = format!("{}/api/customers", self.client.access().url);
        self.tell(self.client.http().get(url).bearer_auth(format!("sk_{n}"))).await;
        if n.is_multiple_of(20) {
            let small = json!({"type": "track", "event": "s", "userId": "s"});
            let context = if n.is_multiple_of(40) { "c".repeat(3000) } else { String::new() };
            let body = json!({"batch": vec![small; 2500], "context": {"text": context}});
            self.write("/v1/batch", body.to_string()).await;
        }
        true
    }

    async fn template(&self, text: &str) {
        let steps = json!([{"do": "email", "subject": "s", "text": text}]);
        let definition = json!({"name": "x", "trigger": {"on": "event", "event": "E"}, "steps": steps});
        self.secret("POST", "/api/automations", &definition).await;
    }

    async fn preview(&self, expression: &str) {
        self.secret("POST", "/api/segment-preview", &json!({"expression": expression})).await;
    }

    async fn write(&self, path: &str, body: String) {
        let Access { url, write_key, .. } = self.client.access();
        let post = self.client.http().post(format!("{url}{path}"));
        self.tell(post.basic_auth(write_key, Some("")).body(body)).await;
    }

    async fn secret(&self, method: &str, path: &str, body: &Value) {
        let Access { url, secret_key, .. } = self.client.access();
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap_or_default();
        let request = self.client.http().request(method, format!("{url}{path}")).bearer_auth(secret_key);
        self.tell(if body.is_null() { request } else { request.json(body) }).await;
    }

    /// Makes a request, and reads the answer to its end.
    async fn tell(&self, request: RequestBuilder) {
        let status = match request.send().await {
            Ok(answer) => {
                let status = answer.status().as_u16();
                let _ = answer.bytes().await;
                status
            }
            Err(_) => 0,
        };
        *self.answered.lock().await.entry(status).or_default() += 1;
    }
}
