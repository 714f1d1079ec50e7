//! Expressions over a customer, in CEL (the Common Expression Language), by the crate `cel`.
//!
//! What they may speak of is [`VARIABLES`] and [`FUNCTIONS`]. A field that is not there makes an expression false, as does a
//! comparison of things that cannot be compared: an expression that cannot be answered of a customer does not hold for them.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use cel::{Context, ExecutionError, Program, Value};
use chrono::{DateTime, FixedOffset};
use moka::sync::Cache;

use super::facts::{Facts, LISTED, Trigger};
use super::meter::{self, EXPRESSION, Overrun};
use super::{kinds, metered};
use crate::domain::event::Rejection;
use crate::domain::settings::BrandSettings;
use crate::domain::time::{self, Timestamp};

/// The longest expression, in characters.
pub const MAX_CHARS: usize = 2000;
/// How deep brackets may be nested.
pub const MAX_DEPTH: usize = 24;
/// Most operators, calls and values in one expression.
pub const MAX_NODES: usize = 400;
/// How deep `filter`, `exists`, `all` and `map` may be nested: each multiplies what is looked at.
pub const MAX_LOOPS: usize = 2;
/// Most steps that an expression may take: its nodes, times the longest list for each loop within a loop.
const MAX_WORK: usize = 3_000_000;
/// What an expression may speak of.
pub const VARIABLES: [&str; 12] = [
    "traits", "tags", "email", "phone", "seen", "orders", "revenue", "rfm", "consent", "segments", "events",
    EVENT,
];
/// What started a run, and what a cancelling event is compared with: not there in a segment.
pub const EVENT: &str = "event";
/// Functions beyond CEL's own: how long ago a time was, in whole days or hours.
pub const FUNCTIONS: [&str; 2] = ["days_since", "hours_since"];

/// Expressions that are remembered as they were read.
const REMEMBERED: u64 = 10_000;
const HOUR_MS: i64 = 3_600_000;
/// How CEL names the operators of its language, which are functions to it.
const OPERATORS: [&str; 20] = [
    "_?_:_",
    "_&&_",
    "_||_",
    "!_",
    "_==_",
    "_!=_",
    "_<_",
    "_<=_",
    "_>_",
    "_>=_",
    "@in",
    "_+_",
    "_-_",
    "_*_",
    "_/_",
    "_%_",
    "-_",
    "_[_]",
    "@not_strictly_false",
    "_in_",
];
/// CEL's own functions that are there.
const STANDARD: [&str; 24] = [
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "string",
    "int",
    "uint",
    "double",
    "bytes",
    "bool",
    "timestamp",
    "duration",
    "getFullYear",
    "getMonth",
    "getDayOfYear",
    "getDayOfMonth",
    "getDate",
    "getDayOfWeek",
    "getHours",
    "getMinutes",
    "getSeconds",
    "getMilliseconds",
    "min",
    "max",
];

/// When something was written that is read: what is checked more strictly than in former versions is read all the same where it was
/// stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Written {
    /// Somebody writes it now.
    Now,
    /// It was stored, perhaps by an older version.
    Before,
}

/// Where an expression stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Over a customer, to say whether they belong to a segment: so it may not speak of segments.
    Segment,
    Customer,
    /// Over a customer and an event.
    Event,
}

/// An expression that was read.
pub struct Expression {
    /// The tree that is evaluated: it pays for what it does.
    paying: cel::IdedExpr,
    variables: BTreeSet<String>,
    functions: BTreeSet<String>,
}

impl std::fmt::Debug for Expression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Expression").field("variables", &self.variables).finish_non_exhaustive()
    }
}

/// What an expression came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub holds: bool,
    /// When time alone may next make it come out otherwise.
    pub next: Option<Timestamp>,
    /// Why it could not be answered, where it could not.
    pub why: Option<String>,
    /// Whether it could not because it took too much: then nothing is known of this customer, and what held before still does.
    pub overrun: bool,
}

fn wrong(message: String) -> Rejection {
    Rejection::new("invalid_expression", message)
}

impl Expression {
    /// Reads an expression.
    ///
    /// # Errors
    /// `invalid_expression`, with the line and column of what is wrong.
    pub fn parse(text: &str, scope: Scope) -> Result<Arc<Self>, Rejection> {
        Self::parse_as(text, scope, Written::Now)
    }

