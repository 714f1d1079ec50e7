//! What the tests of every crate share: queues processed in the test's own task, ports that are unavailable, a sender that sends nothing, items as
//! ingestion enqueues them. Built with the feature `testing` alone.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a test may panic")]

mod drain;
mod items;
mod sender;
mod unavailable;

pub use self::drain::{Undone, drain};
pub use self::items::{segment_item, shopify_item};
pub use self::sender::RecordingSender;
pub use self::unavailable::{UnavailableLocks, UnavailableQueue};
