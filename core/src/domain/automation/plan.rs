//! A definition that was checked, as a list of nodes that a run goes through.

use std::sync::Arc;

use super::definition::{Action, Definition, EventMatch, Step, Trigger};
use super::expression::{Expression, Scope, Written};
use super::rendering;
use crate::domain::event::Rejection;
use crate::domain::profile::MAX_TRAIT_BYTES;
use crate::domain::settings::BrandSettings;

/// Most steps of an automation, with those of its branches.
pub const MAX_STEPS: usize = 50;
/// How deep branches may be nested.
pub const MAX_DEPTH: usize = 8;
/// The longest wait, in days.
pub const MAX_WAIT_DAYS: i64 = 182;
/// Most events that end runs.
pub const MAX_CANCEL_ON: usize = 20;
/// The longest name, in characters.
pub const MAX_NAME_CHARS: usize = 200;
/// The largest definition, in bytes of JSON.
pub const MAX_BYTES: usize = 128 * 1024;
/// The longest tag, in characters.
pub const MAX_TAG_CHARS: usize = 60;
pub(super) const DAY_MS: i64 = 86_400_000;

/// An event that is looked for.
#[derive(Clone, Debug)]
pub struct Match {
    pub event: String,
    /// What else must hold.
    pub condition: Option<Arc<Expression>>,
    /// Whether a trusted source must tell it.
    pub trusted: bool,
}

/// What a node does. Places are indices of nodes; `None` is the end.
#[derive(Clone, Debug)]
pub enum Op {
    /// Waits so many milliseconds.
    Wait(i64),
    /// Waits for an event, at most so many milliseconds.
    WaitUntil {
        event: Match,
        /// How long at most.
        ms: i64,
        /// Where it goes on when it came.
        came: Option<usize>,
    },
    /// Goes one of two ways.
    Branch {
        condition: Arc<Expression>,
        /// Where it goes on when that holds.
        then: Option<usize>,
    },
    Act(Action),
    Exit,
}

#[derive(Clone, Debug)]
pub struct Node {
    /// Where it stands in the definition, like `2.then.1`: counted from 1.
    pub path: String,
    pub op: Op,
    /// Where it goes on.
    pub next: Option<usize>,
}

/// A definition that was checked.
#[derive(Clone, Debug)]
pub struct Plan {
    /// As it was written.
    pub definition: Definition,
    /// For whom it starts.
    pub condition: Option<Arc<Expression>>,
    /// What ends its runs.
    pub cancel_on: Vec<Match>,
    pub nodes: Vec<Node>,
    pub first: Option<usize>,
}

fn wrong(message: String) -> Rejection {
    Rejection::new("invalid_automation", message)
}

impl Plan {
    /// Checks a definition.
    ///
    /// # Errors
    /// `invalid_automation` or `invalid_expression`, which say what is wrong, where, and what would be right.
    pub fn of(definition: &Definition) -> Result<Self, Rejection> {
        Self::written(definition, Written::Now)
    }

    /// The same, of one that may have been written for an older version.
    ///
    /// # Errors
    /// As [`Plan::of`].
    pub fn written(definition: &Definition, written: Written) -> Result<Self, Rejection> {
        let size = serde_json::to_vec(definition).map_or(0, |json| json.len());
        if size > MAX_BYTES {
            return Err(wrong(format!("the automation has {size} bytes; at most {MAX_BYTES} are taken")));
        }
        name("name", &definition.name, MAX_NAME_CHARS)?;
        let scope = match &definition.trigger {
            Trigger::Event { event, .. } => {
                name("trigger.event", event, MAX_NAME_CHARS)?;
                Scope::Event
            }
            Trigger::SegmentEnter { segment } | Trigger::SegmentLeave { segment } => {
                name("trigger.segment", segment, MAX_NAME_CHARS)?;
                Scope::Customer
            }
            Trigger::Schedule { segment, at, .. } => {
                name("trigger.segment", segment, MAX_NAME_CHARS)?;
                if super::quiet::hour(at).is_none() {
                    return Err(wrong(format!("trigger.at is {at:?}; it must be a time of day, like 09:00")));
                }
                Scope::Customer
            }
        };
        let condition = optional("", definition.condition.as_deref(), (scope, written))?;
        if definition.cancel_on.len() > MAX_CANCEL_ON {
            return Err(wrong(format!("cancel_on has more than {MAX_CANCEL_ON} events")));
        }
        let cancel_on = definition
            .cancel_on
            .iter()
            .enumerate()
            .map(|(at, EventMatch { event, condition, trusted })| {
                matching(&format!("cancel_on {}", at + 1), event, condition.as_deref(), *trusted, written)
            })
            .collect::<Result<_, _>>()?;
        span("reentry.after", definition.reentry.after.ms(), true)?;
        if definition.frequency_cap.is_some_and(|cap| cap.messages == 0 || cap.days == 0 || cap.days > 365) {
            return Err(wrong("frequency_cap needs at least 1 message, and 1 to 365 days".to_owned()));
        }
        if definition.steps.is_empty() {
            return Err(wrong("an automation needs at least one step".to_owned()));
        }
        let mut plan =
            Self { definition: definition.clone(), condition, cancel_on, nodes: Vec::new(), first: None };
        if let Trigger::Event { event, .. } = &definition.trigger
            && emitted(&definition.steps).contains(&event.as_str())
        {
            return Err(wrong(format!(
                "a step makes the event {event:?}, which would start the automation again without end"
            )));
        }
        plan.first = plan.lay(&definition.steps, "", None, (scope, written), 0)?;
        Ok(plan)
    }

