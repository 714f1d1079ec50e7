//! The main job, as a user runs it, on a small day.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::Command;

fn a_small_day_passes(stack: &str) {
    let out = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["--events", "1500", "--seconds", "4", "--stack", stack, "--out"])
        .arg(out.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.path().join("report.json")).unwrap()).unwrap();
    let verdicts: Vec<_> =
        report["kpis"].as_array().unwrap().iter().map(|k| k["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["pass", "pass", "pass", "pass", "not_built"]);
    let ledger = &report["ledger"];
    assert!(ledger["attempted"].as_u64().unwrap() > 1500, "{ledger}");
    assert_eq!(ledger["accepted"], ledger["attempted"]);
    for nothing in ["lost", "duplicated", "unexpected"] {
        assert_eq!(ledger[nothing], 0, "{nothing}");
    }
    let page = std::fs::read_to_string(out.path().join("report.html")).unwrap();
    assert!(page.contains("<svg") && !page.contains("src="), "self-contained, with charts");
}

#[test]
fn a_small_day_passes_embedded() {
    a_small_day_passes("embedded");
}

#[test]
fn a_small_day_passes_on_services() {
    a_small_day_passes("services");
}
