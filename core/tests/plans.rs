//! No statement reads all that a brand has to find what belongs to one customer: every statement's plan is looked at. On SQLite, over a store with the
//! statistics of a large brand, and over one without any; on PostgreSQL, over a brand with a hundred thousand of each, analyzed.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, SqliteConnection};
use support::{ContextUnderTest, embedded_context, services_context};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context as Layered, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tributary_core::domain::addresses::Reach;
use tributary_core::domain::automation::definition::Definition;
use tributary_core::domain::customer360::CustomerRef;
use tributary_core::domain::event::Source;
use tributary_core::domain::identity::{Identifier, IdentifierKind};
use tributary_core::domain::ids::{BrandId, ProfileId};
use tributary_core::domain::settings::BrandSettings;
use tributary_core::ports::automations::{AutomationStatus, RunFilter};
use tributary_core::ports::brands::KeyKind;
use tributary_core::ports::customer_search::Sort;
use tributary_core::ports::privacy::Erasure;
use tributary_core::services::automations::api::{self, segments};
use tributary_core::services::automations::destinations::{DEFAULT_RATE, Destinations};
use tributary_core::services::automations::runs::Outbound;
use tributary_core::services::customer_search::{self, Listing};
use tributary_core::services::keys::new_key;
use tributary_core::services::{customer360, identity, outbox, privacy};
use tributary_core::testing::{RecordingSender, drain, segment_item, shopify_item};

const CACHE_TTL: std::time::Duration = std::time::Duration::from_secs(300);

/// Tables that are small: what a brand sets up, not what its customers do.
const SMALL: &[&str] = &[
    "_sqlx_migrations",
    "api_keys",
    "automations",
    "automation_versions",
    "brands",
    "counters",
    "refusals",
    "schedules",
    "segments",
    "shares",
    "shops",
    "system_secrets",
    // a worker's batches under way
    "leases",
    "paused",
];

/// Columns by which many rows are alike: an index that is searched by these alone is read for a whole brand.
const COMMON: &[&str] =
    &["brand_id", "brand", "kind", "status", "shop", "queue", "priority", "counts", "topic", "channel"];

/// Statements that are meant to look at all of a brand, or of the store, each with the reason.
const MEANT: &[(&str, &str)] = &[
    ("select (select count(*) from profiles", "the numbers of a brand, for whoever asks how many there are"),
    ("select segment, count(*) from segment_members", "how many members each segment has"),
    ("is not null order by last_seen desc", "an index over last_seen would be written with every event"),
    ("and (last_seen, id) < (", "see the one above"),
    (
        "and undone_at is not null and exists",
        "merges that were undone are few, and have an index of their own",
    ),
    ("delete from webhook_bodies where topic = 'shop/redact'", "a shop's redaction that is stopped"),
    ("kind = 'export' and subject is not null", "requests of a month that still name somebody"),
    ("select status, count(*) from automation_runs", "how many runs an automation has"),
    (
        "max(fence), 0) from profiles where fence > 0",
        "the index has those alone that were merged under a lock",
    ),
    ("where done_at is null and (due_at is null", "the index has open requests alone"),
    ("exists (select 1 from items indexed by items_ready", "the first of them is enough"),
];

/// The statements that were run.
#[derive(Clone, Default)]
struct Statements(Arc<Mutex<BTreeSet<String>>>);

struct Texts<'t> {
    summary: &'t mut String,
    whole: &'t mut String,
}

impl Visit for Texts<'_> {
    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "summary" => value.clone_into(self.summary),
            "db.statement" => value.clone_into(self.whole),
            _ => {}
        }
    }
}

impl<S: tracing::Subscriber> Layer<S> for Statements {
    fn on_event(&self, event: &tracing::Event<'_>, _: Layered<'_, S>) {
        let (mut summary, mut whole) = (String::new(), String::new());
        event.record(&mut Texts { summary: &mut summary, whole: &mut whole });
        // Of a short statement the summary is all there is.
        let text = if whole.trim().is_empty() { summary } else { whole };
        let text = text.trim();
        let has_plan =
            ["select ", "with ", "insert ", "update ", "delete "].iter().any(|verb| text.starts_with(verb));
        if has_plan {
            self.0.lock().unwrap().insert(text.to_owned());
        }
    }
}

