//! A run: one customer on the way through an automation. Pure: what is known comes in, what is to be done goes out.
//!
//! A run has a clock of its own, [`State::since_ms`]: when the trigger happened, then when each wait was over. Waits are counted by
//! it, so they end when they should have, however late the work on them began - never sooner.

mod advance;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::definition::{Action, ReentryMode};
use super::facts::{Facts, Trigger};
use super::plan::{DAY_MS, Plan};
use crate::domain::customer360::StoredEvent;
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::settings::BrandSettings;
use crate::domain::time::{self, Timestamp, from_ms};

/// The longest life of a run, in days.
pub const MAX_DAYS: i64 = 365;
/// An event that is older than this when it is processed starts nothing: a day's outage is made good, an import of old orders
/// writes to nobody.
pub const MAX_TRIGGER_AGE_MS: i64 = 86_400_000;
/// Most entries of a run's log; the oldest go first.
pub const MAX_LOG: usize = 200;
/// The trait that has a customer's time zone.
pub const ZONE_TRAIT: &str = "timezone";

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = RunStatus)]
pub enum Status {
    /// A job for it is on its way.
    Queued,
    /// It waits for a time, or for an event.
    Waiting,
    /// It has come to its end.
    Done,
    /// Something ended it before.
    Cancelled,
    /// An action of it could not be done.
    Failed,
}

impl Status {
    pub const ALL: [Self; 5] = [Self::Queued, Self::Waiting, Self::Done, Self::Cancelled, Self::Failed];

    /// The name in the stores and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Waiting => "waiting",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }

    /// The status of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }

    /// Whether it goes on.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Queued | Self::Waiting)
    }
}

/// What a run has been through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The event that started it, if one did.
    pub message_id: Option<String>,
    /// The node that it stands at; `None` at the end.
    pub at: Option<usize>,
    pub since_ms: i64,
    /// When what started it happened, in milliseconds since 1970.
    pub triggered_ms: i64,
    /// From when on events are waited for: [`State::since_ms`], but after an action from when that was begun.
    #[serde(default)]
    pub heard_ms: i64,
    /// What was done and why, oldest first.
    pub log: Vec<Entry>,
}

/// An entry of a run's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Entry {
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// Which step, like `2.then.1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// What became of it: `started`, `waiting`, `done`, `skipped`, `then`, `otherwise`, `postponed`, `failed`, `cancelled`, `ended`.
    pub what: String,
    /// Why, or to what end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A run as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub id: Uuid,
    pub brand: BrandId,
    pub automation: Uuid,
    /// Of which version of it: edits do not touch runs that are under way.
    pub version: i32,
    pub profile: ProfileId,
    /// What started it: the same thing starts one run only.
    pub trigger_key: String,
    pub status: Status,
    /// Counts up with each write.
    pub revision: i64,
    /// When it goes on, in milliseconds since 1970.
    pub due_ms: Option<i64>,
    pub started_ms: i64,
    /// When it was last written.
    pub updated_ms: i64,
    /// What it has been through.
    pub state: State,
}

/// What became of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActionStatus {
    /// It is being done: after a crash, whether it was is not known, and it is done again under the same key.
    Started,
    /// The action took effect, or its message was taken by its receiver.
    Done,
    /// It was not to be done; the run's log says why.
    Skipped,
    /// It could not be done.
    Failed,
}

impl ActionStatus {
    /// The name in the stores and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Done => "done",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
        }
    }

    /// The status of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Started, Self::Done, Self::Skipped, Self::Failed].into_iter().find(|s| s.as_str() == name)
    }
}

/// The record of an action: written before it is done and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActionRow {
    pub run: Uuid,
    pub node: usize,
    pub brand: BrandId,
    pub automation: Uuid,
    pub profile: ProfileId,
    /// [`Action::kind`].
    pub kind: String,
    /// Where it goes to: a host.
    pub destination: Option<String>,
    /// Whether the frequency cap counts it.
    pub marketing: bool,
    /// What became of it.
    pub status: ActionStatus,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was first tried, in milliseconds since 1970.
    pub first_ms: i64,
    /// When it last changed.
    pub last_ms: i64,
    /// What went wrong last.
    pub error: Option<String>,
}

impl ActionRow {
    /// What makes two tries of it the same to whoever receives them.
    pub fn key(&self) -> String {
        action_key(self.run, self.node)
    }
}

