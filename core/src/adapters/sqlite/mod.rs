//! SQLite: store and queue of the embedded profile. [`super::postgres`] has the same files, in the same order.

pub mod customers;
pub mod db;
pub mod outbox;
pub mod processing;
pub mod queue;
pub mod tenants;
