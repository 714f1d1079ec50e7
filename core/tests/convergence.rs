//! Order does not matter: any stream of events, in any order, repeated, cut into any batches, processed by any number of
//! workers that are killed in between, ends in the customers that the oracle says; on every store.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;
use simulator::oracle::{Happened, OrderSaid, Person, Said, people};
use support::{StoreUnderTest, cases, postgres_store, sqlite_store, unlimited};
use tokio::sync::Mutex;
use tributary_core::domain::customer360::Customer360;
use tributary_core::domain::event::{Event, EventKind, Source, TraitUpdate};
use tributary_core::domain::identity::{Counts, Identifier, IdentifierKind};
use tributary_core::domain::ids::{BrandId, ProfileId};
use tributary_core::domain::order::{Order, OrderUpdate, Refund};
use tributary_core::domain::time::from_ms;
use tributary_core::domain::version::Version;
use tributary_core::ports::store::StoreError;
use tributary_core::ports::world::World;
use tributary_core::services::events::process;

on_every_adapter!({ sqlite: crate::sqlite_store, postgres: crate::postgres_store } [
    any_stream_ends_as_the_oracle_says,
    what_trusted_sources_say_stands_whatever_public_keys_say_before_between_and_after,
]);

const T0: i64 = 1_768_000_000_000;

/// How a stream is delivered.
#[derive(Clone, Debug)]
struct Delivery {
    /// The events, in the order of delivery, some more than once.
    order: Vec<usize>,
    /// How many at once.
    batch: usize,
    workers: usize,
    /// After how many microseconds a worker dies in its first try of a batch; one number a batch, cycled.
    kills: Vec<Option<u64>>,
}

fn said() -> impl Strategy<Value = Said> {
    // Few values, so that streams link a lot.
    let identifiers = prop::collection::btree_set(
        prop_oneof![
            (0_u8..5).prop_map(|n| ("user_id", format!("u{n}"))),
            (0_u8..4).prop_map(|n| ("email", format!("e{n}@example.com"))),
            (0_u8..3).prop_map(|n| ("phone", format!("+4917012345{n}0"))),
            (0_u8..9).prop_map(|n| ("anonymous_id", format!("a{n}"))),
            (0_u8..5).prop_map(|n| ("cart_token", format!("c{n}"))),
        ],
        0..3,
    );
    let traits = prop::collection::btree_map("[a-c]", "[x-z]{1,2}", 0..3);
    let what = prop_oneof![
        3 => (1_i64..99, prop::bool::weighted(0.2)).prop_map(|(total, cancelled)| Happened::State { total, cancelled }),
        2 => (0_u8..3, 1_i64..9).prop_map(|(id, amount)| Happened::Refund { id: format!("r{id}"), amount }),
        1 => Just(Happened::Deleted),
    ];
    let order = prop::option::weighted(
        0.4,
        (0_u8..4, 0_i64..6, what).prop_map(|(id, updated_ms, what)| OrderSaid {
            id: format!("o{id}"),
            updated_ms: T0 + updated_ms,
            what,
        }),
    );
    (0_i64..6, identifiers, traits, order).prop_map(|(at, identifiers, traits, order)| Said {
        message: String::new(),
        at_ms: T0 + at,
        identifiers: identifiers.into_iter().collect(),
        traits: traits.into_iter().collect(),
        order,
    })
}

fn stream() -> impl Strategy<Value = (Vec<Said>, Delivery)> {
    prop::collection::vec(said(), 1..40).prop_flat_map(|mut stream| {
        for (at, said) in stream.iter_mut().enumerate() {
            said.message = format!("m{at}");
        }
        let len = stream.len();
        let again = prop::collection::vec(0..len, 0..len);
        let order = again
            .prop_flat_map(move |again| Just((0..len).chain(again).collect::<Vec<usize>>()).prop_shuffle());
        let kills = prop::collection::vec(prop::option::weighted(0.4, 0_u64..4000), 1..8);
        (Just(stream), (order, 1_usize..12, 1_usize..5, kills)).prop_map(
            |(stream, (order, batch, workers, kills))| (stream, Delivery { order, batch, workers, kills }),
        )
    })
}

fn event(brand: BrandId, said: &Said) -> Event {
    let identifier = |(kind, value): &(&str, String)| Identifier::new(IdentifierKind::parse(kind)?, value);
    let mut identifiers: Vec<Identifier> = said.identifiers.iter().map(|i| identifier(i).unwrap()).collect();
    identifiers.sort();
    Event {
        identifiers,
        traits: said
            .traits
            .iter()
            .map(|(name, value)| TraitUpdate {
                name: name.clone(),
                value: json!(value),
                at: from_ms(said.at_ms),
            })
            .collect(),
        order: said.order.as_ref().map(|order| update(order, &said.message)),
        ..Event::new(brand, said.message.clone(), EventKind::Identify, from_ms(said.at_ms))
    }
}

