//! What the languages of users may use up: expressions and templates run on a stack of their own, and pay for each step, each byte
//! that they make, and time.
//!
//! Neither engine counts what its operators cost: adding two lists, comparing two events or joining texts is one step to them,
//! however large they are. So every operation that depends on the size of what it gets pays for that size here, before it is done.
//! Payments go to the whole stack of meters that are open on the thread: one for an expression, one around it for a customer.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use crate::stopwatch::Stopwatch;

/// The stack that parsers and evaluations get. Both call themselves for each level of a text; within the limits of texts, the
/// deepest needs some megabytes. The memory is taken only when it is used.
const STACK: usize = 64 * 1024 * 1024;
/// How many payments pass between two looks at the clock.
const LOOK_EVERY: u32 = 64;
/// Bytes that are worth one step.
const BYTES_A_STEP: usize = 64;

/// What something may use up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Steps: about one for each operation and for each 64 bytes that it looks at.
    pub steps: u64,
    /// Bytes that it may make, all together.
    pub bytes: u64,
    pub time: Duration,
}

/// One expression, asked once of one customer.
pub const EXPRESSION: Effort =
    Effort { steps: 2_000_000, bytes: 16 * 1024 * 1024, time: Duration::from_secs(2) };
/// All expressions that are asked of one customer because something happened to them.
pub const CUSTOMER: Effort =
    Effort { steps: 6_000_000, bytes: 64 * 1024 * 1024, time: Duration::from_secs(2) };
/// A page of customers of a preview, or a dry run.
pub const PAGE: Effort = Effort { steps: 60_000_000, bytes: 256 * 1024 * 1024, time: Duration::from_secs(4) };
/// One template, written once.
pub const TEMPLATE: Effort =
    Effort { steps: 2_000_000, bytes: 16 * 1024 * 1024, time: Duration::from_secs(2) };

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overrun {
    #[error("it takes too many steps")]
    Steps,
    #[error("it makes too many bytes")]
    Bytes,
    #[error("it takes too long")]
    Time,
}

/// The work ended in a panic: a defect of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it could not be worked out")]
pub struct Panicked;

struct Meter {
    left: Effort,
    since: Stopwatch,
    payments: u32,
    over: Option<Overrun>,
}

impl Meter {
    fn pay(&mut self, steps: u64, bytes: u64) -> Result<(), Overrun> {
        if let Some(over) = self.over {
            return Err(over);
        }
        self.payments = self.payments.wrapping_add(1);
        let over = if steps > self.left.steps {
            Overrun::Steps
        } else if bytes > self.left.bytes {
            Overrun::Bytes
        } else if self.payments.is_multiple_of(LOOK_EVERY) && self.since.elapsed() > self.left.time {
            Overrun::Time
        } else {
            self.left.steps -= steps;
            self.left.bytes -= bytes;
            return Ok(());
        };
        self.over = Some(over);
        Err(over)
    }
}

thread_local! {
    static METERS: RefCell<Vec<Meter>> = const { RefCell::new(Vec::new()) };
    static DEEP: Cell<bool> = const { Cell::new(false) };
}

/// Does `work` under a meter, and tells what ran out, if anything did.
pub fn within<T>(effort: Effort, work: impl FnOnce() -> T) -> (T, Option<Overrun>) {
    /// Takes the meter away also when the work panics.
    struct Close;
    impl Drop for Close {
        fn drop(&mut self) {
            METERS.with_borrow_mut(Vec::pop);
        }
    }
    METERS.with_borrow_mut(|meters| {
        meters.push(Meter { left: effort, since: Stopwatch::start(), payments: 0, over: None });
    });
    let _close = Close;
    let done = work();
    let over = METERS.with_borrow(|meters| meters.last().and_then(|meter| meter.over));
    (done, over)
}

/// Pays for an operation. Where no meter is open, it is free.
///
/// # Errors
/// What has run out, of the innermost meter that it ran out of. It stays so.
pub fn pay(steps: u64, bytes: u64) -> Result<(), Overrun> {
    METERS.with_borrow_mut(|meters| {
        let mut over = None;
        for meter in meters.iter_mut().rev() {
            over = over.or(meter.pay(steps, bytes).err());
        }
        // An inner one is over, too, when one around it is: nothing goes on.
        if let (Some(over), Some(inner)) = (over, meters.last_mut()) {
            inner.over.get_or_insert(over);
        }
        over.map_or(Ok(()), Err)
    })
}

/// Steps for looking at so many bytes.
pub fn steps(bytes: usize) -> u64 {
    1 + (bytes / BYTES_A_STEP) as u64
}

/// Does `work` on a stack that is deep enough for parsers and evaluations. It blocks until that is done.
///
/// # Errors
/// When it panics, or no thread can be had.
pub fn deep<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Panicked> {
    if DEEP.get() {
        return Ok(work());
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("languages".to_owned()).stack_size(STACK);
        let spawned = thread.spawn_scoped(scope, || {
            DEEP.set(true);
            work()
        });
        spawned.map_err(|_| Panicked)?.join().map_err(|_| Panicked)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Effort = Effort { steps: 10, bytes: 10, time: Duration::from_secs(60) };

    #[test]
    fn what_ran_out_stays_so_and_an_outer_meter_ends_what_is_within() {
        let (outcomes, over) = within(SMALL, || [pay(6, 0), pay(6, 0), pay(1, 0)]);
        assert_eq!(outcomes, [Ok(()), Err(Overrun::Steps), Err(Overrun::Steps)]);
        assert_eq!(over, Some(Overrun::Steps));
        let (inner, outer) = within(SMALL, || {
            let first = within(Effort { steps: 100, ..SMALL }, || pay(8, 0)).1;
            let second = within(Effort { steps: 100, ..SMALL }, || pay(8, 0)).1;
            [first, second]
        });
        assert_eq!((inner, outer), ([None, Some(Overrun::Steps)], Some(Overrun::Steps)));
        assert_eq!(within(SMALL, || pay(1, 11)).1, Some(Overrun::Bytes));
        assert_eq!(pay(u64::MAX, u64::MAX), Ok(()), "no meter is open");
        let brief = Effort { time: Duration::ZERO, steps: u64::MAX, ..SMALL };
        assert_eq!(
            within(brief, || (0..100).map(|_| pay(1, 0)).filter(Result::is_err).count() > 0).1,
            Some(Overrun::Time)
        );
    }

    #[test]
    fn a_deep_stack_holds_what_another_does_not_and_a_panic_ends_the_work_alone() {
        fn down(levels: u32) -> u32 {
            let room = std::hint::black_box([1_u8; 1024]);
            if levels == 0 { 0 } else { down(levels - 1) + u32::from(room[levels as usize % 1024]) }
        }
        assert_eq!(deep(|| down(20_000)), Ok(20_000));
        assert_eq!(deep(|| -> u32 { panic!("a defect") }), Err(Panicked));
    }
}
