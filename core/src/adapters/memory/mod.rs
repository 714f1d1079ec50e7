//! In-process adapters of the embedded profile.

pub mod cache;
pub mod locks;
