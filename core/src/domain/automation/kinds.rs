//! What kind of value each part of an expression has, as far as that is known before anybody is asked: names that are closed (`orders`,
//! `seen`, `rfm`, `consent`, `event`), how many arguments functions take, and comparisons that can never hold.

use std::collections::HashMap;

use cel::IdedExpr;
use cel::common::ast::{CallExpr, ComprehensionExpr, Expr, LiteralValue, SourceInfo, operators};

use super::expression::FUNCTIONS;

/// A kind of value.
#[derive(Clone, Debug, PartialEq)]
enum Kind {
    /// It depends on the customer, or is not looked into.
    Open,
    Null,
    Truth,
    /// A whole number, and one with decimals: they are compared with each other, but not calculated with.
    Whole,
    Decimal,
    Text,
    Time,
    /// A list of values of a kind.
    List(Box<Kind>),
    /// An object with just these fields.
    Record(&'static [(&'static str, Field)]),
}

/// What a field holds.
type Field = fn() -> Kind;

const fn text() -> Kind {
    Kind::Text
}
const fn whole() -> Kind {
    Kind::Whole
}
const fn decimal() -> Kind {
    Kind::Decimal
}
const fn truth() -> Kind {
    Kind::Truth
}
const fn time() -> Kind {
    Kind::Time
}
const fn open() -> Kind {
    Kind::Open
}

const SEEN: [(&str, Field); 3] = [("first", time), ("last", time), ("events", whole)];
const ORDERS: [(&str, Field); 6] = [
    ("count", whole),
    ("first", time),
    ("last", time),
    ("total", decimal),
    ("average", decimal),
    ("currency", text),
];
const RFM: [(&str, Field); 3] = [("recency", whole), ("frequency", whole), ("monetary", whole)];
const CONSENT: [(&str, Field); 2] = [("email", truth), ("sms", truth)];
const EVENT: [(&str, Field); 5] =
    [("name", text), ("type", text), ("at", time), ("trusted", truth), ("properties", open)];

/// What a variable is.
fn variable(name: &str) -> Kind {
    let list = |of| Kind::List(Box::new(of));
    match name {
        "tags" | "segments" => list(Kind::Text),
        "email" | "phone" => Kind::Text,
        "seen" => Kind::Record(&SEEN),
        "orders" => Kind::Record(&ORDERS),
        "rfm" => Kind::Record(&RFM),
        "consent" => Kind::Record(&CONSENT),
        "event" => Kind::Record(&EVENT),
        "events" => list(Kind::Record(&EVENT)),
        _ => Kind::Open,
    }
}

/// How many arguments a function takes, what it is called on among them, and what it comes to.
fn function(name: &str) -> Option<(std::ops::RangeInclusive<usize>, Kind)> {
    Some(match name {
        own if FUNCTIONS.contains(&own) => (1..=1, Kind::Whole),
        "size" | "int" => (1..=1, Kind::Whole),
        "double" => (1..=1, Kind::Decimal),
        "uint" => (1..=1, Kind::Open),
        "contains" | "startsWith" | "endsWith" => (2..=2, Kind::Truth),
        "string" => (1..=1, Kind::Text),
        "bool" => (1..=1, Kind::Truth),
        "timestamp" => (1..=1, Kind::Time),
        "bytes" | "duration" => (1..=1, Kind::Open),
        get if get.starts_with("get") => (1..=2, Kind::Whole),
        _ => return None,
    })
}

impl Kind {
    fn said(&self) -> &'static str {
        match self {
            Self::Open => "anything",
            Self::Null => "null",
            Self::Truth => "true or false",
            Self::Whole => "a whole number",
            Self::Decimal => "a number with decimals",
            Self::Text => "a text",
            Self::Time => "a time",
            Self::List(_) => "a list",
            Self::Record(_) => "an object",
        }
    }

    fn is_number(&self) -> bool {
        matches!(self, Self::Whole | Self::Decimal)
    }

    fn is_open(&self) -> bool {
        matches!(self, Self::Open)
    }

    /// Whether the two may be equal.
    fn may_equal(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Open | Self::Null, _) | (_, Self::Open | Self::Null) => true,
            (Self::List(a), Self::List(b)) => a.may_equal(b),
            (a, b) if a.is_number() && b.is_number() => true,
            (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
        }
    }
}

/// What is wrong with an expression before it is asked of anybody, and where: by the id of a node.
type Wrong = (u64, String);

/// Checks an expression.
///
/// # Errors
/// What is wrong, with line and column, and what would be right.
pub(super) fn check(text: &str, root: &IdedExpr, source: &SourceInfo) -> Result<(), String> {
    let mut looker = Looker { text, source, names: HashMap::new() };
    match looker.kind(root) {
        Ok(Kind::Truth | Kind::Open) => Ok(()),
        Ok(other) => Err(format!("an expression must be true or false, and this one is {}", other.said())),
        Err((id, what)) => Err(format!("{}: {what}", looker.place(id))),
    }
}

