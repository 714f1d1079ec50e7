//! Who the customer is, in the cases that real shops produce: limits, shared devices, splits, erasures; on every store.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::json;
use support::{ContextUnderTest, embedded_context, exported, services_context};
use tributary_core::domain::customer360::Customer360;
use tributary_core::domain::event::{Channel, Consent, Event, EventKind, Source, TraitUpdate};
use tributary_core::domain::identity::{Counts, Identifier, IdentifierKind};
use tributary_core::domain::ids::{BrandId, ProfileId};
use tributary_core::domain::order::{Order, OrderUpdate, Refund};
use tributary_core::domain::settings::{BrandSettings, Limits};
use tributary_core::domain::time::from_ms;
use tributary_core::domain::version::Version;
use tributary_core::ports::privacy::Erasure;
use tributary_core::ports::store::OrderKey;
use tributary_core::ports::store::StoreError;
use tributary_core::services::brand_cache::BrandRules;
use tributary_core::services::events::process;
use tributary_core::services::identity::{IdentityError, history, merge_two, preview, split};
use tributary_core::services::privacy::{erase, unsuppress};

on_every_adapter!({ embedded: crate::embedded_context, services: crate::services_context } [
    two_anonymous_sessions_and_then_one_login_are_one_customer,
    a_second_user_on_a_shared_device_stays_apart_where_the_brand_says_one_user,
    a_shared_device_swallows_no_shop,
    an_email_change_keeps_the_customer_and_both_addresses,
    a_phone_used_again_by_another_joins_nobody_beyond_the_limit,
    fifty_profiles_merge_at_once_from_eight_workers,
    a_merge_while_events_for_both_sides_stream_in_loses_nothing,
    chains_and_cycles_of_links_end_in_one_customer,
    segments_own_example_of_demotion,
    a_limit_on_merges_stops_and_flags,
    what_public_keys_add_fills_no_limit_of_trusted_sources,
    a_split_gives_back_what_the_merge_moved,
    a_split_holds_against_events_that_name_both,
    a_split_in_the_middle_of_a_chain_takes_out_only_its_own,
    a_merge_is_previewed_and_made_by_hand,
    who_was_erased_does_not_come_back,
    an_erasure_and_a_first_event_at_once_leave_nobody,
    an_erased_customers_order_stands_without_them,
    a_refund_beside_a_merge_leaves_the_order_where_it_went,
    who_was_split_out_and_erased_is_not_in_anothers_history,
]);

const BRAND: BrandId = BrandId(1);
const T0: i64 = 1_768_000_000_000;

fn id(kind: IdentifierKind, value: &str) -> Identifier {
    Identifier::new(kind, value).unwrap_or_else(|| panic!("{value:?} is no {kind:?}"))
}

/// `u:` a user, `a:` a browser, `e:` an e-mail address, `p:` a phone, `c:` a cart.
fn ids(names: &str) -> Vec<Identifier> {
    let mut ids: Vec<Identifier> = names
        .split_whitespace()
        .map(|name| {
            let (kind, value) = name.split_once(':').unwrap();
            match kind {
                "u" => id(IdentifierKind::UserId, value),
                "a" => id(IdentifierKind::AnonymousId, value),
                "e" => id(IdentifierKind::Email, value),
                "p" => id(IdentifierKind::Phone, value),
                _ => id(IdentifierKind::CartToken, value),
            }
        })
        .collect();
    ids.sort();
    ids
}

fn event(message: &str, names: &str) -> Event {
    let identifiers = ids(names);
    Event { identifiers, ..Event::new(BRAND, message, EventKind::Track, from_ms(T0)) }
}

/// An identify call, whose body says the traits, as it came.
fn identify(message: &str, names: &str, at: i64, traits: &[(&str, &str)]) -> Event {
    let body: BTreeMap<&str, &str> = traits.iter().copied().collect();
    Event {
        identifiers: ids(names),
        traits: traits
            .iter()
            .map(|(name, value)| TraitUpdate {
                name: (*name).into(),
                value: json!(value),
                at: from_ms(T0 + at),
            })
            .collect(),
        body: json!({"type": "identify", "traits": body}).to_string(),
        ..Event::new(BRAND, message, EventKind::Identify, from_ms(T0 + at))
    }
}

