//! What Tributary does, over the ports. Routes and workers call these alike.

pub mod customer360;
pub mod health;
pub mod ingest;
pub mod process;
pub mod queues;
pub mod tenants;
pub mod work;