struct Looker<'a> {
    text: &'a str,
    source: &'a SourceInfo,
    /// What loops give names to.
    names: HashMap<String, Kind>,
}

impl Looker<'_> {
    fn place(&self, id: u64) -> String {
        let (start, _) = self.source.offset_for(id).unwrap_or_default();
        let start = usize::try_from(start).unwrap_or_default();
        let before: String = self.text.chars().take(start).collect();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        format!("line {line}, column {column}")
    }

    fn kind(&mut self, node: &IdedExpr) -> Result<Kind, Wrong> {
        Ok(match &node.expr {
            Expr::Ident(name) => self.names.get(name).cloned().unwrap_or_else(|| variable(name)),
            Expr::Literal(literal) => match literal {
                LiteralValue::Boolean(_) => Kind::Truth,
                LiteralValue::Double(_) => Kind::Decimal,
                LiteralValue::Int(_) => Kind::Whole,
                LiteralValue::String(_) => Kind::Text,
                LiteralValue::Null => Kind::Null,
                LiteralValue::UInt(_) | LiteralValue::Bytes(_) => Kind::Open,
            },
            Expr::Select(select) => {
                let of = self.kind(&select.operand)?;
                let field = field(&of, &select.field, &written(&select.operand));
                let kind = field.map_err(|what| (select.operand.id, what))?;
                if select.test { Kind::Truth } else { kind }
            }
            Expr::Call(call) => self.call(node.id, call)?,
            Expr::List(list) => {
                let mut of: Option<Kind> = None;
                for element in &list.elements {
                    let kind = self.kind(element)?;
                    of = Some(match of {
                        Some(before) if before != kind => Kind::Open,
                        _ => kind,
                    });
                }
                Kind::List(Box::new(of.unwrap_or(Kind::Open)))
            }
            Expr::Comprehension(each) => self.each(each)?,
            Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => {
                for part in super::expression::parts(node) {
                    self.kind(part)?;
                }
                Kind::Open
            }
        })
    }

    fn each(&mut self, each: &ComprehensionExpr) -> Result<Kind, Wrong> {
        let of = match self.kind(&each.iter_range)? {
            Kind::List(of) => *of,
            Kind::Open | Kind::Null => Kind::Open,
            other => {
                return Err((
                    each.iter_range.id,
                    format!("{} is no list", described(&each.iter_range, &other)),
                ));
            }
        };
        let start = match self.kind(&each.accu_init)? {
            // What filter and map gather.
            Kind::List(_) => Kind::List(Box::new(Kind::Open)),
            other => other,
        };
        let before =
            (self.names.insert(each.iter_var.clone(), of), self.names.insert(each.accu_var.clone(), start));
        let mut kind = Ok(Kind::Open);
        for part in [&each.loop_cond, &each.loop_step, &each.result] {
            kind = self.kind(part);
            if kind.is_err() {
                break;
            }
        }
        for (name, before) in [(&each.iter_var, before.0), (&each.accu_var, before.1)] {
            match before {
                Some(before) => self.names.insert(name.clone(), before),
                None => self.names.remove(name),
            };
        }
        kind
    }

    fn call(&mut self, id: u64, call: &CallExpr) -> Result<Kind, Wrong> {
        let parts: Vec<&IdedExpr> = call.target.as_deref().into_iter().chain(&call.args).collect();
        let mut kinds = Vec::new();
        for part in &parts {
            kinds.push(self.kind(part)?);
        }
        let called = Called { id, name: call.func_name.as_str(), parts, kinds };
        match called.name {
            operators::EQUALS
            | operators::NOT_EQUALS
            | operators::LESS
            | operators::LESS_EQUALS
            | operators::GREATER
            | operators::GREATER_EQUALS => called.comparison(),
            operators::LOGICAL_AND | operators::LOGICAL_OR | operators::LOGICAL_NOT => called.logic(),
            operators::NOT_STRICTLY_FALSE => Ok(Kind::Truth),
            operators::CONDITIONAL => called.conditional(),
            operators::IN => called.membership(),
            operators::INDEX => called.index(),
            operators::ADD
            | operators::SUBSTRACT
            | operators::MULTIPLY
            | operators::DIVIDE
            | operators::MODULO => called.arithmetic(),
            operators::NEGATE => Ok(called.kinds[0].clone()),
            _ => called.function(),
        }
    }
}

/// An operator or a function with what it is called with. Each method returns the kind of its value, or what can never be right.
struct Called<'e> {
    id: u64,
    name: &'e str,
    parts: Vec<&'e IdedExpr>,
    kinds: Vec<Kind>,
}