fn order(message: &str, names: &str, id: &str, total: i64) -> Event {
    let state = Order {
        name: Some(format!("#{id}")),
        ordered_at: from_ms(T0),
        cancelled_at: None,
        test: false,
        currency: "USD".into(),
        total: total.into(),
        current_total: None,
        presentment: None,
        financial_status: None,
        fulfillment_status: None,
        items: vec![],
    };
    let update = OrderUpdate {
        shop: "s.example.com".into(),
        id: id.into(),
        updated_at: from_ms(T0),
        state: Some(Box::new(state)),
        ..OrderUpdate::default()
    };
    Event { order: Some(update), shop: Some("s.example.com".into()), ..event(message, names) }
}

fn rules_of(limits: Limits) -> BrandRules {
    let settings = Arc::new(BrandSettings { limits, ..BrandSettings::default() });
    BrandRules { settings: HashMap::from([(BRAND, settings)]), ..BrandRules::default() }
}

fn at_most(kind: IdentifierKind, most: u32) -> BrandRules {
    rules_of(Limits { kinds: BTreeMap::from([(kind, most)]), ..Limits::default() })
}

async fn run_by(u: &ContextUnderTest, rules: &BrandRules, events: &[Event]) {
    let c = &u.context;
    process(&*c.store, &*c.locks, &c.world, rules, events).await.unwrap();
}

async fn run(u: &ContextUnderTest, events: &[Event]) {
    run_by(u, &BrandRules::default(), events).await;
}

/// As the queue would: what lost too many races is delivered again.
async fn retrying(u: &ContextUnderTest, rules: &BrandRules, events: &[Event]) {
    let c = &u.context;
    for _ in 0..100 {
        match process(&*c.store, &*c.locks, &c.world, rules, events).await {
            Err(StoreError::Conflict(_) | StoreError::Fenced(_)) => {}
            outcome => {
                outcome.unwrap();
                return;
            }
        }
    }
    panic!("a hundred conflicts in a row");
}

async fn owner(u: &ContextUnderTest, name: &str) -> Option<ProfileId> {
    u.context.store.owner(BRAND, &ids(name)[0]).await.unwrap()
}

async fn customer(u: &ContextUnderTest, name: &str) -> Customer360 {
    let id = owner(u, name).await.unwrap_or_else(|| panic!("nobody is {name}"));
    by_id(u, id).await
}

async fn by_id(u: &ContextUnderTest, id: ProfileId) -> Customer360 {
    let record = u.context.store.customer(BRAND, id).await.unwrap().unwrap();
    // What is kept beside the profile is what there is.
    let counted: Counts = record.identifiers.iter().collect();
    assert_eq!(record.profile.standing.all.counts, counted, "the counts of {id}");
    let trusted: Counts = record.trusted.iter().collect();
    assert_eq!(record.profile.standing.trusted.counts, trusted, "the trusted counts of {id}");
    Customer360::of(record, from_ms(T0))
}

/// How many profiles it has taken in.
async fn merges(u: &ContextUnderTest, id: ProfileId) -> u32 {
    u.context.store.customer(BRAND, id).await.unwrap().unwrap().profile.standing.all.merges
}

async fn two_anonymous_sessions_and_then_one_login_are_one_customer(u: &ContextUnderTest) {
    run(u, &[event("1", "a:one")]).await;
    // Two ids of one millisecond have no order between them.
    tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    run(u, &[event("2", "a:two")]).await;
    assert_ne!(owner(u, "a:one").await, owner(u, "a:two").await);
    run(u, &[event("3", "a:one u:ada")]).await;
    run(u, &[event("4", "a:two u:ada")]).await;
    let ada = customer(u, "u:ada").await;
    assert_eq!((ada.events_count, ada.identifiers.len(), merges(u, ada.id).await), (4, 3, 1));
    let history = history(&u.context, BRAND, ada.id).await.unwrap().unwrap();
    assert_eq!((history.len(), history[0].message_id.as_str(), history[0].events), (1, "4", 1));
    assert_eq!(history[0].identifiers, ids("a:two"));
}

