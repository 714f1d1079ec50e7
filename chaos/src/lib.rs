//! Chaos drills: real processes are killed under load, and the ledger is checked afterwards.
//!
//! A drill has two phases, as in the field's best: while faults come, nothing may be wrong; when they stop, everything must
//! come right in time. Everything random is drawn from a seed that is printed.

pub mod drill;
