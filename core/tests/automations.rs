//! Segments and automations at work, on both profiles: what must happen happens once, at the right time, and nothing else does.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use support::{ContextUnderTest, embedded_context, services_context};
use tributary_core::context::Context;
use tributary_core::domain::addresses::Reach;
use tributary_core::domain::automation::definition::Definition;
use tributary_core::domain::automation::run::Status;
use tributary_core::domain::event::Source;
use tributary_core::domain::identity::{Identifier, IdentifierKind};
use tributary_core::domain::ids::{BrandId, ProfileId};
use tributary_core::domain::settings::BrandSettings;
use tributary_core::domain::time::{self, from_ms};
use tributary_core::ports::automations::{AutomationStatus, RunFilter};
use tributary_core::ports::clock::{Clock, ManualClock, SystemClock};
use tributary_core::ports::privacy::Erasure;
use tributary_core::ports::queue::{NewItem, Scope, Then};
use tributary_core::ports::sender::SendOutcome;
use tributary_core::ports::world::World;
use tributary_core::services::automations::api::{self, DryRun, segments};
use tributary_core::services::automations::destinations::{DEFAULT_RATE, Destinations};
use tributary_core::services::automations::runs::Outbound;
use tributary_core::services::automations::{handle as jobs, scheduler, unsubscribe};
use tributary_core::services::events::handle::handle_batch;
use tributary_core::services::outbox;
use tributary_core::services::{identity, privacy};
use tributary_core::testing::{RecordingSender, drain, segment_item, shopify_item};
use uuid::Uuid;

const MIN: i64 = 60_000;
const HOUR: i64 = 60 * MIN;
const DAY: i64 = 24 * HOUR;
/// How long a slow receiver takes.
const SLOW: Duration = Duration::from_secs(3);

struct Harness {
    _u: ContextUnderTest,
    context: Context,
    clock: ManualClock,
    sender: Arc<RecordingSender>,
    outbound: Outbound,
    brand: BrandId,
}

impl Harness {
    async fn new(u: ContextUnderTest) -> Self {
        let clock = ManualClock::at(SystemClock.now_ms());
        let mut context = u.context.clone();
        context.world = World::on(clock.clone());
        let brand = context.brand_ports.brands.add_brand("b").await.unwrap();
        let sender = RecordingSender::new(context.world.clone());
        let outbound = Outbound {
            sends_mail: true,
            reach: Reach { private: true, http: true },
            sender: sender.clone(),
            destinations: Arc::new(Destinations::new(DEFAULT_RATE, context.world.clone())),
            public_url: Some("https://t.example".into()),
        };
        let settings =
            BrandSettings { email_from: Some("Shop <shop@t.example>".into()), ..BrandSettings::default() };
        context.brand_cache.set(brand, &settings, None).await.unwrap();
        Self { _u: u, context, clock, sender, outbound, brand }
    }

    fn pass(&self, ms: i64) {
        self.clock.advance(ms);
    }

    /// An event of `user`, that many milliseconds ago, as the brand's own server sends it.
    async fn send_at(&self, ago: i64, user: &str, mut body: Value) {
        let at = from_ms(self.clock.now_ms() - ago);
        body["userId"] = user.into();
        body["timestamp"] = time::format(at).into();
        if body["messageId"].is_null() {
            body["messageId"] = self.context.world.id().to_string().into();
        }
        self.enqueue(segment_item(self.brand, self.clock.now_ms(), Source::Secret, &body)).await;
    }

    async fn enqueue(&self, item: NewItem) {
        self.context.queue.enqueue(&[item]).await.unwrap();
    }

    async fn send(&self, user: &str, body: Value) {
        self.send_at(0, user, body).await;
    }

    async fn track(&self, user: &str, event: &str) {
        self.send(user, json!({"type": "track", "event": event})).await;
    }

    /// Somebody with an e-mail address, who has consented to be written to.
    async fn subscriber(&self, user: &str) {
        let traits = json!({"email": format!("{user}@example.com"), "emailMarketingConsent": true, "first_name": user});
        self.send(user, json!({"type": "identify", "traits": traits})).await;
        self.settle().await;
    }

