//! An automation as people write it.

use crate::domain::json::is_default;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// An automation: what starts it, for whom, and what it does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// What it is called.
    pub name: String,
    /// For people.
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
        /// The segment's name.
        segment: String,
    },
    /// The customer goes out of a segment.
    SegmentLeave {
        /// The segment's name.
        segment: String,
    },
    /// A time of day, for everybody in a segment.
    Schedule {
        /// For whom.
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
#[serde(deny_unknown_fields)]
pub struct EventMatch {
    /// The event's name.
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
#[serde(deny_unknown_fields)]
pub struct Reentry {
    /// When.
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
    /// Never.
    Once,
    /// When the last run has ended.
    #[default]
    AfterEnd,
    /// At any time.
    Always,
}

/// At most so many in so many days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Cap {
    /// How many marketing messages.
    pub messages: u32,
    /// In how many days.
    pub days: u32,
}

/// A span of time: the sum of its parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Span {
    /// Days of 24 hours.
    #[serde(skip_serializing_if = "is_default")]
    pub days: u32,
    /// Hours.
    #[serde(skip_serializing_if = "is_default")]
    pub hours: u32,
    /// Minutes.
    #[serde(skip_serializing_if = "is_default")]
    pub minutes: u32,
    /// Seconds.
    #[serde(skip_serializing_if = "is_default")]
    pub seconds: u32,
}

impl Span {
    /// In milliseconds.
    pub fn ms(&self) -> i64 {
        let seconds =
            i64::from(self.days) * 86_400 + i64::from(self.hours) * 3600 + i64::from(self.minutes) * 60;
        (seconds + i64::from(self.seconds)) * 1000
    }

    /// Whether it is no time at all.
    pub fn is_nothing(&self) -> bool {
        self.ms() == 0
    }

    /// As time.
    pub fn duration(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.ms()).unwrap_or_default())
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Waits.
    Wait {
        /// How long.
        #[serde(rename = "for")]
        span: Span,
    },
    /// Waits until an event comes, but not for ever.
    WaitUntil {
        /// The event.
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
        /// A CEL expression.
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
    /// Ends the run.
    Exit,
    /// Does something.
    #[serde(untagged)]
    Act(Action),
}

/// Something that is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Posts JSON to a URL, signed by the Standard Webhooks scheme.
    Webhook {
        /// Where.
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
        /// A template.
        subject: String,
        /// A template.
        text: String,
        /// A template; what it inserts is escaped.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        html: Option<String>,
        /// Whether it is marketing: then it needs consent, has a link to unsubscribe, and the frequency cap and quiet hours
        /// hold for it. False only for what the customer has asked for.
        #[serde(default = "yes")]
        marketing: bool,
    },
    /// Asks whoever reads an e-mail address that only a public key told whether it is theirs and whether they want marketing there
    /// (double opt-in). Only where the public key told of consent for it, too. The template's `confirm_url` is the link.
    Confirm {
        /// A template.
        subject: String,
        /// A template.
        text: String,
        /// A template; what it inserts is escaped.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        html: Option<String>,
    },
    /// Posts `{"text": …}` to a chat's webhook.
    Chat {
        /// Where.
        url: String,
        /// A template.
        text: String,
    },
    /// Sets a trait of the customer.
    SetTrait {
        /// Which.
        name: String,
        /// To what; null unsets it. Texts are templates.
        value: Value,
    },
    /// Gives the customer a tag.
    AddTag {
        /// Which.
        tag: String,
    },
    /// Makes an event of the customer's.
    EmitEvent {
        /// Its name.
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
    /// Its name.
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