async fn a_second_user_on_a_shared_device_stays_apart_where_the_brand_says_one_user(u: &ContextUnderTest) {
    let one = at_most(IdentifierKind::UserId, 1);
    run_by(u, &one, &[event("1", "a:tablet u:ada")]).await;
    run_by(u, &one, &[event("2", "a:tablet u:bob"), event("3", "u:bob e:bob@example.com")]).await;
    let (ada, bob) = (customer(u, "u:ada").await, customer(u, "u:bob").await);
    assert_ne!(ada.id, bob.id);
    assert_eq!(
        (ada.events_count, bob.events_count),
        (1, 2),
        "the event stays with its most trusted identifier"
    );
    assert_eq!(bob.identifiers, ids("u:bob e:bob@example.com"));
    assert_eq!(owner(u, "a:tablet").await, Some(ada.id), "the device stays where it was");
    assert!(ada.identity.limited.as_deref().is_some_and(|why| why.contains("user_id")), "{:?}", ada.identity);
    // Bob exists now: that the two were kept apart is known of both.
    run_by(u, &one, &[event("4", "a:tablet u:bob")]).await;
    let (ada, bob) = (by_id(u, ada.id).await, by_id(u, bob.id).await);
    assert_eq!(ada.identity.related[0].id, bob.id);
    assert_eq!((bob.identity.related[0].id, bob.identity.related[0].kind.as_str()), (ada.id, "refused"));
}

async fn a_shared_device_swallows_no_shop(u: &ContextUnderTest) {
    // In one batch and in many, also after the limit is reached.
    let visits: Vec<Event> =
        (0..30).map(|n| event(&format!("v{n}"), &format!("a:kiosk u:user{n}"))).collect();
    run(u, &visits[..12]).await;
    for visit in &visits[12..] {
        run(u, std::slice::from_ref(visit)).await;
    }
    let kiosk = customer(u, "a:kiosk").await;
    let users = kiosk.identifiers.iter().filter(|i| i.kind == IdentifierKind::UserId).count();
    assert_eq!(users, 10, "the usual limit");
    assert!(kiosk.identity.limited.is_some());
    let mut events = 0;
    let mut customers = BTreeSet::new();
    for n in 0..30 {
        let found = customer(u, &format!("u:user{n}")).await;
        if customers.insert(found.id) {
            events += found.events_count;
        }
    }
    assert_eq!(
        (customers.len(), events),
        (21, 30),
        "everybody else is somebody, and no event is lost or doubled"
    );
}

async fn an_email_change_keeps_the_customer_and_both_addresses(u: &ContextUnderTest) {
    run(u, &[identify("1", "u:ada e:old@example.com", 0, &[("email", "old@example.com")])]).await;
    run(u, &[identify("2", "u:ada e:new@example.com", 9, &[("email", "new@example.com")])]).await;
    let ada = customer(u, "e:new@example.com").await;
    assert_eq!(owner(u, "e:old@example.com").await, Some(ada.id));
    assert_eq!(ada.traits["email"], "new@example.com");
}

async fn a_phone_used_again_by_another_joins_nobody_beyond_the_limit(u: &ContextUnderTest) {
    let one = at_most(IdentifierKind::Email, 1);
    run_by(u, &one, &[event("1", "p:+491701234567 e:ada@example.com")]).await;
    run_by(u, &one, &[event("2", "p:+491701234567 e:bob@example.com")]).await;
    let (ada, bob) = (customer(u, "e:ada@example.com").await, customer(u, "e:bob@example.com").await);
    assert_ne!(ada.id, bob.id);
    assert_eq!(bob.identifiers, ids("e:bob@example.com"), "the number stays with whom it was");
    // Without that limit the number is trusted.
    run(u, &[event("3", "p:+491701234567 e:bob@example.com")]).await;
    assert_eq!(owner(u, "e:bob@example.com").await, Some(ada.id));
}