    /// The same, of one that may have been written for an older version: what that let in is read.
    ///
    /// # Errors
    /// As [`Expression::parse`].
    pub fn parse_as(text: &str, scope: Scope, written: Written) -> Result<Arc<Self>, Rejection> {
        static READ: LazyLock<Cache<(String, Scope, Written), Arc<Expression>>> =
            LazyLock::new(|| Cache::new(REMEMBERED));
        let key = (text.to_owned(), scope, written);
        if let Some(known) = READ.get(&key) {
            return Ok(known);
        }
        let read = Arc::new(Self::read(text, scope, written)?);
        READ.insert(key, read.clone());
        Ok(read)
    }

    fn read(text: &str, scope: Scope, written: Written) -> Result<Self, Rejection> {
        if text.trim().is_empty() {
            return Err(wrong("an expression is empty; one that always holds is: true".to_owned()));
        }
        let chars = text.chars().count();
        if chars > MAX_CHARS {
            return Err(wrong(format!(
                "an expression has {chars} characters; at most {MAX_CHARS} are taken"
            )));
        }
        if nesting(text) > MAX_DEPTH {
            return Err(wrong(format!("an expression is nested deeper than {MAX_DEPTH} brackets")));
        }
        // On a deep stack: the parser calls itself often for each bracket, and whoever goes through the tree for each level.
        meter::deep(|| Self::compiled(text, scope, written))
            .map_err(|error| wrong(format!("an expression could not be read: {error}")))?
    }

    fn compiled(text: &str, scope: Scope, written: Written) -> Result<Self, Rejection> {
        let program = Program::compile(text).map_err(|errors| wrong(first_error(text, &errors)))?;
        let (nodes, loops) = size(program.expression());
        if nodes > MAX_NODES {
            return Err(wrong(format!(
                "an expression has {nodes} operators and values; at most {MAX_NODES} are taken"
            )));
        }
        if loops > MAX_LOOPS {
            return Err(wrong(format!(
                "filter, exists, all and map are nested {loops} deep; at most {MAX_LOOPS} are taken"
            )));
        }
        let work = nodes.saturating_mul(LISTED.saturating_pow(u32::try_from(loops).unwrap_or(u32::MAX)));
        if work > MAX_WORK {
            return Err(wrong("too much is asked within loops within loops".to_owned()));
        }
        let references = program.references();
        let mut variables: BTreeSet<String> = references.variables().into_iter().map(str::to_owned).collect();
        let functions: BTreeSet<String> = references.functions().into_iter().map(str::to_owned).collect();
        for own in loop_variables(program.expression()) {
            variables.remove(&own);
        }
        for name in &variables {
            if !VARIABLES.contains(&name.as_str()) {
                let known = VARIABLES.join(", ");
                return Err(wrong(format!(
                    "{}: there is no {name:?}; an expression may speak of {known}",
                    place(text, name)
                )));
            }
            if name == EVENT && scope != Scope::Event {
                return Err(wrong(format!(
                    "{}: no event is meant here; the customer's events are the list events",
                    place(text, name)
                )));
            }
            if name == "segments" && scope == Scope::Segment {
                return Err(wrong(format!("{}: a segment may not speak of segments", place(text, name))));
            }
        }
        let known =
            |name: &str| OPERATORS.contains(&name) || STANDARD.contains(&name) || FUNCTIONS.contains(&name);
        if let Some(name) = functions.iter().find(|name| !known(name)) {
            let own = FUNCTIONS.iter().chain(&STANDARD).copied().collect::<Vec<_>>().join(", ");
            let place = place(text, name);
            return Err(wrong(format!("{place}: there is no function {name:?}; there are {own}")));
        }
        if written == Written::Now {
            kinds::check(text, program.expression(), program.source_info()).map_err(wrong)?;
        }
        let read = Self { paying: metered::paying(program.expression()), variables, functions };
        read.type_check()?;
        Ok(read)
    }