    /// An order, as Shopify tells of it.
    async fn order(&self, user: &str, id: u32, total: &str, ago: i64) {
        let at = time::format(from_ms(self.clock.now_ms() - ago));
        let order = json!({"id": id, "email": format!("{user}@example.com"), "total_price": total, "currency": "EUR",
            "created_at": at, "updated_at": at});
        let delivery = format!("order-{id}");
        let webhook = ("s.example", "orders/create", delivery.as_str());
        self.enqueue(shopify_item(self.brand, self.clock.now_ms(), webhook, &order)).await;
    }

    /// Processes everything that is due, until nothing is. Returns what became of jobs that were not done.
    async fn settle(&self) -> Vec<Then> {
        let undone = self.clock.drive(drain(&self.context, &self.outbound)).await;
        assert!(undone.events.is_empty(), "{:?}", undone.events);
        undone.jobs.into_iter().map(|one| one.then).collect()
    }

    /// The same, with the time that retries wait for.
    async fn settle_retries(&self) {
        for _ in 0..8 {
            self.settle().await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    async fn active(&self, definition: Value) -> Uuid {
        let definition: Definition = serde_json::from_value(definition).unwrap();
        let made = api::create(&self.context, self.brand, &definition).await.unwrap();
        api::set_status(&self.context, self.brand, made.id, AutomationStatus::Active).await.unwrap();
        made.id
    }

    async fn ready(&self, name: &str) -> Uuid {
        let all = tributary_core::domain::automation::presets::all();
        let chosen = all.into_iter().find(|ready| ready.name == name).unwrap();
        self.active(json!(chosen.definition)).await
    }

    async fn runs(&self, automation: Uuid) -> Vec<tributary_core::domain::automation::run::Run> {
        let filter = RunFilter { automation: Some(automation), ..RunFilter::default() };
        self.context.automations.runs(self.brand, filter, None, 1000).await.unwrap()
    }

    async fn statuses(&self, automation: Uuid) -> Vec<Status> {
        self.runs(automation).await.into_iter().map(|run| run.status).collect()
    }

    fn subjects(&self) -> Vec<String> {
        self.sender.emails().iter().map(|email| format!("{}: {}", email.to, email.subject)).collect()
    }

    fn keys(&self) -> Vec<String> {
        self.sender.keys()
    }

    async fn id_of(&self, user: &str) -> ProfileId {
        let own = Identifier { kind: IdentifierKind::UserId, value: user.into() };
        self.context.store.owner(self.brand, &own).await.unwrap().unwrap()
    }

    async fn segments_of(&self, user: &str) -> Vec<String> {
        let id = self.id_of(user).await;
        let mut tx = self.context.automations.begin().await.unwrap();
        tx.facts(&[id], false).await.unwrap()[&id].segments.keys().cloned().collect()
    }
}

fn hook(url: &str) -> Value {
    json!({"do": "webhook", "url": url})
}

fn on(event: &str, steps: Value) -> Value {
    json!({"name": "n", "trigger": {"on": "event", "event": event}, "steps": steps})
}

macro_rules! on_both {
    ($($test:ident),* $(,)?) => {
        mod embedded {
            $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
               async fn $test() { super::$test(super::Harness::new(super::embedded_context().await).await).await } )*
        }
        mod services {
            $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
               async fn $test() { super::$test(super::Harness::new(super::services_context().await).await).await } )*
        }
    };
}

on_both!(
    who_belongs_follows_events_and_time,
    an_abandoned_cart_is_told_of_once_and_a_bought_one_never,
    the_other_templates_do_what_they_say,
    what_is_delivered_twice_happens_once,
    a_message_that_was_begun_is_sent_again_under_its_key,
    a_receiver_that_is_away_is_tried_again_and_one_that_refuses_is_not,
    a_dead_destination_starves_nobody,
    edits_touch_no_run_under_way_and_a_pause_holds_all_of_them,
    a_run_goes_with_its_customer_through_a_merge_and_ends_with_an_erasure,
    a_slow_receiver_holds_up_no_other_of_its_batch,
    a_schedule_comes_up_for_every_member_once,
    tags_traits_and_events_go_the_way_of_all_events,
    a_link_unsubscribes_and_only_its_own,
    a_dry_run_says_what_would_happen_and_does_nothing,
);

