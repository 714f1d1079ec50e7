//! A CEL expression that pays for what it does: see [`super::meter`].
//!
//! The crate `cel` has no hook for each step. So the tree that its parser made is rewritten once: what an operation looks at is
//! wrapped in a call of [`WEIGH`], what it keeps in a call of [`KEEP`]. Both hand their argument on, untouched and uncopied, and pay
//! for its size first. No expression can name them: an identifier has no `@`.

use std::sync::{Arc, LazyLock};

use cel::common::ast::{CallExpr, EntryExpr, Expr, operators};
use cel::common::types::{CelBytes, CelList, CelMap, CelMapKey, CelString, DYN_TYPE};
use cel::common::value::{CowVal, Val};
use cel::objects::Key;
use cel::{Env, ExecutionError, IdedExpr, Value};

use super::meter;

/// Hands its argument on, and pays for looking at it.
const WEIGH: &str = "@weigh";
/// Hands its argument on, and pays for looking at it and for a copy that stays.
const KEEP: &str = "@keep";
/// Hands a list on that is gone through, and pays for each entry what the body of the loop costs.
const LOOP: &str = "@loop";
/// Bytes that an entry of a list or a map takes besides its own.
const ENTRY_BYTES: usize = 64;

/// Operators that look at no more of their arguments than a word. The logical ones decide which of theirs are asked at all; and a
/// loop's own `@result && …` must stay as the engine knows it.
const FREE: [&str; 8] = [
    operators::LOGICAL_AND,
    operators::LOGICAL_OR,
    operators::LOGICAL_NOT,
    operators::CONDITIONAL,
    operators::NOT_STRICTLY_FALSE,
    operators::INDEX,
    operators::NEGATE,
    operators::SUBSTRACT,
];

/// What expressions run in: CEL's own functions, and those that pay.
pub(super) fn environment() -> Arc<Env> {
    static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
        let mut env = Env::stdlib();
        let paying = [
            (WEIGH, vec![DYN_TYPE], weigh as cel::common::functions::Function),
            (KEEP, vec![DYN_TYPE], keep),
            (LOOP, vec![DYN_TYPE, DYN_TYPE], each),
        ];
        for (name, arguments, pays) in paying {
            // It fails only where the language has the name already, and it has no name with an @.
            env.add_overload(name, name, arguments, pays).expect("a name of our own");
        }
        Arc::new(env)
    });
    ENV.clone()
}

/// The expression as one that pays.
pub(super) fn paying(root: &IdedExpr) -> IdedExpr {
    call(WEIGH, vec![rewritten(root)])
}

/// How large a tree is, in nodes.
pub(super) fn nodes(node: &IdedExpr) -> usize {
    1 + super::expression::parts(node).into_iter().map(nodes).sum::<usize>()
}

fn call(name: &str, args: Vec<IdedExpr>) -> IdedExpr {
    let call = CallExpr { func_name: name.to_owned(), target: None, args };
    IdedExpr { id: 0, expr: Expr::Call(call) }
}

fn wrapped(name: &str, node: &IdedExpr) -> IdedExpr {
    match node.expr {
        Expr::Literal(_) => node.clone(),
        _ => call(name, vec![rewritten(node)]),
    }
}

fn rewritten(node: &IdedExpr) -> IdedExpr {
    let expr = match &node.expr {
        Expr::Call(made) => {
            let free = FREE.contains(&made.func_name.as_str());
            let adds = made.func_name == operators::ADD;
            let argument = |argument: &IdedExpr| match free {
                true => rewritten(argument),
                false => wrapped(if adds { KEEP } else { WEIGH }, argument),
            };
            Expr::Call(CallExpr {
                func_name: made.func_name.clone(),
                target: made.target.as_deref().map(|target| Box::new(argument(target))),
                args: made.args.iter().map(argument).collect(),
            })
        }
        Expr::Comprehension(made) => {
            let mut made = made.clone();
            let body = nodes(&made.loop_cond) + nodes(&made.loop_step);
            let cost = i64::try_from(body).unwrap_or(i64::MAX);
            let cost =
                IdedExpr { id: 0, expr: Expr::Literal(cel::common::ast::LiteralValue::Int(cost.into())) };
            made.iter_range = call(LOOP, vec![rewritten(&made.iter_range), cost]);
            made.accu_init = rewritten(&made.accu_init);
            made.loop_cond = rewritten(&made.loop_cond);
            made.loop_step = step(&made.loop_step, &made.accu_var);
            made.result = rewritten(&made.result);
            Expr::Comprehension(made)
        }
        Expr::List(list) => {
            let mut list = list.clone();
            list.elements = list.elements.iter().map(|element| wrapped(KEEP, element)).collect();
            Expr::List(list)
        }
        Expr::Map(map) => {
            let mut map = map.clone();
            for entry in &mut map.entries {
                if let EntryExpr::MapEntry(pair) = &mut entry.expr {
                    pair.key = wrapped(KEEP, &pair.key);
                    pair.value = wrapped(KEEP, &pair.value);
                }
            }
            Expr::Map(map)
        }
        Expr::Select(select) => {
            let mut select = select.clone();
            select.operand = Box::new(rewritten(&select.operand));
            Expr::Select(select)
        }
        Expr::Struct(_) | Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => node.expr.clone(),
    };
    IdedExpr { id: node.id, expr }
}

