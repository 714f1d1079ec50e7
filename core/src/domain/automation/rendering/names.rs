//! What a template speaks of: a misspelt name would be nothing in every e-mail.

use std::collections::BTreeSet;

use minijinja::machinery::ast::{CallArg, Expr, Stmt};
use minijinja::machinery::parse;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;

/// What a template may speak of.
const ROOTS: [&str; 2] = ["customer", "event"];
/// Objects with just these fields: what [`super::context`] makes of a customer and an event.
const CLOSED: [(&str, &[&str]); 4] = [
    (
        "customer",
        &[
            "id",
            "email",
            "phone",
            "traits",
            "tags",
            "segments",
            "first_seen",
            "last_seen",
            "orders",
            "consent",
        ],
    ),
    ("customer.orders", &["count", "currency", "total", "first", "last"]),
    ("customer.consent", &["email", "sms"]),
    ("event", &["message_id", "type", "name", "timestamp", "properties"]),
];

/// Checks a template whose shape is sound. To be called on a deep stack.
///
/// # Errors
/// The name that there is not, its line, and those that there are.
pub(super) fn check(source: &str, more: &[&str]) -> Result<(), String> {
    let tree = parse(source, "template", SyntaxConfig::default()).map_err(|error| error.to_string())?;
    let mut names = Names { set: BTreeSet::new(), more };
    names.gather(&tree);
    names.statement(&tree)
}

struct Names<'t> {
    /// Those that the template itself sets, anywhere in it.
    set: BTreeSet<&'t str>,
    more: &'t [&'t str],
}

impl<'t> Names<'t> {
    fn gather(&mut self, statement: &Stmt<'t>) {
        match statement {
            Stmt::Template(template) => template.children.iter().for_each(|child| self.gather(child)),
            Stmt::IfCond(cond) => {
                cond.true_body.iter().chain(&cond.false_body).for_each(|child| self.gather(child));
            }
            Stmt::ForLoop(each) => {
                self.set.insert("loop");
                self.target(&each.target);
                each.body.iter().chain(&each.else_body).for_each(|child| self.gather(child));
            }
            Stmt::Set(set) => self.target(&set.target),
            _ => {}
        }
    }

    fn target(&mut self, target: &Expr<'t>) {
        match target {
            Expr::Var(var) => {
                self.set.insert(var.id);
            }
            Expr::List(list) => list.items.iter().for_each(|item| self.target(item)),
            Expr::Tuple(tuple) => tuple.items.iter().for_each(|item| self.target(item)),
            _ => {}
        }
    }

