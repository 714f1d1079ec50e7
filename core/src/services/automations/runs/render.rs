//! Rendering an action: what is to be sent, or done within the store, or why neither.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Outbound, Rules};
use crate::context::{Context, EVENTS_QUEUE};
use crate::domain::automation::definition::Action;
use crate::domain::automation::emitted;
use crate::domain::automation::facts::{Facts, Trigger};
use crate::domain::automation::plan::{Op, Plan};
use crate::domain::automation::rendering;
use crate::domain::automation::run::RunOf;
use crate::domain::automation::run::{Cause, Doing, Run, action_key};
use crate::domain::event::{Channel, UNDELIVERABLE};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::time::{self, Timestamp};
use crate::ports::brands::BrandSecrets;
use crate::ports::outbox::Stage;
use crate::ports::queue::NewItem;
use crate::ports::sender::{Email, MessageContent};
use crate::ports::store::StoreError;
use crate::ports::world::World;
use crate::services::automations::compiled::CompiledBrand;
use crate::services::automations::{confirm, unsubscribe};

/// The destination of all e-mails: they leave by one relay.
const SMTP: &str = "smtp";

/// What rendering an action needs.
pub(super) struct ActionContext<'a> {
    pub(super) world: &'a World,
    pub(super) outbound: &'a Outbound,
    pub(super) rules: &'a Rules,
    pub(super) of_brand: &'a CompiledBrand,
    pub(super) facts: &'a Facts,
    pub(super) trigger: Option<&'a Trigger>,
    pub(super) now: Timestamp,
    /// Who gets e-mails in place of the customer.
    pub(super) instead: Option<&'a str>,
}

pub(super) enum Rendered {
    /// It is done within the store.
    Inside(Option<Stage>),
    Outside {
        destination: String,
        content: MessageContent,
    },
    /// It is not done for this customer.
    Skip(String),
    /// It cannot be done.
    Fail(String),
}

/// Renders an action.
///
/// # Errors
/// Why it cannot be done, for people.
pub(super) fn render_action(of: &ActionContext<'_>, run: &Run, doing: &Doing) -> Result<Rendered, String> {
    let values = template_values(&doing.action, of.facts, of.trigger);
    match &doing.action {
        Action::SetTrait { name, value } => {
            inside(of, run, doing, &emitted::set_trait(name, &rendering::render_json(value, &values)?))
        }
        Action::AddTag { tag } => inside(of, run, doing, &emitted::add_tag(tag)),
        Action::EmitEvent { event, properties } => {
            inside(of, run, doing, &emitted::event(event, &rendering::render_json(properties, &values)?))
        }
        Action::Webhook { url, data, .. } => webhook(of, run, url, data.as_ref(), &values),
        Action::Chat { url, text } => {
            let body = json!({"text": rendering::render(text, &values, false)?}).to_string();
            let content = MessageContent::Chat { url: url.clone(), body };
            Ok(Rendered::Outside { destination: host(url)?, content })
        }
        Action::Confirm { subject, text, html } => {
            confirm_email(of, run, (subject, text, html.as_deref()), values)
        }
        Action::Email { subject, text, html, marketing } => {
            let to = match of.reader() {
                Ok(to) => to,
                Err(why) => return Ok(Rendered::Skip(why)),
            };
            let unsubscribe = marketing.then(|| of.unsubscribe_link(run)).transpose()?;
            of.email(run, to, (subject, text, html.as_deref()), &values, unsubscribe)
        }
    }
}

/// An event of the customer's own, which the action makes.
fn inside(of: &ActionContext<'_>, run: &Run, doing: &Doing, body: &Value) -> Result<Rendered, String> {
    let Some(identifier) = of.facts.identifiers.first() else {
        return Ok(Rendered::Skip("the customer has no identifier left".to_owned()));
    };
    let key = action_key(run.id, doing.node);
    let payload = emitted::envelope(run.brand, &key, identifier, body, of.now.timestamp_millis())
        .ok_or("the event cannot be written")?;
    let item = NewItem { payload: payload.into(), brand: Some(run.brand), ..NewItem::default() };
    Ok(Rendered::Inside(Some(Stage { queue: EVENTS_QUEUE.to_owned(), item })))
}

fn webhook(
    of: &ActionContext<'_>,
    run: &Run,
    url: &str,
    data: Option<&Value>,
    values: &Value,
) -> Result<Rendered, String> {
    let custom = data.map(|data| rendering::render_json(data, values)).transpose()?;
    let name = of.of_brand.automations.get(&run.automation).map(|own| own.plan.definition.name.clone());
    let body = json!({
        "type": "automation.action",
        "timestamp": time::format(of.now),
        "data": {
            "automation": {"id": run.automation, "name": name, "version": run.version},
            "run": run.id,
            "trigger": run.trigger_key,
            "customer": values["customer"],
            "event": values["event"],
            "custom": custom,
        },
    });
    let secrets = of.secrets(run.brand)?.signing_at(of.now);
    let content =
        MessageContent::Webhook { url: url.to_owned(), body: body.to_string(), secrets, at: of.now };
    Ok(Rendered::Outside { destination: host(url)?, content })
}

fn confirm_email(
    of: &ActionContext<'_>,
    run: &Run,
    texts: (&str, &str, Option<&str>),
    mut values: Value,
) -> Result<Rendered, String> {
    let to = match of.reader() {
        Ok(to) => to,
        Err(why) => return Ok(Rendered::Skip(why)),
    };
    let url = of.outbound.public_url.as_deref();
    let url = url.ok_or("a link to confirm needs TRIBUTARY_PUBLIC_URL, which is not set")?;
    // A trial's link is signed with nobody's secret: whoever reads it is no customer.
    let secret = match of.instead {
        Some(_) => of.world.token().to_string(),
        None => of.secrets(run.brand)?.link.clone(),
    };
    values["confirm_url"] = confirm::link(url, &secret, run.brand, &to).into();
    of.email(run, to, texts, &values, None)
}

