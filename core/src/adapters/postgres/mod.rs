//! What PostgreSQL has of its own: the pool, the migrations, what its errors mean, and a few statements. The rest is in [`super::sql`].

pub mod db;
pub(super) mod hot;
