//! What a dry run says of an action.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::render::template_values;
use crate::domain::automation::definition::Action;
use crate::domain::automation::facts::{Facts, Trigger};
use crate::domain::automation::rendering;

/// What an action would send or change, with its texts as they would be.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Effect {
    /// Who gets the e-mail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The subject of the e-mail, as it would be rendered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The e-mail's text, or the chat's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The HTML of the e-mail, as it would be rendered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
    /// Where the webhook goes, or the chat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The webhook's `data.custom`, the trait's value, or the event's properties.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

/// What an action would do: in words, and in full.
pub(in crate::services::automations) fn describe(
    action: &Action,
    facts: &Facts,
    trigger: Option<&Trigger>,
) -> (String, Effect) {
    let mut values = template_values(action, facts, trigger);
    if matches!(action, Action::Confirm { .. }) {
        values["confirm_url"] = "(a link of its own)".into();
    }
    let text = |template: &str| rendering::render(template, &values, false).unwrap_or_else(failed);
    let data =
        |value: &Value| rendering::render_json(value, &values).unwrap_or_else(|error| failed(error).into());
    match action {
        Action::Webhook { url, data: custom, .. } => (
            format!("would post to {url}"),
            Effect { url: Some(url.clone()), data: custom.as_ref().map(data), ..Effect::default() },
        ),
        Action::Chat { url, text: template } => {
            let said = text(template);
            let what = format!("would say {said:?} at {url}");
            (what, Effect { url: Some(url.clone()), text: Some(said), ..Effect::default() })
        }
        Action::Email { subject, text: body, html, .. } => {
            let email = email(facts, &values, subject, body, html.as_deref());
            (format!("would write to {}: {:?}", reader(facts), text(subject)), email)
        }
        Action::Confirm { subject, text: body, html } => {
            let email = email(facts, &values, subject, body, html.as_deref());
            let what = format!("would ask {} to confirm the address: {:?}", reader(facts), text(subject));
            (what, email)
        }
        Action::SetTrait { name, value } => {
            let value = data(value);
            let what = format!("would set the trait {name} to {value}");
            (what, Effect { data: Some(value), ..Effect::default() })
        }
        Action::AddTag { tag } => (format!("would tag the customer {tag}"), Effect::default()),
        Action::EmitEvent { event, properties } => (
            format!("would make the event {event}"),
            Effect { data: Some(data(properties)), ..Effect::default() },
        ),
    }
}

fn email(facts: &Facts, values: &Value, subject: &str, text: &str, html: Option<&str>) -> Effect {
    let rendered =
        |template: &str, markup| rendering::render(template, values, markup).unwrap_or_else(failed);
    Effect {
        to: facts.email(),
        subject: Some(rendered(subject, false)),
        text: Some(rendered(text, false)),
        html: html.map(|html| rendered(html, true)),
        ..Effect::default()
    }
}

fn reader(facts: &Facts) -> String {
    facts.email().unwrap_or_else(|| "nobody".to_owned())
}

/// In place of a text that cannot be rendered: why not.
#[expect(clippy::needless_pass_by_value, reason = "the shape that unwrap_or_else wants")]
fn failed(error: String) -> String {
    format!("({error})")
}
