//! How much of the processor a thread gets when there is not enough for all.

/// What it is lowered by: about a tenth of what others get.
const LOWER_BY: i32 = 10;

/// Lets all other threads of the machine go before this one, from now on. Only Linux knows priorities of single threads; elsewhere, and
/// where the system refuses, nothing changes.
pub fn lower() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(LOWER_BY) {
        tracing::debug!(%error, "a thread keeps its priority");
    }
}