/// What a shop does in a year, in small: every statement of the store is run at least once.
async fn a_year(u: &ContextUnderTest) {
    let context = &u.context;
    let brand = context.brand_ports.brands.add_brand("b").await.unwrap();
    let settings =
        BrandSettings { email_from: Some("Shop <shop@t.example>".into()), ..BrandSettings::default() };
    context.brand_cache.set(brand, &settings, None).await.unwrap();
    context.brand_ports.shops.add_shop("s.example", brand, "secret").await.unwrap();
    new_key(&context.brand_ports, &context.world, brand, KeyKind::Secret).await.unwrap();
    let outbound = Outbound {
        sends_mail: true,
        reach: Reach { private: true, http: true },
        sender: RecordingSender::new(context.world.clone()),
        destinations: Arc::new(Destinations::new(DEFAULT_RATE, context.world.clone())),
        public_url: Some("https://t.example".into()),
    };
    let buyers = serde_json::from_value(json!({"expression": "orders.count > 0"})).unwrap();
    segments::put(context, brand, "buyers", buyers).await.unwrap();
    let definition: Definition =
        serde_json::from_value(json!({"name": "n", "trigger": {"on": "event", "event": "E"},
        "steps": [{"do": "wait", "for": {"hours": 1}}, {"do": "webhook", "url": "https://r.example/"}]}))
        .unwrap();
    let automation = api::create(context, brand, &definition).await.unwrap().id;
    api::set_status(context, brand, automation, AutomationStatus::Active).await.unwrap();
    let send = async |messages: Vec<Value>| {
        let now = context.world.now_ms();
        let items: Vec<_> =
            messages.iter().map(|message| segment_item(brand, now, Source::Secret, message)).collect();
        context.queue.enqueue(&items).await.unwrap();
        drain(context, &outbound).await;
    };
    for user in ["ada", "bob", "eve"] {
        let email = format!("{user}@example.com");
        send(vec![
            json!({"type": "identify", "userId": user, "traits": {"email": email, "firstName": user, "emailMarketingConsent": true}}),
            json!({"type": "track", "userId": user, "event": "E", "messageId": user}),
            json!({"type": "track", "anonymousId": user, "event": "Product Viewed", "properties": {"product_id": "9"}}),
            json!({"type": "group", "userId": user, "groupId": "g"}),
        ])
        .await;
        webhooks(u, brand, user).await;
        drain(context, &outbound).await;
    }
    send(vec![json!({"type": "identify", "userId": "ada", "anonymousId": "ada"})]).await;
    let [ada, bob, eve] = owners(u, brand).await;
    reads(u, brand, ada).await;
    let (_, merge) = identity::merge_two(context, brand, ada, bob, "test").await.unwrap();
    drain(context, &outbound).await;
    reads(u, brand, bob).await;
    identity::split(context, brand, merge, "test").await.unwrap();
    drain(context, &outbound).await;
    support::exported(context, brand, ada).await.unwrap();
    let what = Erasure { profiles: vec![eve], suppress: true, ..Erasure::default() };
    privacy::erase(context, brand, &what, "test").await.unwrap();
    privacy::carry_out(context).await.unwrap();
    privacy::retain(context).await.unwrap();
    outbox::check(context).await.unwrap();
    drain(context, &outbound).await;
}

