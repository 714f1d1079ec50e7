//! How fast customers are answered for from a large store: 1,000,000 events of 100,000 customers in a private PostgreSQL.
//!
//! `cargo run --release -p tributary-core --example customers_speed [customers]` loads them through the same service that workers
//! run, then asks for customers at random, cold (from the store) and warm (from the cache), lists and searches, prints medians and
//! p99, the plans of the statements, and what row-level security would cost.

#![allow(clippy::unwrap_used, reason = "a measurement may panic")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use backends::services::Services;
use rand::RngExt;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tributary_core::adapters::sql::{Database, SqlStore};
use tributary_core::context::{Backend, Context, Layout};
use tributary_core::domain::customer360::Customer360;
use tributary_core::domain::event::{Event, EventKind, TraitUpdate};
use tributary_core::domain::identity::{Identifier, IdentifierKind};
use tributary_core::domain::ids::{BrandId, ProfileId};
use tributary_core::domain::order::{Item, Order, OrderUpdate};
use tributary_core::domain::time::from_ms;
use tributary_core::ports::customer_search::Sort;
use tributary_core::ports::queue::QueueSettings;
use tributary_core::ports::store::{Store, SuppressionKey};
use tributary_core::ports::world::World;
use tributary_core::services::brand_cache::BrandRules;
use tributary_core::services::customer_search::{Listing, list, search};
use tributary_core::services::customer360::{CustomerRef, answer};
use tributary_core::services::events::process;
use tributary_core::services::seal::{SecretKey, SecretKeys};

const BRAND: BrandId = BrandId(1);
const T0: i64 = 1_768_000_000_000;
/// Events of each customer.
const EVENTS: usize = 10;
/// Questions of each kind.
const ASKED: usize = 3000;
const LANES: usize = 4;

fn main() {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(run());
}

async fn run() {
    let customers: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(100_000);
    let services = Services::start().await.unwrap_or_else(|error| panic!("{error:#}"));
    let url = services.fresh_database().await.unwrap();
    let backend = Backend::Services {
        database_url: url.clone(),
        redis_url: services.redis_url.clone(),
        key_space: Services::fresh_key_space(),
        connections: 12,
        layout: Layout::Lists,
        keys: SecretKeys::new(SecretKey::random(&World::real()), Vec::new()),
    };
    let context = Context::open(&backend, QueueSettings::default()).await.unwrap();
    let started = Instant::now();
    load(&context, customers).await;
    let took = started.elapsed();
    let events = customers * EVENTS;
    println!("loaded {events} events of {customers} customers in {:.0} s", took.as_secs_f64());
    let mut database = PgConnection::connect(&url).await.unwrap();
    sqlx::query("analyze").execute(&mut database).await.unwrap();

    let name = |n: usize| {
        CustomerRef::Identifier(Identifier::new(IdentifierKind::UserId, &format!("user-{n}")).unwrap())
    };
    let ttl = Duration::from_secs(300);
    let picks: Vec<usize> = (0..ASKED).map(|_| rand::rng().random_range(0..customers)).collect();
    let mut cold = Vec::with_capacity(ASKED);
    let mut warm = Vec::with_capacity(ASKED);
    for n in &picks {
        for times in [&mut cold, &mut warm] {
            let asked = Instant::now();
            assert!(answer(&context, ttl, BRAND, &name(*n)).await.unwrap().is_some());
            times.push(asked.elapsed());
        }
    }
    println!("\n{:<34}{:>10}{:>10}", "", "p50", "p99");
    show("Customer360 cold", &mut cold);
    show("Customer360 warm", &mut warm);
    for (what, typed, sort) in [
        ("list, newest", "", Sort::Newest),
        ("list, last seen", "", Sort::LastSeen),
        ("list, by name", "", Sort::Name),
        ("search, e-mail", "ada.77", Sort::Newest),
        ("search, surname", "name77", Sort::Newest),
        ("search, order", "#777", Sort::Newest),
    ] {
        let listing = Listing { search: search(typed), sort, limit: 20, ..Listing::default() };
        let mut times = Vec::new();
        for _ in 0..100 {
            let asked = Instant::now();
            list(&context, BRAND, &listing).await.unwrap();
            times.push(asked.elapsed());
        }
        show(what, &mut times);
    }
    plans(&mut database, &context, &name(picks[0])).await;
    row_level_security(&mut database, &url, &context, &picks).await;
    context.close().await;
}