impl Called<'_> {
    fn said(&self, at: usize) -> String {
        described(self.parts[at], &self.kinds[at])
    }

    fn comparison(&self) -> Result<Kind, Wrong> {
        let (left, right) = (&self.kinds[0], &self.kinds[1]);
        let both = || format!("{}, and {}", self.said(0), self.said(1));
        if matches!(self.name, operators::EQUALS | operators::NOT_EQUALS) {
            return match left.may_equal(right) {
                true => Ok(Kind::Truth),
                false => Err((self.id, format!("{}: they are never equal", both()))),
            };
        }
        let ordered = |kind: &Kind| {
            kind.is_number() || matches!(kind, Kind::Open | Kind::Null | Kind::Text | Kind::Time)
        };
        match left.may_equal(right) && self.kinds.iter().all(ordered) {
            true => Ok(Kind::Truth),
            false => Err((self.id, format!("{}: they cannot be compared", both()))),
        }
    }

    fn logic(&self) -> Result<Kind, Wrong> {
        for (at, kind) in self.kinds.iter().enumerate() {
            if !matches!(kind, Kind::Truth | Kind::Open) {
                let what = format!("{}; &&, || and ! need what is true or false", self.said(at));
                return Err((self.parts[at].id, what));
            }
        }
        Ok(Kind::Truth)
    }

    fn conditional(&self) -> Result<Kind, Wrong> {
        if !matches!(self.kinds[0], Kind::Truth | Kind::Open) {
            return Err((self.parts[0].id, format!("{}; it must be true or false", self.said(0))));
        }
        Ok(if self.kinds[1] == self.kinds[2] { self.kinds[1].clone() } else { Kind::Open })
    }

    fn membership(&self) -> Result<Kind, Wrong> {
        let (one, all) = (&self.kinds[0], &self.kinds[1]);
        if let Kind::List(of) = all
            && !one.may_equal(of)
        {
            let what = format!("{}: it is never in a list of which each is {}", self.said(0), of.said());
            return Err((self.id, what));
        }
        if all.is_number() || matches!(all, Kind::Text | Kind::Truth | Kind::Time) {
            return Err((self.parts[1].id, format!("{}; in needs a list", self.said(1))));
        }
        Ok(Kind::Truth)
    }

    fn index(&self) -> Result<Kind, Wrong> {
        Ok(match (&self.kinds[0], &self.parts[1].expr) {
            (Kind::Record(_), Expr::Literal(LiteralValue::String(name))) => {
                field(&self.kinds[0], name.inner(), &written(self.parts[0]))
                    .map_err(|what| (self.parts[0].id, what))?
            }
            (Kind::List(of), _) => (**of).clone(),
            _ => Kind::Open,
        })
    }

    fn arithmetic(&self) -> Result<Kind, Wrong> {
        if let Some(whole) = self.kinds.iter().position(|kind| *kind == Kind::Whole)
            && self.kinds.contains(&Kind::Decimal)
        {
            let (value, other) = (written(self.parts[whole]), self.said(1 - whole));
            let what = format!("{}, and {other}: write double({value})", self.said(whole));
            return Err((self.id, what));
        }
        let same = self.kinds[0] == self.kinds[1] && self.kinds[0].is_number();
        Ok(if same { self.kinds[0].clone() } else { Kind::Open })
    }

    fn function(&self) -> Result<Kind, Wrong> {
        let Self { id, name, parts, kinds } = self;
        let Some((takes, comes_to)) = function(name) else { return Ok(Kind::Open) };
        if !takes.contains(&parts.len()) {
            let (takes, has) = (takes.end(), parts.len());
            return Err((*id, format!("{name} takes {takes} value(s), and has {has}")));
        }
        if FUNCTIONS.contains(name) && !matches!(kinds[0], Kind::Time | Kind::Open | Kind::Null) {
            return Err((*id, format!("{name} needs a time, like orders.last, and {}", self.said(0))));
        }
        if matches!(*name, "contains" | "startsWith" | "endsWith")
            && let Some(at) = kinds.iter().position(|kind| !kind.is_open() && *kind != Kind::Text)
        {
            return Err((*id, format!("{name} looks into texts, and {}", self.said(at))));
        }
        Ok(comes_to)
    }
}

/// A field of a value: `of` is how the value is written.
fn field(kind: &Kind, name: &str, of: &str) -> Result<Kind, String> {
    match kind {
        Kind::Open | Kind::Null => Ok(Kind::Open),
        Kind::Record(fields) => {
            let known = || fields.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            match fields.iter().find(|(own, _)| *own == name) {
                Some((_, kind)) => Ok(kind()),
                None => Err(format!("there is no {of}.{name}; {of} has {}", known())),
            }
        }
        other => Err(format!("{of} is {}, and has no {name}", other.said())),
    }
}

