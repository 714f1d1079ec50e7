//! The handlers, a file a noun. Each reads the request, calls a service of the core, and writes the answer.

pub mod automations;
pub mod browser;
pub mod customers;
pub mod events;
pub mod monitoring;
pub mod privacy;
pub mod queues;
pub mod segment;
pub mod segments;
pub mod settings;
pub mod shopify;
pub mod unsubscribe;
