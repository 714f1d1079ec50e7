//! Whether the store was available a moment ago: who asks next need not wait to find out.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::ports::clock::Moment;
use crate::ports::world::World;

/// How long a store that was found unavailable is taken to be so, and how long a question waits for it meanwhile.
const STALE_FOR: Duration = Duration::from_secs(1);

/// When the store was last found unavailable.
pub struct StoreHealth {
    world: World,
    found: Mutex<Option<Moment>>,
}

impl StoreHealth {
    pub(crate) fn new(world: World) -> Self {
        Self { world, found: Mutex::default() }
    }

    pub(crate) fn note_unavailable(&self) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.world.monotonic());
    }

    pub(crate) fn was_unavailable(&self) -> bool {
        let found = *self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.is_some_and(|at| self.world.since(at) < STALE_FOR)
    }
}
