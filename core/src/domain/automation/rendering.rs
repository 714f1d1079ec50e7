//! The texts that automations send: templates by the crate `minijinja`, of which a small part is let in.
//!
//! A template is user-written code that runs beside every brand's, so what it may do is bounded three times. `shape` looks at
//! the text, its words and its tree before the engine does: nothing in it may call, import, repeat or keep a growing value. The
//! engine knows no filter but [`FILTERS`], and those that make something larger pay for it. And it runs under a [`meter`], with
//! fuel, on a deep stack.

use std::io::Write;
use std::sync::LazyLock;

use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde_json::{Map, Value};

use super::expression::Written;
use super::facts::{Facts, Trigger};
use super::meter::{self, TEMPLATE};
use super::unlinked::unlinked;
use crate::domain::event::Channel;

mod filters;
mod names;
mod shape;

pub use filters::FILTERS;
pub use shape::{MAX_SOURCE_BYTES, MAX_TAG_WORDS, MAX_TAGS};

/// The longest text that a template may write, in bytes.
pub const MAX_BYTES: usize = 256 * 1024;
/// Most texts of one JSON value that are templates.
pub const MAX_TEXTS: usize = 200;
/// How deep JSON may be nested whose texts are templates.
pub const MAX_JSON_DEPTH: usize = 32;
/// How much work a template may be: about one a step of it.
const FUEL: u64 = 50_000;

/// Names that say to the engine whether what is inserted is escaped.
const PLAIN: &str = "text.txt";
/// See [`PLAIN`].
const HTML: &str = "text.html";

static ENGINE: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut engine = Environment::empty();
    // What a customer has not got is nothing: `Hello {{ customer.traits.first_name or "there" }}`.
    engine.set_undefined_behavior(UndefinedBehavior::Chainable);
    engine.set_fuel(Some(FUEL));
    engine.set_recursion_limit(50);
    engine.set_auto_escape_callback(|name| if name == HTML { AutoEscape::Html } else { AutoEscape::None });
    filters::add(&mut engine);
    engine
});

/// What a template may speak of.
pub fn context(facts: &Facts, trigger: Option<&Trigger>) -> Value {
    serde_json::json!({"customer": facts.json(), "event": trigger.map(Trigger::json)})
}

/// What a template of an e-mail may speak of: traits that a public key stated carry no links, and where only a public key stated the
/// address, neither does an event that one sent.
pub fn mail_context(facts: &Facts, trigger: Option<&Trigger>) -> Value {
    let mut values = context(facts, trigger);
    let address = facts.address(Channel::Email);
    let own = address.as_ref().map(|address| address.value.as_str());
    if let Some(traits) = values["customer"]["traits"].as_object_mut() {
        let is_trusted =
            |name: &str| facts.profile.traits.get(name).is_some_and(|held| held.source.is_trusted());
        let (trusted, stated): (Map<_, _>, Map<_, _>) =
            std::mem::take(traits).into_iter().partition(|(name, _)| is_trusted(name));
        *traits = trusted;
        if let Some(Value::Object(stated)) = unlinked(Value::Object(stated), own) {
            traits.extend(stated);
        }
    }
    let stranger = !address.as_ref().is_some_and(|address| address.trusted);
    if stranger && trigger.is_some_and(|trigger| !trigger.0.source.is_trusted()) {
        let event = values["event"].take();
        values["event"] = unlinked(event, own).unwrap_or_default();
    }
    values
}

/// Writes a template; `escape` for HTML.
///
/// # Errors
/// What is wrong with it, in words.
pub fn render(template: &str, context: &Value, escape: bool) -> Result<String, String> {
    meter::deep(|| {
        shape::check(template)?;
        let (written, over) = meter::within(TEMPLATE, || written(template, context, escape));
        over.map_or(written, |over| Err(over.to_string()))
    })
    .unwrap_or_else(|error| Err(error.to_string()))
}

fn written(template: &str, context: &Value, escape: bool) -> Result<String, String> {
    let name = if escape { HTML } else { PLAIN };
    let template = ENGINE.template_from_named_str(name, template).map_err(|error| error.to_string())?;
    let mut out = Limited(Vec::new());
    let written = template.render_captured_to(minijinja::value::Serde(context), &mut out).map(drop);
    if out.0.len() > MAX_BYTES {
        return Err(format!("it writes more than {MAX_BYTES} bytes"));
    }
    written.map_err(|error| error.to_string())?;
    String::from_utf8(out.0).map_err(|error| error.to_string())
}

