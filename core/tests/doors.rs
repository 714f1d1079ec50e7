//! The doors to data: what is asked for a brand is read in a transaction for that brand, and every table that belongs to customers is
//! known to merges, splits, erasures and exports.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeSet;
use std::str::FromStr;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use tributary_core::adapters::sql::{
    Database, OWNED, SqlAutomations, SqlBrands, SqlCustomerSearch, SqlPrivacy, SqlStore,
};
use tributary_core::adapters::{postgres, sqlite};
use tributary_core::domain::automation::run::Status;
use tributary_core::domain::customer360::CustomerRef;
use tributary_core::domain::identity::{Identifier, IdentifierKind};
use tributary_core::domain::ids::{BrandId, ProfileId};
use tributary_core::domain::time::from_ms;
use tributary_core::ports::automations::{Automations, RunFilter, Runs, Segments};
use tributary_core::ports::brands::BrandSecrets;
use tributary_core::ports::customer_search::{CustomerSearch, Sort};
use tributary_core::ports::privacy::Privacy;
use tributary_core::ports::store::{Store, SuppressionKey};
use tributary_core::ports::world::World;
use uuid::Uuid;

const BRAND: BrandId = BrandId(1);

/// Tables of the stores that belong to no customer, each with whose it is.
const OF_NO_CUSTOMER: &[&str] = &[
    // the operator's
    "_sqlx_migrations",
    "system_secrets",
    // a brand's
    "api_keys",
    "audit_log",
    "automation_versions",
    "automations",
    "brands",
    "products",
    "refusals",
    "segments",
    "shops",
    // a subject's, who need not be a customer: a request forgets its subject itself, the others hold hashes
    "privacy_requests",
    "suppressed",
    "webhook_bodies",
    // on the way to a queue: services/privacy/letters.rs looks through them
    "outbox",
    "outbox_claims",
];

/// Columns that name a profile without owning the row: they go with the owner.
const BESIDE_THE_OWNER: &[&str] = &["origin", "merged_into"];

/// Tables and their columns that could name a profile, as a schema has them.
fn compare(columns: Vec<(String, String)>, may_name_a_profile: impl Fn(&str, &str) -> bool) {
    let tables: BTreeSet<&str> = columns.iter().map(|(table, _)| table.as_str()).collect();
    let listed: BTreeSet<&str> =
        OWNED.iter().map(|owned| owned.table).chain(OF_NO_CUSTOMER.iter().copied()).collect();
    assert_eq!(tables, listed, "a new table goes into adapters/sql/owned.rs, or into the list above");
    for owned in OWNED {
        let named: BTreeSet<&str> = columns
            .iter()
            .filter(|(table, column)| table == owned.table && may_name_a_profile(table, column))
            .map(|(_, column)| column.as_str())
            .filter(|column| !BESIDE_THE_OWNER.contains(column))
            .collect();
        let owners: BTreeSet<&str> = owned.owners.iter().copied().collect();
        assert_eq!(named, owners, "the owners of {}", owned.table);
    }
}

/// What identifies the row itself, or another row that is no profile.
fn is_no_profile(table: &str, column: &str) -> bool {
    matches!(
        (table, column),
        ("merges" | "segment_changes" | "automation_runs", "id") | (_, "automation_id" | "run_id")
    )
}

#[tokio::test]
async fn every_table_of_postgresql_is_known_to_belong_to_customers_or_not() {
    let pool = postgres_pool().await;
    let columns: Vec<(String, String, String)> = sqlx::query_as(
        "select table_name::text, column_name::text, data_type::text from information_schema.columns
        where table_schema = 'public'",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    let ids: BTreeSet<(String, String)> = columns
        .iter()
        .filter(|(.., kind)| kind == "uuid")
        .map(|(table, column, _)| (table.clone(), column.clone()))
        .collect();
    let named = |table: &str, column: &str| {
        ids.contains(&(table.to_owned(), column.to_owned())) && !is_no_profile(table, column)
    };
    compare(columns.iter().map(|(table, column, _)| (table.clone(), column.clone())).collect(), named);
}

#[tokio::test]
async fn every_table_of_sqlite_is_known_to_belong_to_customers_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.db");
    let db = sqlite::db::Db::open_store(&file).await.unwrap();
    let reading = sqlx::sqlite::SqlitePool::connect(file.to_str().unwrap()).await.unwrap();
    let columns: Vec<(String, String)> = sqlx::query_as(
        "select t.name, c.name from sqlite_schema t join pragma_table_xinfo(t.name) c
        where t.type = 'table' and t.name not like 'sqlite_%'",
    )
    .fetch_all(&reading)
    .await
    .unwrap();
    // SQLite has no type for ids: their names must do.
    let named = |table: &str, column: &str| {
        let id = matches!(column, "profile_id" | "origin" | "merged_into" | "survivor" | "loser" | "a" | "b")
            || (table, column) == ("profiles", "id");
        id && !is_no_profile(table, column)
    };
    compare(columns, named);
    db.close().await;
}