async fn fifty_profiles_merge_at_once_from_eight_workers(u: &ContextUnderTest) {
    let rules = Arc::new(rules_of(Limits::none()));
    let seeds: Vec<Event> = (0..50).map(|n| event(&format!("s{n}"), &format!("a:browser{n}"))).collect();
    for seed in seeds.chunks(7) {
        run_by(u, &rules, seed).await;
    }
    let work = (0..8).map(|worker| {
        let rules = rules.clone();
        async move {
            for n in 0..50 {
                // Every worker links each browser to the same user, in another order.
                let at = (n * 7 + worker * 11) % 50;
                let link = event(&format!("l{worker}-{at}"), &format!("u:ada a:browser{at}"));
                retrying(u, &rules, &[link]).await;
            }
        }
    });
    futures::future::join_all(work).await;
    let ada = customer(u, "u:ada").await;
    assert_eq!((ada.identifiers.len(), ada.events_count), (51, 50 + 8 * 50));
    assert_eq!(u.context.store.stats(BRAND).await.unwrap().profiles, 1);
    let merged = history(&u.context, BRAND, ada.id).await.unwrap().unwrap();
    assert!(
        merged.len() >= 49 && merged.len() == merges(u, ada.id).await as usize,
        "each merge is recorded once"
    );
}

async fn a_merge_while_events_for_both_sides_stream_in_loses_nothing(u: &ContextUnderTest) {
    run(u, &[event("seed1", "a:one"), event("seed2", "u:ada")]).await;
    let stream = |side: &'static str, name: &'static str| async move {
        for n in 0..60 {
            retrying(u, &BrandRules::default(), &[event(&format!("{side}{n}"), name)]).await;
        }
    };
    let link = async {
        for n in 0..5 {
            tokio::task::yield_now().await;
            retrying(u, &BrandRules::default(), &[event(&format!("link{n}"), "a:one u:ada")]).await;
        }
    };
    tokio::join!(stream("left", "a:one"), stream("right", "u:ada"), link);
    let ada = customer(u, "u:ada").await;
    assert_eq!((ada.events_count, merges(u, ada.id).await), (2 + 120 + 5, 1));
}

async fn chains_and_cycles_of_links_end_in_one_customer(u: &ContextUnderTest) {
    run(u, &[event("1", "a:1"), event("2", "a:2"), event("3", "a:3"), event("4", "a:4")]).await;
    let first = owner(u, "a:1").await.unwrap();
    for (message, link) in [("5", "a:3 a:4"), ("6", "a:2 a:3"), ("7", "a:1 a:2"), ("8", "a:4 a:1")] {
        run(u, &[event(message, link)]).await;
    }
    let all = customer(u, "a:4").await;
    assert_eq!((all.events_count, all.identifiers.len(), merges(u, all.id).await), (8, 4, 3));
    assert_eq!(by_id(u, first).await.id, all.id, "old ids keep resolving");
}

async fn segments_own_example_of_demotion(u: &ContextUnderTest) {
    let one = at_most(IdentifierKind::UserId, 1);
    run_by(u, &one, &[event("1", "u:abc123 e:jane@example1.com")]).await;
    run_by(u, &one, &[event("2", "u:abc456 e:jane@example1.com")]).await;
    let (old, new) = (customer(u, "u:abc123").await, customer(u, "u:abc456").await);
    assert_ne!(old.id, new.id);
    assert_eq!((old.identifiers.len(), new.identifiers), (2, ids("u:abc456")));
}

async fn a_limit_on_merges_stops_and_flags(u: &ContextUnderTest) {
    let two = rules_of(Limits { merges: 2, ..Limits::default() });
    for n in 0..5 {
        run_by(u, &two, &[event(&format!("s{n}"), &format!("a:b{n}"))]).await;
    }
    for n in 1..5 {
        run_by(u, &two, &[event(&format!("l{n}"), &format!("a:b0 a:b{n}"))]).await;
    }
    let hub = customer(u, "a:b0").await;
    assert_eq!((merges(u, hub.id).await, hub.identifiers.len()), (2, 3));
    assert_eq!(hub.identity.limited.as_deref(), Some("more than 2 merges"));
    assert_eq!(u.context.store.stats(BRAND).await.unwrap().profiles, 3);
}

