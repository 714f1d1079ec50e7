//! Any text that a brand may send as an expression or a template ends in an answer: chains and nestings of every operator, and
//! values that grow, run within the limits of steps, bytes and time. The texts are made of the languages' own words, so that most
//! of them get past the parsers. `ci/soak` runs this for as long as you like.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use tributary_core::domain::automation::expression::{Expression, MAX_CHARS, Scope, Written};
use tributary_core::domain::automation::facts::{Facts, Trigger};
use tributary_core::domain::automation::meter::{self, EXPRESSION, TEMPLATE};
use tributary_core::domain::automation::rendering::{self, MAX_BYTES, MAX_SOURCE_BYTES};
use tributary_core::domain::settings::BrandSettings;
use tributary_core::domain::time;

/// Longer than any text may take: the meters stop at two seconds, a debug build and a busy machine come on top.
const LONGEST: Duration = Duration::from_secs(20);

/// A customer of whom as much is known as may be.
fn laden() -> Facts {
    let mut facts = Facts::example();
    let body = serde_json::json!({"properties": {"big": "x".repeat(8000), "list": [1, 2, 3, ["a", {"b": 1}]], "name": "Shoe"}});
    let event = facts.events[0].clone();
    facts.events = (0..200)
        .map(|n| {
            let mut one = event.clone();
            one.message_id = n.to_string();
            one.body = body.to_string();
            one
        })
        .collect();
    facts
}

/// Repeats a part, nests it, or puts it beside others.
fn grown(
    leaf: impl Strategy<Value = String> + 'static,
    forms: &'static [&'static str],
) -> impl Strategy<Value = String> {
    leaf.prop_recursive(6, 60, 3, move |inner| {
        prop_oneof![
            // A form has holes for what was made before.
            (prop::sample::select(forms), inner.clone(), inner.clone())
                .prop_map(|(form, a, b)| { form.replacen("$a", &a, 1).replace("$a", &a).replace("$b", &b) }),
            // A chain of one operator.
            (prop::sample::select(forms), inner.clone(), 1_usize..40).prop_map(|(form, a, times)| {
                let mut chain = a.clone();
                for _ in 0..times {
                    chain = form.replace("$a", &chain).replace("$b", &a);
                    if chain.len() > 40_000 {
                        break;
                    }
                }
                chain
            }),
            (prop::sample::select(vec!["-", "!", "not ", "(", "[", "{", "{{", "{%"]), inner, 1_usize..3000)
                .prop_map(|(prefix, a, times)| prefix.repeat(times) + &a),
        ]
    })
}

const CEL_LEAVES: [&str; 18] = [
    "events",
    "traits",
    "tags",
    "orders",
    "revenue",
    "email",
    "true",
    "1",
    "1.5",
    "'text'",
    "null",
    "a",
    "b",
    "a.properties",
    "a.properties.big",
    "b.properties.list",
    "event.properties",
    "timestamp('2026-01-01T00:00:00Z')",
];
const CEL_FORMS: [&str; 37] = [
    "$a + $b",
    "$a + $a",
    "$a - $b",
    "$a * $b",
    "$a / $b",
    "$a % $b",
    "$a == $b",
    "$a != $b",
    "$a < $b",
    "$a >= $b",
    "$a in $b",
    "$a && $b",
    "$a || $b",
    "!($a)",
    "-($a)",
    "$a ? $b : $a",
    "($a)",
    "[$a, $b]",
    "{'k': $a, 'l': $b}",
    "($a)[0]",
    "($a)['big']",
    "($a).properties",
    "has(($a).properties)",
    "size($a)",
    "string($a)",
    "bytes($a)",
    "($a).contains($b)",
    "($a).startsWith($b)",
    "($a).map(a, $b)",
    "($a).map(b, $b)",
    "($a).filter(a, $b)",
    "($a).exists(a, $b)",
    "($a).all(b, $b)",
    "($a).exists_one(a, $b)",
    "days_since($a)",
    "max($a, $b)",
    "duration($a)",
];
const TEMPLATE_LEAVES: [&str; 16] = [
    "customer",
    "event",
    "customer.traits",
    "customer.tags",
    "event.properties",
    "x",
    "y",
    "loop.index",
    "1",
    "1.5",
    "'text'",
    "[1, 'a']",
    "true",
    "none",
    "customer.email",
    "99999999999",
];
const TEMPLATE_FORMS: [&str; 38] = [
    "$a ~ $b",
    "$a ~ $a",
    "$a + $b",
    "$a + $a",
    "$a * $b",
    "$a ** $b",
    "$a - $b",
    "$a // $b",
    "$a and $b",
    "$a or $b",
    "not $a",
    "-$a",
    "$a if $b else $a",
    "($a)",
    "$a|upper",
    "$a|join($b)",
    "$a|replace($a, $b)",
    "$a|default($b)",
    "$a|times($b)",
    "$a|string",
    "$a|list",
    "$a|escape",
    "$a|sort",
    "$a|reverse",
    "$a|items",
    "$a|length",
    "($a).b",
    "($a)[$b]",
    "($a)[0:2]",
    "$a in $b",
    "$a == $b",
    "$a < $b",
    "range($a)",
    "namespace(s=$a)",
    "$a()",
    "[$a, $b]",
    "{'k': $a}",
    "$a is defined",
];
const STATEMENTS: [&str; 14] = [
    "{{ $e }}",
    "{% set x = $e %}",
    "{% set y = x %}",
    "{% set x = x ~ x %}",
    "{% for x in $e %}{{ x }}{% endfor %}",
    "{% for x in $e %}{% for y in $e %}{{ y }}{% endfor %}{% endfor %}",
    "{% if $e %}a{% elif x %}b{% else %}c{% endif %}",
    "{% set x %}{{ x }}{{ x }}{% endset %}",
    "{% filter upper %}{{ $e }}{% endfilter %}",
    "{% with x = $e %}{{ x }}{% endwith %}",
    "{% macro m() %}{{ m() }}{% endmacro %}",
    "{% raw %}{{{% endraw %}",
    "{# $e #}",
    "{% autoescape true %}{{ $e }}{% endautoescape %}",
];

