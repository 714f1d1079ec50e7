//! The set-up that is shipped: no container has rights that it does not need, no secret stands in it, nothing floats.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

const COMPOSE: &str = include_str!("../../docker-compose.yml");

/// The text of each service, and of the anchors that it merges in.
fn services() -> BTreeMap<String, String> {
    let blocks = |indent: usize| {
        let mut found: BTreeMap<String, String> = BTreeMap::new();
        let mut name = String::new();
        for line in COMPOSE.lines().filter(|line| !line.trim_start().starts_with('#')) {
            let depth = line.len() - line.trim_start().len();
            if depth < indent {
                name.clear();
            }
            if depth == indent && line.trim_end().contains(':') {
                name = line.trim().split(':').next().unwrap_or_default().to_owned();
            }
            if !name.is_empty() {
                found.entry(name.clone()).or_default().push_str(&format!("{line}\n"));
            }
        }
        found
    };
    let top = blocks(0);
    let (hardened, ours) = (&top["x-hardened"], &top["x-tributary"]);
    let in_services = |name: &String| top["services"].contains(&format!("\n  {name}:"));
    blocks(2)
        .into_iter()
        .filter(|(name, text)| in_services(name) && text.starts_with("  "))
        .map(|(name, text)| {
            let mut whole = text.clone();
            if text.contains("<<: *tributary") {
                whole.push_str(ours);
                whole.push_str(hardened);
            }
            if text.contains("<<: *hardened") {
                whole.push_str(hardened);
            }
            (name, whole)
        })
        .collect()
}

#[test]
fn every_container_is_closed_down_and_bounded() {
    let services = services();
    let names: Vec<&str> = services.keys().map(String::as_str).collect();
    assert_eq!(names, ["automation-worker", "event-worker", "postgres", "redis", "server"]);
    for (name, text) in &services {
        for wanted in [
            "cap_drop: [ALL]",
            "no-new-privileges:true",
            "read_only: true",
            "pids_limit:",
            "mem_limit:",
            "tmpfs:",
        ] {
            assert!(text.contains(wanted), "{name} lacks {wanted}");
        }
    }
}

#[test]
fn no_secret_stands_in_the_file_or_in_an_environment() {
    for line in COMPOSE.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let secret = ["PASSWORD:", "DATABASE_URL:", "REDIS_URL:", "SECRET_KEY:", "SMTP_URL:"];
        assert!(
            !secret.iter().any(|name| line.trim().ends_with(name) || line.contains(&format!("{name} "))),
            "{line}"
        );
    }
    assert!(COMPOSE.contains("DATABASE_URL_FILE: /run/secrets/database_url"));
    assert!(COMPOSE.contains("requirepass"), "Redis has a password");
}

#[test]
fn nothing_listens_for_the_world_unless_told() {
    let ports: Vec<&str> =
        COMPOSE.lines().filter(|line| line.trim().starts_with("- \"") && line.contains(":3000")).collect();
    assert_eq!(ports.len(), 1);
    assert!(ports[0].contains("${TRIBUTARY_ADDRESS:-127.0.0.1}:"), "{ports:?}");
}

#[test]
fn tributary_connects_as_an_ordinary_role() {
    let role = include_str!("../../compose/postgres-role.sh");
    assert!(role.contains("create role tributary login nosuperuser nobypassrls"));
    assert!(services()["postgres"].contains("POSTGRES_USER: postgres"));
    let secrets = include_str!("../../compose/make-secrets");
    assert!(secrets.contains("postgres://tributary:"));
}

#[test]
fn ci_runs_nothing_that_floats() {
    let ci = include_str!("../../.github/workflows/ci.yml");
    for line in ci.lines().filter(|line| line.contains("uses:")) {
        let commit =
            line.split('@').nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap_or_default();
        assert!(commit.len() == 40 && commit.chars().all(|c| c.is_ascii_hexdigit()), "{line}");
    }
}