async fn webhooks(u: &ContextUnderTest, brand: BrandId, user: &str) {
    let now = u.context.world.now_ms();
    let order = json!({"id": user.len() as u64 + now.cast_unsigned(), "name": "#1", "email": format!("{user}@example.com"), "total_price": "10.00",
        "currency": "EUR", "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        "line_items": [{"title": "Mug", "product_id": 9, "quantity": 1, "price": "10.00"}]});
    let refund = json!({"id": 5, "order_id": order["id"], "created_at": "2026-01-04T10:00:00Z",
        "transactions": [{"kind": "refund", "status": "success", "amount": "1.00", "currency": "EUR"}]});
    let product =
        json!({"id": 9, "title": "Mug", "product_type": "Kitchen", "updated_at": "2026-01-01T00:00:00Z"});
    let items: Vec<_> =
        [("orders/create", &order), ("refunds/create", &refund), ("products/update", &product)]
            .into_iter()
            .map(|(topic, body)| {
                shopify_item(brand, now, ("s.example", topic, &format!("{topic}-{user}")), body)
            })
            .collect();
    u.context.queue.enqueue(&items).await.unwrap();
}

async fn owners(u: &ContextUnderTest, brand: BrandId) -> [ProfileId; 3] {
    let mut found = Vec::new();
    for user in ["ada", "bob", "eve"] {
        let own = Identifier { kind: IdentifierKind::UserId, value: user.into() };
        found.push(u.context.store.owner(brand, &own).await.unwrap().unwrap());
    }
    found.try_into().unwrap()
}

/// All that is read of a customer, and all lists.
async fn reads(u: &ContextUnderTest, brand: BrandId, id: ProfileId) {
    let context = &u.context;
    let email = Identifier::new(IdentifierKind::Email, "ada@example.com").unwrap();
    for asked in [CustomerRef::Id(id), CustomerRef::Identifier(email)] {
        customer360::answer(context, CACHE_TTL, brand, &asked).await.unwrap();
    }
    for sort in [Sort::Newest, Sort::Oldest, Sort::LastSeen, Sort::Name] {
        for text in [None, Some("ada"), Some("ada@example.com"), Some("+49 30 123456"), Some("#1")] {
            let search = text.and_then(customer_search::search);
            let listing = Listing { search, with_trait: None, sort, after: None, limit: 2 };
            let page = customer_search::list(context, brand, &listing).await.unwrap();
            if let Some(after) = page.next {
                let search = text.and_then(customer_search::search);
                let listing = Listing { search, with_trait: None, sort, after: Some(after), limit: 2 };
                customer_search::list(context, brand, &listing).await.unwrap();
            }
        }
    }
    customer_search::timeline(context, brand, id, None, 2).await.unwrap();
    identity::history(context, brand, id).await.unwrap();
    segments::list(context, brand).await.unwrap();
    segments::preview(context, brand, "orders.count > 0").await.unwrap();
    context.automations.members(brand, "buyers", None, 9).await.unwrap();
    context.automations.changes(brand, Some("buyers"), None, None, 9).await.unwrap();
    context.automations.changes(brand, None, Some(id), None, 9).await.unwrap();
    context.automations.runs(brand, RunFilter::default(), None, 9).await.unwrap();
    context.automations.actions_of(brand, id, 9).await.unwrap();
    context.privacy.orders(brand, id, None, 9).await.unwrap();
    context.privacy.consents(brand, id, None, 9).await.unwrap();
    context.privacy.order_events(brand, id, None, 9).await.unwrap();
    context.privacy.audit_log(brand, None, 9).await.unwrap();
    context.privacy.requests(brand, 9).await.unwrap();
    context.store.stats(brand).await.unwrap();
}

/// Statistics as a brand with a million of everything leaves them.
async fn pretend_large(file: &mut SqliteConnection) {
    sqlx::query("analyze").execute(&mut *file).await.unwrap();
    // Of the few rows that are there: what follows stands for a million.
    for statistics in ["sqlite_stat1", "sqlite_stat4"] {
        let delete = AssertSqlSafe(format!("delete from {statistics}"));
        sqlx::query(delete).execute(&mut *file).await.unwrap();
    }
    let indices: Vec<(String, String, i64)> = sqlx::query_as(
        "select m.name, i.name, i.\"unique\" from sqlite_schema m, pragma_index_list(m.name) i where m.type = 'table'",
    )
    .fetch_all(&mut *file)
    .await
    .unwrap();
    for (table, index, unique) in indices {
        let columns: Vec<Option<String>> = sqlx::query_scalar("select name from pragma_index_info(?1)")
            .bind(&index)
            .fetch_all(&mut *file)
            .await
            .unwrap();
        let (mut rows, mut alike, last) = (vec![1_000_000], 1_000_000, columns.len() - 1);
        for (at, column) in columns.iter().enumerate() {
            let is_common = column.as_deref().is_some_and(|column| COMMON.contains(&column));
            alike = match (is_common, unique == 1 && at == last) {
                (_, true) => 1,
                (true, _) => alike,
                (false, _) => 10,
            };
            rows.push(alike);
        }
        let stat = rows.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        sqlx::query("insert into sqlite_stat1 (tbl, idx, stat) values (?1, ?2, ?3)")
            .bind(table)
            .bind(index)
            .bind(stat)
            .execute(&mut *file)
            .await
            .unwrap();
    }
}

/// The steps of a statement's plan; `None` where the file does not have its tables.
async fn plan(file: &mut SqliteConnection, statement: &str) -> Option<Vec<String>> {
    let rows =
        sqlx::query(AssertSqlSafe(format!("explain query plan {statement}"))).fetch_all(file).await.ok()?;
    Some(rows.iter().map(|row| row.get::<String, _>("detail")).collect())
}

/// Which of the file's tables a step of a plan reads, by its name or its alias in the statement; `None` where it reads what the statement made.
fn table_of<'t>(statement: &str, word: &str, tables: &'t BTreeSet<String>) -> Option<&'t str> {
    let words: Vec<&str> =
        statement.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect();
    let alias = |table: &&String| {
        words.windows(2).any(|pair| pair == [table.as_str(), word])
            || words.windows(3).any(|three| three == [table.as_str(), "as", word])
    };
    tables.get(word).or_else(|| tables.iter().find(alias)).map(String::as_str)
}