    /// Tries it on a made-up customer: an expression that is never true or false is found before anybody depends on it.
    fn type_check(&self) -> Result<(), Rejection> {
        let facts = Facts::example();
        let trigger = Trigger::example();
        let answered = self.value(&facts, Some(&trigger), &BrandSettings::default(), Timestamp::default());
        if let Some(over) = answered.over {
            return Err(wrong(format!("{over}, already for a customer of whom little is known")));
        }
        match answered.value {
            Ok(Value::Bool(_)) => Ok(()),
            Ok(other) => {
                let kind = other.type_of();
                Err(wrong(format!("an expression must be true or false, and this one is of the type {kind}")))
            }
            // A trait or property that the made-up customer has not got, or of another type: it says nothing of the real ones.
            Err(ExecutionError::NoSuchKey(_) | ExecutionError::IndexOutOfBounds(_)) => Ok(()),
            Err(_) if ["traits", "events", "revenue", EVENT].iter().any(|own| self.references(own)) => Ok(()),
            Err(error) => Err(wrong(error.to_string())),
        }
    }

    /// Whether it speaks of a variable.
    pub fn references(&self, variable: &str) -> bool {
        self.variables.contains(variable)
    }

    /// Whether time alone may make it come out otherwise.
    pub fn is_timed(&self) -> bool {
        self.references("rfm") || FUNCTIONS.iter().any(|own| self.functions.contains(*own))
    }

    /// Whether it holds for a customer.
    pub fn holds(
        &self,
        facts: &Facts,
        trigger: Option<&Trigger>,
        settings: &BrandSettings,
        now: Timestamp,
    ) -> Verdict {
        let answered = meter::deep(|| self.value(facts, trigger, settings, now));
        let Ok(Answered { value, next, over }) = answered else {
            let why = Some(meter::Panicked.to_string());
            return Verdict { holds: false, next: None, why, overrun: true };
        };
        // What ran out may have looked like false to the rest of the expression.
        if let Some(over) = over {
            return Verdict { holds: false, next, why: Some(over.to_string()), overrun: true };
        }
        let (holds, why) = match value {
            Ok(Value::Bool(holds)) => (holds, None),
            Ok(other) => {
                (false, Some(format!("it is neither true nor false, but of the type {}", other.type_of())))
            }
            Err(error) => (false, Some(error.to_string())),
        };
        Verdict { holds, next, why, overrun: false }
    }

    fn value(
        &self,
        facts: &Facts,
        trigger: Option<&Trigger>,
        settings: &BrandSettings,
        now: Timestamp,
    ) -> Answered {
        let next = Arc::new(Mutex::new(None));
        let (value, over) = meter::within(EXPRESSION, || {
            let context = self.context(facts, trigger, settings, now, &next);
            context.resolve(&self.paying)
        });
        let next = *next.lock().unwrap_or_else(PoisonError::into_inner);
        Answered { value, next, over }
    }

    /// What it is evaluated in; when time may next change what it comes to goes into `next`.
    fn context(
        &self,
        facts: &Facts,
        trigger: Option<&Trigger>,
        settings: &BrandSettings,
        now: Timestamp,
        next: &Arc<Mutex<Option<Timestamp>>>,
    ) -> Context<'static, 'static> {
        let mut context = Context::with_env(metered::environment());
        for (name, unit) in [(FUNCTIONS[0], 24 * HOUR_MS), (FUNCTIONS[1], HOUR_MS)] {
            let next = next.clone();
            let since = move |at: Value| -> Result<i64, ExecutionError> {
                let Value::Timestamp(at) = at else {
                    return Err(ExecutionError::function_error(name, "there is no such time"));
                };
                let passed = (now - at.to_utc()).num_milliseconds().div_euclid(unit);
                let ahead = passed.saturating_add(1).saturating_mul(unit);
                sooner(&next, time::plus(at.to_utc(), time::millis(ahead)));
                Ok(passed)
            };
            // It fails only where the language has the name already, and it has not.
            let _ = context.add_function(name, since);
        }
        for name in &self.variables {
            let value = match name.as_str() {
                EVENT => trigger.map_or(Value::Null, Trigger::value),
                "rfm" => {
                    let (scores, changes) = facts.rfm(settings, now);
                    if let Some(at) = changes {
                        sooner(next, at);
                    }
                    scores
                }
                name => facts.value(name),
            };
            metered::pay_for(&value);
            context.add_variable_from_value(name.clone(), value);
        }
        context
    }
}

/// What an evaluation came to.
struct Answered {
    value: Result<Value, ExecutionError>,
    next: Option<Timestamp>,
    over: Option<Overrun>,
}

fn sooner(next: &Mutex<Option<Timestamp>>, at: Timestamp) {
    let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
    *next = Some(next.map_or(at, |held| held.min(at)));
}

