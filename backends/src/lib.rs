//! Redis and PostgreSQL for tests, load tests and drills, taken down with whoever started them.
//!
//! [`guard`] keeps one process. [`redis`] and [`postgres`] are private instances on free ports in temporary folders; [`services`] chooses
//! between those, given URLs, and containers. [`proxy`] breaks connections on request. It knows nothing of Tributary, so that the core's
//! tests do not wait for the server to be built.

pub mod guard;
pub mod postgres;
pub mod proxy;
pub mod redis;
pub mod services;
