//! How a run advances: from step to step, through waits, branches and the gates before actions.

use super::{DAY_MS, Doing, MAX_DAYS, Run, Situation, Status, ZONE_TRAIT};
use uuid::Uuid;

use crate::domain::automation::definition::{Action, Cap};
use crate::domain::automation::facts::{Facts, Trigger};
use crate::domain::automation::plan::{Match, Node, Op, Plan};
use crate::domain::automation::quiet::{QuietHours, zone};
use crate::domain::customer360::StoredEvent;
use crate::domain::event::Channel;
use crate::domain::settings::BrandSettings;
use crate::domain::time::{self, Timestamp, from_ms};

impl Run {
    /// Goes on as far as it can. Answers what is to be done first, if it stands at an action.
    pub fn advance(&mut self, s: &Situation<'_>) -> Option<Doing> {
        let now_ms = s.now.timestamp_millis();
        self.due_ms = None;
        if let Some(event) = self.cancelling(s) {
            let why = format!("{} came ({})", event.name.as_deref().unwrap_or("an event"), event.message_id);
            self.end(Status::Cancelled, now_ms, "cancelled", Some(why));
            return None;
        }
        if now_ms - self.started_ms > MAX_DAYS * DAY_MS {
            self.end(
                Status::Cancelled,
                now_ms,
                "cancelled",
                Some(format!("it is older than {MAX_DAYS} days")),
            );
            return None;
        }
        while let Some(at) = self.state.at {
            let Some(node) = s.plan.nodes.get(at) else { break };
            let advances = match &node.op {
                Op::Wait(ms) => self.pass_wait(node, *ms, now_ms),
                Op::WaitUntil { event, ms, came } => self.pass_event(node, (event, *ms, *came), s),
                Op::Branch { condition, then } => {
                    let verdict = condition.holds(s.facts, s.trigger, s.settings, s.now);
                    let (to, what) = if verdict.holds { (*then, "then") } else { (node.next, "otherwise") };
                    self.go(to, now_ms, Some(node.path.clone()), what, verdict.why);
                    true
                }
                Op::Exit => {
                    let why = "the automation ends here".to_owned();
                    self.go(None, now_ms, Some(node.path.clone()), "done", Some(why));
                    true
                }
                Op::Act(action) => match self.gate(action, s) {
                    Gate::Open => {
                        self.status = Status::Queued;
                        return Some(Doing { node: at, action: action.clone() });
                    }
                    Gate::Skip(why) => {
                        self.go(node.next, now_ms, Some(node.path.clone()), "skipped", Some(why));
                        true
                    }
                    Gate::Wait(until, why) => {
                        let until_ms = until.timestamp_millis();
                        self.wait(until_ms, now_ms, Some(node.path.clone()), "waiting", Some(why));
                        false
                    }
                },
            };
            if !advances {
                return None;
            }
        }
        self.end(Status::Done, now_ms, "ended", None);
        None
    }

    /// Passes a wait whose time is over. Returns whether it is.
    fn pass_wait(&mut self, node: &Node, ms: i64, now_ms: i64) -> bool {
        let due = self.state.since_ms + ms;
        let step = Some(node.path.clone());
        if now_ms < due {
            self.wait(due, now_ms, step, "waiting", None);
            return false;
        }
        self.state.since_ms = due;
        self.state.heard_ms = due;
        let how = format!("waited until {}", time::format(from_ms(due)));
        self.go(node.next, now_ms, step, "done", Some(how));
        true
    }

    /// Passes a wait for an event that came, or whose time is over. Returns whether one of them holds.
    fn pass_event(
        &mut self,
        node: &Node,
        (event, ms, came): (&Match, i64, Option<usize>),
        s: &Situation<'_>,
    ) -> bool {
        let now_ms = s.now.timestamp_millis();
        let due = self.state.since_ms + ms;
        let step = Some(node.path.clone());
        let found = s.events.iter().find(|found| {
            (self.state.heard_ms..=due).contains(&found.timestamp.timestamp_millis())
                && self.is_meant(event, found, s)
        });
        if let Some(found) = found {
            self.state.since_ms = found.timestamp.timestamp_millis();
            self.state.heard_ms = self.state.since_ms;
            let why = format!("{} came ({})", event.event, found.message_id);
            self.go(came, now_ms, step, "then", Some(why));
            return true;
        }
        if now_ms < due {
            self.wait(due, now_ms, step, "waiting", Some(format!("for {}", event.event)));
            return false;
        }
        self.state.since_ms = due;
        self.state.heard_ms = due;
        let why = format!("no {} until {}", event.event, time::format(from_ms(due)));
        self.go(node.next, now_ms, step, "otherwise", Some(why));
        true
    }

    /// The action at `node` was done: it goes on behind it.
    pub fn done(&mut self, plan: &Plan, node: usize, began_ms: i64, now_ms: i64, how: Option<String>) {
        let Some(at) = plan.nodes.get(node) else { return };
        // What comes after an action waits from then on; what it brought about may have come while it was under way.
        self.state.since_ms = self.state.since_ms.max(now_ms);
        self.state.heard_ms = self.state.heard_ms.max(began_ms);
        self.go(at.next, now_ms, Some(at.path.clone()), "done", how);
    }

    /// The action at `node` is not to be done: it goes on behind it.
    pub fn skipped(&mut self, plan: &Plan, node: usize, now_ms: i64, why: String) {
        let Some(at) = plan.nodes.get(node) else { return };
        self.go(at.next, now_ms, Some(at.path.clone()), "skipped", Some(why));
    }