fn show(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |part: f64| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let place = ((times.len() - 1) as f64 * part) as usize;
        format!("{:.2} ms", times[place].as_secs_f64() * 1e3)
    };
    println!("{what:<34}{:>10}{:>10}", at(0.5), at(0.99));
}

/// Customers as a shop has them: a browser, then an account; pages, products, for one in five an order.
async fn load(context: &Context, customers: usize) {
    let next = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let lanes = (0..LANES).map(|_| {
        let (context, next) = (context.clone(), next.clone());
        tokio::spawn(async move {
            const AT_ONCE: usize = 50;
            loop {
                let first = next.fetch_add(AT_ONCE, std::sync::atomic::Ordering::Relaxed);
                if first >= customers {
                    return;
                }
                let events: Vec<Event> =
                    (first..(first + AT_ONCE).min(customers)).flat_map(journey).collect();
                process(&*context.store, &*context.locks, &context.world, &BrandRules::default(), &events)
                    .await
                    .unwrap();
            }
        })
    });
    for lane in lanes.collect::<Vec<_>>() {
        lane.await.unwrap();
    }
}

fn journey(n: usize) -> Vec<Event> {
    let id = |kind, value: String| Identifier::new(kind, &value).unwrap();
    let browser = id(IdentifierKind::AnonymousId, format!("browser-{n}"));
    let user = id(IdentifierKind::UserId, format!("user-{n}"));
    let email = id(IdentifierKind::Email, format!("ada.{n}@example.com"));
    let n_ms = i64::try_from(n).unwrap_or(0) * 1000;
    let padding = "a page of a shop, as a browser tells of it ".repeat(6);
    (0..EVENTS)
        .map(|at| {
            let at_ms = T0 + n_ms + i64::try_from(at).unwrap_or(0) * 60_000;
            let mut event = Event::new(BRAND, format!("m{n}-{at}"), EventKind::Page, from_ms(at_ms));
            event.identifiers = vec![browser.clone()];
            event.body = json!({"type": "page", "properties": {"title": padding}}).to_string();
            match at {
                1 | 4 => {
                    event.kind = EventKind::Track;
                    event.name = Some("Product Viewed".into());
                    let properties = json!({"product_id": (n + at) % 500, "name": "Mug"});
                    event.body =
                        json!({"type": "track", "event": "Product Viewed", "properties": properties})
                            .to_string();
                }
                7 => {
                    event.kind = EventKind::Identify;
                    event.identifiers = vec![user.clone(), email.clone(), browser.clone()];
                    let given = |name: &str, value: String| TraitUpdate {
                        name: name.into(),
                        value: json!(value),
                        at: from_ms(at_ms),
                    };
                    event.traits =
                        vec![given("firstName", "Ada".into()), given("lastName", format!("Name{n}"))];
                }
                9 if n.is_multiple_of(5) => {
                    event.identifiers = vec![email.clone()];
                    event.order = Some(order(n, at_ms));
                }
                _ => {}
            }
            event
        })
        .collect()
}

fn order(n: usize, at_ms: i64) -> OrderUpdate {
    let item = Item {
        product_id: Some((n % 500).to_string()),
        sku: None,
        title: Some("Mug".into()),
        quantity: 1,
        price: 10.into(),
        gift_card: false,
    };
    let state = Order {
        name: Some(format!("#{n}")),
        ordered_at: from_ms(at_ms),
        cancelled_at: None,
        test: false,
        currency: "USD".into(),
        total: 10.into(),
        current_total: None,
        presentment: None,
        financial_status: Some("paid".into()),
        fulfillment_status: None,
        items: vec![item],
    };
    OrderUpdate {
        shop: "shop.example.com".into(),
        id: n.to_string(),
        updated_at: from_ms(at_ms),
        state: Some(Box::new(state)),
        ..OrderUpdate::default()
    }
}

