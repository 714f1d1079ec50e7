//! The verdict on each KPI, as text, as JSON and as a page.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use stack::campaign::iso;
use stack::receiver::now_ms;
use stack::verify::{Counts, Verdict};

/// Response times of one kind of request.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Latency {
    pub(crate) count: usize,
    /// Requests that failed; their repetitions count again.
    pub(crate) failed: usize,
    pub(crate) p50_us: u64,
    pub(crate) p95_us: u64,
    pub(crate) p99_us: u64,
    /// The slowest, in microseconds.
    pub(crate) max_us: u64,
}

/// The system at one moment.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    /// Seconds since the start.
    pub(crate) at_s: f64,
    /// Deliveries sent so far.
    pub(crate) deliveries_sent: usize,
    /// Items in the queue.
    pub(crate) waiting: u64,
    /// Age of the oldest pending one.
    pub(crate) oldest_age_ms: u64,
}

/// A KPI with its verdict.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Kpi {
    pub(crate) name: &'static str,
    /// What it should be.
    pub(crate) target: &'static str,
    /// What it is; null when it cannot be measured yet.
    pub(crate) measured: Option<f64>,
    pub(crate) unit: &'static str,
    /// Whether it is as it should be.
    pub(crate) verdict: KpiVerdict,
}

/// Whether a KPI is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KpiVerdict {
    Pass,
    Fail,
    /// What it is about does not exist yet: not a pass.
    NotBuilt,
    /// It was not asked for: not a pass.
    NotMeasured,
}

impl KpiVerdict {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "FAIL",
            Self::NotBuilt => "not built yet",
            Self::NotMeasured => "not measured",
        }
    }
}

/// What a day came to.
pub(crate) struct Facts {
    pub(crate) target: String,
    pub(crate) seed: u64,
    /// Events a second that the system takes and processes, where that was measured.
    pub(crate) capacity: Option<f64>,
    /// How long sending took.
    pub(crate) sent_in: Duration,
    /// How long it took until the queue was empty.
    pub(crate) drained_in: Duration,
    /// Dead letters at the end.
    pub(crate) dead: u64,
    /// Response times of ingestion.
    pub(crate) ingestion: Latency,
    /// Response times of Customer360.
    pub(crate) customer360: Latency,
    /// The comparison with the ledger.
    pub(crate) verdict: Verdict,
    /// The system over time.
    pub(crate) samples: Vec<Sample>,
}

/// When, where and how a report was made.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Made {
    /// When the run was made, as ISO 8601.
    pub(crate) at: String,
    /// Of what measured, and, where it brought the system up, of what was measured.
    pub(crate) version: &'static str,
    pub(crate) arguments: Vec<String>,
    pub(crate) cores: usize,
}

impl Made {
    fn now() -> Self {
        Self {
            at: iso(now_ms()),
            version: env!("CARGO_PKG_VERSION"),
            arguments: told(std::env::args().skip(1)),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// For people, in a line.
    pub(crate) fn text(&self) -> String {
        let Self { at, version, arguments, cores } = self;
        format!("{at}, version {version}, {cores} cores: loadtest {}", arguments.join(" "))
    }
}

/// The arguments without the keys and secrets among them.
fn told(arguments: impl Iterator<Item = String>) -> Vec<String> {
    let mut told: Vec<String> = Vec::new();
    for argument in arguments {
        let is_secret = |flag: &str| flag.ends_with("-key") || flag.ends_with("-secret");
        let follows = told.last().is_some_and(|before| is_secret(before));
        told.push(match argument.split_once('=') {
            Some((flag, _)) if is_secret(flag) => format!("{flag}=…"),
            _ if follows => "…".to_owned(),
            _ => argument,
        });
    }
    told
}

/// The report of a day.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// When, where and how it was made.
    pub(crate) made: Made,
    pub(crate) target: String,
    pub(crate) seed: u64,
    pub(crate) kpis: Vec<Kpi>,
    /// The ledger, in events.
    pub(crate) ledger: Counts,
    /// Different events that were accepted.
    pub(crate) events: u64,
    pub(crate) customers: usize,
    /// Customers that are not exactly what the ledger says.
    pub(crate) customers_different: usize,
    /// The first differences, in words.
    pub(crate) differences: Vec<String>,
    /// Dead letters at the end.
    pub(crate) dead_letters: u64,
    /// How long sending took, in seconds.
    pub(crate) sent_in_s: f64,
    /// How long it took until the queue was empty, in seconds.
    pub(crate) drained_in_s: f64,
    /// Response times of ingestion.
    pub(crate) ingestion: Latency,
    /// Response times of Customer360.
    pub(crate) customer360: Latency,
    /// The system over time.
    pub(crate) samples: Vec<Sample>,
}

impl Report {
    pub(crate) fn of_day(facts: Facts) -> Self {
        let Facts { verdict, .. } = facts;
        Self {
            kpis: kpis(&verdict, facts.capacity, &facts.customer360),
            made: Made::now(),
            target: facts.target,
            seed: facts.seed,
            ledger: verdict.ledger,
            events: verdict.events,
            customers: verdict.customers,
            customers_different: verdict.customers_different,
            differences: verdict.differences,
            dead_letters: facts.dead,
            sent_in_s: facts.sent_in.as_secs_f64(),
            drained_in_s: facts.drained_in.as_secs_f64(),
            ingestion: facts.ingestion,
            customer360: facts.customer360,
            samples: facts.samples,
        }
    }

