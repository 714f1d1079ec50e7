//! Brands, and what they have.

use std::sync::Arc;

use super::audit;
use super::database::{BrandTx, Database};
use crate::ports::privacy::AuditEntry;
use crate::ports::store::StoreError;
use crate::ports::tenants::Tenants;

/// Brands, their keys, shops and secrets.
#[derive(Clone)]
pub struct SqlTenants {
    pub(super) db: Database,
}

impl SqlTenants {
    /// Those in an open database.
    pub fn ports(db: Database) -> Tenants {
        let all = Arc::new(Self { db });
        Tenants {
            brands: all.clone(),
            keys: all.clone(),
            refusals: all.clone(),
            shops: all.clone(),
            secrets: all,
        }
    }
}

pub(super) async fn note_and_commit(mut tx: BrandTx, note: Option<&AuditEntry>) -> Result<(), StoreError> {
    if let Some(entry) = note {
        audit::add(&mut tx, entry).await?;
    }
    tx.commit().await
}
