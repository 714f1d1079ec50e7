//! `loadtest replay`, as a user runs it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Write;
use std::process::{Command, Output};

/// A made-up history in the sample's shape: several purchases on a day, purchases of nothing, CRLF.
fn history() -> String {
    let mut lines = String::new();
    for n in 0..300_u32 {
        let customer = n * 7 % 61 + 1;
        let (day, cents) = (n % 28 + 1, n * 37 % 2500);
        let line = format!(
            " {:05} {customer:04} 199703{day:02}  2   {}.{:02}\r\n",
            customer * 3,
            cents / 100,
            cents % 100
        );
        lines.push_str(&line);
    }
    lines
}

fn replay(text: &str, stack: &str) -> Output {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["replay", "--stack", stack, "--cdnow"])
        .arg(file.path())
        .output()
        .unwrap()
}

fn comes_out_to_the_cent(stack: &str) {
    let output = replay(&history(), stack);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let total: u32 = (0..300).map(|n| n * 37 % 2500).sum();
    let dollars = format!("{},{:03}.{:02}", total / 100_000, total / 100 % 1000, total % 100);
    for row in [["customers", "61", "61"], ["orders", "300", "300"], ["revenue, USD", &dollars, &dollars]] {
        let found = text.lines().any(|line| {
            line.trim_start().starts_with(row[0])
                && line.split_whitespace().filter(|w| *w == row[1]).count() == 2
        });
        assert!(found, "{row:?} is not in\n{text}");
    }
    assert!(text.contains("0 of 61 customers differ"), "{text}");
}

#[test]
fn purchases_come_out_to_the_cent_embedded() {
    comes_out_to_the_cent("embedded");
}

#[test]
fn purchases_come_out_to_the_cent_on_services() {
    comes_out_to_the_cent("services");
}

#[test]
fn a_bad_line_ends_it_with_file_line_and_reason() {
    let output = replay(" 00004 0001 19970101  2   29.33\n 00004 0001 19970199  2   29.33\n", "embedded");
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("line 2") && error.contains("19970199") && error.contains("yyyymmdd"), "{error}");
}
