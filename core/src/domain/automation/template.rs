//! The texts that automations send: templates by the crate `minijinja`, which can neither read files nor run programs, with
//! limits on how long they work and how much they write.

use std::io::Write;
use std::sync::LazyLock;

use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde_json::Value;

use super::facts::{Facts, Trigger};

/// The longest text that a template may write, in bytes.
pub const MAX_BYTES: usize = 256 * 1024;
/// How much work a template may be: about one a step of it.
const FUEL: u64 = 100_000;

/// Names that say to the engine whether what is inserted is escaped.
const PLAIN: &str = "text.txt";
/// See [`PLAIN`].
const HTML: &str = "text.html";

static ENGINE: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut engine = Environment::new();
    // What a customer has not got is nothing: `Hello {{ customer.traits.first_name or "there" }}`.
    engine.set_undefined_behavior(UndefinedBehavior::Chainable);
    engine.set_fuel(Some(FUEL));
    engine.set_recursion_limit(50);
    engine.set_auto_escape_callback(|name| if name == HTML { AutoEscape::Html } else { AutoEscape::None });
    engine
});

/// What a template may speak of.
pub fn context(facts: &Facts, trigger: Option<&Trigger>) -> Value {
    serde_json::json!({"customer": facts.json(), "event": trigger.map(Trigger::json)})
}

/// Writes a template; `escape` for HTML.
///
/// # Errors
/// What is wrong with it, in words.
pub fn render(template: &str, context: &Value, escape: bool) -> Result<String, String> {
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
/// What is wrong with one of them.
pub fn render_json(value: &Value, context: &Value) -> Result<Value, String> {
    Ok(match value {
        Value::String(template) => Value::String(render(template, context, false)?),
        Value::Array(items) => {
            Value::Array(items.iter().map(|item| render_json(item, context)).collect::<Result<_, _>>()?)
        }
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .map(|(name, value)| Ok((name.clone(), render_json(value, context)?)))
                .collect::<Result<_, String>>()?,
        ),
        other => other.clone(),
    })
}

/// Whether a template can be read, and written for a made-up customer.
///
/// # Errors
/// What is wrong with it.
pub fn check(template: &str, escape: bool) -> Result<(), String> {
    render(template, &context(&Facts::example(), Some(&Trigger::example())), escape).map(drop)
}

/// The same for all texts of some JSON.
///
/// # Errors
/// What is wrong with one of them.
pub fn check_json(value: &Value) -> Result<(), String> {
    render_json(value, &context(&Facts::example(), Some(&Trigger::example()))).map(drop)
}

/// Refuses what is beyond [`MAX_BYTES`].
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
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
}