    /// From when on marketing counts, in milliseconds since 1970: as far back as the automation's frequency cap or its brand's looks.
    /// `None` where there is no cap.
    pub fn counts_since(&self, settings: &BrandSettings, now_ms: i64) -> Option<i64> {
        let caps = [self.definition.frequency_cap, settings.frequency_cap];
        caps.into_iter().flatten().map(|cap| now_ms - i64::from(cap.days) * DAY_MS).min()
    }

    /// Lays out steps that lead to `after`; answers where they begin.
    fn lay(
        &mut self,
        steps: &[Step],
        before: &str,
        after: Option<usize>,
        (scope, written): (Scope, Written),
        depth: usize,
    ) -> Result<Option<usize>, Rejection> {
        if depth > MAX_DEPTH {
            return Err(wrong(format!("steps are nested deeper than {MAX_DEPTH}")));
        }
        let mut next = after;
        for (at, step) in steps.iter().enumerate().rev() {
            let path = format!("{before}{}", at + 1);
            let named = format!("step {path}");
            let side = |plan: &mut Self, steps: &[Step], name: &str| {
                plan.lay(steps, &format!("{path}.{name}."), next, (scope, written), depth + 1)
            };
            let (op, leads) = match step {
                Step::Wait { span: wait } => {
                    span(&named, wait.ms(), false)?;
                    (Op::Wait(wait.ms()), next)
                }
                Step::WaitUntil { event, condition, trusted, within, then, otherwise } => {
                    span(&named, within.ms(), false)?;
                    let event = matching(&named, event, condition.as_deref(), *trusted, written)?;
                    let came = side(self, then, "then")?;
                    let not = side(self, otherwise, "otherwise")?;
                    (Op::WaitUntil { event, ms: within.ms(), came }, not)
                }
                Step::Branch { condition, then, otherwise } => {
                    let condition = expression(&named, condition, (scope, written))?;
                    let then = side(self, then, "then")?;
                    let not = side(self, otherwise, "otherwise")?;
                    (Op::Branch { condition, then }, not)
                }
                Step::Exit => (Op::Exit, None),
                Step::Act(action) => {
                    check(&named, action, written)?;
                    (Op::Act(action.clone()), next)
                }
            };
            self.nodes.push(Node { path, op, next: leads });
            if self.nodes.len() > MAX_STEPS {
                return Err(wrong(format!("there are more than {MAX_STEPS} steps")));
            }
            next = Some(self.nodes.len() - 1);
        }
        Ok(next)
    }

    /// The names of events that may end a run.
    pub fn cancelling(&self) -> impl Iterator<Item = &str> {
        self.cancel_on.iter().map(|event| event.event.as_str())
    }

    /// The names of events that runs wait for.
    pub fn awaited(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter_map(|node| match &node.op {
            Op::WaitUntil { event, .. } => Some(event.event.as_str()),
            _ => None,
        })
    }

