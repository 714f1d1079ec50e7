//! How much of the processor a thread gets when there is not enough for all.

use std::io;
use std::sync::LazyLock;

use tokio::runtime::{Builder, Handle, Runtime};

/// What it is lowered by: about a tenth of what others get.
const LOWER_BY: i32 = 10;

/// One thread, for all of a process.
static BEHIND: LazyLock<io::Result<Runtime>> = LazyLock::new(|| runtime("behind"));

/// Lets all other threads of the machine go before this one, from now on. Only Linux knows priorities of single threads; elsewhere, and
/// where the system refuses, nothing changes.
pub fn lower() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(LOWER_BY) {
        tracing::debug!(%error, "a thread keeps its priority");
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
