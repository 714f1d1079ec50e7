//! SQLite: store and queue of the embedded profile. [`super::postgres`] has the same files, in the same order.

pub mod automations;
pub mod customers;
pub mod db;
pub mod directory;
pub mod outbox;
pub mod privacy;
pub mod processing;
pub mod queue;
pub mod tenants;