/// A time as expressions see it.
pub(super) fn time_value(at: Option<Timestamp>) -> Value {
    at.map_or(Value::Null, |at| Value::Timestamp(DateTime::<FixedOffset>::from(at)))
}

/// The most brackets that are open at once. Those within texts count, too: nobody needs so many.
fn nesting(text: &str) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    for char in text.chars() {
        match char {
            '(' | '[' | '{' => open += 1,
            ')' | ']' | '}' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}

fn first_error(text: &str, errors: &cel::ParseErrors) -> String {
    let Some(error) = errors.errors.first() else { return "an expression cannot be read".to_owned() };
    let (line, column) = error.pos;
    let what = error.msg.split(" expecting ").next().unwrap_or(&error.msg);
    let near: String =
        text.lines().nth(usize::try_from(line - 1).unwrap_or_default()).unwrap_or_default().to_owned();
    let from = usize::try_from(column - 1).unwrap_or_default().min(near.chars().count());
    let rest: String = near.chars().skip(from).take(20).collect();
    let hint = hint(text, &near, &rest).map(|hint| format!("; {hint}")).unwrap_or_default();
    let near = if rest.is_empty() { "at the end".to_owned() } else { format!("near {rest:?}") };
    format!("line {line}, column {column}, {near}: {what}{hint}")
}

/// What people mean who write in the way of another language. `line` is where it is wrong, from `rest` on.
fn hint(text: &str, line: &str, rest: &str) -> Option<&'static str> {
    let words: Vec<&str> = line.split(|c: char| !c.is_alphanumeric()).collect();
    let has = |word: &str| words.iter().any(|own| own.eq_ignore_ascii_case(word));
    let day = words.iter().any(|word| {
        word.strip_suffix(['d', 'h', 'w', 'm']).is_some_and(|number| number.parse::<u32>().is_ok())
    });
    Some(match () {
        () if text.contains(['\u{201c}', '\u{201d}', '\u{2018}', '\u{2019}', '\u{ab}', '\u{bb}']) => {
            "texts stand in straight quotes, like 'vip'"
        }
        () if rest.starts_with('=') && !rest.starts_with("==") => "equality is written ==",
        () if has("and") => "and is written &&",
        () if has("or") => "or is written ||",
        () if has("not") => "not is written !",
        () if line.contains("<>") => "inequality is written !=",
        () if day => "how long ago a time was is asked like this: days_since(orders.last) < 90",
        () if text.matches('\'').count() % 2 == 1 || text.matches('"').count() % 2 == 1 => {
            "a quote is not closed"
        }
        () => return None,
    })
}

/// Where a name stands first.
fn place(text: &str, name: &str) -> String {
    let whole = |at: usize| {
        let part = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
        !text[..at].chars().next_back().is_some_and(part)
            && !text[at + name.len()..].chars().next().is_some_and(|c| c.is_alphanumeric() || c == '_')
    };
    let at = text.match_indices(name).map(|(at, _)| at).find(|at| whole(*at)).or_else(|| text.find(name));
    let before = &text[..at.unwrap_or_default()];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("line {line}, column {column}")
}

type Node = cel::IdedExpr;

/// The parts of a node.
pub(super) fn parts(node: &Node) -> Vec<&Node> {
    use cel::common::ast::Expr;
    match &node.expr {
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).collect(),
        Expr::Comprehension(c) => vec![&c.iter_range, &c.accu_init, &c.loop_cond, &c.loop_step, &c.result],
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Map(map) => map.entries.iter().flat_map(|e| of_entry(&e.expr)).collect(),
        Expr::Struct(made) => made.entries.iter().flat_map(|e| of_entry(&e.expr)).collect(),
        Expr::Select(select) => vec![&select.operand],
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => vec![],
    }
}

fn of_entry(entry: &cel::common::ast::EntryExpr) -> Vec<&Node> {
    use cel::common::ast::EntryExpr;
    match entry {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(pair) => vec![&pair.key, &pair.value],
    }
}

/// How many nodes, and how deep loops are nested.
fn size(node: &Node) -> (usize, usize) {
    let own = usize::from(matches!(node.expr, cel::common::ast::Expr::Comprehension(_)));
    let (mut nodes, mut loops) = (1, 0);
    for part in parts(node) {
        let (more, deeper) = size(part);
        nodes += more;
        loops = loops.max(deeper);
    }
    (nodes, loops + own)
}

