//! The whole embedded system in one process - server, event worker, automation worker, housekeeping - on a clock that the test moves.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use stack::receiver::Mailbox;
use support::{On, TestApp, answer, outbound};
use tokio_util::sync::CancellationToken;
use tributary_core::ports::clock::{Clock, ManualClock};
use workers::{automation, event};

/// How often it is looked whether what a step has woken is done.
const SETTLES: usize = 500;
const T0: i64 = 1_780_000_000_000;
const SECOND: i64 = 1000;
const HOUR: i64 = 3600 * SECOND;
const DAY: i64 = 24 * HOUR;

/// A system, and the hand on its clock.
struct Running {
    app: TestApp,
    clock: ManualClock,
    mailbox: Mailbox,
    /// Items in flight that nobody works on: their worker is dead.
    abandoned: u64,
    stop: CancellationToken,
    workers: Vec<tokio::task::JoinHandle<()>>,
}

impl Running {
    /// A server, whose workers are not there yet.
    async fn open() -> Self {
        let clock = ManualClock::at(T0);
        let mut app = TestApp::start_at(On::Embedded, &clock).await;
        let mailbox = Mailbox::start().await.unwrap();
        app.outbound = outbound(Some(&mailbox.url), &app.url);
        Self { app, clock, mailbox, abandoned: 0, stop: CancellationToken::new(), workers: Vec::new() }
    }

    /// Starts the workers, with their housekeeping.
    fn work(&mut self) {
        let options = event::Options { concurrency: 2, batch: 50, grace: Duration::from_secs(5) };
        let (context, stop) = (&self.app.context, &self.stop);
        self.workers.push(tokio::spawn(event::run(context.clone(), options, stop.clone())));
        let outbound = self.app.outbound.clone();
        self.workers.push(tokio::spawn(automation::run(context.clone(), outbound, options, stop.clone())));
    }

    async fn ask(&self, method: Method, path: &str, body: &Value) -> Value {
        let request = self
            .app
            .http
            .request(method, format!("{}{path}", self.app.url))
            .bearer_auth(&self.app.secret_key);
        let (status, body) = answer(request.body(body.to_string())).await;
        assert!((200..300).contains(&status), "{path}: {status} {body}");
        body
    }

    /// Items in flight, and items that wait in the outbox for the housekeeping to bring them.
    async fn under_way(&self) -> (u64, u64) {
        let context = &self.app.context;
        let mut in_flight = 0;
        for queue in [&context.queue, &context.automation_queue] {
            in_flight += queue.stats().await.unwrap().in_flight;
        }
        (in_flight.saturating_sub(self.abandoned), context.outbox.stats().await.unwrap().waiting)
    }

    /// Lets what a step has woken do its work. What waits in the outbox needs the clock, in steps that no limit of time notices.
    async fn settle(&self) {
        for _ in 0..SETTLES {
            tokio::time::sleep(Duration::from_millis(5)).await;
            match self.under_way().await {
                (0, 0) => return,
                (0, _) => self.clock.advance(100),
                _ => {}
            }
        }
    }

    /// Moves the clock by steps, at most so far in all, until something is so.
    async fn pass_until(&self, step: i64, most: i64, is_so: impl AsyncFn() -> bool) -> bool {
        let end = self.clock.now_ms() + most;
        while self.clock.now_ms() < end {
            if is_so().await {
                return true;
            }
            self.clock.advance(step);
            self.settle().await;
        }
        is_so().await
    }

    async fn stop(self) {
        self.stop.cancel();
        for mut worker in self.workers {
            // What sleeps until the end of a step wakes.
            while tokio::time::timeout(Duration::from_millis(5), &mut worker).await.is_err() {
                self.clock.advance(SECOND);
            }
        }
        self.app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn days_of_the_embedded_system_pass_in_moments() {
    let mut system = Running::open().await;
    system.work();
    system.ask(Method::PATCH, "/api/settings", &json!({"email_from": "Shop <hello@shop.example>"})).await;
    let welcome = json!({"name": "welcome", "trigger": {"on": "event", "event": "Signed Up"}, "steps": [
        {"do": "wait", "for": {"days": 3}},
        {"do": "email", "marketing": false, "subject": "Three days later", "text": "Hello"}]});
    // Activation asks whether a worker has said what it can do.
    let made = system.ask(Method::POST, "/api/automations", &welcome).await;
    let activate = format!("/api/automations/{}/activate", made["id"].as_str().unwrap());
    system.ask(Method::POST, &activate, &json!({})).await;

    let sent = json!({"batch": [
        {"type": "identify", "userId": "ada", "traits": {"email": "ada@example.com"}},
        {"type": "track", "userId": "ada", "event": "Signed Up"}]});
    // With a secret key: an address that only a public key knows is not written to.
    system.ask(Method::POST, "/v1/batch", &sent).await;
    let ada = "/api/customers/by/email/ada@example.com/360";
    let known = async || answer(system.app.get(ada)).await.0 == 200;
    assert!(system.pass_until(100, 10 * SECOND, known).await, "the event worker needs no more than moments");

    let mails = async || !system.mailbox.mails().is_empty();
    let began = system.clock.now_ms();
    assert!(!system.pass_until(HOUR, 3 * DAY - 2 * HOUR, mails).await, "nothing is sent before its time");
    let is_sent = system.pass_until(60 * SECOND, 4 * HOUR, mails).await;
    let runs = system.ask(Method::GET, "/api/runs", &json!({})).await;
    assert!(is_sent, "three days later it is: {runs}");
    let passed = system.clock.now_ms() - began;
    assert!((3 * DAY - HOUR..3 * DAY + 2 * HOUR).contains(&passed), "{passed} ms");
    assert_eq!(system.mailbox.mails()[0].to, ["ada@example.com"]);
    // Long after its time no loop of the housekeeping is late: all of them go by this clock.
    assert!(system.app.context.rounds.late().is_empty(), "{:?}", system.app.context.rounds.late());
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_worker_held_is_processed_when_its_lease_ends_on_that_clock() {
    let mut system = Running::open().await;
    let event = json!({"type": "track", "userId": "ada", "event": "E"});
    assert_eq!(answer(system.app.post("/v1/track", event.to_string())).await.0, 200);
    let queue = system.app.context.queue.clone();
    let held = queue.fetch(10, Duration::ZERO).await.unwrap().expect("the event");
    assert_eq!(held.items.len(), 1);
    system.abandoned = 1;
    system.work();
    let done = async || queue.stats().await.unwrap().acked == 1;
    let lease = i64::try_from(queue.lease().as_millis()).unwrap();
    assert!(!system.pass_until(SECOND, lease - SECOND, done).await, "the dead worker may still live");
    assert!(system.pass_until(SECOND, lease, done).await, "its lease has ended");
    assert_eq!(queue.stats().await.unwrap().reclaimed, 1);
    system.stop().await;
}
