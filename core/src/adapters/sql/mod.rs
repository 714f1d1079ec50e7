//! The store, on PostgreSQL and SQLite: each rule, each row's mapping and each statement once.
//!
//! `database` opens transactions, `statement` runs statements on either store, `codec` says how a column's type stands on each.
//! One file an aggregate holds its rows and its statements. What a store has of its own - its pool, its errors, those few statements
//! that are faster in a form of its own - is in [`super::postgres`] and [`super::sqlite`].

mod audit;
mod automations;
mod brands;
pub(in crate::adapters) mod codec;
mod customer_search;
mod customers;
pub(in crate::adapters) mod database;
mod erasure;
pub(in crate::adapters) mod events;
mod facts;
mod identifiers;
mod keys;
mod merges;
mod orders;
mod outbox;
mod owned;
mod privacy;
mod profiles;
mod runs;
mod secrets;
mod segments;
mod shops;
pub(in crate::adapters) mod statement;
mod store;

pub use self::automations::SqlAutomations;
pub use self::brands::SqlBrands;
pub use self::customer_search::SqlCustomerSearch;
pub use self::database::Database;
pub use self::outbox::SqlOutbox;
pub use self::owned::{OWNED, Owned};
pub use self::privacy::SqlPrivacy;
pub use self::store::SqlStore;

/// Lets a domain type be read as a row of another type that becomes it.
macro_rules! read_as {
    ($($type:ty: $row:ty),+ $(,)?) => {$(
        impl<'r, R: sqlx::Row> sqlx::FromRow<'r, R> for $type
        where
            $row: sqlx::FromRow<'r, R>,
        {
            fn from_row(row: &'r R) -> Result<Self, sqlx::Error> {
                <$row as sqlx::FromRow<'r, R>>::from_row(row).map(Into::into)
            }
        }
    )+};
}

use read_as;

use std::collections::HashMap;

use crate::domain::customer360::{OrderTotals, StoredEvent};
use crate::domain::ids::ProfileId;

/// Sums of customers' orders, by currency.
pub(in crate::adapters) type Totals = HashMap<ProfileId, Vec<OrderTotals>>;

/// An event, and whose it is.
#[derive(sqlx_macros::FromRow)]
pub(in crate::adapters) struct ProfileEvent {
    pub(in crate::adapters) profile_id: ProfileId,
    #[sqlx(flatten)]
    pub(in crate::adapters) event: StoredEvent,
}
