//! What Tributary does, over the ports. Routes and workers call these alike.

pub mod automations;
pub mod batches;
pub mod brand_cache;
pub mod customer360;
pub mod customer_search;
pub mod events;
pub mod export;
pub mod health;
pub mod identity;
pub mod ingest;
pub mod keys;
pub mod locks;
pub mod merge;
pub mod outbox;
pub mod privacy;
pub mod queues;
pub mod rounds;
pub mod seal;
pub mod sealed;
pub mod shops;
pub mod spool;
pub mod store_health;
