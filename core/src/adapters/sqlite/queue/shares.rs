//! What each brand holds, and counters.

use super::Tx;
use super::rows::{failed, number, positive};
use crate::domain::ids::BrandId;
use crate::ports::queue::QueueError;

/// Items and their bytes.
#[derive(Clone, Copy, Default)]
pub(super) struct Held {
    pub(super) items: u64,
    pub(super) bytes: u64,
}

impl Held {
    pub(super) fn add(&mut self, items: u64, bytes: u64) {
        self.items += items;
        self.bytes += bytes;
    }
}

impl From<(i64, i64)> for Held {
    fn from((items, bytes): (i64, i64)) -> Self {
        Self { items: positive(items), bytes: positive(bytes) }
    }
}

/// Adds to what a brand holds.
pub(super) async fn add_to_share(
    tx: &mut Tx,
    brand: Option<BrandId>,
    items: i64,
    bytes: i64,
) -> Result<(), QueueError> {
    sqlx::query(
        "insert into shares (brand, items, bytes, used) values (?1, ?2, ?3, 1)
        on conflict (brand) do update set items = items + excluded.items, bytes = bytes + excluded.bytes, used = 1",
    )
    .bind(number(brand))
    .bind(items)
    .bind(bytes)
    .execute(&mut **tx)
    .await
    .map_err(failed)?;
    Ok(())
}

/// Adds to what a brand has of dead letters; answers how many there are, and their bytes.
pub(super) async fn add_to_dead(
    tx: &mut Tx,
    brand: Option<BrandId>,
    letters: i64,
    bytes: i64,
) -> Result<(u64, u64), QueueError> {
    let held: (i64, i64) = sqlx::query_as(
        "insert into shares (brand, dead, dead_bytes) values (?1, ?2, ?3)
        on conflict (brand) do update set dead = dead + excluded.dead, dead_bytes = dead_bytes + excluded.dead_bytes
        returning dead, dead_bytes",
    )
    .bind(number(brand))
    .bind(letters)
    .bind(bytes)
    .fetch_one(&mut **tx)
    .await
    .map_err(failed)?;
    Ok((positive(held.0), positive(held.1)))
}

/// Whether more than one brand has put something in since the queue was last found empty.
pub(super) async fn is_shared(tx: &mut Tx) -> Result<bool, QueueError> {
    sqlx::query_scalar("select count(*) > 1 from shares where used = 1")
        .fetch_one(&mut **tx)
        .await
        .map_err(failed)
}

pub(super) async fn count(tx: &mut Tx, name: &str, by: usize) -> Result<(), QueueError> {
    if by > 0 {
        sqlx::query(
            "insert into counters (name, value) values (?1, ?2)
            on conflict (name) do update set value = value + excluded.value",
        )
        .bind(name)
        .bind(i64::try_from(by).unwrap_or_default())
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
    }
    Ok(())
}
