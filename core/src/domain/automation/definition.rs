//! An automation as people write it.

use crate::domain::json::is_default;
use std::time::Duration;

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// An automation: what starts it, for whom, and what it does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// What it is called.
    pub name: String,
    /// Free text for people; nothing is made of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What starts a run.
    pub trigger: Trigger,
    /// Whom it starts for: a CEL expression over the customer and, where an event starts it, that event. Everybody, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Events of the customer, since the trigger, that end a run: the abandoned cart was bought.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cancel_on: Vec<EventMatch>,
    /// Whether a customer may come in again.
    #[serde(default)]
    pub reentry: Reentry,
    /// How many marketing messages of this automation a customer gets at most; the brand's own cap holds besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frequency_cap: Option<Cap>,
    /// What it does, in order.
    #[serde(deserialize_with = "first_steps")]
    pub steps: Vec<Step>,
}

/// What starts a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "on", rename_all = "snake_case", deny_unknown_fields)]
pub enum Trigger {
    /// An event of this name. One that is more than a day old starts nothing.
    Event {
        /// The event's name, like `Checkout Started`.
        event: String,
        /// Whether only Shopify, a secret key or an automation may tell it: whoever has the public key can tell any event.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        trusted: bool,
    },
    /// The customer comes into a segment.
    SegmentEnter {
        /// The name of a segment of the brand.
        segment: String,
    },
    /// The customer goes out of a segment.
    SegmentLeave {
        /// The name of a segment of the brand.
        segment: String,
    },
    /// A time of day, for everybody in a segment.
    Schedule {
        /// The segment whose members a run begins for.
        segment: String,
        /// When, in the brand's time zone, like `09:00`.
        at: String,
        /// On which days; on every day, if there are none.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        weekdays: Vec<Weekday>,
    },
}

/// A day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "they are what they are called")]
pub enum Weekday {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

impl From<Weekday> for chrono::Weekday {
    fn from(day: Weekday) -> Self {
        match day {
            Weekday::Monday => Self::Mon,
            Weekday::Tuesday => Self::Tue,
            Weekday::Wednesday => Self::Wed,
            Weekday::Thursday => Self::Thu,
            Weekday::Friday => Self::Fri,
            Weekday::Saturday => Self::Sat,
            Weekday::Sunday => Self::Sun,
        }
    }
}

/// An event by its name, and by what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object like {\"event\": \"Order Created\"}")]
pub struct EventMatch {
    /// The name of an event, as senders give it.
    pub event: String,
    /// What else must hold: a CEL expression over the customer and the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Whether only Shopify, a secret key or an automation may tell it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trusted: bool,
}

/// Whether a customer may come in again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object like {\"mode\": \"once\"}")]
pub struct Reentry {
    /// When a customer may start another run.
    #[serde(default)]
    pub mode: ReentryMode,
    /// At the earliest so long after the last run began.
    #[serde(default, skip_serializing_if = "Span::is_nothing")]
    pub after: Span,
}

/// When a customer may come in again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReentryMode {
    /// A customer has one run in all, and never another.
    Once,
    /// When the last run has ended.
    #[default]
    AfterEnd,
    /// A customer may have any number of runs, at the same time too.
    Always,
}

/// At most so many in so many days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object like {\"messages\": 1, \"days\": 7}")]
pub struct Cap {
    /// How many marketing messages.
    pub messages: u32,
    /// In how many days.
    pub days: u32,
}

/// A span of time: the sum of its parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "a time like {\"hours\": 1}, of days, hours, minutes and seconds"
)]
pub struct Span {
    /// Days of 24 hours.
    #[serde(skip_serializing_if = "is_default")]
    pub days: u32,
    /// Hours, added to the other parts.
    #[serde(skip_serializing_if = "is_default")]
    pub hours: u32,
    /// Minutes, added to the other parts.
    #[serde(skip_serializing_if = "is_default")]
    pub minutes: u32,
    /// Seconds, added to the other parts.
    #[serde(skip_serializing_if = "is_default")]
    pub seconds: u32,
}

impl Span {
    pub fn ms(&self) -> i64 {
        let seconds =
            i64::from(self.days) * 86_400 + i64::from(self.hours) * 3600 + i64::from(self.minutes) * 60;
        (seconds + i64::from(self.seconds)) * 1000
    }

