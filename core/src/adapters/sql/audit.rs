//! The audit log.

use sqlx_macros::FromRow;
use uuid::Uuid;

use super::codec::{Id, Time};
use super::database::{BrandTx, Tx};
use super::read_as;
use crate::domain::ids::BrandId;
use crate::ports::privacy::AuditEntry;
use crate::ports::store::StoreError;

#[derive(FromRow)]
struct AuditRow {
    id: Id,
    brand_id: BrandId,
    at: Time,
    actor: String,
    action: String,
    subject: Option<String>,
    details: String,
}

read_as!(AuditEntry: AuditRow);

impl From<AuditRow> for AuditEntry {
    fn from(row: AuditRow) -> Self {
        Self {
            id: row.id.0,
            brand: row.brand_id,
            at: row.at.0,
            actor: row.actor,
            action: row.action,
            subject: row.subject,
            details: row.details,
        }
    }
}

/// Adds an entry, in the transaction of what it records.
pub(super) async fn add(tx: &mut Tx, entry: &AuditEntry) -> Result<(), StoreError> {
    tx.sql(
        "insert into audit_log (id, brand_id, at, actor, action, subject, details)
        values ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(entry.id)
    .bind(entry.brand)
    .bind(entry.at)
    .bind(&entry.actor)
    .bind(&entry.action)
    .bind(entry.subject.as_deref())
    .bind(&entry.details)
    .run()
    .await?;
    Ok(())
}

/// The entries before one, newest first.
pub(super) async fn before(
    tx: &mut BrandTx,
    entry: Option<Uuid>,
    limit: i64,
) -> Result<Vec<AuditEntry>, StoreError> {
    let brand = tx.brand();
    tx.sql("select id, brand_id, at, actor, action, subject, details from audit_log where brand_id = $1")
        .bind(brand)
        .filter("id < ", entry)
        .push(" order by id desc limit ")
        .push_bind(limit)
        .all()
        .await
}