/// The names that loops give to what they look at.
fn loop_variables(node: &Node) -> Vec<String> {
    let mut names = Vec::new();
    if let cel::common::ast::Expr::Comprehension(c) = &node.expr {
        names.extend([c.iter_var.clone(), c.accu_var.clone()]);
        names.extend(c.iter_var2.clone());
    }
    names.extend(parts(node).into_iter().flat_map(loop_variables));
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time;

    fn now() -> Timestamp {
        time::parse("2026-06-15T12:00:00Z").unwrap()
    }

    fn holds(text: &str) -> bool {
        let expression = Expression::parse(text, Scope::Event).unwrap();
        expression.holds(&Facts::example(), Some(&Trigger::example()), &BrandSettings::default(), now()).holds
    }

    #[test]
    fn an_expression_speaks_of_all_that_is_known_of_a_customer() {
        for text in [
            "orders.count >= 3 && orders.total > 100",
            "orders.count * 2 + 1 == 7",
            "revenue.EUR >= 120.5 && orders.currency == 'EUR'",
            "traits.plan == 'gold' && traits.age > 29.5",
            "has(traits.plan) && !has(traits.nothing)",
            "events.filter(e, e.name == 'Product Viewed' && e.properties.category == 'Shoes').size() == 1",
            "events.exists(e, e.name == 'Product Viewed' && days_since(e.at) < 30)",
            "days_since(orders.last) == 5 && hours_since(orders.last) == 120",
            "seen.last > timestamp('2026-01-01T00:00:00Z')",
            "consent.email && !consent.sms",
            "'vip' in tags && 'loyal' in segments",
            "email.endsWith('@example.com') && phone == null",
            "rfm.recency == 5 && rfm.frequency == 3 && rfm.monetary == 2",
            "event.name == 'Checkout Started' && event.properties.value > 50",
        ] {
            assert!(holds(text), "{text}");
        }
    }

    #[test]
    fn what_an_older_version_stored_is_read() {
        let text = "orders.counts >= 3";
        assert!(Expression::parse(text, Scope::Customer).is_err());
        let read = Expression::parse_as(text, Scope::Customer, Written::Before).unwrap();
        assert!(!read.holds(&Facts::example(), None, &BrandSettings::default(), now()).holds);
        assert!(Expression::parse_as("orders.count >", Scope::Customer, Written::Before).is_err());
    }

    #[test]
    fn what_cannot_be_answered_does_not_hold_and_says_why() {
        let of = |text: &str| {
            let expression = Expression::parse(text, Scope::Customer).unwrap();
            expression.holds(&Facts::example(), None, &BrandSettings::default(), now())
        };
        assert!(!of("traits.nothing == 1").holds && !of("!(traits.nothing == 1)").holds);
        assert!(of("traits.nothing == 1").why.unwrap().contains("nothing"));
        assert!(!of("traits.plan > 3").holds);
    }

    #[test]
    fn a_wrong_expression_is_refused_with_its_place() {
        let refused = |text: &str| Expression::parse(text, Scope::Customer).unwrap_err().message;
        for (text, says) in [
            ("", "is empty"),
            ("orders.count >", "line 1, column 15, at the end"),
            ("orders.count > 1 &&\n  order.total > 2", "line 2, column 3: there is no \"order\""),
            ("event.name == 'x'", "line 1, column 1: no event is meant here"),
            ("orders.count > 2 && shout(email)", "line 1, column 21: there is no function \"shout\""),
            ("orders.count + 1", "must be true or false"),
            ("orders.count > 'many'", "line 1, column 14: orders.count is a whole number"),
            (
                "orders.count = 3",
                "near \"= 3\": Syntax error: token recognition error at: '= '; equality is written ==",
            ),
            ("orders.count >= 3 AND consent.email", "and is written &&"),
            ("not consent.email", "not is written !"),
            ("traits.plan == 'gold", "a quote is not closed"),
            ("days_since(orders.last) < 90d", "days_since(orders.last) < 90"),
            ("\u{201c}vip\u{201d} in tags", "straight quotes"),
            (
                "email.matches('.*@gmail.com')",
                "there is no function \"matches\"; there are days_since, hours_since, size,",
            ),
            (&"a".repeat(3000), "3000 characters"),
            (&format!("{}true{}", "(".repeat(1000), ")".repeat(900)), "nested deeper"),
            ("events.exists(a, events.exists(b, events.exists(c, true)))", "nested 3 deep"),
        ] {
            let message = refused(text);
            assert!(message.contains(says), "{text:.60}: {message}");
        }
        // However it is nested, reading it ends in an answer.
        for text in
            ["!".repeat(1999) + "x", "-".repeat(1999) + "1", "1+".repeat(900) + "1", "true?".repeat(300)]
        {
            assert!(Expression::parse(&text, Scope::Customer).is_err());
        }
    }

    #[test]
    fn an_expression_knows_when_time_may_change_it() {
        let next = |text: &str| {
            let expression = Expression::parse(text, Scope::Customer).unwrap();
            let next = expression.holds(&Facts::example(), None, &BrandSettings::default(), now()).next;
            (expression.is_timed(), next.map(time::format))
        };
        assert_eq!(next("orders.count > 1"), (false, None));
        assert_eq!(next("days_since(orders.last) > 90"), (true, Some("2026-06-16T12:00:00.000Z".into())));
        assert_eq!(next("hours_since(orders.last) > 90"), (true, Some("2026-06-15T13:00:00.000Z".into())));
        assert_eq!(next("rfm.recency == 1"), (true, Some("2026-07-10T12:00:00.000Z".into())));
    }

    /// A customer with as much as a customer may have.
    fn laden() -> Facts {
        let body = serde_json::json!({"properties": {"big": "x".repeat(30_000), "name": "Shoe"}}).to_string();
        let mut facts = Facts::example();
        facts.events = (0..200)
            .map(|n| crate::domain::customer360::StoredEvent {
                message_id: n.to_string(),
                body: body.clone(),
                ..facts.events[0].clone()
            })
            .collect();
        facts
    }

    #[test]
    fn an_expression_pays_for_what_it_does_while_it_does_it() {
        let facts = laden();
        for text in [
            "(events+events+events).exists(a, (events+events+events).exists(b, a.name != b.name))",
            "(events+events+events+events+events+events+events+events+events).exists(a, (events+events+events+events+events).exists(b, a.name != b.name))",
            "events.map(a, events.map(b, a.properties.big + b.properties.big)).size() > 0",
            "events.map(a, events.map(b, [a.properties.big, b.properties.big])).size() > 0",
            "events.map(a, events).exists(c, c == events.map(a, a))",
            "events.map(a, events) == events.map(b, events)",
            "events.all(a, events.all(b, a == b || true))",
            "events.map(a, {'k': events}).size() > 0",
            "events.exists(a, events.exists(b, (a.properties.big + b.properties.big).contains('yyyy')))",
            "events.filter(a, [events, events, events] == [events, events, [a]]).size() > 3",
        ] {
            let read = Expression::parse(text, Scope::Customer);
            let expression = read.unwrap_or_else(|error| panic!("{text}: {error}"));
            let verdict = expression.holds(&facts, None, &BrandSettings::default(), now());
            assert!(!verdict.holds && verdict.overrun, "{text}: {verdict:?}");
        }
        // What people write is far from the limits, also for such a customer.
        for (text, holds) in [
            ("events.exists(e, e.name == 'Product Viewed' && e.properties.name == 'Shoe')", true),
            ("events.filter(e, e.name == 'Product Viewed').size() >= 200", true),
            ("size(events) > 3 && events.all(e, 'big' in e.properties)", true),
            ("events.map(e, e.name).exists(n, n in ['Product Viewed', 'Order Created'])", true),
            ("orders.count > 1 && events.exists_one(e, e.name == 'Nothing')", false),
        ] {
            let expression = Expression::parse(text, Scope::Customer).unwrap();
            let verdict = expression.holds(&facts, None, &BrandSettings::default(), now());
            assert_eq!((verdict.holds, verdict.overrun), (holds, false), "{text}: {:?}", verdict.why);
        }
        let twice = "events.exists(a, events.exists(b, a.name == b.name && a.at != b.at))";
        let mut usual = facts;
        usual.events.iter_mut().for_each(|event| event.body = Facts::example().events[0].body.clone());
        let verdict = Expression::parse(twice, Scope::Customer).unwrap().holds(
            &usual,
            None,
            &BrandSettings::default(),
            now(),
        );
        assert!(!verdict.overrun, "{verdict:?}");
    }
}