    /// Whether every KPI that exists passes.
    pub(crate) fn passed(&self) -> bool {
        self.kpis.iter().all(|kpi| kpi.verdict != KpiVerdict::Fail)
    }

    /// Writes `report.json` and, as `report.html`, `page` into `folder`.
    pub(crate) fn write(&self, folder: &Path, page: String) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let json = serde_json::to_string_pretty(self)?;
        for (name, text) in [("report.json", json), ("report.html", page)] {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// What was asked, with its response times.
    pub(crate) fn response_times(&self) -> [(&'static str, &Latency); 2] {
        [("ingestion", &self.ingestion), ("Customer360", &self.customer360)]
    }

    /// The report for a terminal.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("\nKPIs on {} (seed {})\n\n", self.target, self.seed);
        let _ = writeln!(text, "  {:<34} {:>16} {:>18}   verdict", "KPI", "target", "measured");
        for kpi in &self.kpis {
            let measured = measured(kpi);
            let _ = writeln!(
                text,
                "  {:<34} {:>16} {measured:>18}   {}",
                kpi.name,
                kpi.target,
                kpi.verdict.text()
            );
        }
        let l = &self.ledger;
        let _ = writeln!(
            text,
            "\nLedger, in events\n\n  attempted {}   accepted {}   effective {}   lost {}   duplicated {}   unexpected {}",
            thousands(l.attempted),
            thousands(l.accepted),
            thousands(l.effective),
            l.lost,
            l.duplicated,
            l.unexpected
        );
        let _ = writeln!(
            text,
            "  (deliveries repeat: {} different events; {} customers compared, {} different; {} dead letters)",
            thousands(self.events),
            thousands(self.customers as u64),
            self.customers_different,
            self.dead_letters
        );
        for difference in &self.differences {
            let _ = writeln!(text, "  - {difference}");
        }
        let _ = writeln!(
            text,
            "\nResponse times, in ms\n\n  {:<14} {:>9} {:>7} {:>8} {:>8} {:>8} {:>8}",
            "", "requests", "failed", "p50", "p95", "p99", "max"
        );
        for (name, times) in self.response_times() {
            let _ = writeln!(
                text,
                "  {name:<14} {:>9} {:>7} {:>8} {:>8} {:>8} {:>8}",
                thousands(times.count as u64),
                times.failed,
                ms(times.p50_us),
                ms(times.p95_us),
                ms(times.p99_us),
                ms(times.max_us)
            );
        }
        let _ = writeln!(
            text,
            "\nSent in {:.1} s, processed after {:.1} s.\n{}",
            self.sent_in_s,
            self.drained_in_s,
            self.made.text()
        );
        text
    }
}

fn kpis(verdict: &Verdict, capacity: Option<f64>, customer360: &Latency) -> Vec<Kpi> {
    let judged = |ok: bool| if ok { KpiVerdict::Pass } else { KpiVerdict::Fail };
    let ledger = &verdict.ledger;
    let unique_attempted = verdict.events.max(1) as f64;
    let reliable = (verdict.events.saturating_sub(ledger.lost)) as f64 / unique_attempted
        * 100.0
        * (ledger.accepted as f64 / ledger.attempted.max(1) as f64);
    let a_day = capacity.map(|events| (events * 86_400.0).round());
    let exact =
        (verdict.customers - verdict.customers_different) as f64 / verdict.customers.max(1) as f64 * 100.0;
    let clean = ledger.duplicated + ledger.unexpected == 0;
    vec![
        Kpi {
            name: "Ingestion reliability",
            target: ">= 99.9 %",
            measured: Some(reliable),
            unit: "%",
            verdict: judged(reliable >= 99.9 && clean),
        },
        Kpi {
            name: "Customer360 p99",
            target: "< 1,000 ms",
            measured: Some(customer360.p99_us as f64 / 1000.0),
            unit: "ms",
            verdict: judged(
                customer360.count > 0 && customer360.failed == 0 && customer360.p99_us < 1_000_000,
            ),
        },
        Kpi {
            name: "Events a day, sustained",
            target: ">= 50,000",
            measured: a_day,
            unit: "events/day",
            verdict: a_day.map_or(KpiVerdict::NotMeasured, |a_day| judged(a_day >= 50_000.0)),
        },
        Kpi {
            name: "Customers exactly as the ledger",
            target: "100 %",
            measured: Some(exact),
            unit: "%",
            verdict: judged(verdict.customers > 0 && verdict.customers_different == 0),
        },
        Kpi {
            name: "Dashboard load",
            target: "< 1.2 s",
            measured: None,
            unit: "s",
            verdict: KpiVerdict::NotBuilt,
        },
    ]
}

/// What a KPI measured, for people.
pub(crate) fn measured(kpi: &Kpi) -> String {
    match (kpi.measured, kpi.unit) {
        (None, _) => "-".into(),
        (Some(value), "%") => format!("{value:.3} %"),
        (Some(value), "ms") => format!("{value:.2} ms"),
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rounded count")]
        (Some(value), _) => thousands(value as u64),
    }
}

/// `1234567` as `1,234,567`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(crate) fn ms(us: u64) -> String {
    format!("{}.{:02}", us / 1000, us % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(lost: u64, different: usize, p99_us: u64) -> Facts {
        let ledger =
            Counts { attempted: 1030, accepted: 1030, effective: 1000 - lost, lost, ..Counts::default() };
        Facts {
            target: "test".into(),
            seed: 1,
            capacity: Some(1000.0),
            sent_in: Duration::from_secs(60),
            drained_in: Duration::from_secs(61),
            dead: 0,
            ingestion: Latency::default(),
            customer360: Latency { count: 10, p99_us, ..Latency::default() },
            verdict: Verdict {
                ledger,
                events: 1000,
                customers: 10,
                customers_different: different,
                ..Verdict::default()
            },
            samples: vec![],
        }
    }

    #[test]
    fn a_kpi_can_fail_and_then_the_run_fails() {
        assert!(Report::of_day(facts(0, 0, 5000)).passed());
        assert!(!Report::of_day(facts(2, 0, 5000)).passed(), "99.8 % is not enough");
        assert!(!Report::of_day(facts(0, 1, 5000)).passed(), "one customer differs");
        assert!(!Report::of_day(facts(0, 0, 1_000_000)).passed(), "too slow");
        assert!(!Report::of_day(Facts { capacity: Some(0.5), ..facts(0, 0, 5000) }).passed(), "too little");
        let unmeasured = Report::of_day(Facts { capacity: None, ..facts(0, 0, 5000) });
        assert!(unmeasured.text().contains("not measured"));
    }

    #[test]
    fn what_is_not_built_is_neither_pass_nor_failure() {
        let report = Report::of_day(facts(0, 0, 5000));
        let json = serde_json::to_value(&report).unwrap();
        let dashboard =
            json["kpis"].as_array().unwrap().iter().find(|k| k["name"] == "Dashboard load").unwrap();
        assert_eq!(
            (&dashboard["verdict"], &dashboard["measured"]),
            (&"not_built".into(), &serde_json::Value::Null)
        );
        assert!(report.text().contains("not built yet"));
    }

    #[test]
    fn a_report_shows_no_key() {
        let given = [
            "--target",
            "http://x",
            "--write-key",
            "wk_1",
            "--shop-secret=s3",
            "--secret-key",
            "sk_2",
            "--seed",
            "4",
        ];
        assert_eq!(
            told(given.map(str::to_owned).into_iter()),
            [
                "--target",
                "http://x",
                "--write-key",
                "…",
                "--shop-secret=…",
                "--secret-key",
                "…",
                "--seed",
                "4"
            ]
        );
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(thousands(999), "999");
        assert_eq!(ms(12_345), "12.34");
    }
}