async fn who_belongs_follows_events_and_time(w: Harness) {
    let gold = segments::SegmentAnswer::clone(
        &segments::put(
            &w.context,
            w.brand,
            "gold",
            serde_json::from_value(
                json!({"expression": "traits.plan == 'gold' && days_since(seen.last) < 30"}),
            )
            .unwrap(),
        )
        .await
        .unwrap(),
    );
    assert_eq!(gold.members, 0);
    for (user, plan) in [("ada", "gold"), ("bob", "silver")] {
        w.send(
            user,
            json!({"type": "identify", "traits": {"plan": plan, "email": format!("{user}@example.com")}}),
        )
        .await;
    }
    w.settle().await;
    assert_eq!((w.segments_of("ada").await, w.segments_of("bob").await), (vec!["gold".to_owned()], vec![]));
    w.order("bob", 1, "20.00", 0).await;
    w.send("bob", json!({"type": "identify", "traits": {"plan": "gold"}})).await;
    w.settle().await;
    assert_eq!(w.segments_of("bob").await, ["gold", "rfm_new"]);
    // Time alone: neither of them has been there since.
    w.pass(30 * DAY + MIN);
    w.settle().await;
    assert_eq!(w.segments_of("ada").await, Vec::<String>::new());
    w.pass(250 * DAY);
    w.settle().await;
    assert_eq!(w.segments_of("bob").await, ["rfm_lost"]);
    let changes =
        w.context.automations.changes(w.brand, None, Some(w.id_of("bob").await), None, 100).await.unwrap();
    let told: Vec<String> =
        changes.iter().rev().map(|c| format!("{}{}", if c.entered { "+" } else { "-" }, c.segment)).collect();
    assert_eq!(told[..2], ["+rfm_new", "+gold"]);
    assert!(told.ends_with(&["+rfm_lost".to_owned()]) && told.contains(&"-rfm_new".to_owned()), "{told:?}");
    let all = segments::list(&w.context, w.brand).await.unwrap();
    let lost = all.iter().find(|segment| segment.name == "rfm_lost").unwrap();
    assert_eq!((lost.members, lost.own), (1, true));
    // A segment that is written over everybody who is there already is filled.
    let everyone = serde_json::from_value(json!({"expression": "seen.events > 0"})).unwrap();
    segments::put(&w.context, w.brand, "everyone", everyone).await.unwrap();
    // Not before every process has heard of it.
    for _ in 0..40 {
        w.settle().await;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert_eq!(segments::get(&w.context, w.brand, "everyone").await.unwrap().members, 2);
    let preview =
        segments::preview(&w.context, w.brand, "traits.plan == 'gold' && orders.count > 0").await.unwrap();
    assert_eq!((preview.examined, preview.matched, preview.customers.len()), (2, 1, 1));
}

async fn an_abandoned_cart_is_told_of_once_and_a_bought_one_never(w: Harness) {
    let carts = w.ready("abandoned_cart").await;
    for user in ["left", "bought", "early"] {
        w.subscriber(user).await;
    }
    w.send("nobody", json!({"type": "track", "event": "Checkout Started"})).await;
    // The order's event is known before the checkout's, which happened before it.
    w.send_at(0, "early", json!({"type": "track", "event": "Order Completed"})).await;
    w.settle().await;
    w.send_at(MIN, "early", json!({"type": "track", "event": "Checkout Started"})).await;
    w.track("left", "Checkout Started").await;
    w.track("bought", "Checkout Started").await;
    w.settle().await;
    w.pass(59 * MIN);
    w.settle().await;
    assert_eq!(w.subjects(), Vec::<String>::new(), "not before an hour has passed");
    w.track("bought", "Order Completed").await;
    w.settle().await;
    w.pass(2 * MIN);
    w.settle().await;
    assert_eq!(w.subjects(), ["left@example.com: You left something behind"]);
    w.track("left", "Checkout Started").await;
    w.settle().await;
    w.pass(2 * DAY);
    w.settle().await;
    assert_eq!(w.subjects().len(), 2, "the second reminder, and no second run within a day");
    let mut statuses = w.statuses(carts).await;
    statuses.sort_by_key(|status| status.as_str());
    assert_eq!(statuses, [Status::Cancelled, Status::Cancelled, Status::Done, Status::Done]);
    let nobody = w.id_of("nobody").await;
    let skipped = w.runs(carts).await.into_iter().find(|run| run.profile == nobody).unwrap();
    assert!(
        skipped.state.log.iter().any(|entry| entry.what == "skipped"
            && entry.why.as_deref() == Some("the customer has no e-mail address"))
    );
    // Old news starts nothing.
    w.subscriber("late").await;
    w.send_at(2 * DAY, "late", json!({"type": "track", "event": "Checkout Started"})).await;
    w.settle().await;
    assert_eq!(w.statuses(carts).await.len(), 4);
}

async fn the_other_templates_do_what_they_say(w: Harness) {
    for name in ["welcome", "win_back", "post_purchase_review", "vip"] {
        w.ready(name).await;
    }
    for user in ["new", "away", "best", "silent"] {
        w.subscriber(user).await;
    }
    w.send("silent", json!({"type": "identify", "traits": {"emailMarketingConsent": false}})).await;
    w.settle().await;
    w.track("new", "Customer Created").await;
    w.track("silent", "Customer Created").await;
    w.track("new", "Order Fulfilled").await;
    for id in 0..2 {
        w.order("away", id, "10.00", (150 + i64::from(id)) * DAY).await;
    }
    for id in 10..16 {
        w.order("best", id, "200.00", i64::from(id - 9) * DAY).await;
    }
    w.settle().await;
    let mut subjects = w.subjects();
    subjects.sort();
    assert_eq!(subjects, ["away@example.com: We miss you", "best@example.com: Thank you"]);
    w.pass(6 * MIN);
    w.settle().await;
    assert_eq!(w.subjects()[2..], ["new@example.com: Welcome, new"]);
    w.pass(14 * DAY + MIN);
    w.settle().await;
    assert_eq!(w.subjects()[3..], ["new@example.com: How do you like it?"]);
    let tags = async |user: &str| {
        let id = w.id_of(user).await;
        let mut tx = w.context.automations.begin().await.unwrap();
        tx.facts(&[id], false).await.unwrap()[&id].json()["tags"].clone()
    };
    assert_eq!(
        (tags("best").await, tags("away").await, tags("new").await),
        (json!(["vip"]), json!(["win_back_failed"]), json!(["welcomed"]))
    );
}

async fn what_is_delivered_twice_happens_once(w: Harness) {
    let id = w.active(on("E", json!([hook("https://r.example/a"), {"do": "wait", "for": {"minutes": 1}}, hook("https://r.example/b")]))).await;
    for user in 0..5 {
        let event = json!({"type": "track", "event": "E", "messageId": format!("m{user}")});
        w.send(&format!("u{user}"), event.clone()).await;
        w.send(&format!("u{user}"), event).await;
    }
    // Every batch of jobs is processed twice: the first time it cannot be acked.
    for _ in 0..6 {
        while let Some(batch) = w.context.queue.fetch(100, Duration::ZERO).await.unwrap() {
            for _ in 0..2 {
                assert!(handle_batch(&w.context, &batch.items).await.unfinished.is_empty());
            }
            w.context.queue.ack(&batch, &[]).await.unwrap();
        }
        scheduler::enqueue_due(&w.context).await.unwrap();
        outbox::drain(&w.context).await.unwrap();
        while let Some(batch) = w.context.automation_queue.fetch(100, Duration::ZERO).await.unwrap() {
            let (one, two) = tokio::join!(
                jobs::handle_batch(&w.context, &w.outbound, &batch.items),
                jobs::handle_batch(&w.context, &w.outbound, &batch.items)
            );
            assert!(one.unfinished.is_empty() && two.unfinished.is_empty(), "{one:?} {two:?}");
            w.context.automation_queue.ack(&batch, &[]).await.unwrap();
        }
        w.pass(20_000);
    }
    assert_eq!(w.statuses(id).await, [Status::Done; 5]);
    // Two at once may both send a message: under one key, by which the receiver knows.
    let mut keys = w.keys();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 10);
}