fn update(said: &OrderSaid, message: &str) -> OrderUpdate {
    let mut update = OrderUpdate {
        shop: "s.example.com".into(),
        id: said.id.clone(),
        updated_at: from_ms(said.updated_ms),
        ..OrderUpdate::default()
    };
    match &said.what {
        Happened::State { total, cancelled } => {
            update.state = Some(Box::new(Order {
                name: None,
                ordered_at: from_ms(T0),
                cancelled_at: cancelled.then(|| from_ms(T0)),
                test: false,
                currency: "USD".into(),
                total: (*total).into(),
                current_total: None,
                presentment: None,
                financial_status: None,
                fulfillment_status: None,
                items: vec![],
            }));
        }
        Happened::Refund { id, amount } => {
            let version = Version { at_ms: said.updated_ms, sequence: 0, message_id: message.to_owned() };
            let refund = Refund { at_ms: said.updated_ms, amount: (*amount).into(), currency: None, version };
            update.refunds.insert(id.clone(), refund);
        }
        Happened::Deleted => update.deleted_at = Some(from_ms(said.updated_ms)),
    }
    update
}

/// Works a stream off, as workers do that are killed now and then.
async fn process_all(u: &StoreUnderTest, brand: BrandId, stream: &[Event], delivery: &Delivery) {
    let batches: Vec<Vec<Event>> = delivery
        .order
        .chunks(delivery.batch)
        .map(|batch| batch.iter().map(|at| stream[*at].clone()).collect())
        .collect();
    let waiting = Arc::new(Mutex::new(batches.into_iter().enumerate()));
    let world = World::real();
    let worker = async || {
        loop {
            let Some((at, batch)) = waiting.lock().await.next() else { return };
            let rules = unlimited(brand);
            let run = || process(&*u.store, &*u.locks, &world, &rules, &batch);
            if let Some(after) = delivery.kills[at % delivery.kills.len()] {
                // Dropped wherever it is: its connection closes, its locks stay behind until their time is over.
                let _ = tokio::time::timeout(Duration::from_micros(after), run()).await;
            }
            // What was lost is delivered again, also if it had been committed.
            loop {
                match run().await {
                    Err(StoreError::Conflict(_) | StoreError::Fenced(_)) => {}
                    done => {
                        done.unwrap();
                        break;
                    }
                }
            }
        }
    };
    futures::future::join_all((0..delivery.workers).map(|_| worker())).await;
}

/// The customers as the store has them.
async fn found(u: &StoreUnderTest, brand: BrandId, stream: &[Said]) -> BTreeSet<Person> {
    let mut owners: BTreeMap<ProfileId, BTreeSet<(String, String)>> = BTreeMap::new();
    for (kind, value) in stream.iter().flat_map(|said| &said.identifiers) {
        let identifier = Identifier::new(IdentifierKind::parse(kind).unwrap(), value).unwrap();
        let owner = u.store.owner(brand, &identifier).await.unwrap().expect("everybody is somebody");
        owners.entry(owner).or_default().insert(((*kind).to_owned(), value.clone()));
    }
    let mut found = BTreeSet::new();
    for (id, identifiers) in owners {
        let record = u.store.customer(brand, id).await.unwrap().unwrap();
        let counted: Counts = record.identifiers.iter().collect();
        assert_eq!(record.profile.standing.all.counts, counted, "what is counted is what is there");
        let customer = Customer360::of(record, from_ms(T0));
        let money = |amounts: &BTreeMap<String, String>| {
            amounts.get("USD").map_or(0, |text| text.trim_end_matches(".00").parse().unwrap())
        };
        found.insert(Person {
            identifiers,
            events: usize::try_from(customer.events_count).unwrap(),
            traits: customer
                .traits
                .into_iter()
                .map(|(name, value)| (name, value.as_str().unwrap().to_owned()))
                .collect(),
            orders: usize::try_from(customer.orders_count).unwrap(),
            revenue: money(&customer.revenue),
            refunded: money(&customer.refunded),
        });
    }
    found
}

async fn any_stream_ends_as_the_oracle_says(u: &StoreUnderTest) {
    let runtime = tokio::runtime::Handle::current();
    let brands = std::cell::Cell::new(0_i64);
    tokio::task::block_in_place(|| {
        let config = Config { cases: cases(40), failure_persistence: None, ..Config::default() };
        TestRunner::new(config)
            .run(&stream(), |(stream, delivery)| {
                // A brand of its own each time: one database serves all.
                brands.set(brands.get() + 1);
                let brand = BrandId(brands.get());
                let (wanted, found) = runtime.block_on(async {
                    let events: Vec<Event> = stream.iter().map(|said| event(brand, said)).collect();
                    process_all(u, brand, &events, &delivery).await;
                    (people(&stream), found(u, brand, &stream).await)
                });
                prop_assert_eq!(found, wanted);
                let stats = runtime.block_on(u.store.stats(brand)).unwrap();
                prop_assert_eq!(stats.events, i64::try_from(stream.len()).unwrap(), "each event once");
                Ok(())
            })
            .unwrap();
    });
}

