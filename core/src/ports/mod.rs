//! What the services need of the world, as traits. Each has two adapters today, in [`crate::adapters`].
//!
//! Ports are held as `Arc<dyn …>` in one [`crate::context::Context`]; their methods take batches; their errors say what the
//! caller can do about them.

pub mod automations;
pub mod brands;
pub mod cache;
pub mod clock;
pub mod customer_search;
pub mod fault;
pub mod locks;
pub mod outbox;
pub mod privacy;
pub mod queue;
pub mod sender;
pub mod store;
pub mod world;