async fn a_message_that_was_begun_is_sent_again_under_its_key(w: Harness) {
    let id =
        w.active(on("E", json!([hook("https://r.example/slow"), {"do": "add_tag", "tag": "after"}]))).await;
    w.sender.never_answers("https://r.example/slow");
    w.track("ada", "E").await;
    while let Some(batch) = w.context.queue.fetch(100, Duration::ZERO).await.unwrap() {
        handle_batch(&w.context, &batch.items).await;
        w.context.queue.ack(&batch, &[]).await.unwrap();
    }
    for _ in 0..2 {
        outbox::drain(&w.context).await.unwrap();
        let batch = w.context.automation_queue.fetch(100, Duration::ZERO).await.unwrap().unwrap();
        // The worker dies while the receiver has it.
        let dies = tokio::time::timeout(
            Duration::from_millis(500),
            jobs::handle_batch(&w.context, &w.outbound, &batch.items),
        );
        if dies.await.is_ok() {
            w.context.automation_queue.ack(&batch, &[]).await.unwrap();
            continue;
        }
        assert_eq!(w.keys().len(), 1);
        let run = &w.runs(id).await[0];
        let (_, actions) = w.context.automations.run(w.brand, run.id).await.unwrap().unwrap();
        assert_eq!((actions[0].status.as_str(), actions[0].attempts), ("started", 1), "recorded before");
        w.sender.says("https://r.example/slow", SendOutcome::Done("taken".into()));
        let worked = jobs::handle_batch(&w.context, &w.outbound, &batch.items).await;
        assert!(worked.unfinished.is_empty());
        w.context.automation_queue.ack(&batch, &[]).await.unwrap();
    }
    w.settle().await;
    let keys = w.keys();
    assert!(keys.len() == 2 && keys[0] == keys[1], "{keys:?}");
    let run = &w.runs(id).await[0];
    let (_, actions) = w.context.automations.run(w.brand, run.id).await.unwrap().unwrap();
    assert_eq!((actions[0].status.as_str(), actions[0].attempts), ("done", 2), "recorded after");
    assert_eq!(run.status, Status::Done);
}