/// Streams in which some is said by trusted sources, of people, and the rest by public keys, of the same.
async fn what_trusted_sources_say_stands_whatever_public_keys_say_before_between_and_after(
    u: &StoreUnderTest,
) {
    let runtime = tokio::runtime::Handle::current();
    let brands = std::cell::Cell::new(1_000_000_i64);
    let personal = |said: &Said| {
        let kind = |kind: &str| IdentifierKind::parse(kind).unwrap();
        said.identifiers.iter().any(|(name, _)| kind(name).is_personal())
    };
    let streams = stream().prop_flat_map(|(stream, delivery)| {
        let sources = prop::collection::vec(prop::bool::ANY, stream.len());
        (Just(stream), Just(delivery), sources)
    });
    tokio::task::block_in_place(|| {
        let config = Config { cases: cases(60), failure_persistence: None, ..Config::default() };
        TestRunner::new(config)
            .run(&streams, |(mut stream, delivery, trusted)| {
                brands.set(brands.get() + 1);
                let brand = BrandId(brands.get());
                let firm: Vec<bool> =
                    stream.iter().zip(&trusted).map(|(said, trusted)| *trusted && personal(said)).collect();
                for (said, firm) in stream.iter_mut().zip(&firm) {
                    // Public keys tell of no orders, and lie about the time.
                    if !firm {
                        said.order = None;
                        said.at_ms += 1000;
                    }
                }
                let events: Vec<Event> = stream
                    .iter()
                    .zip(&firm)
                    .map(|(said, firm)| Event {
                        source: if *firm { Source::Shopify } else { Source::Public },
                        ..event(brand, said)
                    })
                    .collect();
                let told: Vec<Said> = stream
                    .iter()
                    .zip(&firm)
                    .filter(|(_, firm)| **firm)
                    .map(|(said, _)| said.clone())
                    .collect();
                let (wanted, owners) = runtime.block_on(async {
                    process_all(u, brand, &events, &delivery).await;
                    // Everybody is somebody, and what is counted is what is there.
                    found(u, brand, &stream).await;
                    (people(&told), owners(u, brand, &told).await)
                });
                let mut seen = BTreeSet::new();
                for person in &wanted {
                    let own: BTreeSet<ProfileId> = person.identifiers.iter().map(|i| owners[i]).collect();
                    prop_assert_eq!(own.len(), 1, "one person is one customer: {:?}", person);
                    let id = *own.first().unwrap();
                    prop_assert!(seen.insert(id), "two people are two customers: {:?}", person);
                    let record = runtime.block_on(u.store.customer(brand, id)).unwrap().unwrap();
                    let held: BTreeSet<(String, String)> = record
                        .trusted
                        .iter()
                        .map(|i| (i.kind.as_str().to_owned(), i.value.clone()))
                        .collect();
                    prop_assert_eq!(
                        &held,
                        &person.identifiers,
                        "what is trusted is what trusted sources said"
                    );
                    prop_assert!(record.profile.standing.known);
                    let counted: Counts = record.trusted.iter().collect();
                    prop_assert_eq!(record.profile.standing.trusted.counts, counted);
                    for (name, value) in &person.traits {
                        prop_assert_eq!(record.profile.traits[name].value.as_str(), Some(value.as_str()));
                    }
                    let customer = Customer360::of(record, from_ms(T0));
                    prop_assert_eq!(usize::try_from(customer.orders_count).unwrap(), person.orders);
                }
                Ok(())
            })
            .unwrap();
    });
}

async fn owners(u: &StoreUnderTest, brand: BrandId, told: &[Said]) -> BTreeMap<(String, String), ProfileId> {
    let mut owners = BTreeMap::new();
    for (kind, value) in told.iter().flat_map(|said| &said.identifiers) {
        let identifier = Identifier::new(IdentifierKind::parse(kind).unwrap(), value).unwrap();
        let owner = u.store.owner(brand, &identifier).await.unwrap().expect("everybody is somebody");
        owners.insert(((*kind).to_owned(), value.clone()), owner);
    }
    owners
}

/// The oracle is worth something: it tells streams apart that differ in one word.
#[test]
fn a_wrong_end_is_noticed() {
    let said = |message: &str, users: &[&str], value: &str| Said {
        message: message.into(),
        at_ms: T0,
        identifiers: users.iter().map(|user| ("user_id", (*user).to_owned())).collect(),
        traits: vec![("plan".into(), value.into())],
        order: None,
    };
    let apart = people(&[said("1", &["a"], "gold"), said("2", &["b"], "free")]);
    let joined = people(&[said("1", &["a"], "gold"), said("2", &["a", "b"], "free")]);
    let other = people(&[said("1", &["a"], "free"), said("2", &["a", "b"], "gold")]);
    assert!(apart != joined && joined != other);
}