/// The steps of a plan that are bounded by nothing but a brand, or by nothing at all.
fn unbounded(statement: &str, steps: &[String], tables: &BTreeSet<String>) -> Vec<String> {
    // A page in the order of its index ends with the page.
    let is_paged =
        statement.contains(" limit ") && !steps.iter().any(|step| step.contains("TEMP B-TREE FOR ORDER BY"));
    if is_paged {
        return vec![];
    }
    let reads_too_much = |step: &&String| {
        let mut words = step.split_whitespace();
        let (Some(what @ ("SCAN" | "SEARCH")), Some(name)) = (words.next(), words.next()) else {
            return false;
        };
        let bounds = step.rsplit_once('(').map_or("", |(_, bounds)| bounds.trim_end_matches(')'));
        let is_narrow = bounds
            .split(" AND ")
            .filter_map(|bound| bound.split(['=', '<', '>']).next())
            .any(|column| !column.is_empty() && !COMMON.contains(&column));
        table_of(statement, name, tables).is_some_and(|table| !SMALL.contains(&table))
            && !step.contains("VIRTUAL TABLE")
            && (what == "SCAN" || !is_narrow)
    };
    steps.iter().filter(reads_too_much).cloned().collect()
}

async fn unbounded_plans(folder: &Path, statements: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    for name in ["store.db", "queue.db"] {
        for large in [false, true] {
            let url = format!("sqlite://{}", folder.join(name).display());
            let mut file = SqliteConnection::connect(&url).await.unwrap();
            if large {
                pretend_large(&mut file).await;
                // Statistics are read when a file is opened.
                file = SqliteConnection::connect(&url).await.unwrap();
            }
            let tables = sqlx::query_scalar(
                "select name from sqlite_schema where type = 'table' and name not like 'sqlite_%'",
            );
            let tables = tables.fetch_all(&mut file).await.unwrap().into_iter().collect();
            for statement in statements {
                let Some(steps) = plan(&mut file, statement).await else { continue };
                for step in unbounded(statement, &steps, &tables) {
                    found.push(format!("{name}, large {large}: {step}: {statement}"));
                }
            }
        }
    }
    found
}