    /// Whether it is no time at all.
    pub fn is_nothing(&self) -> bool {
        self.ms() == 0
    }

    pub fn duration(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.ms()).unwrap_or_default())
    }
}

/// One step of an automation; steps are executed in their order.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Waits for a time before the next step.
    Wait {
        /// How long to wait, counted from the end of the step before.
        #[serde(rename = "for")]
        span: Span,
    },
    /// Waits until an event comes, but not for ever.
    WaitUntil {
        /// The name of the event that is waited for.
        event: String,
        /// What else must hold of it: a CEL expression.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        condition: Option<String>,
        /// Whether only Shopify, a secret key or an automation may tell it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        trusted: bool,
        /// How long at most.
        within: Span,
        /// What is done when it came.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[schema(no_recursion)]
        then: Vec<Step>,
        /// What is done when it did not.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[schema(no_recursion)]
        otherwise: Vec<Step>,
    },
    /// Goes one of two ways.
    Branch {
        /// A CEL expression over the customer and the trigger.
        condition: String,
        /// What is done when it holds.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[schema(no_recursion)]
        then: Vec<Step>,
        /// What is done when it does not.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[schema(no_recursion)]
        otherwise: Vec<Step>,
    },
    /// Ends the run: later steps are not executed.
    Exit,
    /// Does something for the customer, once for each run.
    #[serde(untagged)]
    Act(Action),
}

/// The steps that are no actions, for reading: of an enum with an untagged part serde says only that nothing of it fits.
#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
enum Control {
    Wait {
        #[serde(rename = "for")]
        span: Span,
    },
    WaitUntil {
        event: String,
        #[serde(default)]
        condition: Option<String>,
        #[serde(default)]
        trusted: bool,
        within: Span,
        #[serde(default, deserialize_with = "then")]
        then: Vec<Step>,
        #[serde(default, deserialize_with = "otherwise")]
        otherwise: Vec<Step>,
    },
    Branch {
        condition: String,
        #[serde(default, deserialize_with = "then")]
        then: Vec<Step>,
        #[serde(default, deserialize_with = "otherwise")]
        otherwise: Vec<Step>,
    },
    Exit {},
}

impl From<Control> for Step {
    fn from(control: Control) -> Self {
        match control {
            Control::Wait { span } => Self::Wait { span },
            Control::WaitUntil { event, condition, trusted, within, then, otherwise } => {
                Self::WaitUntil { event, condition, trusted, within, then, otherwise }
            }
            Control::Branch { condition, then, otherwise } => Self::Branch { condition, then, otherwise },
            Control::Exit {} => Self::Exit,
        }
    }
}

const CONTROL: [&str; 4] = ["wait", "wait_until", "branch", "exit"];

/// Reads steps one by one, so that an error names the step and the field: serde would say of a wrong one only that it is none of them all.
/// What is said begins with where the step is, from `under` on.
fn read_steps<'de, D: Deserializer<'de>>(given: D, under: &str) -> Result<Vec<Step>, D::Error> {
    let steps = Vec::<Value>::deserialize(given)?;
    let read = |(at, step): (usize, Value)| {
        read_step(step).map_err(|wrong| Error::custom(format!("{under}{}{wrong}", at + 1)))
    };
    steps.into_iter().enumerate().map(read).collect()
}

fn first_steps<'de, D: Deserializer<'de>>(given: D) -> Result<Vec<Step>, D::Error> {
    read_steps(given, "step ")
}

fn then<'de, D: Deserializer<'de>>(given: D) -> Result<Vec<Step>, D::Error> {
    read_steps(given, ".then.")
}

fn otherwise<'de, D: Deserializer<'de>>(given: D) -> Result<Vec<Step>, D::Error> {
    read_steps(given, ".otherwise.")
}