/// Writes all texts of some JSON.
///
/// # Errors
/// What is wrong with one of them; that there are more than [`MAX_TEXTS`], or deeper than [`MAX_JSON_DEPTH`].
pub fn render_json(value: &Value, context: &Value) -> Result<Value, String> {
    let mut texts = 0;
    // One thread for all of them.
    meter::deep(|| json(value, context, &mut texts, 0)).unwrap_or_else(|error| Err(error.to_string()))
}

fn json(value: &Value, context: &Value, texts: &mut usize, depth: usize) -> Result<Value, String> {
    if depth > MAX_JSON_DEPTH {
        return Err(format!("it is nested deeper than {MAX_JSON_DEPTH}"));
    }
    Ok(match value {
        Value::String(template) => {
            *texts += 1;
            if *texts > MAX_TEXTS {
                return Err(format!("it has more than {MAX_TEXTS} texts"));
            }
            Value::String(render(template, context, false)?)
        }
        Value::Array(items) => Value::Array(
            items.iter().map(|item| json(item, context, texts, depth + 1)).collect::<Result<_, _>>()?,
        ),
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .map(|(name, value)| Ok((name.clone(), json(value, context, texts, depth + 1)?)))
                .collect::<Result<_, String>>()?,
        ),
        other => other.clone(),
    })
}

/// Whether a template can be read, and written for a made-up customer, and speaks of nothing but the customer, the event and `more`.
///
/// # Errors
/// What is wrong with it.
pub fn check(template: &str, escape: bool, more: &[&str], written: Written) -> Result<(), String> {
    render(template, &context(&Facts::example(), Some(&Trigger::example())), escape)?;
    if written == Written::Before {
        return Ok(());
    }
    meter::deep(|| names::check(template, more)).unwrap_or_else(|error| Err(error.to_string()))
}

/// The same for all texts of some JSON.
///
/// # Errors
/// What is wrong with one of them.
pub fn check_json(value: &Value, written: Written) -> Result<(), String> {
    render_json(value, &context(&Facts::example(), Some(&Trigger::example())))?;
    if written == Written::Before {
        return Ok(());
    }
    meter::deep(|| texts(value, &|text| names::check(text, &[])))
        .unwrap_or_else(|error| Err(error.to_string()))
}

fn texts(value: &Value, look: &impl Fn(&str) -> Result<(), String>) -> Result<(), String> {
    match value {
        Value::String(text) => look(text),
        Value::Array(items) => items.iter().try_for_each(|item| texts(item, look)),
        Value::Object(fields) => fields.values().try_for_each(|value| texts(value, look)),
        _ => Ok(()),
    }
}

