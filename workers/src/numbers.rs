//! Every metric: its kind, what it says, and the label values that it has from the start. A counter that is not there until it first
//! counts hides its first event from `increase()`.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// What sort of metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    /// It says what is.
    Gauge,
    /// How values are spread, with its unit.
    Histogram(Unit),
}

use Kind::{Counter, Gauge, Histogram};

#[derive(Clone, Copy, Debug)]
pub struct Number {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    /// A label and the values that it has from the start; of a counter without one, it is there itself.
    pub label: Option<(&'static str, &'static [&'static str])>,
}

const fn number(name: &'static str, kind: Kind, help: &'static str) -> Number {
    Number { name, kind, help, label: None }
}

const fn labelled(
    name: &'static str,
    kind: Kind,
    help: &'static str,
    label: &'static str,
    values: &'static [&'static str],
) -> Number {
    Number { name, kind, help, label: Some((label, values)) }
}

/// All of them, by name.
pub const NUMBERS: &[Number] = &[
    labelled(
        "tributary_actions_total",
        Counter,
        "Messages of automations that were sent, by outcome",
        "outcome",
        &["done", "later", "refused", "bounced"],
    ),
    number(
        "tributary_audit_failed_total",
        Counter,
        "Looks at customers that could not be noted in the audit log at once",
    ),
    number("tributary_automations_woken_total", Counter, "Runs of automations that were due and got a job"),
    number("tributary_batch_items", Histogram(Unit::Count), "Events in a batch that a worker processed"),
    number(
        "tributary_batch_seconds",
        Histogram(Unit::Seconds),
        "Time that a batch of events took, from the decoding to the commit",
    ),
    number(
        "tributary_bodies_refused_total",
        Counter,
        "Requests refused because the bodies of concurrent requests used up their memory limit",
    ),
    number(
        "tributary_connections_over_bound_total",
        Counter,
        "Connections refused because there were too many",
    ),
    labelled(
        "tributary_customer360_total",
        Counter,
        "Answers of Customer360, by where they came from",
        "cache",
        &["hit", "miss", "stale"],
    ),
    number(
        "tributary_destination_opened_total",
        Counter,
        "Times that a destination was left alone because it failed again and again",
    ),
    number("tributary_events_accepted_total", Counter, "Events that were accepted durably"),
    number("tributary_events_buried_total", Counter, "Events that became dead letters"),
    number("tributary_events_duplicate_total", Counter, "Events that had taken effect before"),
    number("tributary_events_effective_total", Counter, "Events that took effect"),
    labelled(
        "tributary_events_faulty_total",
        Counter,
        "Messages that cannot be right, by the code of what is wrong",
        "code",
        &[],
    ),
    number(
        "tributary_expressions_overrun_total",
        Counter,
        "Expressions and templates of brands that were given up because they took too long",
    ),
    labelled(
        "tributary_housekeeping_last_round_timestamp_seconds",
        Gauge,
        "When a loop of housekeeping last completed a round, in seconds since 1970",
        "loop",
        &[],
    ),
    labelled(
        "tributary_housekeeping_panics_total",
        Counter,
        "Panics of a loop of housekeeping, each a defect",
        "loop",
        &[],
    ),
    labelled(
        "tributary_http_request_seconds",
        Histogram(Unit::Seconds),
        "Time until an HTTP request was answered, by method and route",
        "route",
        &[],
    ),
    labelled(
        "tributary_http_requests_total",
        Counter,
        "HTTP requests, by method, route and status",
        "route",
        &[],
    ),
    number(
        "tributary_ingest_write_items",
        Histogram(Unit::Count),
        "Items that were written to the queue in one go",
    ),
    number(
        "tributary_jobs_batch_items",
        Histogram(Unit::Count),
        "Jobs of automations that were processed together",
    ),
    number(
        "tributary_jobs_batch_seconds",
        Histogram(Unit::Seconds),
        "Time that a batch of automation jobs took",
    ),
    number("tributary_jobs_buried_total", Counter, "Jobs of automations that became dead letters"),
    number("tributary_jobs_done_total", Counter, "Jobs of automations that were done"),
    number(
        "tributary_jobs_over_share_total",
        Counter,
        "Jobs of automations that waited because their brand had its share",
    ),
    number(
        "tributary_outbox_forgotten_total",
        Counter,
        "Jobs that a queue had forgotten and got again: its data was lost, or an old copy of it came back",
    ),
    number(
        "tributary_outbox_refused",
        Gauge,
        "Items in the outbox that no queue takes: one delivery id with two bodies",
    ),
    number("tributary_outbox_waiting", Gauge, "Items in the outbox that wait for their queue"),
    number(
        "tributary_over_limit_total",
        Counter,
        "Requests refused because a key or a shop sent more than it may",
    ),
    number("tributary_process_conflicts_total", Counter, "Batches that lost a race and were run again"),
    labelled("tributary_queue_bytes", Gauge, "Bytes that a queue holds", "queue", &[]),
    labelled("tributary_queue_dead", Gauge, "Dead letters of a queue", "queue", &[]),
    labelled(
        "tributary_queue_dead_dropped_total",
        Counter,
        "Dead letters of a queue that were dropped because a brand had too many",
        "queue",
        &[],
    ),
    labelled("tributary_queue_delayed", Gauge, "Items of a queue that wait for their time", "queue", &[]),
    labelled("tributary_queue_in_flight", Gauge, "Items of a queue that workers hold", "queue", &[]),
    labelled(
        "tributary_queue_oldest_age_seconds",
        Gauge,
        "Age of the oldest item of a queue that waits",
        "queue",
        &[],
    ),
    labelled("tributary_queue_pending", Gauge, "Items of a queue that wait", "queue", &[]),
    number(
        "tributary_queue_strays_total",
        Counter,
        "Items of queues that stood where they must not, and were put right",
    ),
    number("tributary_runs_started_total", Counter, "Runs of automations that began"),
    number("tributary_segments_entered_total", Counter, "Times that a customer entered a segment"),
    number("tributary_segments_left_total", Counter, "Times that a customer left a segment"),
    number("tributary_shop_redactions_total", Counter, "Requests to erase all customers of a shop"),
    number(
        "tributary_spooled_items_total",
        Counter,
        "Items kept in the store because the queue was unavailable",
    ),
    number("tributary_unknown_keys_total", Counter, "Requests with keys that are not known"),
    number(
        "tributary_webhook_conflicts_total",
        Counter,
        "Webhooks refused because their delivery came before with another body",
    ),
    labelled(
        "tributary_webhooks_refused_total",
        Counter,
        "Signed webhooks that were refused, by reason",
        "reason",
        &["shape", "replay"],
    ),
    number(
        "tributary_webhooks_replayed_total",
        Counter,
        "Webhooks that had no effect because their body had come before",
    ),
    labelled(
        "tributary_webhooks_total",
        Counter,
        "Webhooks that were accepted, by whether they were received before",
        "duplicate",
        &["true", "false"],
    ),
    number(
        "tributary_webhooks_unwanted_total",
        Counter,
        "Webhooks of shops whose customers were erased, which are not kept",
    ),
    number("tributary_worker_leases_lost_total", Counter, "Leases that ran out while a worker held them"),
    number("tributary_worker_panics_total", Counter, "Panics of workers, each a defect"),
];

/// Says what each metric is, and lets the counters begin at 0.
pub fn begin() {
    for Number { name, kind, help, label } in NUMBERS.iter().copied() {
        match kind {
            Counter => describe_counter!(name, help),
            Gauge => describe_gauge!(name, help),
            Histogram(unit) => describe_histogram!(name, unit, help),
        }
        match (kind, label) {
            (Counter, None) => metrics::counter!(name).increment(0),
            (Counter, Some((label, values))) => {
                values.iter().for_each(|value| metrics::counter!(name, label => *value).increment(0));
            }
            _ => {}
        }
    }
}

/// The table of all metrics, as docs/METRICS.md has it.
pub fn table() -> String {
    let mut table = String::from("| metric | kind | labels | what it says |\n|---|---|---|---|\n");
    for Number { name, kind, help, label } in NUMBERS.iter().copied() {
        let kind = match kind {
            Counter => "counter",
            Gauge => "gauge",
            Histogram(Unit::Seconds) => "histogram, seconds",
            Histogram(_) => "histogram",
        };
        let labels = match label {
            None => String::new(),
            Some((label, [])) => format!("`{label}`"),
            Some((label, values)) => format!("`{label}`: {}", values.join(", ")),
        };
        table.push_str(&format!("| `{name}` | {kind} | {labels} | {help} |\n"));
    }
    table
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn names_in(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                names_in(&path, found);
            } else if path.extension().is_some_and(|kind| kind == "rs")
                && path.file_name() != Some("numbers.rs".as_ref())
            {
                let text = std::fs::read_to_string(&path).unwrap();
                let names = text.split("\"tributary_").skip(1).filter_map(|rest| rest.split_once('"'));
                found.extend(names.map(|(name, _)| format!("tributary_{name}")));
            }
        }
    }

    #[test]
    fn the_document_lists_every_metric() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/METRICS.md");
        let text = std::fs::read_to_string(path).unwrap();
        let listed = text.split_once("| metric |").map(|(_, rest)| format!("| metric |{rest}"));
        assert_eq!(
            listed.as_deref().map(str::trim),
            Some(table().trim()),
            "docs/METRICS.md ends with this table"
        );
    }

    #[test]
    fn names_follow_the_conventions_of_prometheus() {
        for Number { name, kind, .. } in NUMBERS {
            assert!(name.starts_with("tributary_"), "{name}");
            assert_eq!(
                name.ends_with("_total"),
                *kind == Counter,
                "counters and nothing else end in _total: {name}"
            );
            for (unit, base) in [("_ms", "_seconds"), ("_milliseconds", "_seconds"), ("_kb", "_bytes")] {
                assert!(!name.ends_with(unit), "{name} should be in {base}");
            }
            if *kind == Histogram(Unit::Seconds) {
                assert!(name.ends_with("_seconds"), "{name}");
            }
        }
    }

    #[test]
    fn every_metric_is_described_and_every_one_described_is_there() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut used = BTreeSet::new();
        for package in ["core", "server", "workers"] {
            names_in(&root.join(package).join("src"), &mut used);
        }
        let described: BTreeSet<String> = NUMBERS.iter().map(|number| number.name.to_owned()).collect();
        let is_metric = |name: &&String| {
            ["_total", "_seconds", "_items"].iter().any(|end| name.ends_with(end))
                || ["tributary_queue_", "tributary_outbox_"].iter().any(|begin| name.starts_with(begin))
        };
        let missing: Vec<_> = used.difference(&described).filter(is_metric).collect();
        assert!(missing.is_empty(), "not described: {missing:?}");
        let unused: Vec<_> = described.difference(&used).collect();
        assert!(unused.is_empty(), "described, and nowhere counted: {unused:?}");
        assert!(NUMBERS.is_sorted_by_key(|number| number.name));
    }
}