async fn a_receiver_that_is_away_is_tried_again_and_one_that_refuses_is_not(w: Harness) {
    let id = w.active(on("E", json!([hook("https://r.example/x")]))).await;
    let later = SendOutcome::Later { error: "answered 503".into(), after: Some(Duration::from_secs(3600)) };
    w.sender.says("https://r.example/x", later);
    w.track("ada", "E").await;
    let undone = w.settle().await;
    assert!(
        matches!(&undone[..], [Then::Retry { delay, .. }] if *delay == Duration::from_secs(3600)),
        "Retry-After: {undone:?}"
    );
    w.sender.says("https://r.example/x", SendOutcome::Later { error: "answered 500".into(), after: None });
    w.track("bob", "E").await;
    let undone = w.settle().await;
    assert!(
        matches!(&undone[..], [Then::Retry { delay, .. }] if *delay <= Duration::from_secs(1)),
        "{undone:?}"
    );
    w.sender.says("https://r.example/x", SendOutcome::Done("taken".into()));
    w.settle_retries().await;
    assert_eq!(w.keys().len(), 3);
    w.sender.says("https://r.example/x", SendOutcome::Refused("answered 410".into()));
    w.track("eve", "E").await;
    let undone = w.settle().await;
    assert!(matches!(&undone[..], [Then::Bury { .. }]), "{undone:?}");
    let failed = w.runs(id).await.into_iter().find(|run| run.status == Status::Failed).unwrap();
    assert!(api::cancel(&w.context, w.brand, w.runs(id).await[1].id, "me").await.is_err(), "bob's has ended");
    w.sender.says("https://r.example/x", SendOutcome::Done("taken".into()));
    api::retry(&w.context, w.brand, failed.id, "me").await.unwrap();
    w.settle().await;
    assert_eq!(api::run(&w.context, w.brand, failed.id).await.unwrap().status, Status::Done);
    // By its dead letter, as well.
    w.sender.says("https://r.example/x", SendOutcome::Refused("answered 410".into()));
    w.track("kim", "E").await;
    w.settle().await;
    w.sender.says("https://r.example/x", SendOutcome::Done("taken".into()));
    let letters = w.context.automation_queue.dead(Scope::All, None, 10).await.unwrap();
    let ids: Vec<String> = letters.iter().map(|letter| letter.item.id.clone()).collect();
    w.context.automation_queue.retry_dead(&ids).await.unwrap();
    w.settle().await;
    let live: Vec<Status> =
        w.statuses(id).await.into_iter().filter(|status| *status != Status::Done).collect();
    assert_eq!(live, [Status::Queued], "only the one that waits for its hour");
    let waiting = w.runs(id).await.into_iter().find(|run| run.status == Status::Queued).unwrap();
    api::cancel(&w.context, w.brand, waiting.id, "me").await.unwrap();
    assert!(api::retry(&w.context, w.brand, waiting.id, "me").await.is_err());
}

