//! PostgreSQL: the store of the services profile. [`super::sqlite`] has the same files, in the same order.

pub mod customers;
pub mod db;
pub mod outbox;
pub mod processing;
pub mod tenants;
