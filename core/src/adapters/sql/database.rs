//! The only doors to data: a transaction for one brand, or one that says that it is for every brand.

use std::ops::{Deref, DerefMut};

use sqlx::pool::PoolConnection;
use sqlx::{PgPool, Postgres, Sqlite, Transaction};
use uuid::Uuid;

use super::statement::Statement;
use crate::adapters::{postgres, sqlite};
use crate::domain::ids::BrandId;
use crate::ports::store::StoreError;
use crate::ports::world::World;

/// Where the data is, and whose ids its rows get.
#[derive(Clone)]
pub struct Database {
    pool: Pool,
    world: World,
}

#[derive(Clone)]
enum Pool {
    Postgres(PgPool),
    Sqlite(sqlite::db::Db),
}

impl Database {
    pub fn postgres(pool: PgPool, world: World) -> Self {
        Self { pool: Pool::Postgres(pool), world }
    }

    pub fn sqlite(db: sqlite::db::Db, world: World) -> Self {
        Self { pool: Pool::Sqlite(db), world }
    }

    fn over(&self, conn: Conn) -> Tx {
        Tx { conn, world: self.world.clone() }
    }

    /// Opens a transaction that reads and writes one brand's rows. Row-level security keeps it from others'.
    pub(in crate::adapters) async fn brand(&self, brand: BrandId) -> Result<BrandTx, StoreError> {
        let conn = match &self.pool {
            Pool::Postgres(pool) => Conn::Postgres(Held::Tx(postgres::db::begin_for(pool, brand).await?)),
            Pool::Sqlite(db) => Conn::Sqlite(Held::Tx(db.begin().await.map_err(sqlite::db::failed)?)),
        };
        Ok(BrandTx { tx: self.over(conn), brand })
    }

    /// A connection for one statement that reads one brand's rows. PostgreSQL has a transaction for it all the same: row-level security
    /// takes the brand from there.
    pub(in crate::adapters) async fn looking_at(&self, brand: BrandId) -> Result<BrandTx, StoreError> {
        let Pool::Sqlite(db) = &self.pool else { return self.reading(brand).await };
        let conn = Conn::Sqlite(Held::Conn(db.reader().await.map_err(sqlite::db::failed)?));
        Ok(BrandTx { tx: self.over(conn), brand })
    }

    /// Opens a transaction that reads one brand's rows in one state, with several statements. It waits for no writer, and holds none up.
    pub(in crate::adapters) async fn reading(&self, brand: BrandId) -> Result<BrandTx, StoreError> {
        let conn = match &self.pool {
            Pool::Postgres(pool) => Conn::Postgres(Held::Tx(postgres::db::begin_reading(pool, brand).await?)),
            Pool::Sqlite(db) => Conn::Sqlite(Held::Tx(db.begin_reading().await.map_err(sqlite::db::failed)?)),
        };
        Ok(BrandTx { tx: self.over(conn), brand })
    }

    /// Opens a transaction over the rows of every brand: workers take batches of all, and housekeeping does.
    pub(in crate::adapters) async fn every_brand(&self) -> Result<Tx, StoreError> {
        let conn = match &self.pool {
            Pool::Postgres(pool) => Conn::Postgres(Held::Tx(postgres::db::begin(pool).await?)),
            Pool::Sqlite(db) => Conn::Sqlite(Held::Tx(db.begin().await.map_err(sqlite::db::failed)?)),
        };
        Ok(self.over(conn))
    }

    /// Leaves nothing on the disk of what was deleted or written over, as far as this process can see to that.
    pub(in crate::adapters) async fn scrub(&self) {
        let Pool::Sqlite(db) = &self.pool else { return };
        // In the file itself it is written over; the log has it until it is emptied.
        if let Err(error) = db.scrub().await {
            tracing::warn!(%error, "the store's log still holds secrets as they were; it is emptied after the next erasure");
        }
    }