/// The idempotency key of a run's action.
pub fn action_key(run: Uuid, node: usize) -> String {
    format!("{run}-{node}")
}

/// Whether a text looks like one: then no sender but an automation may use it as a message id.
pub fn is_action_key(text: &str) -> bool {
    let node = |node: &str| !node.is_empty() && node.bytes().all(|byte| byte.is_ascii_digit());
    text.split_at_checked(36)
        .is_some_and(|(run, rest)| Uuid::try_parse(run).is_ok() && rest.strip_prefix('-').is_some_and(node))
}

/// What is known when a run goes on.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// What it goes through.
    pub plan: &'a Plan,
    /// Whom it is about.
    pub facts: &'a Facts,
    /// The event that started it, if one did and it is still there.
    pub trigger: Option<&'a Trigger>,
    /// The customer's events since then that may end it or that it waits for, oldest first.
    pub events: &'a [StoredEvent],
    pub settings: &'a BrandSettings,
    /// Marketing messages of the customer's, by other actions: `(automation, when)`.
    pub sent: &'a [(Uuid, i64)],
    pub now: Timestamp,
}

/// What is to be done before a run can go on.
#[derive(Clone, Debug, PartialEq)]
pub struct Doing {
    pub node: usize,
    pub action: Action,
}

/// What started a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The same thing starts one run only.
    pub key: String,
    /// The event, if it was one.
    pub message_id: Option<String>,
    /// When it happened, in milliseconds since 1970.
    pub at_ms: i64,
    pub why: String,
}

/// An earlier run of the same automation and customer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    pub status: Status,
    /// When it began, in milliseconds since 1970.
    pub started_ms: i64,
}

/// Whether a customer may come in, after their earlier runs.
///
/// # Errors
/// Why not.
pub fn may_enter(plan: &Plan, past: &[Past], now: Timestamp) -> Result<(), String> {
    let reentry = &plan.definition.reentry;
    if past.is_empty() {
        return Ok(());
    }
    match reentry.mode {
        ReentryMode::Once => {
            return Err("the customer ran through it before, and may enter it once".to_owned());
        }
        ReentryMode::AfterEnd if past.iter().any(|run| run.status.is_live()) => {
            return Err("the customer is in it, and may enter it again after it has ended".to_owned());
        }
        ReentryMode::AfterEnd | ReentryMode::Always => {}
    }
    let last = past.iter().map(|run| run.started_ms).max().unwrap_or_default();
    let again = last.saturating_add(reentry.after.ms());
    if now.timestamp_millis() < again {
        return Err(format!(
            "the customer ran through it before, and may enter it again from {}",
            time::format(from_ms(again))
        ));
    }
    Ok(())
}

/// Which run of what it is, for whom.
#[derive(Clone, Copy, Debug)]
pub struct RunOf {
    pub id: Uuid,
    pub brand: BrandId,
    pub automation: Uuid,
    pub version: i32,
    pub profile: ProfileId,
}

impl Run {
    /// A run that begins.
    pub fn new(of: RunOf, plan: &Plan, cause: &Cause, now_ms: i64) -> Self {
        let RunOf { id, brand, automation, version, profile } = of;
        let mut run = Self {
            id,
            brand,
            automation,
            version,
            profile,
            trigger_key: cause.key.clone(),
            status: Status::Queued,
            revision: 1,
            due_ms: None,
            started_ms: now_ms,
            updated_ms: now_ms,
            state: State {
                message_id: cause.message_id.clone(),
                at: plan.first,
                // A sender's clock may be ahead: nothing waits for a time that was never.
                since_ms: cause.at_ms.min(now_ms),
                triggered_ms: cause.at_ms.min(now_ms),
                heard_ms: cause.at_ms.min(now_ms),
                log: Vec::new(),
            },
        };
        run.note(now_ms, None, "started", Some(cause.why.clone()));
        run
    }

    /// Writes to the log.
    pub fn note(&mut self, at_ms: i64, step: Option<String>, what: &str, why: Option<String>) {
        self.state.log.push(Entry { at_ms, step, what: what.to_owned(), why });
        let over = self.state.log.len().saturating_sub(MAX_LOG);
        self.state.log.drain(..over);
    }