/// What an export has besides: its time, and the traits of the profile with their sources.
const EXPORTED_BESIDES: [&str; 2] = ["exported_at", "traits"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_has_the_rows_of_each_table_where_the_list_says() {
    let u = support::services_context().await;
    let pool = postgres::db::open(u.store_url(), 2).await.unwrap();
    let seeded = seed(&pool, 1).await;
    let export = support::exported(&u.context, BRAND, seeded.profile).await.unwrap();
    for owned in OWNED {
        let Some(member) = owned.exported else { continue };
        let found = &export[member];
        let is_there = found.is_object() || found.as_array().is_some_and(|rows| !rows.is_empty());
        assert!(is_there, "the rows of {} should be in {member}: {export}", owned.table);
    }
    let listed: BTreeSet<&str> =
        OWNED.iter().filter_map(|owned| owned.exported).chain(EXPORTED_BESIDES).collect();
    let members: BTreeSet<&str> = export.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, listed, "a member of the export that no table has, or the other way round");
}

async fn postgres_pool() -> PgPool {
    let url = support::services().await.fresh_database().await.unwrap();
    postgres::db::open(&url, 2).await.unwrap()
}

/// A database with one row in each table for each of two brands, and an ordinary role's connections to it that do not say that they are
/// for every brand: they see what a transaction says that it is for.
async fn silent_database() -> (Database, Vec<Seeded>) {
    let url = support::services().await.fresh_database().await.unwrap();
    let pool = postgres::db::open(&url, 2).await.unwrap();
    let mut seeded = Vec::new();
    for brand in [1, 2] {
        seeded.push(seed(&pool, brand).await);
    }
    let role = format!("silent_{}", Uuid::now_v7().simple());
    for statement in [
        format!("create role {role} login password 'ordinary'"),
        format!("grant select, insert, update, delete on all tables in schema public to {role}"),
    ] {
        sqlx::query(AssertSqlSafe(statement)).execute(&pool).await.unwrap();
    }
    let options = PgConnectOptions::from_str(&url).unwrap().username(&role).password("ordinary");
    let silent = PgPoolOptions::new().max_connections(2).connect_with(options).await.unwrap();
    (Database::postgres(silent, World::real()), seeded)
}

struct Seeded {
    profile: ProfileId,
    merge: Uuid,
    automation: Uuid,
    run: Uuid,
    request: Uuid,
}