async fn what_public_keys_add_fills_no_limit_of_trusted_sources(u: &ContextUnderTest) {
    let by = |source, event: Event| Event { source, ..event };
    run(u, &[by(Source::Shopify, event("known", "e:ada@example.com p:+491701234567"))]).await;
    // As many addresses, browsers and other profiles as a public key can hang on her.
    for n in 0..14 {
        let junk = event(&format!("j{n}"), &format!("p:+491701234567 e:t{n}@thief.example"));
        run(u, &[junk]).await;
    }
    let few = rules_of(Limits { merges: 2, identifiers: 14, ..Limits::default() });
    for n in 0..5 {
        run_by(u, &few, &[event(&format!("b{n}"), &format!("a:thief{n}"))]).await;
        run_by(u, &few, &[event(&format!("l{n}"), &format!("a:thief{n} e:ada@example.com"))]).await;
    }
    let ada = customer(u, "e:ada@example.com").await;
    let emails = |of: &Customer360| of.identifiers.iter().filter(|i| i.kind == IdentifierKind::Email).count();
    assert_eq!((emails(&ada), merges(u, ada.id).await), (10, 2), "public keys meet the limits");
    // What Shopify says of her, in events of her own and in one that takes in another whom it knows.
    run_by(u, &few, &[by(Source::Shopify, event("other", "e:ada@work.example u:ada"))]).await;
    let news = [
        by(Source::Shopify, event("new", "e:ada@example.com e:ada@home.example c:cart")),
        by(Source::Shopify, event("both", "e:ada@example.com u:ada")),
    ];
    run_by(u, &few, &news).await;
    let whole = customer(u, "u:ada").await;
    for name in ["e:ada@example.com", "e:ada@home.example", "e:ada@work.example", "c:cart"] {
        assert_eq!(owner(u, name).await, Some(whole.id), "{name}");
    }
    assert_eq!((emails(&whole), merges(u, whole.id).await), (12, 3));
    // Their own limits hold: of ten more addresses that Shopify tells of, seven come.
    for n in 0..10 {
        let more = by(Source::Shopify, event(&format!("m{n}"), &format!("u:ada e:ada{n}@example.com")));
        run(u, &[more]).await;
    }
    assert_eq!(emails(&customer(u, "u:ada").await), 12 + 7);
}

/// Two customers, and what joins them.
async fn joined(u: &ContextUnderTest) -> (Customer360, Customer360) {
    run(
        u,
        &[
            identify("u1", "u:ada e:ada@example.com", 10, &[("email", "ada@example.com"), ("plan", "gold")]),
            order("u2", "u:ada", "1", 100),
        ],
    )
    .await;
    let before_ada = customer(u, "u:ada").await;
    tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    let mut said = identify("a1", "a:one c:cart", 20, &[("plan", "silver"), ("city", "Rome")]);
    said.consents = vec![Consent {
        address: None,
        channel: Channel::Email,
        state: "subscribed".into(),
        level: None,
        at: from_ms(T0 + 20),
    }];
    run(u, &[said, order("a2", "a:one", "2", 7)]).await;
    let before_one = customer(u, "a:one").await;
    run(u, &[event("link", "u:ada a:one")]).await;
    let both = customer(u, "u:ada").await;
    assert_eq!((both.events_count, both.orders_count, both.traits["plan"].as_str()), (5, 2, Some("silver")));
    (before_ada, before_one)
}

/// Without what a split changes.
fn plain(mut customer: Customer360) -> Customer360 {
    customer.identity = Default::default();
    customer
}

