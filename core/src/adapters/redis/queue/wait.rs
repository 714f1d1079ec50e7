//! Waiting until there may be something to fetch.

use std::time::Duration;

use redis::Cmd;

use super::RedisQueue;
use crate::adapters::in_time;

/// How much longer than asked for the blocking command may take before its connection is given up.
const BLOCKING_GRACE: Duration = Duration::from_secs(2);

impl RedisQueue {
    /// Waits for a marker. Markers carry no work, so one that is popped for a connection that just died costs a poll.
    pub(super) async fn wait_for_marker(&self, wait: Duration) {
        let turn = async {
            let mut slot = self.waiting.lock().await;
            let connection = match slot.take() {
                Some(connection) => Ok(connection),
                None => self.redis.blocking().await,
            };
            let Ok(mut connection) = connection else {
                // Redis is unavailable; the wait is spent by the caller's time limit.
                return std::future::pending().await;
            };
            let mut command = Cmd::new();
            command.arg("BRPOP").arg(self.keys.wake()).arg(wait.as_secs_f64());
            let answer = in_time(wait + BLOCKING_GRACE, command.exec_async(&mut connection)).await;
            if matches!(answer, Ok(Ok(()))) {
                *slot = Some(connection);
            }
        };
        let _ = in_time(wait + BLOCKING_GRACE, turn).await;
    }
}
