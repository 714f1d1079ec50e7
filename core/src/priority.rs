//! How much of the processor a thread gets when there is not enough for all.

use std::io;
use std::sync::LazyLock;

use tokio::runtime::{Builder, Handle, Runtime};

/// One thread, for all of a process.
static BEHIND: LazyLock<io::Result<Runtime>> = LazyLock::new(|| runtime("behind"));

/// Lets all other threads of the machine go before this one, from now on: it runs while a processor has nothing else to do. (A lower
/// niceness alone would not do: Linux lets a thread that has begun go on for some milliseconds, unless it is one of these.) Only Linux
/// knows this; elsewhere, and where the system refuses, nothing changes.
pub fn lower() {
    #[cfg(target_os = "linux")]
    {
        use thread_priority::{
            NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
            thread_native_id,
        };
        let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
        if let Err(error) = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle) {
            tracing::debug!(?error, "a thread keeps its priority");
        }
    }
}

/// A runtime of one thread that all others go before.
///
/// # Errors
/// When there is no thread to be had.
pub fn runtime(name: &str) -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name(name)
        .enable_all()
        .on_thread_start(lower)
        .build()
}

/// Where work runs that is long and that nobody waits for by the millisecond: it takes nothing from requests. The caller's own runtime,
/// where there is no thread to be had.
pub fn behind() -> Handle {
    match &*BEHIND {
        Ok(runtime) => runtime.handle().clone(),
        Err(_) => Handle::current(),
    }
}

/// How many messages are read in one turn of a task.
const TURN: usize = 32;

/// Lets other tasks of the runtime go on after every 32nd message that is read: whoever sends one event does not wait until the
/// thousands of somebody else's batch are read.
pub async fn others_first(at: usize) {
    if at % TURN == TURN - 1 {
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    /// The policy of the calling thread, as Linux numbers it: 0 is the usual one, 5 the idle one.
    fn policy() -> u32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        // The name, in parentheses, is the second field; the policy is the 41st.
        stat.rsplit(") ").next().unwrap().split(' ').nth(38).unwrap().parse().unwrap()
    }

    #[test]
    fn a_lowered_thread_goes_behind_and_no_other_is_lowered() {
        assert_eq!(
            std::thread::spawn(|| {
                lower();
                policy()
            })
            .join()
            .unwrap(),
            5
        );
        assert_eq!(policy(), 0);
        let (tell, stated) = std::sync::mpsc::channel();
        behind().spawn(async move { tell.send(policy()).unwrap() });
        assert_eq!(stated.recv().unwrap(), 5);
    }
}