    /// A connection for one statement that writes: a transaction of its own, over the rows of every brand.
    pub(in crate::adapters) async fn writing(&self) -> Result<Tx, StoreError> {
        let conn = match &self.pool {
            Pool::Postgres(pool) => {
                Conn::Postgres(Held::Conn(pool.acquire().await.map_err(postgres::db::failed)?))
            }
            Pool::Sqlite(db) => Conn::Sqlite(Held::Conn(db.writer().await.map_err(sqlite::db::failed)?)),
        };
        Ok(self.over(conn))
    }

    /// A connection for one statement that reads the rows of every brand.
    pub(in crate::adapters) async fn looking(&self) -> Result<Tx, StoreError> {
        let conn = match &self.pool {
            Pool::Postgres(pool) => {
                Conn::Postgres(Held::Conn(pool.acquire().await.map_err(postgres::db::failed)?))
            }
            Pool::Sqlite(db) => Conn::Sqlite(Held::Conn(db.reader().await.map_err(sqlite::db::failed)?)),
        };
        Ok(self.over(conn))
    }
}

/// A connection of either store.
pub(in crate::adapters) enum Conn {
    Postgres(Held<Postgres>),
    Sqlite(Held<Sqlite>),
}

/// A connection, within a transaction or not.
pub(in crate::adapters) enum Held<DB: sqlx::Database> {
    Tx(Transaction<'static, DB>),
    Conn(PoolConnection<DB>),
}

impl<DB: sqlx::Database> Deref for Held<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        match self {
            Self::Tx(tx) => tx,
            Self::Conn(conn) => conn,
        }
    }
}

impl<DB: sqlx::Database> DerefMut for Held<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        match self {
            Self::Tx(tx) => tx,
            Self::Conn(conn) => conn,
        }
    }
}

/// A transaction. Dropping it undoes it.
pub(in crate::adapters) struct Tx {
    pub(in crate::adapters) conn: Conn,
    world: World,
}

impl Tx {
    /// An id for a new row.
    pub(in crate::adapters) fn id(&self) -> Uuid {
        self.world.id()
    }

    pub(in crate::adapters) fn sql<'v>(&mut self, text: impl Into<String>) -> Statement<'_, 'v> {
        Statement::new(&mut self.conn, text)
    }

    /// Whether the store is PostgreSQL: for those few statements that have a form of their own.
    pub(in crate::adapters) fn is_postgres(&self) -> bool {
        matches!(self.conn, Conn::Postgres(_))
    }

    /// Makes all of it durable.
    pub(in crate::adapters) async fn commit(self) -> Result<(), StoreError> {
        match self.conn {
            Conn::Postgres(Held::Tx(tx)) => tx.commit().await.map_err(postgres::db::failed),
            Conn::Sqlite(Held::Tx(tx)) => tx.commit().await.map_err(sqlite::db::failed),
            // each statement was a transaction of its own
            Conn::Postgres(Held::Conn(_)) | Conn::Sqlite(Held::Conn(_)) => Ok(()),
        }
    }
}

/// A transaction over one brand's rows.
pub(in crate::adapters) struct BrandTx {
    tx: Tx,
    brand: BrandId,
}

impl BrandTx {
    /// Whose rows it sees.
    pub(in crate::adapters) fn brand(&self) -> BrandId {
        self.brand
    }

    /// The transaction, for ports that do not say whose it is. It sees this brand's rows only all the same.
    pub(in crate::adapters) fn into_tx(self) -> Tx {
        self.tx
    }

    /// Makes all of it durable.
    pub(in crate::adapters) async fn commit(self) -> Result<(), StoreError> {
        self.tx.commit().await
    }
}

impl Deref for BrandTx {
    type Target = Tx;

    fn deref(&self) -> &Tx {
        &self.tx
    }
}

impl DerefMut for BrandTx {
    fn deref_mut(&mut self) -> &mut Tx {
        &mut self.tx
    }
}
