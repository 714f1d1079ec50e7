//! Brings systems up for tests, load tests and chaos drills, and takes them down with whoever started them.
//!
//! [`guard`] keeps one process. [`redis`] and [`postgres`] are private instances on free ports in temporary folders;
//! [`services`] chooses between those, given URLs, and containers. [`system`] is a whole Tributary. [`roles`] lets one
//! binary be server and worker too, so that `cargo run -p loadtest` needs no other binary built. [`client`] speaks to a system
//! as browsers and Shopify do, [`proxy`] breaks connections on request, and [`verify`] compares it with the simulator's ledger.

pub mod campaign;
pub mod client;
pub mod guard;
pub mod hostile;
pub mod postgres;
pub mod proxy;
pub mod receiver;
pub mod redis;
pub mod roles;
pub mod services;
pub mod system;
pub mod verify;