/// Refuses what is beyond [`MAX_BYTES`].
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        meter::pay(meter::steps(bytes.len()), 0).map_err(std::io::Error::other)?;
        self.0.extend_from_slice(bytes);
        if self.0.len() > MAX_BYTES {
            return Err(std::io::Error::other("too long"));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(template: &str, escape: bool) -> Result<String, String> {
        render(template, &context(&Facts::example(), Some(&Trigger::example())), escape)
    }

    #[test]
    fn a_template_speaks_of_the_customer_and_the_event() {
        let text = "Hello {{ customer.traits.first_name or 'there' }}, {{ event.properties.value }}: {{ customer.orders.total }} {{ customer.nothing.at.all }}";
        assert_eq!(example(text, false).unwrap(), "Hello Ada, 99.5: 120.50 ");
        assert_eq!(example("{{ '<b>' }}", true).unwrap(), "&lt;b&gt;");
        assert_eq!(example("{{ '<b>' }}", false).unwrap(), "<b>");
        let json = render_json(
            &serde_json::json!({"a": ["{{ customer.email }}", 1]}),
            &context(&Facts::example(), None),
        );
        assert_eq!(json.unwrap(), serde_json::json!({"a": ["ada@example.com", 1]}));
    }

    #[test]
    fn a_template_cannot_run_away() {
        for template in [
            "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
            "{% for a in range(9999) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' }}{% endfor %}",
            "{{ range(100000000) }}",
            "{% include 'secrets' %}",
            "{{ oops",
            "{{ customer.email | nothing }}",
        ] {
            assert!(example(template, false).is_err(), "{template}");
        }
    }

    #[test]
    fn chains_of_any_operator_end_in_an_answer() {
        let many = |part: &str| part.repeat(MAX_SOURCE_BYTES / part.len() + 1);
        for chain in [
            format!("{{{{ {}1 }}}}", many("-")),
            format!("{{{{ {}1 }}}}", many("not ")),
            format!("{{{{ 1{} }}}}", many("~1")),
            format!("{{{{ 1{} }}}}", many("+1")),
            format!("{{{{ a{} }}}}", many("|upper")),
            format!("{{{{ a{} }}}}", many(".b")),
            format!("{{{{ a{} }}}}", many("[0]")),
            format!("{{{{ a{} }}}}", many("()")),
            format!("{{{{ {}1{} }}}}", many("("), many(")")),
            format!("{{% if a %}}{}{{% endif %}}", many("{% elif a %}")),
            many("{% if a %}"),
            many("{% for a in b %}"),
        ] {
            // As long as it may be, too: then its words are what is too many.
            let cut: String = chain.chars().take(MAX_SOURCE_BYTES).collect();
            assert!(example(&chain, false).is_err() && example(&cut, false).is_err(), "{chain:.40}");
        }
    }

    #[test]
    fn a_template_makes_nothing_that_grows() {
        for (template, says) in [
            (
                "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
                "calls nothing",
            ),
            ("{% set a = 'x' %}{% set a = a ~ a %}{{ a }}", "may not be put together"),
            ("{% set a = customer.tags + customer.tags %}{{ a }}", "may not be put together"),
            ("{% for x in customer.tags + customer.tags %}x{% endfor %}", "may not be put together"),
            ("{% set a %}{{ a }}{{ a }}{% endset %}", "nothing else"),
            ("{% filter upper %}a{% endfilter %}", "nothing else"),
            ("{% with a = 1 %}{{ a }}{% endwith %}", "nothing else"),
            ("{{ 'x' * 100000000 }}", "times"),
            ("{{ 9 ** 9 ** 9 }}", "times"),
            ("{{ [customer, customer] }}", "texts and numbers only"),
            ("{{ {'a': customer} }}", "texts and numbers only"),
            ("{{ range(100000000) }}", "calls nothing"),
            ("{{ customer.traits.first_name.upper() }}", "calls nothing"),
            (
                "{{ 'xxxxxxxx' | replace('x', 'xxxxxxxxxxxxxxxxxxxxxxxx') | replace('x', 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx') | replace('x', 'xxxxxxxxxxxxxxxxxxxxxxx') }}",
                "65536 bytes",
            ),
            (
                "{{ 'xxxxxxxx' | replace('', 'yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy') | join('yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy') }}",
                "65536 bytes",
            ),
            ("{{ customer | indent }}", "indent"),
            ("{{ 'a' | format('b') }}", "format"),
            ("{{ customer.orders.last | date('%Q') }}", "strftime's letters"),
        ] {
            let wrong = example(template, false).unwrap_err();
            assert!(wrong.contains(says), "{template}: {wrong}");
        }
    }

    #[test]
    fn what_people_write_is_let_in() {
        for (template, text) in [
            (
                "{% set name = customer.traits.firstName or customer.traits.first_name %}Hello{% if name %} {{ name|upper }}{% endif %}",
                "Hello ADA",
            ),
            ("{% for tag in customer.tags %}{{ loop.index }} {{ tag }}{% else %}none{% endfor %}", "1 vip"),
            (
                "{{ event.properties.value | times(2) | round(2) }} {{ 2 | times('3') }} {{ 7 | minus(2) }}",
                "199.0 6 5",
            ),
            ("{{ 'yes' if customer.traits.plan in ['gold', 'silver'] else 'no' }}", "yes"),
            (
                "{{ customer.traits.nothing | default('there') }}{# a comment #}{% raw %}{{ }}{% endraw %}",
                "there{{ }}",
            ),
            (
                "{{ 'Dear ' ~ customer.traits.first_name ~ '!' }} {{ customer.tags | join(', ') }}",
                "Dear Ada! vip",
            ),
            (
                "{{ customer.orders.last | date }} {{ customer.orders.last | date('%d.%m.%Y') }} {{ 'soon' | date }}",
                "10 June 2026 10.06.2026 soon",
            ),
            (
                "{{ 'a-b' | replace('-', '+') }} {{ customer.traits.age + 1 }} {{ customer.email is defined }}",
                "a+b 31 True",
            ),
        ] {
            assert_eq!(example(template, false).as_deref(), Ok(text), "{template}");
        }
    }
}