/// A brand with a hundred thousand of each: PostgreSQL plans by how large its tables are. Each statement is given a number and an id made of it.
const FILL: &[&str] = &[
    "insert into profiles (id, brand_id, first_seen, last_seen, events_count, traits, name, surname, merged_into)
        select id, 1, now(), now(), 1, '{}', 'name ' || n, 'surname ' || n, case when n % 10 = 0 then md5((n + 1)::text)::uuid end from many",
    "insert into identifiers (brand_id, kind, value, profile_id, origin) select 1, 'user_id', 'u' || n, id, id from many",
    "insert into events (brand_id, message_id, profile_id, kind, name, \"timestamp\", received_at, body, shop, order_id)
        select 1, 'm' || n, id, 'track', 'E', now() - n * interval '1 minute', now(), '{}', 's.example', null from many",
    "insert into events (brand_id, message_id, profile_id, kind, \"timestamp\", received_at, body, shop, order_id)
        select 1, 'of o' || n, null, 'shopify', now() - n * interval '1 minute', now(), '{}', 's.example', 'o' || n from many",
    "insert into orders (brand_id, shop, id, profile_id, updated_at, message_id, name, ordered_at, test, currency, total, refunded, items)
        select 1, 's.example', 'o' || n, id, now(), 'm' || n, '#' || n, now() - n * interval '1 minute', false, 'EUR', 1, 0, '[]' from many",
    "insert into products (brand_id, shop, id) select 1, 's.example', 'p' || n from many",
    "insert into consents (brand_id, message_id, channel, profile_id, origin, state, at)
        select 1, 'm' || n, 'email', id, id, 'subscribed', now() from many",
    "insert into merges (id, brand_id, survivor, loser, at, message_id, state, identifiers, orders)
        select id, 1, id, id, now(), 'm' || n, '{}', '[]', '[]' from many",
    "insert into segment_members (brand_id, segment, profile_id, since_ms) select 1, 'buyers', id, n from many",
    "insert into segment_changes (id, brand_id, segment, profile_id, entered, at_ms) select id, 1, 'buyers', id, true, n from many",
    "insert into automation_runs (id, brand_id, automation_id, version, profile_id, trigger_key, status, revision, started_ms, updated_ms, state)
        select id, 1, (select id from automations limit 1), 1, id, 'k' || n, 'done', 1, n, n, '{}' from many",
    "insert into privacy_requests (id, brand_id, message_id, kind, subject, source, created_at)
        select id, 1, 'm' || n, 'erase', '{}', 's', now() - n * interval '1 minute' from many",
    "insert into audit_log (id, brand_id, at, actor, action, details) select id, 1, now() - n * interval '1 minute', 'a', 'b', '{}' from many",
    "insert into webhook_bodies (brand_id, shop, digest, topic, message_id, at)
        select 1, 's.example', decode(md5(n::text) || md5(n::text), 'hex'), 'orders/create', 'm' || n, now() from many",
];

/// A node of PostgreSQL's plan, and those beneath it.
fn nodes<'n>(node: &'n Value, path: &mut Vec<&'n Value>, found: &mut Vec<(&'n Value, bool)>) {
    let kind = |node: &Value| node["Node Type"].as_str().unwrap_or_default().to_owned();
    // A page in the order of its index ends with the page; a sort has to see everything first.
    let limit = path.iter().rposition(|above| kind(above) == "Limit");
    let is_paged = limit.is_some_and(|at| {
        path[at..].iter().all(|above| {
            !matches!(&*kind(above), "Sort" | "Incremental Sort" | "Aggregate" | "WindowAgg" | "Hash")
        })
    });
    found.push((node, is_paged));
    path.push(node);
    for beneath in node["Plans"].as_array().into_iter().flatten() {
        nodes(beneath, path, found);
    }
    path.pop();
}

/// What a node reads that is bounded by nothing but a brand, or by nothing at all.
fn reads_too_much(node: &Value) -> Option<String> {
    let table = node["Relation Name"].as_str().or(node["Index Name"].as_str())?;
    let is_filled = FILL.iter().any(|fill| fill.starts_with(&format!("insert into {table} ")));
    let bounds = node["Index Cond"].as_str().or(node["Recheck Cond"].as_str()).unwrap_or_default();
    let is_narrow = bounds
        .split(" AND ")
        .filter_map(|bound| bound.trim_start_matches('(').split_whitespace().next())
        .any(|column| !COMMON.contains(&column.rsplit_once('.').map_or(column, |(_, column)| column)));
    let what = node["Node Type"].as_str()?;
    (is_filled && !is_narrow && what != "ModifyTable").then(|| format!("{what} of {table} by {:?}", bounds))
}

