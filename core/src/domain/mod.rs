//! What Tributary knows, as plain values: events, identity, profiles, orders, money.
//!
//! Invariant: nothing in here does IO, is async, reads a clock or draws random numbers. Values go in, values come out,
//! so every rule of this folder can be tested as a table and fed permutations.

pub mod addresses;
pub mod automation;
pub mod backoff;
pub mod contact;
pub mod customer360;
pub mod envelope;
pub mod event;
pub mod gid;
pub mod history;
pub mod identity;
pub mod ids;
pub mod insights;
pub(crate) mod json;
pub mod money;
pub mod order;
pub mod pixel;
pub mod profile;
pub mod scopes;
pub mod settings;
pub mod shopify;
pub mod telephone;
pub mod time;
pub mod tracking;
pub mod version;
pub mod webhook;