async fn seed(pool: &PgPool, brand: i64) -> Seeded {
    let [profile, merge, automation, run, request, other] = std::array::from_fn(|_| Uuid::now_v7());
    for statement in [
        "insert into brands (name, settings, email_domains, signing_secret, link_secret)
            values ('b' || $1, '{\"timezone\":\"Asia/Tokyo\"}', '[\"a.example\"]', 'signing' || $1, 'link' || $1)",
        "insert into api_keys (hash, brand_id, kind) values (decode('ab0' || $1, 'hex'), $1::bigint, 'secret')",
        "insert into shops (domain, brand_id, secret) values ('s' || $1, $1::bigint, 's')",
        "insert into refusals (brand_id, source, code, count, last_ms) values ($1::bigint, 'key', 'code', 1, 1)",
        "insert into profiles (id, brand_id, events_count, traits) values ($2, $1::bigint, 1, '{}')",
        "insert into identifiers (brand_id, kind, value, profile_id, origin) values ($1::bigint, 'user_id', 'u', $2, $2)",
        "insert into events (brand_id, message_id, profile_id, kind, \"timestamp\", received_at, body, shop, order_id)
            values ($1::bigint, 'm', $2, 'track', now(), now(), '{}', 's', null),
                ($1::bigint, 'of the order', null, 'shopify', now(), now(), '{}', 's', 'o')",
        "insert into orders (brand_id, shop, id, profile_id, updated_at, message_id, ordered_at, test, currency, total, refunded, items)
            values ($1::bigint, 's', 'o', $2, now(), 'm', now(), false, 'EUR', 1, 0, '[]')",
        "insert into consents (brand_id, message_id, channel, profile_id, origin, state, at)
            values ($1::bigint, 'm', 'email', $2, $2, 'subscribed', now())",
        "insert into merges (id, brand_id, survivor, loser, at, message_id, state, identifiers, orders)
            values ($3, $1::bigint, $2, $7, now(), 'm', '{\"first_seen\":null,\"last_seen\":null,\"events_count\":1,\"merges\":0,\"traits\":{}}', '[]', '[]')",
        "insert into webhook_bodies (brand_id, shop, digest, topic, message_id, at)
            values ($1::bigint, 's', decode(repeat('07', 32), 'hex'), 'topic', 'm', now())",
        "insert into segments (brand_id, name, expression, created_ms, updated_ms) values ($1::bigint, 'vip', 'true', 1, 1)",
        "insert into segment_members (brand_id, segment, profile_id, since_ms) values ($1::bigint, 'vip', $2, 1)",
        "insert into segment_changes (id, brand_id, segment, profile_id, entered, at_ms) values ($7, $1::bigint, 'vip', $2, true, 1)",
        "insert into automations (id, brand_id, name, status, version, definition, created_ms, updated_ms)
            values ($4, $1::bigint, 'a', 'active', 1, '{}', 1, 1)",
        "insert into automation_versions (automation_id, version, brand_id, definition, created_ms)
            values ($4, 1, $1::bigint, '{}', 1)",
        "insert into automation_runs (id, brand_id, automation_id, version, profile_id, trigger_key, status, revision, started_ms,
            updated_ms, state) values ($5, $1::bigint, $4, 1, $2, 'k', 'done', 1, 1, 1, '{\"message_id\":null,\"at\":null,\"since_ms\":1,\"triggered_ms\":1,\"log\":[]}')",
        "insert into automation_actions (run_id, node, brand_id, automation_id, profile_id, kind, marketing, status, attempts,
            first_ms, last_ms) values ($5, 0, $1::bigint, $4, $2, 'email', true, 'done', 1, 1, 1)",
        "insert into privacy_requests (id, brand_id, message_id, kind, subject, source, created_at)
            values ($6, $1::bigint, 'm', 'export', '{}', 's', now())",
        "insert into audit_log (id, brand_id, at, actor, action, details) values ($7, $1::bigint, now(), 'a', 'b', '{}')",
    ] {
        // Each statement names all of them, so that all have a type.
        let all = "select $1::text, $2::uuid, $3::uuid, $4::uuid, $5::uuid, $6::uuid, $7::uuid";
        let statement = format!("with given as ({all}) {statement}");
        sqlx::query(AssertSqlSafe(statement))
            .bind(brand.to_string())
            .bind(profile)
            .bind(merge)
            .bind(automation)
            .bind(run)
            .bind(request)
            .bind(other)
            .execute(pool)
            .await
            .unwrap();
    }
    Seeded { profile: ProfileId(profile), merge, automation, run, request }
}

