//! Whether the store was available a moment ago: who asks next need not wait to find out.

use std::time::Duration;

/// How long a store that was found away is taken to be so, and how long a question waits for it meanwhile.
const STALE_FOR: Duration = Duration::from_secs(1);

/// When the store was last found unavailable.
#[derive(Debug, Default)]
pub struct StoreHealth(std::sync::Mutex<Option<tokio::time::Instant>>);

impl StoreHealth {
    pub(crate) fn note_unavailable(&self) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(tokio::time::Instant::now());
    }

    pub(crate) fn was_unavailable(&self) -> bool {
        let found = *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        found.is_some_and(|at| at.elapsed() < STALE_FOR)
    }
}