fn read_step(step: Value) -> Result<Step, String> {
    let kinds = || CONTROL.iter().chain(&Action::KINDS).copied().collect::<Vec<_>>().join(", ");
    let Value::Object(fields) = step else {
        return Err(": it must be an object, like {\"do\": \"exit\"}".to_owned());
    };
    let kind = match fields.get("do") {
        Some(Value::String(kind)) => kind.clone(),
        Some(other) => return Err(format!(": \"do\" is {other}; it must be one of {}", kinds())),
        None => return Err(format!(": \"do\" is missing; it is one of {}", kinds())),
    };
    match &*kind {
        control if CONTROL.contains(&control) => of_kind::<Control>(&kind, fields).map(Step::from),
        action if Action::KINDS.contains(&action) => of_kind(&kind, fields).map(Step::Act),
        _ => Err(format!(": there is no step {kind:?}; \"do\" must be one of {}", kinds())),
    }
}

/// The step, or what is wrong with it and in which field.
fn of_kind<T: DeserializeOwned>(kind: &str, fields: Map<String, Value>) -> Result<T, String> {
    let read =
        |fields: Map<String, Value>| serde_json::from_value::<T>(fields.into()).map_err(|e| e.to_string());
    let wrong = match read(fields.clone()) {
        Ok(step) => return Ok(step),
        // Of a step within this one.
        Err(wrong) if wrong.starts_with(".then.") || wrong.starts_with(".otherwise.") => return Err(wrong),
        Err(wrong) => wrong,
    };
    // The field without which something else is wrong, or nothing.
    let to_blame = fields.keys().find(|field| {
        let mut others = fields.clone();
        others.remove(*field);
        *field != "do" && !wrong.starts_with("missing field") && read(others).err().as_ref() != Some(&wrong)
    });
    let field = to_blame.map(|field| format!(", {field}")).unwrap_or_default();
    Err(format!(" ({kind}){field}: {wrong}"))
}

/// Something that is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Posts JSON to a URL, signed by the Standard Webhooks scheme.
    Webhook {
        /// The URL that is posted to.
        url: String,
        /// What is sent as `data.custom`: JSON whose texts are templates.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        data: Option<Value>,
        /// Whether it leads to marketing: then the frequency cap and quiet hours hold for it.
        #[serde(default)]
        marketing: bool,
        /// The consent that it needs besides: `email` or `sms`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        consent: Option<crate::domain::event::Channel>,
    },
    /// Sends an e-mail to the customer.
    Email {
        /// The subject, a template.
        subject: String,
        /// The plain text, a template.
        text: String,
        /// A template; what it inserts is escaped.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        html: Option<String>,
        /// Whether it is marketing: then it needs consent, has a link to unsubscribe, and the frequency cap and quiet hours
        /// hold for it. False only for what the customer has asked for.
        #[serde(default = "yes")]
        marketing: bool,
    },
    /// Asks whoever reads an e-mail address that only a public key stated whether it is theirs and whether they want marketing there
    /// (double opt-in). Only where the public key stated consent for it, too. The template's `confirm_url` is the link.
    Confirm {
        /// The subject, a template.
        subject: String,
        /// The plain text, a template.
        text: String,
        /// A template; what it inserts is escaped.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        html: Option<String>,
    },
    /// Posts `{"text": …}` to a chat's webhook.
    Chat {
        /// The URL that is posted to.
        url: String,
        /// The plain text, a template.
        text: String,
    },
    /// Sets a trait of the customer.
    SetTrait {
        /// The name of the trait.
        name: String,
        /// To what; null unsets it. Texts are templates.
        value: Value,
    },
    /// Gives the customer a tag.
    AddTag {
        /// The tag, as Customer360 lists it.
        tag: String,
    },
    /// Makes an event of the customer's.
    EmitEvent {
        /// The name of the event that is emitted.
        event: String,
        /// What it says. Texts are templates.
        #[serde(default, skip_serializing_if = "Value::is_null")]
        properties: Value,
    },
}

fn yes() -> bool {
    true
}

impl Action {
    pub const KINDS: [&str; 7] =
        ["webhook", "email", "confirm", "chat", "set_trait", "add_tag", "emit_event"];

