//! Points at which a drill ends the process, as kill -9 does. In a build without the feature `failpoints`, and in every
//! release build, they are nothing.
//!
//! `FAILPOINTS='committed_before_ack=3*off->return'` in the environment ends the process the fourth time that it comes by.

/// Points that the code passes, in the order in which an event does.
pub const POINTS: [&str; 9] = [
    "before_enqueue",
    "claimed_before_reply",
    "fetched_before_handler",
    "events_added_before_commit",
    "merge_checked_before_commit",
    "committed_in_part",
    "committed_before_ack",
    "acked_before_next",
    "outbox_enqueued_before_noted",
];

/// Whether this build has failpoints.
pub const BUILT_IN: bool = cfg!(all(feature = "failpoints", debug_assertions));

/// Reads `FAILPOINTS`. Called once, in `main`.
pub fn arm() {
    #[cfg(all(feature = "failpoints", debug_assertions))]
    std::mem::forget(fail::FailScenario::setup());
}

/// Ends the process where a drill names the item that kills whoever holds it: `poison_item=return(<part of its payload>)`.
#[inline]
pub fn held(payload: &[u8]) {
    #[cfg(all(feature = "failpoints", debug_assertions))]
    fail::fail_point!("poison_item", |named| {
        if named.is_some_and(|named| String::from_utf8_lossy(payload).contains(&named)) {
            die("poison_item");
        }
    });
    #[cfg(not(all(feature = "failpoints", debug_assertions)))]
    let _ = payload;
}

/// Ends the process here, where a drill asks for it.
#[inline]
pub fn reached(point: &'static str) {
    #[cfg(all(feature = "failpoints", debug_assertions))]
    fail::fail_point!(point, |_| die(point));
    #[cfg(not(all(feature = "failpoints", debug_assertions)))]
    let _ = point;
}

#[cfg(all(feature = "failpoints", debug_assertions))]
fn die(point: &str) {
    eprintln!("failpoint {point}: ends here");
    let _ = std::process::Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
    std::process::abort();
}