async fn a_split_gives_back_what_the_merge_moved(u: &ContextUnderTest) {
    let (ada, one) = joined(u).await;
    let merge = history(&u.context, BRAND, ada.id).await.unwrap().unwrap().remove(0);
    let done = split(&u.context, BRAND, merge.id, "test").await.unwrap();
    assert_eq!((done.restored, done.from, done.events, done.orders), (one.id, ada.id, 2, 1));
    assert_eq!(plain(customer(u, "a:one").await), plain(one.clone()), "as it was");
    let mut now = plain(customer(u, "u:ada").await);
    // The event that linked the two stays.
    assert_eq!(now.recent_events.len(), 3);
    now.recent_events.retain(|event| event["message_id"] != "link");
    now.events_count -= 1;
    now.sessions = ada.sessions.clone();
    now.computed = ada.computed.clone();
    assert_eq!(now, plain(ada.clone()), "as it was");
    let again = split(&u.context, BRAND, merge.id, "test").await;
    assert!(matches!(again, Err(IdentityError::Refused(_))), "{again:?}");
    let unknown = split(&u.context, BrandId(2), merge.id, "test").await;
    assert!(matches!(unknown, Err(IdentityError::Unknown(_))), "another brand's: {unknown:?}");
    let told = history(&u.context, BRAND, ada.id).await.unwrap().unwrap();
    assert!(told[0].undone_at.is_some(), "the record stays");
}

async fn a_split_holds_against_events_that_name_both(u: &ContextUnderTest) {
    let (ada, one) = joined(u).await;
    let merge = history(&u.context, BRAND, ada.id).await.unwrap().unwrap().remove(0);
    split(&u.context, BRAND, merge.id, "test").await.unwrap();
    run(u, &[event("again", "u:ada a:one"), event("alone", "a:one")]).await;
    let (ada, one) = (by_id(u, ada.id).await, by_id(u, one.id).await);
    assert_ne!(ada.id, one.id);
    assert_eq!((ada.events_count, one.events_count), (4, 3), "it stays with its most trusted identifier");
    assert_eq!((ada.identity.related[0].id, ada.identity.related[0].kind.as_str()), (one.id, "split"));
    // What was split stays apart when one of them is merged on.
    run(u, &[event("old", "u:older")]).await;
    run(u, &[event("l2", "u:older a:one")]).await;
    run(u, &[event("l3", "u:ada a:one")]).await;
    assert_ne!(owner(u, "u:ada").await, owner(u, "a:one").await);
    assert_eq!(owner(u, "u:older").await, owner(u, "a:one").await);
}

async fn a_split_in_the_middle_of_a_chain_takes_out_only_its_own(u: &ContextUnderTest) {
    run(u, &[identify("r", "u:root", 1, &[("name", "root")])]).await;
    tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    run(u, &[identify("s", "a:stem", 2, &[("stem", "yes")])]).await;
    tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    run(u, &[identify("l", "a:leaf", 3, &[("leaf", "yes")])]).await;
    let leaf = owner(u, "a:leaf").await.unwrap();
    run(u, &[event("j1", "a:stem a:leaf")]).await;
    run(u, &[event("j2", "u:root a:stem")]).await;
    let root = customer(u, "u:root").await;
    assert_eq!((root.events_count, merges(u, root.id).await), (5, 2));
    let merges = history(&u.context, BRAND, root.id).await.unwrap().unwrap();
    let of_leaf = merges.iter().find(|merge| merge.merged == leaf).unwrap();
    let done = split(&u.context, BRAND, of_leaf.id, "test").await.unwrap();
    assert_eq!((done.restored, done.from, done.events), (leaf, root.id, 1));
    let (root, leaf) = (by_id(u, root.id).await, by_id(u, leaf).await);
    assert_eq!((root.events_count, leaf.events_count), (4, 1));
    assert!(root.traits.contains_key("stem") && !root.traits.contains_key("leaf"), "{:?}", root.traits);
    assert_eq!(leaf.traits.keys().collect::<Vec<_>>(), ["leaf"]);
    // And then the rest of the chain.
    let of_stem = merges.iter().find(|merge| merge.id != of_leaf.id).unwrap();
    split(&u.context, BRAND, of_stem.id, "test").await.unwrap();
    let (root, stem) = (by_id(u, root.id).await, customer(u, "a:stem").await);
    assert_eq!((root.events_count, stem.events_count), (2, 2));
    assert_eq!(stem.traits.keys().collect::<Vec<_>>(), ["stem"]);
    assert_eq!(root.traits.keys().collect::<Vec<_>>(), ["name"]);
}

