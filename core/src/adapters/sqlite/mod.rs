//! What SQLite has of its own: the file, the migrations, what its errors mean, a few statements, and the queue. The rest of the store is
//! in [`super::sql`].

pub mod db;
pub(super) mod hot;
pub mod queue;