    fn statement(&self, statement: &Stmt<'_>) -> Result<(), String> {
        let all = |body: &[Stmt<'_>]| body.iter().try_for_each(|child| self.statement(child));
        match statement {
            Stmt::Template(template) => all(&template.children),
            Stmt::EmitExpr(emit) => self.expression(&emit.expr),
            Stmt::IfCond(cond) => {
                self.expression(&cond.expr)?;
                all(&cond.true_body)?;
                all(&cond.false_body)
            }
            Stmt::ForLoop(each) => {
                self.expression(&each.iter)?;
                each.filter_expr.as_ref().map_or(Ok(()), |filter| self.expression(filter))?;
                all(&each.body)?;
                all(&each.else_body)
            }
            Stmt::Set(set) => self.expression(&set.expr),
            _ => Ok(()),
        }
    }

    fn expression(&self, of: &Expr<'_>) -> Result<(), String> {
        let maybe = |e: &Option<Expr<'_>>| e.as_ref().map_or(Ok(()), |e| self.expression(e));
        let args = |args: &[CallArg<'_>]| {
            args.iter().try_for_each(|arg| match arg {
                CallArg::Pos(value)
                | CallArg::Kwarg(_, value)
                | CallArg::PosSplat(value)
                | CallArg::KwargSplat(value) => self.expression(value),
            })
        };
        match of {
            Expr::Var(var) => {
                let known = || ROOTS.iter().chain(self.more).copied();
                if self.set.contains(var.id) || known().any(|root| root == var.id) {
                    return Ok(());
                }
                let (line, known) = (var.span().start_line, known().collect::<Vec<_>>().join(", "));
                Err(format!("line {line}: there is no {:?}; a template may speak of {known}", var.id))
            }
            Expr::Const(_) | Expr::Map(_) | Expr::Call(_) => Ok(()),
            Expr::UnaryOp(unary) => self.expression(&unary.expr),
            Expr::BinOp(binary) => {
                self.expression(&binary.left)?;
                self.expression(&binary.right)
            }
            Expr::Compare(compare) => {
                self.expression(&compare.expr)?;
                compare.ops.iter().try_for_each(|op| self.expression(&op.expr))
            }
            Expr::IfExpr(choice) => {
                self.expression(&choice.test_expr)?;
                self.expression(&choice.true_expr)?;
                maybe(&choice.false_expr)
            }
            Expr::Filter(filter) => {
                maybe(&filter.expr)?;
                args(&filter.args)
            }
            Expr::Test(test) => {
                self.expression(&test.expr)?;
                args(&test.args)
            }
            Expr::GetAttr(get) => {
                self.expression(&get.expr)?;
                self.field(&get.expr, get.name, get.span().start_line)
            }
            Expr::GetItem(get) => {
                self.expression(&get.expr)?;
                self.expression(&get.subscript_expr)?;
                match &get.subscript_expr {
                    Expr::Const(name) => match Value::as_str(&name.value) {
                        Some(name) => self.field(&get.expr, name, get.span().start_line),
                        None => Ok(()),
                    },
                    _ => Ok(()),
                }
            }
            Expr::Slice(slice) => {
                self.expression(&slice.expr)?;
                [&slice.start, &slice.stop, &slice.step].into_iter().try_for_each(maybe)
            }
            Expr::List(list) => list.items.iter().try_for_each(|item| self.expression(item)),
            Expr::Tuple(tuple) => tuple.items.iter().try_for_each(|item| self.expression(item)),
        }
    }

    /// Whether what is written there has such a field, where its fields are known.
    fn field(&self, of: &Expr<'_>, name: &str, line: u16) -> Result<(), String> {
        let Some(path) = self.path(of) else { return Ok(()) };
        match CLOSED.iter().find(|(closed, _)| *closed == path) {
            Some((_, fields)) if !fields.contains(&name) => {
                Err(format!("line {line}: there is no {path}.{name}; {path} has {}", fields.join(", ")))
            }
            _ => Ok(()),
        }
    }

    /// `customer.orders`, where it is written so.
    fn path(&self, of: &Expr<'_>) -> Option<String> {
        match of {
            Expr::Var(var) if !self.set.contains(var.id) => Some(var.id.to_owned()),
            Expr::GetAttr(get) => Some(format!("{}.{}", self.path(&get.expr)?, get.name)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{check, context};
    use super::*;
    use crate::domain::automation::expression::Written;
    use crate::domain::automation::facts::{Facts, Trigger};

    #[test]
    fn a_name_that_there_is_not_is_refused_with_those_that_there_are() {
        for (template, says) in [
            (
                "Hi\n{{ custommer.traits.name }}",
                "line 2: there is no \"custommer\"; a template may speak of customer, event",
            ),
            ("{{ event.propertys.x.y }}", "line 1: there is no event.propertys; event has message_id,"),
            ("{{ customer['trait'].name }}", "there is no customer.trait;"),
            (
                "{% if customer.orders.cont > 1 %}x{% endif %}",
                "there is no customer.orders.cont; customer.orders has count,",
            ),
            ("{% for tag in customer.tag %}{{ tag }}{% endfor %}", "there is no customer.tag;"),
            ("{{ 'a' ~ (nobody | default('b')) }}", "there is no \"nobody\""),
            ("{{ first_name }}", "there is no \"first_name\""),
            ("{{ confirm_url }}", "there is no \"confirm_url\""),
        ] {
            let wrong = check(template, false, &[], Written::Now).unwrap_err();
            assert!(wrong.contains(says), "{template}: {wrong}");
        }
        for template in [
            "{% set name = customer.traits.firstName or customer.traits.first_name %}{{ name }}",
            "{% for key, value in customer.traits | items %}{{ loop.index }}{{ key }}{{ value.a }}{% endfor %}",
            "{{ event.properties.any.thing }} {{ customer.orders.last }} {{ customer.consent.sms }}",
        ] {
            assert_eq!(check(template, false, &[], Written::Now), Ok(()), "{template}");
        }
        assert_eq!(
            check("{{ custommer }}", false, &[], Written::Before),
            Ok(()),
            "stored before it was checked"
        );
        assert_eq!(check("{{ confirm_url }}", false, &["confirm_url"], Written::Now), Ok(()));
    }

    #[test]
    fn the_fields_are_those_that_a_template_gets() {
        let given = context(&Facts::example(), Some(&Trigger::example()));
        for (path, fields) in CLOSED {
            let object = path.split('.').fold(&given, |value, name| &value[name]).as_object().unwrap();
            let mut given: Vec<&str> = object.keys().map(String::as_str).collect();
            let mut fields = fields.to_vec();
            given.sort_unstable();
            fields.sort_unstable();
            assert_eq!(given, fields, "{path}");
        }
    }
}