    /// The expressions that its runs may ask.
    pub fn expressions(&self) -> impl Iterator<Item = &Arc<Expression>> {
        let nodes = self.nodes.iter().filter_map(|node| match &node.op {
            Op::Branch { condition, .. } => Some(condition),
            Op::WaitUntil { event, .. } => event.condition.as_ref(),
            _ => None,
        });
        nodes.chain(&self.condition).chain(self.cancel_on.iter().filter_map(|event| event.condition.as_ref()))
    }
}

/// The names of the events that steps make.
fn emitted(steps: &[Step]) -> Vec<&str> {
    let mut names = Vec::new();
    for step in steps {
        match step {
            Step::Act(Action::EmitEvent { event, .. }) => names.push(event.as_str()),
            Step::WaitUntil { then, otherwise, .. } | Step::Branch { then, otherwise, .. } => {
                names.extend(emitted(then));
                names.extend(emitted(otherwise));
            }
            _ => {}
        }
    }
    names
}

fn name(what: &str, text: &str, most: usize) -> Result<(), Rejection> {
    if text.trim().is_empty() || text.chars().count() > most || text.contains('\0') {
        return Err(wrong(format!("{what} is {text:?}; it needs 1 to {most} characters")));
    }
    Ok(())
}

fn span(what: &str, ms: i64, may_be_nothing: bool) -> Result<(), Rejection> {
    if (ms == 0 && !may_be_nothing) || ms > MAX_WAIT_DAYS * DAY_MS {
        return Err(wrong(format!(
            "{what} waits {} s; it may wait from 1 s to {MAX_WAIT_DAYS} days, written like {{\"hours\": 1}}",
            ms / 1000
        )));
    }
    Ok(())
}

fn expression(
    what: &str,
    text: &str,
    (scope, written): (Scope, Written),
) -> Result<Arc<Expression>, Rejection> {
    Expression::parse_as(text, scope, written).map_err(|error| {
        let what = if what.is_empty() { "condition".to_owned() } else { format!("{what}, condition") };
        Rejection::new(error.code, format!("{what}: {}", error.message))
    })
}

fn optional(
    what: &str,
    text: Option<&str>,
    read: (Scope, Written),
) -> Result<Option<Arc<Expression>>, Rejection> {
    text.map(|text| expression(what, text, read)).transpose()
}

fn matching(
    what: &str,
    event: &str,
    condition: Option<&str>,
    trusted: bool,
    written: Written,
) -> Result<Match, Rejection> {
    name(&format!("{what}, event"), event, MAX_NAME_CHARS)?;
    Ok(Match {
        event: event.to_owned(),
        condition: optional(what, condition, (Scope::Event, written))?,
        trusted,
    })
}

/// Whether a URL may be posted to, as far as its text says.
///
/// # Errors
/// `invalid_automation`, which says what would be right.
pub fn check_url(what: &str, url: &str) -> Result<(), Rejection> {
    let parsed = url::Url::parse(url)
        .map_err(|error| wrong(format!("{what}: the URL {url:?} cannot be read: {error}")))?;
    if !["http", "https"].contains(&parsed.scheme()) || parsed.host_str().is_none() {
        return Err(wrong(format!(
            "{what}: the URL {url:?} must begin with https:// (or http://) and name a host"
        )));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(wrong(format!("{what}: the URL must not have a user or a password in it")));
    }
    Ok(())
}