async fn a_dead_destination_starves_nobody(w: Harness) {
    let dead = w.active(on("D", json!([hook("https://dead.example/")]))).await;
    let alive = w.active(on("A", json!([hook("https://alive.example/")]))).await;
    w.sender
        .says("https://dead.example/", SendOutcome::Later { error: "no answer in 10 s".into(), after: None });
    for user in 0..40 {
        w.track(&format!("u{user}"), "D").await;
        w.track(&format!("u{user}"), "A").await;
    }
    w.settle().await;
    assert_eq!(w.statuses(alive).await, [Status::Done; 40]);
    for user in 40..80 {
        w.track(&format!("u{user}"), "D").await;
        w.track(&format!("u{user}"), "A").await;
    }
    w.settle().await;
    let to_dead = |w: &Harness| w.sender.posts().iter().filter(|(url, _)| url.contains("dead")).count();
    assert!(to_dead(&w) <= 40, "once it is known to be dead, nothing more goes there: {}", to_dead(&w));
    assert_eq!(w.statuses(alive).await, [Status::Done; 80]);
    let left: Vec<Status> = w.statuses(dead).await;
    assert!(left.iter().all(|status| status.is_live()) && left.contains(&Status::Waiting), "{left:?}");
    let put_off = w.runs(dead).await.into_iter().find(|run| run.status == Status::Waiting).unwrap();
    assert!(put_off.state.log.iter().any(|entry| entry.what == "postponed"), "{:?}", put_off.state.log);
}

async fn edits_touch_no_run_under_way_and_a_pause_holds_all_of_them(w: Harness) {
    let steps = |text: &str| json!([{"do": "wait", "for": {"hours": 1}}, {"do": "chat", "url": "https://c.example/", "text": text}]);
    let id = w.active(on("E", steps("first"))).await;
    w.track("ada", "E").await;
    w.settle().await;
    let edited: Definition = serde_json::from_value(on("E", steps("second"))).unwrap();
    assert_eq!(api::edit(&w.context, w.brand, id, &edited).await.unwrap().version, 2);
    assert_eq!(api::edit(&w.context, w.brand, id, &edited).await.unwrap().version, 2, "the same is no edit");
    w.track("bob", "E").await;
    w.settle().await;
    api::set_status(&w.context, w.brand, id, AutomationStatus::Paused).await.unwrap();
    w.track("eve", "E").await;
    w.pass(2 * HOUR);
    w.settle().await;
    assert_eq!((w.keys().len(), w.statuses(id).await), (0, vec![Status::Waiting; 2]));
    assert!(
        !w.context.automations.is_due(w.clock.now_ms(), 0).await.unwrap(),
        "what stands still is not looked at"
    );
    api::set_status(&w.context, w.brand, id, AutomationStatus::Active).await.unwrap();
    w.settle().await;
    let mut texts: Vec<Value> = w.sender.posts().into_iter().map(|(_, body)| body).collect();
    texts.sort_by_key(Value::to_string);
    assert_eq!(texts, [json!({"text": "first"}), json!({"text": "second"})]);
    w.track("kim", "E").await;
    w.settle().await;
    api::delete(&w.context, w.brand, id).await.unwrap();
    w.pass(2 * HOUR);
    w.settle().await;
    assert_eq!((w.keys().len(), w.statuses(id).await[0]), (2, Status::Cancelled));
}