async fn a_merge_is_previewed_and_made_by_hand(u: &ContextUnderTest) {
    run(u, &[identify("1", "u:ada", 1, &[("plan", "gold"), ("a", "1")])]).await;
    tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    run(u, &[identify("2", "u:bob", 2, &[("plan", "free"), ("b", "2")])]).await;
    let (ada, bob) = (owner(u, "u:ada").await.unwrap(), owner(u, "u:bob").await.unwrap());
    let seen = preview(&u.context, BRAND, bob, ada).await.unwrap();
    assert_eq!((seen.survivor, seen.merged, seen.events_count, seen.limit), (ada, bob, 2, None));
    assert_eq!(seen.traits["plan"], "free", "the newer");
    assert_eq!(seen.conflicts["plan"], [json!("gold"), json!("free")]);
    assert_ne!(owner(u, "u:bob").await, Some(ada), "a preview changes nothing");
    let (survivor, merge) = merge_two(&u.context, BRAND, bob, ada, "test").await.unwrap();
    assert_eq!((survivor, owner(u, "u:bob").await), (ada, Some(ada)));
    let whole = customer(u, "u:bob").await;
    assert_eq!((json!(whole.traits), whole.events_count), (json!(seen.traits), 2));
    assert!(matches!(preview(&u.context, BRAND, bob, ada).await, Err(IdentityError::Refused(_))));
    split(&u.context, BRAND, merge, "test").await.unwrap();
    assert!(preview(&u.context, BRAND, ada, bob).await.unwrap().split_before);
    merge_two(&u.context, BRAND, ada, bob, "test").await.unwrap();
    assert_eq!(owner(u, "u:bob").await, Some(ada), "a person may take a split back");
    assert!(by_id(u, ada).await.identity.related.is_empty());
}

async fn who_was_erased_does_not_come_back(u: &ContextUnderTest) {
    let (ada, one) = joined(u).await;
    let what = Erasure { profiles: vec![one.id], suppress: true, ..Erasure::default() };
    let erased = erase(&u.context, BRAND, &what, "test").await.unwrap();
    assert_eq!(erased.profiles.len(), 2, "also what was merged away");
    assert_eq!((erased.events, erased.orders, erased.identifiers.len()), (5, 2, 4));
    assert!(u.context.store.customer(BRAND, ada.id).await.unwrap().is_none());
    assert!(exported(&u.context, BRAND, ada.id).await.is_none());
    // A late event of theirs leaves a number behind, and nothing else.
    run(u, &[identify("late", "u:ada a:other", 50, &[("email", "ada@example.com")])]).await;
    assert_eq!((owner(u, "u:ada").await, owner(u, "a:other").await), (None, None));
    // Their browser may be somebody else's now: the event stays with that person.
    run(u, &[event("next", "u:bob a:one")]).await;
    assert_eq!(customer(u, "u:bob").await.identifiers, ids("u:bob"));
    let stats = u.context.store.stats(BRAND).await.unwrap();
    assert_eq!((stats.profiles, stats.events, stats.orders), (1, 2, 2));
    // What was lifted may be known again.
    assert_eq!(unsuppress(&u.context, BRAND, &ids("u:ada"), "test").await.unwrap(), 1);
    run(u, &[event("back", "u:ada")]).await;
    assert_eq!(customer(u, "u:ada").await.events_count, 1);
    let log = u.context.privacy.audit_log(BRAND, None, 10).await.unwrap();
    let actions: Vec<&str> = log.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["unsuppress", "erase"]);
    let told = log.iter().map(|entry| &entry.details).cloned().collect::<String>();
    assert!(!told.contains("ada"), "the log names nobody: {told}");
}

async fn an_erasure_and_a_first_event_at_once_leave_nobody(u: &ContextUnderTest) {
    // Whichever is first, the customer is not there afterwards.
    for round in 0..15 {
        let name = format!("u:user{round}");
        let what = Erasure { identifiers: ids(&name), suppress: true, ..Erasure::default() };
        let arrive = async {
            for n in 0..4 {
                retrying(
                    u,
                    &BrandRules::default(),
                    &[event(&format!("m{round}-{n}"), &format!("{name} a:b{round}-{n}"))],
                )
                .await;
            }
        };
        let forget = async { erase(&u.context, BRAND, &what, "test").await.unwrap() };
        tokio::join!(arrive, forget);
        assert_eq!(owner(u, &name).await, None, "round {round}");
    }
    assert_eq!(u.context.store.stats(BRAND).await.unwrap().profiles, 0);
}