fn check(what: &str, action: &Action, written: Written) -> Result<(), Rejection> {
    let more: &[&str] = if matches!(action, Action::Confirm { .. }) { &["confirm_url"] } else { &[] };
    let template = |field: &str, text: &str, escape| {
        rendering::check(text, escape, more, written)
            .map_err(|error| wrong(format!("{what}, {field}: {error}")))
    };
    match action {
        Action::Webhook { url, data, .. } => {
            check_url(what, url)?;
            data.as_ref().map_or(Ok(()), |data| {
                rendering::check_json(data, written).map_err(|e| wrong(format!("{what}, data: {e}")))
            })
        }
        Action::Confirm { text, .. } if !text.contains("confirm_url") => {
            Err(wrong(format!("{what}, text: it needs the link, written {{{{ confirm_url }}}}")))
        }
        Action::Email { subject, .. } | Action::Confirm { subject, .. } if subject.trim().is_empty() => {
            Err(wrong(format!("{what}, subject: it is empty")))
        }
        Action::Email { subject, text, html, .. } | Action::Confirm { subject, text, html } => {
            template("subject", subject, false)?;
            template("text", text, false)?;
            html.as_deref().map_or(Ok(()), |html| template("html", html, true))
        }
        Action::Chat { url, text } => {
            check_url(what, url)?;
            template("text", text, false)
        }
        Action::SetTrait { name: own, value } => {
            name(&format!("{what}, name"), own, MAX_NAME_CHARS)?;
            if serde_json::to_vec(value).map_or(0, |json| json.len()) > MAX_TRAIT_BYTES {
                return Err(wrong(format!("{what}: a trait has at most {MAX_TRAIT_BYTES} bytes")));
            }
            rendering::check_json(value, written).map_err(|error| wrong(format!("{what}, value: {error}")))
        }
        Action::AddTag { tag } => name(&format!("{what}, tag"), tag, MAX_TAG_CHARS),
        Action::EmitEvent { event, properties } => {
            name(&format!("{what}, event"), event, MAX_NAME_CHARS)?;
            if !properties.is_object() && !properties.is_null() {
                return Err(wrong(format!("{what}: properties must be an object")));
            }
            rendering::check_json(properties, written)
                .map_err(|error| wrong(format!("{what}, properties: {error}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan(json: serde_json::Value) -> Result<Plan, Rejection> {
        Plan::of(&serde_json::from_value(json).unwrap())
    }

    fn with_steps(steps: serde_json::Value) -> Result<Plan, Rejection> {
        plan(json!({"name": "n", "trigger": {"on": "event", "event": "E"}, "steps": steps}))
    }

    #[test]
    fn steps_and_branches_lead_to_what_follows_them() {
        let plan = with_steps(json!([
            {"do": "wait", "for": {"minutes": 1}},
            {"do": "branch", "condition": "orders.count > 0", "then": [{"do": "add_tag", "tag": "a"}, {"do": "exit"}],
             "otherwise": [{"do": "add_tag", "tag": "b"}]},
            {"do": "wait_until", "event": "X", "within": {"days": 1}, "then": [{"do": "add_tag", "tag": "c"}]},
            {"do": "emit_event", "event": "Done"},
        ]))
        .unwrap();
        // Every way through, by the paths of its nodes.
        fn ways(plan: &Plan, at: Option<usize>) -> Vec<String> {
            let Some(at) = at else { return vec![String::new()] };
            let node = &plan.nodes[at];
            let mut to = vec![node.next];
            match &node.op {
                Op::Branch { then, .. } => to.push(*then),
                Op::WaitUntil { came, .. } => to.push(*came),
                _ => {}
            }
            to.into_iter().flat_map(|to| ways(plan, to)).map(|rest| format!("{} {rest}", node.path)).collect()
        }
        let mut ways = ways(&plan, plan.first);
        ways.sort();
        assert_eq!(
            ways,
            ["1 2 2.otherwise.1 3 3.then.1 4 ", "1 2 2.otherwise.1 3 4 ", "1 2 2.then.1 2.then.2 "]
        );
        assert_eq!(plan.awaited().collect::<Vec<_>>(), ["X"]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_step() {
        for (steps, says) in [
            (json!([]), "at least one step"),
            (json!([{"do": "wait", "for": {}}]), "step 1 waits 0 s"),
            (json!([{"do": "wait", "for": {"days": 183}}]), "182 days"),
            (
                json!([{"do": "exit"}, {"do": "branch", "condition": "nope > 1"}]),
                "step 2, condition: line 1, column 1",
            ),
            (json!([{"do": "webhook", "url": "ftp://x"}]), "must begin with https://"),
            (json!([{"do": "webhook", "url": "https://u:p@x"}]), "must not have a user"),
            (json!([{"do": "email", "subject": "{{ oops", "text": ""}]), "step 1, subject:"),
            (json!([{"do": "emit_event", "event": "F", "properties": [1]}]), "must be an object"),
            (
                json!([{"do": "branch", "condition": "true", "then": [{"do": "emit_event", "event": "E"}]}]),
                "without end",
            ),
        ] {
            let message = with_steps(steps).unwrap_err().message;
            assert!(message.contains(says), "{message}");
        }
        let many = vec![json!({"do": "exit"}); 51];
        assert!(with_steps(json!(many)).unwrap_err().message.contains("more than 50"));
        let refused = serde_json::from_value::<Definition>(
            json!({"name": "n", "trigger": {"on": "event", "event": "E"}, "step": []}),
        );
        assert!(refused.is_err(), "a misspelt field is not passed over");
    }
}