/// A value as people wrote it, where it is a name.
fn written(node: &IdedExpr) -> String {
    match &node.expr {
        Expr::Ident(name) => name.clone(),
        Expr::Select(select) => format!("{}.{}", written(&select.operand), select.field),
        Expr::Literal(LiteralValue::String(text)) => format!("{:?}", text.inner()),
        Expr::Literal(LiteralValue::Int(number)) => number.inner().to_string(),
        Expr::Literal(LiteralValue::Double(number)) => number.inner().to_string(),
        _ => "this".to_owned(),
    }
}

fn described(node: &IdedExpr, kind: &Kind) -> String {
    format!("{} is {}", written(node), kind.said())
}

#[cfg(test)]
mod tests {
    use crate::domain::automation::expression::{Expression, Scope};

    #[test]
    fn what_can_never_be_true_is_refused_with_what_would_be_right() {
        for (text, says) in [
            (
                "orders.counts >= 3",
                "line 1, column 1: there is no orders.counts; orders has count, first, last",
            ),
            (
                "email != null &&\n  rfm.recncy > 2",
                "line 2, column 3: there is no rfm.recncy; rfm has recency,",
            ),
            ("has(orders.counts)", "there is no orders.counts"),
            ("orders['counts'] > 1", "there is no orders.counts"),
            ("seen.lst == null", "there is no seen.lst"),
            ("event.propertys.x == 1", "there is no event.propertys; event has name, type, at,"),
            ("events.exists(e, e.nam == 'x')", "there is no e.nam; e has name,"),
            ("events.filter(e, e.properties.a == 1 && e.att > 2).size() > 1", "there is no e.att"),
            ("consent.mail", "there is no consent.mail; consent has email, sms"),
            (
                "consent.email == 'subscribed'",
                "consent.email is true or false, and \"subscribed\" is a text: they are never equal",
            ),
            (
                "orders.total > '100'",
                "orders.total is a number with decimals, and \"100\" is a text: they cannot be compared",
            ),
            ("orders.last > 5", "cannot be compared"),
            ("tags > 1", "cannot be compared"),
            ("days_since(orders.last, 90) > 1", "days_since takes 1 value(s), and has 2"),
            (
                "days_since(orders.count) > 1",
                "days_since needs a time, like orders.last, and orders.count is a whole number",
            ),
            ("days_since('2026-01-01') > 1", "needs a time"),
            (
                "orders.count && consent.email",
                "orders.count is a whole number; &&, || and ! need what is true or false",
            ),
            ("!orders.count", "need what is true or false"),
            ("orders.count", "must be true or false, and this one is a whole number"),
            ("email.contains('a', 'b')", "contains takes 2"),
            ("email.contains(1)", "looks into texts"),
            ("3 in tags", "never in a list of which each is a text"),
            ("'vip' in email", "in needs a list"),
            ("orders.exists(o, o.total > 1)", "is no list"),
            ("events.exists(e, e.name)", "need what is true or false"),
            ("orders.count > 1 ? email : phone", "must be true or false, and this one is a text"),
            ("email.name == 'x'", "email is a text, and has no name"),
        ] {
            let wrong = Expression::parse(text, Scope::Event).map(|_| ()).unwrap_err();
            assert!(wrong.message.contains(says), "{text}: {}", wrong.message);
        }
    }

    #[test]
    fn what_depends_on_the_customer_is_let_in() {
        for text in [
            "traits.anything.at.all == 3",
            "traits.plan > 3 || traits.plan == 'gold'",
            "event.properties.value > 50 && event.properties.items.exists(i, i.sku == 'a')",
            "revenue.EUR > 100 && orders.currency == 'EUR'",
            "orders.last != null && orders.last > timestamp('2026-01-01T00:00:00Z')",
            "orders.last - seen.first > duration('24h')",
            "phone == null",
            "events.map(e, e.name).exists(n, n in ['a', 'b'])",
            "events.exists_one(e, e.trusted) && events.all(e, e.at > seen.first)",
            "orders.total / double(orders.count) > 10.5 && orders.count > 2.5 && orders.total > 100",
            "(orders.count > 3 ? 10 : 20) > rfm.monetary",
            "[orders.count, 3].exists(n, n > 2)",
            "seen.last.getHours() < 12",
            "size(tags) > 0 && tags.exists(t, t.startsWith('vip'))",
            "orders['count'] > 1",
            "traits.vip",
            "true",
        ] {
            assert!(
                Expression::parse(text, Scope::Event).is_ok(),
                "{text}: {:?}",
                Expression::parse(text, Scope::Event).err()
            );
        }
    }
}