async fn an_erased_customers_order_stands_without_them(u: &ContextUnderTest) {
    run(u, &[order("1", "u:ada", "9", 50)]).await;
    let what = Erasure { identifiers: ids("u:ada"), suppress: true, ..Erasure::default() };
    erase(&u.context, BRAND, &what, "test").await.unwrap();
    // A newer state of it comes later.
    let mut later = order("2", "u:ada", "9", 40);
    later.order.as_mut().unwrap().updated_at = from_ms(T0 + 1000);
    run(u, &[later]).await;
    let mut tx = u.context.store.begin().await.unwrap();
    let held =
        tx.orders(&[OrderKey { brand: BRAND, shop: "s.example.com".into(), id: "9".into() }]).await.unwrap();
    let record = &held[0].record;
    assert_eq!((record.profile, record.revenue()), (None, 40.into()));
}

async fn a_refund_beside_a_merge_leaves_the_order_where_it_went(u: &ContextUnderTest) {
    for round in 0..12 {
        let (one, ada, number) = (format!("a:one{round}"), format!("u:ada{round}"), format!("{round}"));
        let rules = BrandRules::default();
        run(u, &[event(&format!("s{round}"), &ada)]).await;
        run(u, &[order(&format!("o{round}"), &one, &number, 10)]).await;
        // It names only the order, so it locks no profile.
        let mut refund = order(&format!("r{round}"), "", &number, 0);
        let update = refund.order.as_mut().unwrap();
        update.state = None;
        let version = Version { at_ms: T0, sequence: 0, message_id: "r".into() };
        let paid = Refund { at_ms: T0, amount: 4.into(), currency: None, version };
        update.refunds.insert("1".into(), paid);
        let (refund, link) = ([refund], [event(&format!("l{round}"), &format!("{one} {ada}"))]);
        tokio::join!(retrying(u, &rules, &link), retrying(u, &rules, &refund));
        let found = customer(u, &ada).await;
        assert_eq!((found.orders_count, found.refunded["USD"].as_str()), (1, "4.00"), "round {round}");
    }
}

async fn who_was_split_out_and_erased_is_not_in_anothers_history(u: &ContextUnderTest) {
    let pause = || tokio::time::sleep(std::time::Duration::from_millis(3));
    run(u, &[identify("a", "u:root", 1, &[("root", "yes")])]).await;
    pause().await;
    run(u, &[identify("b", "a:stem", 2, &[("stem", "yes")])]).await;
    pause().await;
    run(u, &[identify("c", "e:leaf@example.com", 3, &[("secret", "leaf@example.com")])]).await;
    let leaf = owner(u, "e:leaf@example.com").await.unwrap();
    run(u, &[event("j1", "a:stem e:leaf@example.com")]).await;
    run(u, &[event("j2", "u:root a:stem")]).await;
    let root = owner(u, "u:root").await.unwrap();
    let merges = history(&u.context, BRAND, root).await.unwrap().unwrap();
    let of_leaf = merges.iter().find(|merge| merge.merged == leaf).unwrap();
    let of_stem = merges.iter().find(|merge| merge.merged != leaf).unwrap();
    split(&u.context, BRAND, of_leaf.id, "test").await.unwrap();
    let what = Erasure { profiles: vec![leaf], suppress: true, ..Erasure::default() };
    erase(&u.context, BRAND, &what, "test").await.unwrap();
    let held = exported(&u.context, BRAND, root).await.unwrap();
    assert!(!held.to_string().contains("leaf@example.com"), "{held:#}");
    split(&u.context, BRAND, of_stem.id, "test").await.unwrap();
    let stem = customer(u, "a:stem").await;
    assert_eq!(stem.traits.keys().collect::<Vec<_>>(), ["stem"]);
    assert_eq!(
        (stem.first_seen, stem.last_seen),
        (Some(from_ms(T0)), Some(from_ms(T0 + 2))),
        "its own times"
    );
}
