//! The report as one page that needs nothing else: styles inside, charts as SVG.

use std::fmt::Write as _;

use crate::report::{Kpi, KpiVerdict, Latency, Report, Sample, measured, ms, thousands};

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6b7c; --line: #d9e0e8; --card: #fff; --page: #f4f6f9;
  --good: #0b7a4b; --bad: #b3261e; --wait: #8a6100; --a: #1769aa; --b: #b35c00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf1; --soft: #9aa8b8; --line: #2c3744; --card: #18202a;
  --page: #10161d; --good: #4cc38a; --bad: #ff8a80; --wait: #e2b94b; --a: #64b5f6; --b: #ffb074; } }
* { box-sizing: border-box } body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif } main { max-width: 1000px; margin: 0 auto; padding: 32px 20px 60px }
h1 { font-size: 26px; margin: 0 } h2 { font-size: 17px; margin: 34px 0 12px } p { color: var(--soft); margin: 4px 0 }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(175px, 1fr)); gap: 12px; margin-top: 24px }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px }
.card .name { color: var(--soft); font-size: 13px } .card .value { font-size: 22px; font-weight: 600; margin: 4px 0 }
.card .target { color: var(--soft); font-size: 13px }
.pass { color: var(--good) } .fail { color: var(--bad) } .not_built { color: var(--wait) } .tag { font-weight: 600 }
table { border-collapse: collapse; width: 100%; display: block; overflow-x: auto; background: var(--card); border: 1px solid var(--line) }
th, td { padding: 8px 12px; text-align: right; border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums }
th { color: var(--soft); font-weight: 500; font-size: 13px } th:first-child, td:first-child { text-align: left }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px }
figcaption { color: var(--soft); font-size: 13px; margin-bottom: 6px } svg { width: 100%; height: auto; display: block }
svg text { fill: var(--soft); font-size: 11px } .charts { display: grid; gap: 14px; grid-template-columns: 1fr }
@media (min-width: 800px) { .charts { grid-template-columns: 1fr 1fr } }
";

pub(crate) fn page(report: &Report) -> String {
    let verdict = if report.passed() {
        ("pass", "Every KPI that was measured passes")
    } else {
        ("fail", "A KPI fails")
    };
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Tributary load test</title><style>{STYLE}</style><main><h1>Tributary load test</h1>\
         <p>{} &middot; seed {} &middot; sent in {:.1} s, processed after {:.1} s</p><p>{}</p>\
         <p class=\"tag {}\">{}</p><div class=\"cards\">",
        escaped(&report.target),
        report.seed,
        report.sent_in_s,
        report.drained_in_s,
        escaped(&report.made.text()),
        verdict.0,
        verdict.1
    );
    report.kpis.iter().for_each(|kpi| html.push_str(&card(kpi)));
    html.push_str("</div>");
    html.push_str(&ledger(report));
    html.push_str(&response_times(report));
    html.push_str("<h2>Over time</h2><div class=\"charts\">");
    html.push_str(&chart("Deliveries sent a second", "var(--a)", &rate(&report.samples)));
    html.push_str(&chart(
        "Events waiting in the queue",
        "var(--b)",
        &points(&report.samples, |s| s.waiting as f64),
    ));
    html.push_str(&chart(
        "Age of the oldest waiting event, ms",
        "var(--b)",
        &points(&report.samples, |s| s.oldest_age_ms as f64),
    ));
    html.push_str(&bars("Response times, ms", &report.response_times()));
    html.push_str("</div></main></html>\n");
    html
}

fn card(kpi: &Kpi) -> String {
    let class = match kpi.verdict {
        KpiVerdict::Pass => "pass",
        KpiVerdict::Fail => "fail",
        KpiVerdict::NotBuilt | KpiVerdict::NotMeasured => "not_built",
    };
    format!(
        "<div class=\"card\"><div class=\"name\">{}</div><div class=\"value\">{}</div>\
         <div class=\"target\">target {}</div><div class=\"tag {class}\">{}</div></div>",
        escaped(kpi.name),
        measured(kpi),
        escaped(kpi.target),
        kpi.verdict.text()
    )
}

fn ledger(report: &Report) -> String {
    let l = &report.ledger;
    let mut html = String::from(
        "<h2>Ledger, in events</h2><table><tr><th></th><th>attempted</th><th>accepted</th><th>effective</th><th>lost</th>\
         <th>duplicated</th><th>unexpected</th></tr>",
    );
    let _ = write!(
        html,
        "<tr><td>events</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr></table>\
         <p>Deliveries repeat: {} different events. {} customers compared with the ledger, {} different; {} dead letters.</p>",
        thousands(l.attempted),
        thousands(l.accepted),
        thousands(l.effective),
        l.lost,
        l.duplicated,
        l.unexpected,
        thousands(report.events),
        thousands(report.customers as u64),
        report.customers_different,
        report.dead_letters
    );
    if !report.differences.is_empty() {
        html.push_str("<ul>");
        for difference in &report.differences {
            let _ = write!(html, "<li>{}</li>", escaped(difference));
        }
        html.push_str("</ul>");
    }
    html
}

