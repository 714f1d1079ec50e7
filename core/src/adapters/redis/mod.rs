//! Redis: the queue, the locks and the cache of the services profile. Redis commands and keys occur nowhere else.

pub mod cache;
pub mod client;
pub mod element;
pub mod keys;
pub mod locks;
pub mod queue;
