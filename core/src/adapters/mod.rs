//! The ports' adapters. SQL and Redis commands live here and nowhere else.
//!
//! Invariant: nothing outside [`crate::context`] names an adapter, and no adapter knows another.

pub mod folder;
pub mod memory;
pub mod outbound;
pub mod postgres;
pub mod redis;
pub mod sqlite;