impl ActionContext<'_> {
    /// The address that is written to, or why none is.
    fn reader(&self) -> Result<String, String> {
        self.instead.map_or_else(|| email_address(self.facts), |to| Ok(to.to_owned()))
    }

    fn secrets(&self, brand: BrandId) -> Result<&BrandSecrets, String> {
        self.rules.secrets.get(&brand).ok_or_else(|| "the brand is gone".to_owned())
    }

    fn unsubscribe_link(&self, run: &Run) -> Result<String, String> {
        let url = self.outbound.public_url.as_ref();
        let url = url.ok_or("marketing needs a link to unsubscribe: TRIBUTARY_PUBLIC_URL is not set")?;
        Ok(unsubscribe::link(url, &self.secrets(run.brand)?.link, run.brand, run.profile))
    }

    /// An e-mail of its templates: subject, text, HTML.
    fn email(
        &self,
        run: &Run,
        to: String,
        (subject, text, html): (&str, &str, Option<&str>),
        values: &Value,
        unsubscribe: Option<String>,
    ) -> Result<Rendered, String> {
        let from = self.of_brand.settings.email_from.clone().ok_or(
            "the brand's setting email_from is not set, or of a domain that the operator does not let it send from",
        )?;
        let html = html.map(|html| rendering::render(html, values, true)).transpose()?;
        // A subject is one line.
        let subject = rendering::render(subject, values, false)?;
        let subject = subject.split_whitespace().collect::<Vec<_>>().join(" ");
        let text = rendering::render(text, values, false)?;
        let (name, campaign) = (full_name(self.facts), run.automation.to_string());
        let email = Email { from, to, name, campaign, subject, text, html, unsubscribe };
        Ok(Rendered::Outside { destination: SMTP.to_owned(), content: MessageContent::Email(email) })
    }
}

/// The address that a customer is written to.
///
/// # Errors
/// Why there is none, for people.
fn email_address(facts: &Facts) -> Result<String, String> {
    let to = facts.email().ok_or("the customer has no e-mail address")?;
    match facts.consent(Channel::Email) {
        Some(said) if said.state == UNDELIVERABLE => Err(format!(
            "a mail server refused mail to the customer's address for good on {}",
            time::format(said.at)
        )),
        _ => Ok(to),
    }
}

fn full_name(facts: &Facts) -> Option<String> {
    let known = |name: &str| facts.known_trait(name).and_then(Value::as_str);
    let names: Vec<&str> = match (known("firstName"), known("lastName")) {
        (None, None) => known("name").into_iter().collect(),
        (first, last) => [first, last].into_iter().flatten().collect(),
    };
    Some(names.join(" ").trim().to_owned()).filter(|name| !name.is_empty())
}

fn host(url: &str) -> Result<String, String> {
    let parsed = url::Url::parse(url).map_err(|error| error.to_string())?;
    let host = parsed.host_str().ok_or("the URL has no host")?;
    Ok(format!("{host}:{}", parsed.port_or_known_default().unwrap_or_default()))
}

/// The values that an action's templates may name.
pub(super) fn template_values(action: &Action, facts: &Facts, trigger: Option<&Trigger>) -> Value {
    match action {
        Action::Email { .. } | Action::Confirm { .. } => rendering::mail_context(facts, trigger),
        _ => rendering::context(facts, trigger),
    }
}

/// Whether an automation sends e-mails.
pub(in crate::services::automations) fn sends_email(plan: &Plan) -> bool {
    plan.nodes.iter().any(|node| matches!(&node.op, Op::Act(Action::Email { .. } | Action::Confirm { .. })))
}

/// An automation's e-mails as a customer would get them, for another address: each with its step, or why it cannot be rendered. Their
/// links are signed for nobody.
pub(in crate::services::automations) async fn render_emails(
    context: &Context,
    outbound: &Outbound,
    (brand, automation): (BrandId, Uuid),
    plan: &Plan,
    (facts, trigger): (&Facts, &Trigger),
    to: &str,
) -> Result<Vec<(String, Result<Email, String>)>, StoreError> {
    let now = context.world.now();
    let rules = Rules::of_brands(context, BTreeSet::from([brand])).await?;
    let Some(of_brand) = rules.compiled_brands.get(&brand) else { return Ok(Vec::new()) };
    let of = ActionContext {
        world: &context.world,
        outbound,
        rules: &rules,
        of_brand,
        facts,
        trigger: Some(trigger),
        now,
        instead: Some(to),
    };
    let cause = Cause { key: "trial".to_owned(), message_id: None, at_ms: 0, why: "a trial".to_owned() };
    let profile = ProfileId::first_at(0);
    let run_of = RunOf { id: context.world.id(), brand, automation, version: 0, profile };
    let run = Run::new(run_of, plan, &cause, now.timestamp_millis());
    let mut emails = Vec::new();
    for (node, laid) in plan.nodes.iter().enumerate().rev() {
        let Op::Act(action @ (Action::Email { .. } | Action::Confirm { .. })) = &laid.op else { continue };
        let doing = Doing { node, action: action.clone() };
        let rendered = context.languages.work(brand, || render_action(&of, &run, &doing));
        let email = match rendered.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(Rendered::Outside { content: MessageContent::Email(email), .. }) => Ok(email),
            Ok(Rendered::Skip(why) | Rendered::Fail(why)) | Err(why) => Err(why),
            Ok(_) => continue,
        };
        emails.push((laid.path.clone(), email));
    }
    Ok(emails)
}
