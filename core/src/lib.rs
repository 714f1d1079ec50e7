//! The core of Tributary: what it knows ([`domain`]), what it needs of the world ([`ports`]), what it runs on
//! ([`adapters`]), and what it does ([`services`]). Start reading at [`context`], where the four meet.

// Time, ids and randomness are the World's (clippy.toml).
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod adapters;
pub mod context;
pub mod domain;
pub mod failpoint;
pub mod ports;
pub mod priority;
pub mod remembered;
pub mod sampled;
pub mod services;
pub mod stopwatch;
#[cfg(feature = "testing")]
pub mod testing;