/// The plans of what Customer360 asks, for one customer.
async fn plans(database: &mut PgConnection, context: &Context, asked: &CustomerRef) {
    let CustomerRef::Identifier(identifier) = asked else { return };
    let id: ProfileId = context.store.owner(BRAND, identifier).await.unwrap().unwrap();
    println!("\nplans");
    for (what, statement) in [
        ("owner", format!("select profile_id from identifiers where brand_id = 1 and kind = 'user_id' and value = '{}'", identifier.value)),
        ("profile", format!("select * from profiles where id = '{id}' and brand_id = 1")),
        ("identifiers", format!("select kind, value from identifiers where profile_id = '{id}' and brand_id = 1")),
        ("totals", format!("select currency, count(*), sum(revenue) from orders where profile_id = '{id}' and brand_id = 1 and counts group by currency")),
        ("orders", format!("select * from orders where profile_id = '{id}' and brand_id = 1 order by ordered_at desc, id desc limit 200")),
        ("events", format!("select * from events where profile_id = '{id}' and brand_id = 1 order by \"timestamp\" desc, message_id desc limit 20")),
        ("activity", format!("select \"timestamp\", kind, name, active from events where profile_id = '{id}' and brand_id = 1 order by \"timestamp\" desc, message_id desc limit 1000")),
        ("groups", format!("select distinct on (name) name from events where profile_id = '{id}' and brand_id = 1 and kind = 'group' order by name, \"timestamp\" desc, message_id desc")),
        ("consents", format!("select state from consents where profile_id = '{id}' and brand_id = 1 order by at desc, message_id desc limit 500")),
        ("list, newest", "select id from profiles where brand_id = 1 and merged_into is null order by id desc limit 20".to_owned()),
        ("list, last seen", "select id from profiles where brand_id = 1 and merged_into is null and last_seen is not null order by last_seen desc, id desc limit 20".to_owned()),
        ("search, surname", "select id from profiles where brand_id = 1 and surname >= 'name77' and surname < 'name78' limit 1000".to_owned()),
    ] {
        let explain = format!("explain (analyze, costs off, timing off, summary on) {statement}");
        let lines: Vec<String> = sqlx::query_scalar(AssertSqlSafe(explain)).fetch_all(&mut *database).await.unwrap();
        let scans: Vec<&str> =
            lines.iter().map(|line| line.trim().trim_start_matches("->  ")).filter(|line| line.contains("Scan")).collect();
        let took = lines.iter().find_map(|line| line.trim().strip_prefix("Execution Time: ")).unwrap_or_default();
        println!("  {what:<18}{took:>10}  {}", scans.join("; "));
    }
}

/// What it costs to let PostgreSQL itself keep brands apart: the same reads by a role that policies hold, and by one that none do.
async fn row_level_security(database: &mut PgConnection, url: &str, context: &Context, picks: &[usize]) {
    let tables = ["profiles", "identifiers", "events", "orders", "consents", "products", "relations"];
    let role = format!("walled_{}", std::process::id());
    let statements = [
        format!("create role {role} login"),
        format!("grant select on all tables in schema public to {role}"),
    ];
    for statement in statements {
        sqlx::query(AssertSqlSafe(statement)).execute(&mut *database).await.unwrap();
    }
    let mut ids = Vec::new();
    for n in picks.iter().take(1000) {
        let identifier = Identifier::new(IdentifierKind::UserId, &format!("user-{n}")).unwrap();
        ids.push(context.store.owner(BRAND, &identifier).await.unwrap().unwrap());
    }
    // The same role and reads; only the policies of migration 0004 are on or off.
    let user = url.split("://").nth(1).unwrap().split(['@', ':']).next().unwrap();
    let walled = url.replacen(user, &role, 1);
    let Ok(pool) = sqlx::PgPool::connect(&walled).await else {
        println!("\nrow-level security: the role could not connect");
        return;
    };
    let store = SqlStore::new(Database::postgres(pool, World::real()), SuppressionKey::new([7; 32]));
    let mut ratios = Vec::new();
    for _ in 0..5 {
        let mut took = Vec::new();
        for on in [false, true] {
            for table in tables {
                let set = format!(
                    "alter table {table} {} row level security",
                    if on { "enable" } else { "disable" }
                );
                sqlx::query(AssertSqlSafe(set)).execute(&mut *database).await.unwrap();
            }
            let mut times = Vec::new();
            for id in &ids {
                let asked = Instant::now();
                let record = store.customer(BRAND, *id).await.unwrap().unwrap();
                let _ = Customer360::of(record, from_ms(T0));
                times.push(asked.elapsed());
            }
            times.sort();
            took.push(times[times.len() / 2].as_secs_f64());
        }
        ratios.push(took[1] / took[0]);
    }
    ratios.sort_by(f64::total_cmp);
    println!("\nrow-level security, cold read with / without, median of five: {:.3} {ratios:.3?}", ratios[2]);
}
