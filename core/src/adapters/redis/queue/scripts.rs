//! The scripts of the queue, one a step.

use redis::Script;

use super::super::keys::Layout;
/// The protocol's steps, each with the common part and a layout before it.
pub(super) struct Scripts {
    pub(super) enqueue: Script,
    pub(super) fetch: Script,
    pub(super) ack: Script,
    pub(super) beat: Script,
    pub(super) reclaim: Script,
    pub(super) stats: Script,
    pub(super) retry_dead: Script,
    pub(super) discard_dead: Script,
    pub(super) drop_dead: Script,
    pub(super) pause: Script,
    pub(super) repair: Script,
}

impl Scripts {
    pub(super) fn of(layout: Layout, edit: impl Fn(&str) -> String) -> Self {
        let layout = match layout {
            Layout::Lists => include_str!("../scripts/lists.lua"),
            Layout::Streams => include_str!("../scripts/streams.lua"),
        };
        let whole =
            |step: &str| Script::new(&edit(&[include_str!("../scripts/common.lua"), layout, step].concat()));
        Self {
            enqueue: whole(include_str!("../scripts/enqueue.lua")),
            fetch: whole(include_str!("../scripts/fetch.lua")),
            ack: whole(include_str!("../scripts/ack.lua")),
            beat: whole(include_str!("../scripts/beat.lua")),
            reclaim: whole(include_str!("../scripts/reclaim.lua")),
            stats: whole(include_str!("../scripts/stats.lua")),
            retry_dead: whole(include_str!("../scripts/retry_dead.lua")),
            discard_dead: whole(include_str!("../scripts/discard_dead.lua")),
            drop_dead: whole(include_str!("../scripts/drop_dead.lua")),
            pause: whole(include_str!("../scripts/pause.lua")),
            repair: whole(include_str!("../scripts/repair.lua")),
        }
    }
}
