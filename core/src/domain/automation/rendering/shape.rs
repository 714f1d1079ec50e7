//! What a template may look like: its size, its words, its tree.
//!
//! The engine's parser builds chains (`a ~ b ~ c …`, `not not …`, `{% elif %}` …) without recursion and goes through them with it, so
//! a long one ends the process: words in a tag and tags in a text are counted before it parses. And its operators cost one step
//! each, however large what they make: so none is let in by which a value could be kept that grows. `*` repeats texts and lists,
//! `**` likewise, so both stay out (the filter `times` multiplies numbers); and what `set` keeps must be no larger than what it is
//! made of.

use minijinja::machinery::ast::{BinOpKind, CallArg, Expr, Stmt};
use minijinja::machinery::{Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;

/// The longest template, in bytes.
pub const MAX_SOURCE_BYTES: usize = 16 * 1024;
/// Most words (names, values, operators, brackets) between `{{` and `}}`, or `{%` and `%}`.
pub const MAX_TAG_WORDS: usize = 100;
/// Most tags of a template.
pub const MAX_TAGS: usize = 500;

/// Whether the template may be given to the engine. To be called on a deep stack.
///
/// # Errors
/// What is wrong with it, and what would be right.
pub(super) fn check(source: &str) -> Result<(), String> {
    if source.len() > MAX_SOURCE_BYTES {
        return Err(format!("the template has {} bytes; at most {MAX_SOURCE_BYTES} are taken", source.len()));
    }
    words(source)?;
    let tree = parse(source, "template", SyntaxConfig::default()).map_err(|error| error.to_string())?;
    statement(&tree)
}

fn words(source: &str) -> Result<(), String> {
    let (mut tags, mut words) = (0, 0);
    for token in tokenize(source, false, SyntaxConfig::default()) {
        let (token, span) = token.map_err(|error| error.to_string())?;
        match token {
            Token::TemplateData(_) => {}
            Token::VariableStart | Token::BlockStart => {
                tags += 1;
                words = 0;
            }
            _ => words += 1,
        }
        if words > MAX_TAG_WORDS {
            let line = span.start_line;
            return Err(format!(
                "line {line}: a tag has more than {MAX_TAG_WORDS} words; use several, or {{% set %}}"
            ));
        }
        if tags > MAX_TAGS {
            return Err(format!("the template has more than {MAX_TAGS} tags"));
        }
    }
    Ok(())
}

fn statements(body: &[Stmt<'_>]) -> Result<(), String> {
    body.iter().try_for_each(statement)
}

fn statement(statement: &Stmt<'_>) -> Result<(), String> {
    match statement {
        Stmt::Template(template) => statements(&template.children),
        Stmt::EmitRaw(_) => Ok(()),
        Stmt::EmitExpr(emit) => expression(&emit.expr, Keeps::No),
        Stmt::IfCond(cond) => {
            expression(&cond.expr, Keeps::No)?;
            statements(&cond.true_body)?;
            statements(&cond.false_body)
        }
        Stmt::ForLoop(each) if each.recursive => Err("a loop may not be recursive".to_owned()),
        Stmt::ForLoop(each) => {
            target(&each.target)?;
            expression(&each.iter, Keeps::Yes)?;
            each.filter_expr.as_ref().map_or(Ok(()), |filter| expression(filter, Keeps::No))?;
            statements(&each.body)?;
            statements(&each.else_body)
        }
        Stmt::Set(set) => {
            target(&set.target)?;
            expression(&set.expr, Keeps::Yes)
        }
        _ => Err("a template may have {{ … }}, {% if %}, {% for %}, {% set name = … %}, {% raw %} and {# comments #}; \
                  nothing else"
            .to_owned()),
    }
}

/// A name, or two of them (`for key, value in …`).
fn target(target: &Expr<'_>) -> Result<(), String> {
    let names = match target {
        Expr::Var(_) => return Ok(()),
        Expr::List(list) => &list.items,
        Expr::Tuple(tuple) => &tuple.items,
        _ => return Err("only a name can be set".to_owned()),
    };
    match names.iter().all(|name| matches!(name, Expr::Var(_))) {
        true => Ok(()),
        false => Err("only names can be set".to_owned()),
    }
}

/// Whether the value is kept under a name, from which another may be made.
#[derive(Clone, Copy, PartialEq)]
enum Keeps {
    Yes,
    No,
}

fn expression(of: &Expr<'_>, keeps: Keeps) -> Result<(), String> {
    let both = |a: &Expr<'_>, b: &Expr<'_>| expression(a, keeps).and_then(|()| expression(b, keeps));
    let maybe = |e: &Option<Expr<'_>>| e.as_ref().map_or(Ok(()), |e| expression(e, keeps));
    match of {
        Expr::Var(_) | Expr::Const(_) => Ok(()),
        Expr::UnaryOp(unary) => expression(&unary.expr, keeps),
        Expr::BinOp(binary) => {
            match binary.op {
                BinOpKind::Mul | BinOpKind::Pow => {
                    return Err("a template does not know * and **; numbers are multiplied by a filter: \
                                {{ price | times(2) }}"
                        .to_owned());
                }
                BinOpKind::Add | BinOpKind::Concat if keeps == Keeps::Yes => {
                    return Err("what is set, or gone through, may not be put together with + or ~: write it out where \
                                it is inserted, or use the filter plus for numbers"
                        .to_owned());
                }
                _ => {}
            }
            both(&binary.left, &binary.right)
        }
        Expr::Compare(compare) => {
            expression(&compare.expr, keeps)?;
            compare.ops.iter().try_for_each(|op| expression(&op.expr, keeps))
        }
        Expr::IfExpr(choice) => {
            both(&choice.test_expr, &choice.true_expr)?;
            maybe(&choice.false_expr)
        }
        Expr::Filter(filter) => {
            maybe(&filter.expr)?;
            filter.args.iter().try_for_each(|arg| argument(arg, keeps))
        }
        Expr::Test(test) => {
            expression(&test.expr, keeps)?;
            test.args.iter().try_for_each(|arg| argument(arg, keeps))
        }
        Expr::GetAttr(get) => expression(&get.expr, keeps),
        Expr::GetItem(get) => both(&get.expr, &get.subscript_expr),
        Expr::Slice(slice) => {
            expression(&slice.expr, keeps)?;
            [&slice.start, &slice.stop, &slice.step].into_iter().try_for_each(maybe)
        }
        // Lists of values, to look something up in.
        Expr::List(list) if list.items.iter().all(|item| matches!(item, Expr::Const(_))) => Ok(()),
        Expr::List(_) | Expr::Tuple(_) | Expr::Map(_) => {
            Err("a list in a template holds texts and numbers only, like [\"gold\", \"silver\"]".to_owned())
        }
        Expr::Call(_) => Err("a template calls nothing; filters are written {{ value | filter }}".to_owned()),
    }
}

fn argument(argument: &CallArg<'_>, keeps: Keeps) -> Result<(), String> {
    match argument {
        CallArg::Pos(value) | CallArg::Kwarg(_, value) => expression(value, keeps),
        CallArg::PosSplat(_) | CallArg::KwargSplat(_) => {
            Err("a filter's arguments are given one by one".to_owned())
        }
    }
}