async fn a_run_goes_with_its_customer_through_a_merge_and_ends_with_an_erasure(w: Harness) {
    let id =
        w.active(on("E", json!([{"do": "wait", "for": {"hours": 1}}, hook("https://r.example/")]))).await;
    w.track("old", "Hello").await;
    w.settle().await;
    // The older profile survives, and the clock stands still otherwise.
    w.pass(10);
    w.track("young", "E").await;
    w.track("gone", "E").await;
    w.settle().await;
    let (old, young, gone) = (w.id_of("old").await, w.id_of("young").await, w.id_of("gone").await);
    identity::merge_two(&w.context, w.brand, old, young, "test").await.unwrap();
    w.settle().await;
    assert!(w.runs(id).await.iter().any(|run| run.profile == old), "it is the survivor's now");
    let export = support::exported(&w.context, w.brand, old).await.unwrap();
    assert_eq!(export["automation_runs"][0]["status"], "waiting");
    let what = Erasure { profiles: vec![gone], suppress: true, ..Erasure::default() };
    privacy::erase(&w.context, w.brand, &what, "test").await.unwrap();
    w.pass(2 * HOUR);
    w.settle().await;
    let runs = w.runs(id).await;
    assert_eq!((runs.len(), runs[0].status, w.keys().len()), (1, Status::Done, 1));
    let (_, body) = w.sender.posts().remove(0);
    assert_eq!(body["data"]["customer"]["id"], json!(old));
    assert_eq!(body["data"]["event"]["name"], "E");
}

async fn a_slow_receiver_holds_up_no_other_of_its_batch(w: Harness) {
    let slow = w.active(on("Slow", json!([hook("https://slow.example/")]))).await;
    let quick = w.active(on("Quick", json!([hook("https://a.example/"), hook("https://b.example/")]))).await;
    w.sender.says_after("https://slow.example/", SLOW, SendOutcome::Done("slowly".into()));
    w.subscriber("ada").await;
    w.track("ada", "Slow").await;
    w.track("ada", "Quick").await;
    // The slow one is under way for as long as the clock stands: it is moved when the others are seen.
    let mut seen = false;
    let mut settling = std::pin::pin!(w.settle());
    let settled = loop {
        tokio::select! {
            settled = &mut settling => break settled,
            () = tokio::time::sleep(Duration::from_millis(20)) => {
                seen |= w.keys().len() == 3;
                if seen {
                    w.pass(100);
                }
            }
        }
    };
    assert!(settled.is_empty() && seen, "the second of the quick ones went while the slow one was under way");
    assert_eq!((w.statuses(slow).await, w.statuses(quick).await), (vec![Status::Done], vec![Status::Done]));
    assert_eq!(w.keys().len(), 3, "each once");
}

async fn a_schedule_comes_up_for_every_member_once(w: Harness) {
    let vips = serde_json::from_value(json!({"expression": "traits.plan == 'gold'"})).unwrap();
    segments::put(&w.context, w.brand, "gold", vips).await.unwrap();
    for user in 0..3 {
        w.send(
            &format!("u{user}"),
            json!({"type": "identify", "traits": {"plan": if user == 2 { "tin" } else { "gold" }}}),
        )
        .await;
    }
    w.settle().await;
    let id = w
        .active(json!({"name": "n", "trigger": {"on": "schedule", "segment": "gold", "at": "09:00"},
            "reentry": {"mode": "always"}, "steps": [hook("https://r.example/")]}))
        .await;
    w.settle().await;
    assert_eq!(w.keys().len(), 0);
    w.pass(DAY);
    w.settle().await;
    w.settle().await;
    assert_eq!((w.keys().len(), w.runs(id).await.len()), (2, 2));
    // The system was down for days: what was missed comes up once.
    w.pass(3 * DAY);
    w.settle().await;
    assert_eq!(w.keys().len(), 4);
    assert!(segments::delete(&w.context, w.brand, "gold").await.is_err(), "the automation needs it");
}