    /// The action at `node` is put off: its destination is unavailable, or gets no more at once.
    pub fn postponed(&mut self, plan: &Plan, node: usize, until_ms: i64, now_ms: i64, why: String) {
        let step = plan.nodes.get(node).map(|node| node.path.clone());
        self.wait(until_ms, now_ms, step, "postponed", Some(why));
    }

    /// The action at `node` cannot be done.
    pub fn failed(&mut self, plan: &Plan, node: usize, now_ms: i64, why: String) {
        let step = plan.nodes.get(node).map(|node| node.path.clone());
        self.status = Status::Failed;
        self.due_ms = None;
        self.note(now_ms, step, "failed", Some(why));
    }

    fn go(&mut self, to: Option<usize>, now_ms: i64, step: Option<String>, what: &str, why: Option<String>) {
        self.state.at = to;
        self.note(now_ms, step, what, why);
    }

    fn wait(&mut self, until_ms: i64, now_ms: i64, step: Option<String>, what: &str, why: Option<String>) {
        self.status = Status::Waiting;
        self.due_ms = Some(until_ms);
        let until = format!("until {}", time::format(from_ms(until_ms)));
        let why = why.map_or(until.clone(), |why| format!("{why}, {until}"));
        // Who is woken too soon, by an event, and goes on waiting has nothing new to say.
        let stated = self
            .state
            .log
            .last()
            .is_some_and(|e| e.step == step && e.what == what && e.why.as_ref() == Some(&why));
        if stated {
            return;
        }
        // Put off again and again, it says so once.
        if what == "postponed" && self.state.log.last().is_some_and(|e| e.step == step && e.what == what) {
            self.state.log.pop();
        }
        self.note(now_ms, step, what, Some(why));
    }

    /// The event that ends it, if one came since it was triggered.
    fn cancelling<'e>(&self, s: &Situation<'e>) -> Option<&'e StoredEvent> {
        s.events.iter().find(|event| s.plan.cancel_on.iter().any(|ending| self.is_meant(ending, event, s)))
    }

    fn is_meant(&self, wanted: &Match, event: &StoredEvent, s: &Situation<'_>) -> bool {
        event.name.as_deref() == Some(&wanted.event)
            && (!wanted.trusted || event.source.is_trusted())
            && self.state.message_id.as_ref() != Some(&event.message_id)
            && wanted.condition.as_ref().is_none_or(|condition| {
                condition.holds(s.facts, Some(&Trigger(event.clone())), s.settings, s.now).holds
            })
    }

    /// Whether an action may be done now.
    fn gate(&self, action: &Action, s: &Situation<'_>) -> Gate {
        let skip = |why: &str| Gate::Skip(why.to_owned());
        match action {
            Action::Email { .. } if s.facts.email().is_none() => {
                return skip("the customer has no e-mail address");
            }
            Action::Email { .. } if !s.facts.address(Channel::Email).is_some_and(|a| a.trusted) => {
                if !s.facts.allows(Channel::Email) {
                    return skip(
                        "the address comes from a public key only, and its owner has not consented to e-mail",
                    );
                }
                if s.settings.confirm_addresses {
                    return skip(
                        "the address comes from a public key only, and its owner has not confirmed it",
                    );
                }
            }
            Action::Email { marketing: true, .. } if !s.facts.allows(Channel::Email) => {
                return skip("the customer has not consented to marketing by e-mail");
            }
            Action::Confirm { .. } => {
                let address = s.facts.address(Channel::Email);
                let Some(address) = address else { return skip("the customer has no e-mail address") };
                let asked = s.facts.consent(Channel::Email);
                if address.trusted {
                    return skip("the address needs no confirmation: it comes from a trusted source");
                }
                if !asked.is_some_and(|consent| consent.is_given() || consent.state == "pending") {
                    return skip("nobody has asked for e-mail at the address");
                }
            }
            Action::Webhook { consent: Some(channel), .. } if !s.facts.allows(*channel) => {
                return skip(&format!("the customer has not consented to marketing by {}", channel.as_str()));
            }
            _ => {}
        }
        if !action.is_marketing() {
            return Gate::Open;
        }
        let own = s.plan.definition.frequency_cap;
        for (cap, of) in [(own, Some(self.automation)), (s.settings.frequency_cap, None)] {
            let Some(cap) = cap else { continue };
            if reached(cap, of, s) {
                let whose = if of.is_some() { "the automation's" } else { "the brand's" };
                let Cap { messages, days } = cap;
                return Gate::Skip(format!("{whose} frequency cap is reached: {messages} in {days} days"));
            }
        }
        let quiet = s.settings.quiet_hours.as_ref();
        if let Some(until) =
            quiet.and_then(|quiet: &QuietHours| quiet.until(s.now, place(s.facts, s.settings)))
        {
            return Gate::Wait(until, "these are quiet hours".to_owned());
        }
        Gate::Open
    }
}

enum Gate {
    Open,
    Skip(String),
    Wait(Timestamp, String),
}

fn reached(cap: Cap, of: Option<Uuid>, s: &Situation<'_>) -> bool {
    let from = s.now.timestamp_millis() - i64::from(cap.days) * DAY_MS;
    let counted =
        s.sent.iter().filter(|(automation, at)| *at > from && of.is_none_or(|own| own == *automation));
    counted.count() >= cap.messages as usize
}

/// The customer's time zone, or the brand's, or UTC.
fn place(facts: &Facts, settings: &BrandSettings) -> chrono_tz::Tz {
    let own = facts.known_trait(ZONE_TRAIT).and_then(|value| value.as_str()).and_then(zone);
    own.or_else(|| settings.timezone.as_deref().and_then(zone)).unwrap_or(chrono_tz::UTC)
}