    pub fn kind(&self) -> &'static str {
        match self {
            Self::Webhook { .. } => "webhook",
            Self::Email { .. } => "email",
            Self::Confirm { .. } => "confirm",
            Self::Chat { .. } => "chat",
            Self::SetTrait { .. } => "set_trait",
            Self::AddTag { .. } => "add_tag",
            Self::EmitEvent { .. } => "emit_event",
        }
    }

    /// Whether the frequency cap and quiet hours hold for it.
    pub fn is_marketing(&self) -> bool {
        match self {
            Self::Webhook { marketing, .. } | Self::Email { marketing, .. } => *marketing,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wrong(steps: Value) -> String {
        let definition = json!({"name": "n", "trigger": {"on": "event", "event": "E"}, "steps": steps});
        serde_json::from_value::<Definition>(definition).unwrap_err().to_string()
    }

    #[test]
    fn a_wrong_step_is_named_with_its_field_and_what_would_be_right() {
        for (steps, says) in [
            (
                json!([{"do": "delay"}]),
                "step 1: there is no step \"delay\"; \"do\" must be one of wait, wait_until,",
            ),
            (json!([{"for": {"hours": 1}}]), "step 1: \"do\" is missing; it is one of wait,"),
            (json!([{"do": 3}]), "step 1: \"do\" is 3;"),
            (json!(["exit"]), "step 1: it must be an object"),
            (
                json!([{"do": "exit"}, {"do": "wait", "for": "1h"}]),
                "step 2 (wait), for: invalid type: string \"1h\", expected a time like {\"hours\": 1}",
            ),
            (
                json!([{"do": "wait", "for": {"hour": 1}}]),
                "step 1 (wait), for: unknown field `hour`, expected one of `days`, `hours`",
            ),
            (
                json!([{"do": "wait", "for": {"hours": -1}}]),
                "step 1 (wait), for: invalid value: integer `-1`",
            ),
            (
                json!([{"do": "wait", "hours": 1}]),
                "step 1 (wait), hours: unknown field `hours`, expected `for`",
            ),
            (json!([{"do": "wait"}]), "step 1 (wait): missing field `for`"),
            (json!([{"do": "email", "subject": "Hi"}]), "step 1 (email): missing field `text`"),
            (
                json!([{"do": "email", "subject": "Hi", "text": 5}]),
                "step 1 (email), text: invalid type: integer `5`, expected a string",
            ),
            (
                json!([{"do": "branch", "if": "true"}]),
                "step 1 (branch), if: unknown field `if`, expected one of `condition`, `then`, `otherwise`",
            ),
            (
                json!([{"do": "set_trait", "trait": "a", "value": 1}]),
                "step 1 (set_trait), trait: unknown field `trait`, expected `name` or `value`",
            ),
            (json!([{"do": "exit", "until": 1}]), "step 1 (exit), until: unknown field `until`"),
            (
                json!([{"do": "branch", "condition": "true", "otherwise": [{"do": "exit"}, {"do": "branch", "condition": "true", "then": [{"do": "chat", "url": 1, "text": ""}]}]}]),
                "step 1.otherwise.2.then.1 (chat), url: invalid type: integer `1`, expected a string",
            ),
        ] {
            let message = wrong(steps);
            assert!(message.starts_with(says), "{message}");
        }
        assert!(wrong(json!({"do": "exit"})).contains("expected a sequence"));
    }

    #[test]
    fn every_kind_of_step_is_read_and_written() {
        let steps = json!([
            {"do": "wait", "for": {"minutes": 1}},
            {"do": "wait_until", "event": "E", "within": {"days": 1}, "then": [{"do": "exit"}]},
            {"do": "branch", "condition": "true", "then": [{"do": "add_tag", "tag": "a"}]},
            {"do": "webhook", "url": "https://x.example", "marketing": false},
            {"do": "email", "subject": "s", "text": "t", "marketing": true},
            {"do": "confirm", "subject": "s", "text": "t"},
            {"do": "chat", "url": "https://x.example", "text": "t"},
            {"do": "set_trait", "name": "n", "value": 1},
            {"do": "add_tag", "tag": "t"},
            {"do": "emit_event", "event": "e"},
            {"do": "exit"},
        ]);
        let definition = json!({"name": "n", "trigger": {"on": "event", "event": "E"}, "reentry": {"mode": "after_end"}, "steps": steps});
        let read: Definition = serde_json::from_value(definition.clone()).unwrap();
        assert_eq!(json!(read), definition);
        let acts = read.steps.iter().filter_map(|step| match step {
            Step::Act(action) => Some(action.kind()),
            _ => None,
        });
        assert_eq!(acts.collect::<Vec<_>>(), Action::KINDS);
    }
}