/// The step of a loop. `@result + [x]` stays as it is but for `x`: the engine knows it by its form, and appends in place what it
/// would copy otherwise.
fn step(node: &IdedExpr, result: &str) -> IdedExpr {
    let is_result = |node: &IdedExpr| matches!(&node.expr, Expr::Ident(name) if name == result);
    match &node.expr {
        Expr::Call(made)
            if made.func_name == operators::ADD && made.args.len() == 2 && is_result(&made.args[0]) =>
        {
            let mut made = made.clone();
            made.args[1] = rewritten(&made.args[1]);
            IdedExpr { id: node.id, expr: Expr::Call(made) }
        }
        Expr::Call(made) if made.func_name == operators::CONDITIONAL && made.args.len() == 3 => {
            let mut made = made.clone();
            made.args =
                vec![rewritten(&made.args[0]), step(&made.args[1], result), step(&made.args[2], result)];
            IdedExpr { id: node.id, expr: Expr::Call(made) }
        }
        _ => rewritten(node),
    }
}

/// Pays for making a variable. What runs out shows with the next payment.
pub(super) fn pay_for(value: &Value) {
    let _ = match value {
        Value::String(text) => meter::pay(meter::steps(text.len()), 0),
        Value::List(entries) => {
            entries.iter().for_each(pay_for);
            meter::pay(1, 0)
        }
        Value::Map(map) => {
            for (key, entry) in map.map.iter() {
                if let Key::String(key) = key {
                    let _ = meter::pay(meter::steps(key.len()), 0);
                }
                pay_for(entry);
            }
            meter::pay(1, 0)
        }
        _ => meter::pay(1, 0),
    };
}

type Answer<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;

fn first<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    if args.is_empty() { Err(ExecutionError::missing_argument_or_target()) } else { Ok(args.swap_remove(0)) }
}

fn weigh<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    let argument = first(args)?;
    measure(argument.as_ref())?;
    Ok(argument)
}

fn keep<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    let argument = first(args)?;
    let bytes = measure(argument.as_ref())?;
    meter::pay(0, bytes as u64).map_err(over)?;
    Ok(argument)
}

fn each<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    let cost =
        args.get(1).and_then(|cost| cost.downcast_ref::<cel::common::types::CelInt>().map(|n| *n.inner()));
    let range = first(args)?;
    let entries = range.as_sizer().map_or(0, |sizer| *sizer.size().inner());
    let cost = u64::try_from(entries).unwrap_or_default().saturating_mul(cost.unwrap_or(1).unsigned_abs());
    meter::pay(cost, 0).map_err(over)?;
    measure(range.as_ref())?;
    Ok(range)
}

fn over(over: meter::Overrun) -> ExecutionError {
    ExecutionError::function_error("the expression", over)
}

/// How many bytes a value takes. It is paid for while it is looked at, so that a large one is not gone through in vain.
fn measure(value: &dyn Val) -> Result<usize, ExecutionError> {
    let mut bytes = 16;
    if let Some(text) = value.downcast_ref::<CelString>() {
        bytes += text.inner().len();
    } else if let Some(raw) = value.downcast_ref::<CelBytes>() {
        bytes += raw.inner().len();
    } else if let Some(list) = value.downcast_ref::<CelList>() {
        let mut entries = list.inner().iter();
        entries.try_for_each(|entry| {
            bytes += ENTRY_BYTES + measure(entry.as_ref())?;
            Ok::<_, ExecutionError>(())
        })?;
        return Ok(bytes);
    } else if let Some(map) = value.downcast_ref::<CelMap>() {
        for (key, entry) in map.inner() {
            let key = if let CelMapKey::String(key) = key { key.inner().len() } else { 0 };
            meter::pay(meter::steps(key), 0).map_err(over)?;
            bytes += ENTRY_BYTES + key + measure(entry.as_ref())?;
        }
        return Ok(bytes);
    }
    meter::pay(meter::steps(bytes), 0).map_err(over)?;
    Ok(bytes)
}