/// The plan that serves every value of a statement's parameters; `None` where it cannot be prepared.
async fn generic_plan(database: &mut PgConnection, statement: &str) -> Option<Value> {
    sqlx::raw_sql(AssertSqlSafe(format!("prepare looked_at as {statement}")))
        .execute(&mut *database)
        .await
        .ok()?;
    let places = (1..100).take_while(|n| statement.contains(&format!("${n}"))).count();
    let nulls = vec!["null"; places].join(", ");
    let nulls = if places > 0 { format!("({nulls})") } else { nulls };
    let explained = format!("explain (format json, costs off) execute looked_at{nulls}");
    let row = sqlx::raw_sql(AssertSqlSafe(explained)).fetch_one(&mut *database).await.unwrap();
    let plan: Value = serde_json::from_str(&row.try_get_unchecked::<String, _>(0).unwrap()).unwrap();
    sqlx::raw_sql("deallocate looked_at").execute(&mut *database).await.unwrap();
    Some(plan[0]["Plan"].clone())
}

async fn unbounded_on_postgres(url: &str, statements: &BTreeSet<String>) -> Vec<String> {
    let mut database = PgConnection::connect(url).await.unwrap();
    for setting in ["set plan_cache_mode = force_generic_plan", "set tributary.every_brand = 'on'"] {
        sqlx::raw_sql(setting).execute(&mut database).await.unwrap();
    }
    for fill in FILL {
        let many = "with many as (select n, md5(n::text)::uuid as id from generate_series(1, 100000) n)";
        let fill = fill
            .split_once(") select")
            .or_else(|| fill.split_once(")\n        select"))
            .map(|(into, from)| format!("{into}) {many} select{from}"));
        sqlx::raw_sql(AssertSqlSafe(fill.unwrap())).execute(&mut database).await.unwrap();
    }
    let mut found = Vec::new();
    // Before the first analysis PostgreSQL guesses; autovacuum makes one within a minute of so many rows.
    sqlx::raw_sql("analyze").execute(&mut database).await.unwrap();
    for statement in statements {
        let Some(plan) = generic_plan(&mut database, statement).await else { continue };
        let mut all = Vec::new();
        nodes(&plan, &mut Vec::new(), &mut all);
        let too_much =
            all.into_iter().filter(|(_, is_paged)| !is_paged).filter_map(|(node, _)| reads_too_much(node));
        found.extend(too_much.map(|what| format!("PostgreSQL: {what}: {statement}")));
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_reads_a_whole_brand_that_is_not_meant_to() {
    let seen = Statements::default();
    let of_sqlx = Targets::new().with_target("sqlx::query", LevelFilter::TRACE);
    tracing_subscriber::registry().with(seen.clone().with_filter(of_sqlx)).init();
    let u = embedded_context().await;
    a_year(&u).await;
    let statements = seen.0.lock().unwrap().clone();
    assert!(statements.len() > 100, "{} statements were seen", statements.len());
    let folder = u.data().unwrap().to_owned();
    let mut found = unbounded_plans(&folder, &statements).await;
    seen.0.lock().unwrap().clear();
    let u = services_context().await;
    a_year(&u).await;
    let statements = seen.0.lock().unwrap().clone();
    assert!(statements.len() > 80, "{} statements were seen", statements.len());
    found.extend(unbounded_on_postgres(u.store_url(), &statements).await);
    found.retain(|line| !MEANT.iter().any(|(text, _)| line.contains(text)));
    assert!(found.is_empty(), "{}:\n{}", found.len(), found.join("\n\n"));
    // It would notice one: nothing leads from a currency to its orders but the whole brand.
    let careless = "select id from orders where brand_id = ?1 and currency = ?2".to_owned();
    let noticed = unbounded_plans(&folder, &BTreeSet::from([careless])).await;
    assert_eq!(noticed.len(), 2, "with statistics and without: {noticed:?}");
}
