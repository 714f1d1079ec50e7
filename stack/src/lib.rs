//! Brings systems up for tests, load tests and chaos drills, and takes them down with whoever started them.
//!
//! [`system`] is a whole Tributary, on what `backends` has. [`roles`] lets one binary be server and worker too, so that
//! `cargo run -p loadtest` needs no other binary built. [`client`] speaks to a system as browsers and Shopify do, and [`verify`] compares it
//! with the simulator's ledger.

pub mod campaign;
pub mod client;
pub mod hostile;
pub mod receiver;
pub mod roles;
pub mod system;
pub mod verify;