fn response_times(report: &Report) -> String {
    let mut html = String::from(
        "<h2>Response times, ms</h2><table><tr><th></th><th>requests</th><th>failed</th><th>p50</th><th>p95</th>\
         <th>p99</th><th>max</th></tr>",
    );
    for (name, l) in report.response_times() {
        let _ = write!(
            html,
            "<tr><td>{name}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            thousands(l.count as u64),
            l.failed,
            ms(l.p50_us),
            ms(l.p95_us),
            ms(l.p99_us),
            ms(l.max_us)
        );
    }
    html.push_str("</table>");
    html
}

fn points(samples: &[Sample], pick: fn(&Sample) -> f64) -> Vec<(f64, f64)> {
    samples.iter().map(|sample| (sample.at_s, pick(sample))).collect()
}

fn rate(samples: &[Sample]) -> Vec<(f64, f64)> {
    samples
        .windows(2)
        .map(|w| {
            let sent = w[1].deliveries_sent.saturating_sub(w[0].deliveries_sent) as f64;
            (w[1].at_s, sent / (w[1].at_s - w[0].at_s).max(0.001))
        })
        .collect()
}

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 190.0;
const LEFT: f64 = 52.0;
const BOTTOM: f64 = 22.0;

fn chart(title: &str, colour: &str, points: &[(f64, f64)]) -> String {
    let top = nice(points.iter().map(|p| p.1).fold(0.0, f64::max));
    let end = points.last().map_or(1.0, |p| p.0).max(1.0);
    let x = |at: f64| LEFT + at / end * (WIDTH - LEFT - 8.0);
    let y = |value: f64| HEIGHT - BOTTOM - value / top * (HEIGHT - BOTTOM - 10.0);
    let mut svg = figure(title);
    for step in 0..=4 {
        let value = top * f64::from(step) / 4.0;
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{0:.1}\" y2=\"{0:.1}\" stroke=\"var(--line)\"/>\
             <text x=\"{1}\" y=\"{2:.1}\" text-anchor=\"end\">{3}</text>",
            y(value),
            LEFT - 6.0,
            y(value) + 4.0,
            axis(value)
        );
    }
    for step in 0..=4 {
        let at = end * f64::from(step) / 4.0;
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{at:.0} s</text>",
            x(at).min(WIDTH - 14.0),
            HEIGHT - 5.0
        );
    }
    let path: Vec<String> =
        points.iter().map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value))).collect();
    let _ = write!(
        svg,
        "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\" points=\"{}\"/>",
        path.join(" ")
    );
    svg.push_str("</svg></figure>");
    svg
}

fn bars(title: &str, rows: &[(&str, &Latency)]) -> String {
    let cells: Vec<(String, f64)> = rows
        .iter()
        .flat_map(|(name, l)| {
            [("p50", l.p50_us), ("p95", l.p95_us), ("p99", l.p99_us)]
                .map(|(p, us)| (format!("{name} {p}"), us as f64 / 1000.0))
        })
        .collect();
    let top = cells.iter().map(|c| c.1).fold(0.01, f64::max);
    let mut svg = figure(title);
    for (place, (name, value)) in cells.iter().enumerate() {
        let y = 8.0 + place as f64 * 29.0;
        let _ = write!(
            svg,
            "<text x=\"98\" y=\"{:.1}\" text-anchor=\"end\">{}</text><rect x=\"106\" y=\"{y:.1}\" height=\"17\" width=\"{:.1}\" \
             rx=\"3\" fill=\"var({})\"/><text x=\"{:.1}\" y=\"{:.1}\">{value:.2}</text>",
            y + 13.0,
            escaped(name),
            value / top * 290.0,
            if place < 3 { "--a" } else { "--b" },
            112.0 + value / top * 290.0,
            y + 13.0
        );
    }
    svg.push_str("</svg></figure>");
    svg
}

fn figure(title: &str) -> String {
    format!(
        "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">",
        escaped(title)
    )
}

/// The next round number: 1, 2 or 5 times a power of ten.
fn nice(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(1.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|top| *top >= value).unwrap_or(value)
}

fn axis(value: f64) -> String {
    if value >= 10_000.0 {
        format!("{:.0}k", value / 1000.0)
    } else if value >= 10.0 || value == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        for (value, top) in [(0.0, 1.0), (1.0, 1.0), (3.2, 5.0), (51.0, 100.0), (1999.0, 2000.0)] {
            assert!((nice(value) - top).abs() < 1e-9, "{value}: {}", nice(value));
        }
    }

    #[test]
    fn text_from_outside_cannot_become_markup() {
        assert_eq!(escaped("<b>\"&"), "&lt;b&gt;&quot;&amp;");
    }
}