fn template_texts() -> impl Strategy<Value = String> {
    let expressions =
        grown(prop::sample::select(TEMPLATE_LEAVES.to_vec()).prop_map(str::to_owned), &TEMPLATE_FORMS);
    let statement = (prop::sample::select(STATEMENTS.to_vec()), expressions, 1_usize..60)
        .prop_map(|(form, e, times)| form.replace("$e", &e).repeat(times));
    prop::collection::vec(statement, 1..6).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_expression_ends_in_an_answer(
        text in grown(prop::sample::select(CEL_LEAVES.to_vec()).prop_map(str::to_owned), &CEL_FORMS),
        compared in prop::bool::ANY,
    ) {
        // Most are no verdicts by themselves.
        let text = if compared { format!("size(string({text})) > 0 || ({text}) == ({text})") } else { text };
        let began = Instant::now();
        // What is checked besides when somebody writes it ends, too.
        let _ = Expression::parse(&text, Scope::Event);
        if let Ok(expression) = Expression::parse_as(&text, Scope::Event, Written::Before) {
            prop_assert!(text.chars().count() <= MAX_CHARS);
            let now = time::parse("2026-06-15T12:00:00Z").unwrap();
            let verdict = expression.holds(&laden(), Some(&Trigger::example()), &BrandSettings::default(), now);
            prop_assert!(!(verdict.holds && verdict.overrun));
        }
        prop_assert!(began.elapsed() < LONGEST + EXPRESSION.time, "{:?}", began.elapsed());
    }

    #[test]
    fn any_template_ends_in_an_answer(text in template_texts(), escape in prop::bool::ANY) {
        let began = Instant::now();
        let _ = rendering::check(&text, escape, &[], Written::Now);
        if let Ok(written) = rendering::check(&text, escape, &[], Written::Before).and_then(|()| {
            rendering::render(&text, &rendering::context(&laden(), Some(&Trigger::example())), escape)
        }) {
            prop_assert!(text.len() <= MAX_SOURCE_BYTES && written.len() <= MAX_BYTES);
        }
        prop_assert!(began.elapsed() < LONGEST + TEMPLATE.time, "{:?}", began.elapsed());
    }
}

/// What both may take at most, as the system counts it: the largest that the process ever was.
#[cfg(target_os = "linux")]
#[test]
fn what_grows_takes_no_more_memory_than_the_meters_let_it() {
    let peak_kb = || -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let facts = laden();
    let before = peak_kb();
    let now = time::parse("2026-06-15T12:00:00Z").unwrap();
    for text in [
        "events.map(a, events.map(b, a.properties.big + b.properties.big)).size() > 0",
        "events.map(a, events.map(b, a.properties.big + b.properties.big + a.properties.big + b.properties.big + a.properties.big)).size() > 0",
        "(events + events + events + events + events + events).map(a, events).size() > 0",
        "[events, events, events].map(a, [a, a, a, a]).map(b, [b, b, b, b]).size() > 0",
    ] {
        let expression = Expression::parse(text, Scope::Customer).unwrap();
        assert!(
            expression.holds(&facts, None, &BrandSettings::default(), now).overrun || text.starts_with('['),
            "{text}"
        );
    }
    let values = rendering::context(&facts, None);
    let many = "{{ customer.traits ~ customer ~ customer.traits ~ customer }}".repeat(250);
    let _ = meter::deep(|| rendering::render(&many, &values, true));
    let grown_mb = peak_kb().saturating_sub(before) / 1024;
    assert!(grown_mb < 256, "{grown_mb} MB");
}
