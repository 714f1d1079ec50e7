//! The binary, as an operator uses it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use stack::guard::Guarded;

const START: Duration = Duration::from_secs(60);

fn server(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
    command.args(["--embedded", "--data"]).arg(data).args(["--bind", "127.0.0.1:0"]);
    command.env_remove("DATABASE_URL").env_remove("REDIS_URL");
    command
}

fn admin(data: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
    command.arg("admin").args(args).args(["--embedded", "--data"]).arg(data).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test]
async fn the_first_start_shows_keys_that_work_and_the_next_shows_none() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let first = Guarded::start("server", &server(&data), &folder.path().join("log")).unwrap();
    let key = first.line_after("  write key   ", START).unwrap();
    let url = first.line_after("listening on ", START).unwrap();
    let track =
        || reqwest::Client::new().post(format!("{url}/v1/track")).body(r#"{"userId":"u","event":"E"}"#);
    assert_eq!(track().bearer_auth(&key).send().await.unwrap().status(), 200);

    // Admin commands work beside it, and a new key works at once.
    stdout(&admin(&data, &["brand", "add", "Acme"]));
    let new_key = stdout(&admin(&data, &["key", "add", "--brand", "Acme", "--kind", "write"]));
    assert_eq!(new_key.lines().count(), 1, "the key alone: {new_key:?}");
    assert_eq!(track().bearer_auth(new_key.trim()).send().await.unwrap().status(), 200);
    stdout(&admin(
        &data,
        &["shop", "add", "--brand", "Acme", "--domain", "acme.myshopify.com", "--secret", "s"],
    ));
    let unknown = admin(&data, &["key", "add", "--brand", "Nobody", "--kind", "secret"]);
    assert!(!unknown.status.success());
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("brand add"), "it says what to do");

    // A second server on the folder is refused, with words.
    let second = server(&data).output().unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another server"), "{second:?}");

    first.stop().unwrap();
    let next = Guarded::start("server", &server(&data), &folder.path().join("log")).unwrap();
    assert!(next.line_after("  write key   ", Duration::from_secs(3)).is_err(), "keys are shown once");
    next.stop().unwrap();
}

#[test]
fn without_a_profile_it_says_what_is_missing() {
    let output = Command::new(env!("CARGO_BIN_EXE_server"))
        .env_remove("DATABASE_URL")
        .env_remove("REDIS_URL")
        .env_remove("TRIBUTARY_EMBEDDED")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("DATABASE_URL") && words.contains("--embedded"), "{words}");
}

fn queues(data: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
    command.arg("queues").args(args).args(["--embedded", "--data"]).arg(data).output().unwrap()
}

#[tokio::test]
async fn an_operator_looks_after_the_queue_beside_a_running_server() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let running = Guarded::start("server", &server(&data), &folder.path().join("log")).unwrap();
    let key = running.line_after("  write key   ", START).unwrap();
    let url = running.line_after("listening on ", START).unwrap();
    let batch = r#"{"batch":[{"type":"track","userId":"u","messageId":"bad"},{"type":"page","userId":"u"}]}"#;
    let post = reqwest::Client::new().post(format!("{url}/v1/batch")).body(batch);
    assert_eq!(post.bearer_auth(&key).send().await.unwrap().status(), 200);

    let listed = loop {
        let listed = stdout(&queues(&data, &["dead", "list"]));
        if !listed.is_empty() {
            break listed;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(listed.lines().count(), 1, "{listed}");
    assert!(listed.contains("no_event"), "{listed}");
    let id = listed.split_whitespace().next().unwrap();
    let shown: serde_json::Value =
        serde_json::from_str(&stdout(&queues(&data, &["dead", "show", id]))).unwrap();
    assert_eq!(shown["item"]["body"]["messageId"], "bad");
    let numbers = stdout(&queues(&data, &["stats"]));
    assert!(numbers.lines().any(|line| line.split_whitespace().eq(["dead", "1"])), "{numbers}");
    assert_eq!(stdout(&queues(&data, &["audit"])), "strays 0  repaired 0\n");
    stdout(&queues(&data, &["pause"]));
    assert_eq!(stdout(&queues(&data, &["dead", "retry", "--all"])), "1 put back\n");
    assert!(stdout(&queues(&data, &["stats"])).starts_with("events  (paused)"));
    stdout(&queues(&data, &["resume"]));
    while stdout(&queues(&data, &["dead", "list"])).is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(stdout(&queues(&data, &["dead", "discard", id])), "1 discarded\n");
    assert!(!queues(&data, &["dead", "retry"]).status.success(), "which ones?");
    assert!(!queues(&data, &["claim", "nobody"]).status.success());
    running.stop().unwrap();
}