async fn tags_traits_and_events_go_the_way_of_all_events(w: Harness) {
    w.active(on(
        "E",
        json!([
            {"do": "set_trait", "name": "greeting", "value": "Hello {{ customer.email }}"},
            {"do": "add_tag", "tag": "seen"},
            {"do": "emit_event", "event": "Greeted", "properties": {"by": "{{ event.name }}"}},
        ]),
    ))
    .await;
    let chained = w.active(on("Greeted", json!([hook("https://r.example/")]))).await;
    w.subscriber("ada").await;
    w.track("ada", "E").await;
    w.settle().await;
    let record = w.context.store.customer(w.brand, w.id_of("ada").await).await.unwrap().unwrap();
    assert_eq!(record.profile.traits["greeting"].value, "Hello ada@example.com");
    assert_eq!(record.profile.traits["tag:seen"].value, true);
    assert_eq!(w.statuses(chained).await, [Status::Done]);
    assert_eq!(w.sender.posts()[0].1["data"]["event"]["properties"]["by"], "E");
}

async fn a_link_unsubscribes_and_only_its_own(w: Harness) {
    w.active(on("E", json!([{"do": "email", "subject": "s", "text": "t"}]))).await;
    for user in ["ada", "bob"] {
        w.subscriber(user).await;
    }
    w.track("ada", "E").await;
    w.settle().await;
    let link = w.sender.emails().remove(0).unsubscribe.unwrap();
    let token = link.strip_prefix("https://t.example/unsubscribe/").unwrap().to_owned();
    let bobs = token.replace(&w.id_of("ada").await.to_string(), &w.id_of("bob").await.to_string());
    assert!(unsubscribe::unsubscribe(&w.context, &bobs).await.is_err());
    assert!(unsubscribe::unsubscribe(&w.context, "rubbish").await.is_err());
    unsubscribe::unsubscribe(&w.context, &token).await.unwrap();
    w.settle().await;
    for user in ["ada", "bob"] {
        w.track(user, "E").await;
    }
    w.settle().await;
    assert_eq!(w.subjects(), ["ada@example.com: s", "bob@example.com: s"]);
}

async fn a_dry_run_says_what_would_happen_and_does_nothing(w: Harness) {
    let definition: Definition = serde_json::from_value(json!({
        "name": "n", "trigger": {"on": "event", "event": "E"}, "condition": "event.properties.value > 10", "steps": [
            {"do": "wait", "for": {"days": 1}},
            {"do": "branch", "condition": "orders.count > 0", "then": [hook("https://r.example/")],
             "otherwise": [{"do": "email", "subject": "Hi {{ customer.traits.first_name }}", "text": "t"}]},
        ]
    }))
    .unwrap();
    let id = api::create(&w.context, w.brand, &definition).await.unwrap().id;
    w.subscriber("ada").await;
    let customer = w.id_of("ada").await;
    let asked = DryRun { customer: Some(customer), email: None, message_id: None };
    let dry_run = api::dry_run(&w.context, w.brand, id, &asked).await.unwrap();
    assert!(!dry_run.starts && dry_run.why.unwrap().contains("value"), "a made-up event has no value");
    w.send("ada", json!({"type": "track", "event": "E", "messageId": "m", "properties": {"value": 20}}))
        .await;
    w.settle().await;
    let dry_run = api::dry_run(&w.context, w.brand, id, &asked).await.unwrap();
    let log: Vec<String> = dry_run
        .log
        .iter()
        .map(|entry| format!("{} {}", entry.step.clone().unwrap_or_default(), entry.what))
        .collect();
    assert_eq!(log, [" started", "1 waiting", "1 done", "2 otherwise", "2.otherwise.1 done", " ended"]);
    assert_eq!(dry_run.log[4].why.as_deref(), Some("would write to ada@example.com: \"Hi ada\""));
    assert!(w.keys().is_empty() && w.runs(id).await.is_empty());
}
