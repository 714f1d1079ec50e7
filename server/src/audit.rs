//! The audit log of what the API does beside the store's own transactions.
//!
//! What is done in a transaction is noted in the same one, by its service. What is not - a queue's dead letters - is noted here
//! before it is done, and is not done where it cannot be noted. What is read often is counted here, and noted every few seconds:
//! one entry a key, customer and kind of look.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use tributary_core::context::Context;
use tributary_core::domain::ids::{BrandId, ProfileId};
use tributary_core::ports::privacy::AuditEntry;
use tributary_core::ports::store::StoreError;
use tributary_core::services::privacy::{Action, entry};

/// How often looks are noted. A process that is killed loses those of as long.
pub const NOTED_EVERY: Duration = Duration::from_secs(5);
/// Most different looks that wait to be noted; beyond it they are noted at once, and nobody looks while that fails.
const MAX_WAITING: usize = 10_000;

/// One look: whose key, which, at what, at whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Look {
    brand: BrandId,
    actor: String,
    what: &'static str,
    subject: Option<ProfileId>,
}

/// Looks that wait to be noted, with how many of each.
#[derive(Debug, Default)]
pub struct Looks {
    waiting: Mutex<HashMap<Look, u64>>,
}

impl Looks {
    /// Counts a look.
    ///
    /// # Errors
    /// When so many wait that the log must be written first, and the store is unavailable.
    pub async fn count(
        &self,
        context: &Context,
        (brand, actor): (BrandId, &str),
        what: &'static str,
        subject: Option<ProfileId>,
    ) -> Result<(), StoreError> {
        let look = Look { brand, actor: actor.to_owned(), what, subject };
        let full = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            *waiting.entry(look).or_default() += 1;
            waiting.len() > MAX_WAITING
        };
        if full { self.tell(context).await } else { Ok(()) }
    }

    /// Notes what waits. What cannot be noted waits on.
    ///
    /// # Errors
    /// The store's own.
    pub async fn tell(&self, context: &Context) -> Result<(), StoreError> {
        let drained = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        let entries: Vec<AuditEntry> = drained
            .iter()
            .map(|(look, count)| {
                let details = json!({"times": count});
                let action = Action { what: look.what, subject: look.subject, details };
                entry(context, look.brand, &look.actor, action)
            })
            .collect();
        if entries.is_empty() {
            return Ok(());
        }
        let stated = context.privacy.append_audit(&entries).await;
        if stated.is_err() {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            for (look, count) in drained {
                *waiting.entry(look).or_default() += count;
            }
        }
        stated
    }
}