    pub fn end(&mut self, status: Status, now_ms: i64, what: &str, why: Option<String>) {
        self.status = status;
        self.due_ms = None;
        self.note(now_ms, None, what, why);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::automation::definition::Cap;
    use crate::domain::automation::quiet::QuietHours;
    use crate::domain::customer360::StoredConsent;
    use crate::domain::event::Source;

    const MIN: i64 = 60_000;
    const T0: i64 = 1_781_524_800_000; // 2026-06-15T12:00:00Z

    fn plan(steps: serde_json::Value, more: serde_json::Value) -> Plan {
        let mut json =
            json!({"name": "n", "trigger": {"on": "event", "event": "Checkout Started"}, "steps": steps});
        json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Plan::of(&serde_json::from_value(json).unwrap()).unwrap()
    }

    fn started(plan: &Plan) -> Run {
        let cause =
            Cause { key: "k".into(), message_id: Some("trigger".into()), at_ms: T0, why: "test".into() };
        {
            let of = RunOf {
                id: Uuid::from_u128(1),
                brand: BrandId(1),
                automation: Uuid::nil(),
                version: 1,
                profile: ProfileId::first_at(1),
            };
            Run::new(of, plan, &cause, T0)
        }
    }

    fn event(name: &str, minute: i64) -> StoredEvent {
        StoredEvent {
            message_id: format!("{name}@{minute}"),
            kind: "track".into(),
            name: Some(name.into()),
            timestamp: from_ms(T0 + minute * MIN),
            body: "{}".into(),
            active: true,
            source: Source::Shopify,
            received_at: from_ms(T0 + minute * MIN),
        }
    }

    struct World {
        facts: Facts,
        settings: BrandSettings,
        sent: Vec<(Uuid, i64)>,
        events: Vec<StoredEvent>,
    }

    impl World {
        fn new() -> Self {
            Self { facts: Facts::example(), settings: BrandSettings::default(), sent: vec![], events: vec![] }
        }

        fn go(&self, run: &mut Run, plan: &Plan, minute: i64) -> Option<Doing> {
            run.advance(&Situation {
                plan,
                facts: &self.facts,
                trigger: None,
                events: &self.events,
                settings: &self.settings,
                sent: &self.sent,
                now: from_ms(T0 + minute * MIN),
            })
        }
    }

    fn mail() -> serde_json::Value {
        json!({"do": "email", "subject": "s", "text": "t"})
    }

    #[test]
    fn a_wait_ends_when_it_should_and_never_sooner() {
        let plan = plan(
            json!([{"do": "wait", "for": {"hours": 1}}, mail(), {"do": "wait", "for": {"minutes": 10}}, mail()]),
            json!({}),
        );
        let (world, mut run) = (World::new(), started(&plan));
        assert_eq!(world.go(&mut run, &plan, 0), None);
        assert_eq!((run.status, run.due_ms), (Status::Waiting, Some(T0 + 60 * MIN)));
        assert_eq!(world.go(&mut run, &plan, 59), None);
        assert_eq!(run.state.log.len(), 2, "woken too soon, it says nothing");
        let doing = world.go(&mut run, &plan, 61).unwrap();
        assert_eq!((doing.action.kind(), run.status), ("email", Status::Queued));
        run.done(&plan, doing.node, T0 + 61 * MIN, T0 + 62 * MIN, None);
        assert_eq!(world.go(&mut run, &plan, 62), None);
        assert_eq!(run.due_ms, Some(T0 + 72 * MIN), "counted from when the action was done");
        let doing = world.go(&mut run, &plan, 72).unwrap();
        run.done(&plan, doing.node, T0 + 72 * MIN, T0 + 72 * MIN, None);
        assert_eq!((world.go(&mut run, &plan, 72), run.status), (None, Status::Done));
    }

    #[test]
    fn what_was_bought_is_no_abandoned_cart_however_late_that_is_known() {
        let plan = plan(
            json!([{"do": "wait", "for": {"hours": 1}}, mail()]),
            json!({"cancel_on": [{"event": "Order Created"}]}),
        );
        let (mut world, mut run) = (World::new(), started(&plan));
        world.go(&mut run, &plan, 0);
        world.events = vec![event("Order Created", 30)];
        assert_eq!(world.go(&mut run, &plan, 61), None);
        assert_eq!(run.status, Status::Cancelled);
        assert!(run.state.log.last().unwrap().why.as_ref().unwrap().contains("Order Created@30"));
    }

    #[test]
    fn an_event_that_is_waited_for_leads_one_way_and_its_absence_the_other() {
        let steps = json!([{"do": "wait_until", "event": "Opened", "within": {"hours": 1},
            "then": [{"do": "add_tag", "tag": "came"}], "otherwise": [{"do": "add_tag", "tag": "not"}]}]);
        let plan = plan(steps, json!({}));
        let tag = |world: &World, minute| {
            let mut run = started(&plan);
            world.go(&mut run, &plan, minute).map(|doing| doing.action)
        };
        let mut world = World::new();
        assert_eq!(tag(&world, 59), None);
        assert_eq!(tag(&world, 60), Some(Action::AddTag { tag: "not".into() }));
        world.events = vec![event("Opened", 59)];
        assert_eq!(tag(&world, 59), Some(Action::AddTag { tag: "came".into() }));
        assert_eq!(
            tag(&world, 600),
            Some(Action::AddTag { tag: "came".into() }),
            "it came in time; it is known late"
        );
        world.events = vec![event("Opened", 61), event("Opened", -1)];
        assert_eq!(tag(&world, 70), Some(Action::AddTag { tag: "not".into() }));
    }

    #[test]
    fn marketing_needs_consent_a_cap_not_reached_and_an_hour_that_is_not_quiet() {
        let plan = plan(json!([mail()]), json!({"frequency_cap": {"messages": 1, "days": 7}}));
        let why = |world: &World| {
            let mut run = started(&plan);
            let doing = world.go(&mut run, &plan, 0).is_some();
            (doing, run.status, run.state.log.iter().find_map(|e| e.why.clone().filter(|_| e.step.is_some())))
        };
        let mut world = World::new();
        assert_eq!(why(&world), (true, Status::Queued, None));
        world.settings.quiet_hours = Some(QuietHours { from: "13:00".into(), to: "15:00".into() });
        let (_, status, quiet) = why(&world);
        assert_eq!(status, Status::Waiting, "it is 14:00 where the customer is");
        assert!(quiet.unwrap().contains("until 2026-06-15T13:00:00.000Z"));
        world.settings.quiet_hours = None;
        world.sent = vec![(Uuid::nil(), T0 - 8 * DAY_MS), (Uuid::max(), T0)];
        assert!(why(&world).0, "too old, or another automation's");
        world.sent.push((Uuid::nil(), T0 - DAY_MS));
        assert!(why(&world).2.unwrap().contains("the automation's frequency cap"));
        world.sent = vec![(Uuid::max(), T0)];
        world.settings.frequency_cap = Some(Cap { messages: 1, days: 1 });
        assert!(why(&world).2.unwrap().contains("the brand's frequency cap"));
        world.settings.frequency_cap = None;
        world.facts.consents.clear();
        assert!(why(&world).2.unwrap().contains("not consented"));
        // An address that only a public key stated gets mail under a consent for it, and where the brand asks for no more.
        world.facts.trusted.clear();
        assert!(why(&world).2.unwrap().contains("the address comes from a public key only"));
        world.facts.consents.push(StoredConsent {
            channel: "email".into(),
            state: "subscribed".into(),
            level: None,
            at: from_ms(T0),
            sequence: 0,
            message_id: "form".into(),
            address: Some("ada@example.com".into()),
            source: Source::Public,
        });
        assert!(why(&world).0);
        world.settings.confirm_addresses = true;
        assert!(why(&world).2.unwrap().contains("confirmed"));
        world.facts.identifiers.clear();
        assert!(why(&world).2.unwrap().contains("no e-mail address"));
        assert_eq!(why(&world).1, Status::Done);
    }

    #[test]
    fn a_customer_comes_in_again_as_the_rule_says() {
        let with = |reentry: serde_json::Value| plan(json!([mail()]), json!({"reentry": reentry}));
        let live = Past { status: Status::Waiting, started_ms: T0 };
        let over = Past { status: Status::Done, started_ms: T0 };
        let now = from_ms(T0 + 60 * MIN);
        let enters = |plan: &Plan, past: &[Past]| may_enter(plan, past, now).is_ok();
        let (once, after_end) = (with(json!({"mode": "once"})), with(json!({})));
        let (always, late) =
            (with(json!({"mode": "always"})), with(json!({"mode": "always", "after": {"days": 1}})));
        assert!(enters(&once, &[]) && !enters(&once, &[over]));
        assert!(enters(&after_end, &[over]) && !enters(&after_end, &[over, live]));
        assert!(enters(&always, &[live]) && !enters(&late, &[over]));
    }
}