#[tokio::test]
async fn what_is_asked_for_a_brand_is_read_in_a_transaction_for_that_brand() {
    let (db, seeded) = silent_database().await;
    let [own, other] = [&seeded[0], &seeded[1]];
    let key = SuppressionKey::new([7; 32]);
    let user = Identifier { kind: IdentifierKind::UserId, value: "u".into() };

    let store = SqlStore::new(db.clone(), key.clone());
    assert_eq!(store.owner(BRAND, &user).await.unwrap(), Some(own.profile));
    let asked = CustomerRef::Identifier(user);
    assert_eq!(store.revision(BRAND, &asked).await.unwrap().unwrap().id, own.profile);
    let record = store.customer(BRAND, own.profile).await.unwrap().unwrap();
    assert_eq!((record.recent_events.len(), record.orders.len(), record.segments.len()), (1, 1, 1));
    assert_eq!(store.body_topics(BRAND, "s", &[7; 32]).await.unwrap(), ["topic"]);
    let stats = store.stats(BRAND).await.unwrap();
    assert_eq!((stats.profiles, stats.events, stats.orders), (1, 2, 1));
    assert!(store.customer(BRAND, other.profile).await.unwrap().is_none());

    let directory = SqlCustomerSearch::new(db.clone());
    assert_eq!(directory.list(BRAND, None, Sort::Newest, None, 9).await.unwrap().len(), 1);
    let both = [own.profile, other.profile];
    assert_eq!(directory.identifiers(BRAND, &both).await.unwrap().len(), 1);
    assert_eq!(directory.survivor(BRAND, own.profile).await.unwrap(), Some(own.profile));
    assert_eq!(directory.timeline(BRAND, own.profile, None, 9).await.unwrap().len(), 1);
    assert_eq!(directory.merges(BRAND, own.profile).await.unwrap().len(), 1);
    assert!(directory.merge(BRAND, own.merge).await.unwrap().is_some());
    assert!(directory.merge(BRAND, other.merge).await.unwrap().is_none());

    let privacy = SqlPrivacy::new(db.clone(), key);
    assert_eq!(privacy.requests(BRAND, 9).await.unwrap().len(), 1);
    assert!(privacy.request(BRAND, own.request).await.unwrap().is_some());
    assert!(privacy.request(BRAND, other.request).await.unwrap().is_none());
    assert_eq!(privacy.named_exports(BRAND).await.unwrap().len(), 1);
    assert_eq!(privacy.order_events(BRAND, own.profile, None, 9).await.unwrap().len(), 1);
    assert_eq!(privacy.customers_of_shop(BRAND, "s", 9).await.unwrap(), [own.profile]);
    assert_eq!(privacy.orders(BRAND, own.profile, None, 9).await.unwrap().len(), 1);
    assert_eq!(privacy.consents(BRAND, own.profile, None, 9).await.unwrap().len(), 1);
    assert!(privacy.inactive_profiles(BRAND, from_ms(4_000_000_000_000), 9).await.unwrap().is_empty());
    assert_eq!(privacy.audit_log(BRAND, None, 9).await.unwrap().len(), 1);

    automations_of_a_brand(&SqlAutomations::new(db.clone()), own, other).await;

    let brand_ports = SqlBrands::ports(db);
    assert_eq!(brand_ports.brands.settings(BRAND).await.unwrap().timezone.as_deref(), Some("Asia/Tokyo"));
    assert_eq!(brand_ports.brands.email_domains(BRAND).await.unwrap().unwrap(), ["a.example"]);
    assert_eq!(brand_ports.keys.keys(BRAND).await.unwrap().len(), 1);
    assert_eq!(brand_ports.refusals.refusals(BRAND).await.unwrap().len(), 1);
    assert_eq!(brand_ports.shops.shops(BRAND).await.unwrap().len(), 1);
    assert_eq!(brand_ports.secrets.secrets(BRAND, &BrandSecrets::default()).await.unwrap().link, "link1");
    assert!(brand_ports.brands.brands().await.unwrap().is_empty(), "who asks for every brand has to say so");
}

async fn automations_of_a_brand(automations: &SqlAutomations, own: &Seeded, other: &Seeded) {
    assert_eq!(automations.segments(BRAND).await.unwrap().len(), 1);
    assert_eq!(automations.members(BRAND, "vip", None, 9).await.unwrap().len(), 1);
    assert_eq!(automations.member_counts(BRAND).await.unwrap()["vip"], 1);
    assert_eq!(automations.changes(BRAND, None, None, None, 9).await.unwrap().len(), 1);
    assert_eq!(automations.profiles(BRAND, None, 9).await.unwrap(), [own.profile]);
    assert_eq!(automations.automations(BRAND).await.unwrap().len(), 1);
    assert!(automations.automation(BRAND, own.automation).await.unwrap().is_some());
    assert!(automations.automation(BRAND, other.automation).await.unwrap().is_none());
    assert!(automations.version(BRAND, own.automation, 1).await.unwrap().is_some());
    assert!(automations.version(BRAND, other.automation, 1).await.unwrap().is_none());
    assert_eq!(automations.versions(BRAND, 5).await.unwrap().len(), 1);
    assert_eq!(automations.runs(BRAND, RunFilter::default(), None, 9).await.unwrap().len(), 1);
    assert_eq!(automations.run(BRAND, own.run).await.unwrap().unwrap().1.len(), 1);
    assert!(automations.run(BRAND, other.run).await.unwrap().is_none());
    assert_eq!(automations.run_counts(BRAND, own.automation).await.unwrap()[&Status::Done], 1);
    assert_eq!(automations.actions_of(BRAND, own.profile, 9).await.unwrap().len(), 1);
    let both = [own.profile, other.profile];
    for mut tx in
        [automations.begin_reading(BRAND).await.unwrap(), automations.begin_for(BRAND).await.unwrap()]
    {
        assert_eq!(tx.facts(&both, true).await.unwrap().len(), 1);
        assert_eq!(tx.actions(&[own.run, other.run]).await.unwrap().len(), 1);
    }
}
