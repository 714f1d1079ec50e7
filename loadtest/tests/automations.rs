//! `loadtest automations`, as a user runs it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::Command;

fn the_ledger_agrees(stack: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["automations", "--stack", stack, "--customers", "100", "--seconds", "3"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("the ledger agrees") && text.contains("actions due"), "{text}");
}

#[test]
fn a_campaign_comes_out_as_the_ledger_says_embedded() {
    the_ledger_agrees("embedded");
}

#[test]
fn a_campaign_comes_out_as_the_ledger_says_on_services() {
    the_ledger_agrees("services");
}
