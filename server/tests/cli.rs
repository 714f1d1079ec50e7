//! The binary, as an operator uses it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::BufRead;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use backends::guard::Guarded;
use serde_json::json;

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
    let mut command = server(&data);
    command.arg("--demo");
    let first = Guarded::start("server", &command, &folder.path().join("log")).unwrap();
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
    let mut command = server(&data);
    command.arg("--demo");
    let running = Guarded::start("server", &command, &folder.path().join("log")).unwrap();
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

const EXPORT: &str = "\
Name,Email,Financial Status,Paid at,Currency,Total,Created at,Lineitem quantity,Lineitem name,Lineitem price,Refunded Amount,Id,Billing Name,Accepts Marketing
#1001,ada@example.com,paid,2026-01-02 10:00:00 -0500,USD,30.00,2026-01-02 09:59:00 -0500,1,Mug,10.00,5.00,11,Ada Lovelace,yes
#1001,ada@example.com,,,,,,2,\"Pot, large\",10.00,,,,
#1002,bob@example.com,paid,,USD,ten,2026-01-03 09:59:00 -0500,1,Mug,10.00,0.00,12,Bob,no
#1003,ada@example.com,paid,,USD,7.00,2026-01-04 09:59:00 -0500,1,Mug,7.00,0.00,13,Ada Lovelace,yes
";

#[tokio::test]
async fn orders_from_before_are_imported_once_and_bad_lines_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut command = server(&data);
    command.arg("--demo");
    let running = Guarded::start("server", &command, &folder.path().join("log")).unwrap();
    let secret = running.line_after("  secret key  ", START).unwrap();
    let url = running.line_after("listening on ", START).unwrap();
    let added = admin(
        &data,
        &[
            "shop",
            "add",
            "--brand",
            "demo",
            "--domain",
            "demo.myshopify.com",
            "--secret",
            "s",
            "--address",
            "https://t.example.com",
        ],
    );
    stdout(&added);
    let told = String::from_utf8_lossy(&added.stderr).into_owned();
    for said in [
        "https://t.example.com/api/webhooks/shopify",
        "refunds/create",
        "customers/redact",
        "products/delete",
    ] {
        assert!(told.contains(said), "{said}: {told}");
    }
    let file = folder.path().join("orders.csv");
    let import = |shop: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
        command.args(["import", "shopify-orders"]).arg(&file).args(["--shop", shop]).args(more);
        command.args(["--embedded", "--data"]).arg(&data).output().unwrap()
    };
    std::fs::write(&file, EXPORT).unwrap();
    let unknown = import("nobody.myshopify.com", &[]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("shop add"), "it says what to do");
    let first = import("demo.myshopify.com", &[]);
    assert!(!first.status.success(), "a bad line is no success");
    let words = String::from_utf8_lossy(&first.stderr).into_owned();
    assert!(words.contains("line 4") && words.contains("ten"), "{words}");
    assert!(String::from_utf8_lossy(&first.stdout).contains("2 orders imported, 1 bad"), "{first:?}");

    std::fs::write(&file, EXPORT.replace("ten", "10.00")).unwrap();
    assert!(stdout(&import("demo.myshopify.com", &[])).contains("3 orders imported, 0 bad"));
    stdout(&import("demo.myshopify.com", &["--restart"]));
    let read = async |email: &str| -> serde_json::Value {
        let path = format!("{url}/api/customers/by/email/{email}/360");
        reqwest::Client::new().get(path).bearer_auth(&secret).send().await.unwrap().json().await.unwrap()
    };
    let until = std::time::Instant::now() + START;
    while read("bob@example.com").await["orders_count"] != 1
        || read("ada@example.com").await["orders_count"] != 2
    {
        assert!(std::time::Instant::now() < until, "{}", read("ada@example.com").await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let ada = read("ada@example.com").await;
    assert_eq!(json!([ada["revenue"]["USD"], ada["refunded"]["USD"]]), json!(["37.00", "5.00"]));
    assert_eq!(json!([ada["events_count"], ada["traits"]["lastName"]]), json!([2, "Lovelace"]), "each once");
    assert_eq!(ada["consent"]["email"]["allowed"], true);
    assert!(!file.with_extension("csv.progress").exists());
    running.stop().unwrap();
}

#[test]
fn keys_and_settings_are_looked_after_at_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    stdout(&admin(data, &["brand", "add", "Acme"]));
    let key =
        stdout(&admin(data, &["key", "add", "--brand", "Acme", "--kind", "write", "--rate-limit", "9"]));
    let listed = stdout(&admin(data, &["key", "list", "--brand", "Acme"]));
    assert!(listed.contains("write") && listed.contains("9/s") && listed.contains("never"), "{listed}");
    assert!(!listed.contains(key.trim()));
    let id = listed.split('\t').next().unwrap();
    let fresh = stdout(&admin(data, &["key", "rotate", "--brand", "Acme", id, "--grace-s", "0"]));
    assert_ne!(fresh, key);
    assert!(!admin(data, &["key", "rotate", "--brand", "Acme", id]).status.success(), "it has ended");
    assert!(!admin(data, &["key", "revoke", "--brand", "Acme", "000000000000"]).status.success());
    stdout(&admin(data, &["brand", "set", "Acme", r#"{"default_country":"DE"}"#]));
    assert!(stdout(&admin(data, &["brand", "settings", "Acme"])).contains("\"DE\""));
    let wrong = admin(data, &["brand", "set", "Acme", r#"{"default_country":"Atlantis"}"#]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("two letters"), "{wrong:?}");
}

/// What is printed where nobody looks ends in a log, which keeps it.
#[tokio::test]
async fn a_first_start_without_a_terminal_prints_no_key_and_says_how_to_make_one() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let running = Guarded::start("server", &server(&data), &folder.path().join("log")).unwrap();
    let told = running.line_after("There is no brand yet", START).unwrap();
    assert!(told.contains("admin key add") && told.contains("--demo"), "{told}");
    running.line_after("listening on ", START).unwrap();
    running.stop().unwrap();
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    assert!(!log.contains("wk_") && !log.contains("sk_"), "{log}");
    assert_eq!(stdout(&admin(&data, &["brand", "list"])), "");
}

/// A log shipper that died, `2>&1 | head`: nobody reads what is logged, or nobody reads it in time.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_serves_and_stops_whatever_becomes_of_its_stderr() {
    for reader in [Reader::Gone, Reader::Asleep] {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let write = stdout(&admin(&data, &["brand", "add", "Acme"]));
        assert!(!write.is_empty());
        let key =
            stdout(&admin(&data, &["key", "add", "--brand", "Acme", "--kind", "write"])).trim().to_owned();
        let (read, written) = std::io::pipe().unwrap();
        let mut command = server(&data);
        // Whatever there is to say.
        command.env("RUST_LOG", "trace").stdout(Stdio::piped()).stderr(written);
        let mut child = Child(command.spawn().unwrap());
        drop(command);
        let mut lines = std::io::BufReader::new(child.0.stdout.take().unwrap()).lines();
        let said = lines.by_ref().map(Result::unwrap).find(|line| line.starts_with("listening on ")).unwrap();
        let url = said.strip_prefix("listening on ").unwrap().to_owned();
        let _asleep = match reader {
            Reader::Gone => {
                drop(read);
                None
            }
            Reader::Asleep => Some(read),
        };
        // More than a pipe holds.
        let large = "x".repeat(40_000);
        let message = |id: &str, pad: &str| serde_json::json!({"type": "track", "userId": "u", "event": "E", "messageId": id, "pad": pad});
        let batch = serde_json::json!({"batch": [message("good", ""), message("large", &large)]}).to_string();
        let client = reqwest::Client::new();
        for _ in 0..20 {
            let sent = client.post(format!("{url}/v1/batch")).basic_auth(&key, Some("")).body(batch.clone());
            assert_eq!(sent.send().await.unwrap().status(), 200);
        }
        assert!(Command::new("kill").arg("-TERM").arg(child.0.id().to_string()).status().unwrap().success());
        let began = std::time::Instant::now();
        while child.0.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < START, "it does not stop");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A process that does not outlive its test.
#[cfg(unix)]
struct Child(std::process::Child);

#[cfg(unix)]
impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(unix)]
enum Reader {
    Gone,
    Asleep,
}

#[cfg(unix)]
#[test]
fn an_import_writes_through_no_link_that_somebody_planted() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    stdout(&admin(&data, &["brand", "add", "Acme"]));
    let shop = ["shop", "add", "--brand", "Acme", "--domain", "a.myshopify.com", "--secret", "s"];
    stdout(&admin(&data, &shop));
    let (orders, victim) = (folder.path().join("orders.ndjson"), folder.path().join("victim"));
    let order =
        r#"{"id": 1, "total_price": "1.00", "currency": "EUR", "created_at": "2026-01-02T00:00:00Z"}"#;
    std::fs::write(&orders, format!("{order}\n")).unwrap();
    std::fs::write(&victim, "precious").unwrap();
    let link = folder.path().join("orders.ndjson.progress");
    std::os::unix::fs::symlink(&victim, &link).unwrap();
    let import = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
        command.args(["import", "shopify-orders", "--shop", "a.myshopify.com", "--embedded", "--data"]);
        command.arg(&data).arg(&orders).output().unwrap()
    };
    let refused = import();
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is not a plain file"), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    std::fs::remove_file(&link).unwrap();
    assert!(stdout(&import()).contains("1 orders imported, 0 bad"));
    assert!(std::fs::read_dir(folder.path()).unwrap().count() == 3, "and leaves nothing behind");
}

/// Everybody on a machine can read a process' arguments.
#[test]
fn secrets_come_from_files_and_standard_input_and_one_place_at_a_time() {
    use std::io::Write;

    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    stdout(&admin(&data, &["brand", "add", "Acme"]));
    let file = folder.path().join("shop-secret");
    std::fs::write(&file, "shpss_fromfile\n").unwrap();
    let shop = ["shop", "add", "--brand", "Acme", "--domain", "a.myshopify.com"];
    let with = |more: &[&str]| admin(&data, &[&shop[..], more].concat());
    let words = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let kept = with(&["--secret-file", file.to_str().unwrap()]);
    assert!(kept.status.success() && !words(&kept).contains("warning"), "{}", words(&kept));
    let seen = with(&["--secret", "shpss_seen"]);
    assert!(seen.status.success() && words(&seen).contains("warning: whoever is on"), "{}", words(&seen));
    assert!(!words(&seen).contains("shpss_seen"));
    let both = with(&["--secret", "s", "--secret-file", file.to_str().unwrap()]);
    assert!(!both.status.success() && words(&both).contains("name one of them"), "{}", words(&both));
    let none = with(&[]);
    assert!(!none.status.success() && words(&none).contains("--secret-file"), "{}", words(&none));
    let away = with(&["--secret-file", "/nowhere/at/all"]);
    assert!(!away.status.success() && words(&away).contains("/nowhere/at/all"), "{}", words(&away));
    let mut child = Command::new(env!("CARGO_BIN_EXE_server"))
        .arg("admin")
        .args(shop)
        .args(["--secret", "-", "--embedded", "--data"])
        .arg(&data)
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"shpss_frominput\n").unwrap();
    assert!(child.wait().unwrap().success());

    // The services profile does not start without a key that seals.
    let start = |key: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
        command.env_remove("TRIBUTARY_SECRET_KEY").env_remove("TRIBUTARY_EMBEDDED");
        command.envs(key.map(|key| ("TRIBUTARY_SECRET_KEY", key)));
        command.args([
            "--database-url",
            "postgres://nobody@127.0.0.1:1/x",
            "--redis-url",
            "redis://127.0.0.1:1",
        ]);
        words(&command.output().unwrap())
    };
    for key in [None, Some("too short")] {
        let told = start(key);
        assert!(told.contains("TRIBUTARY_SECRET_KEY") && told.contains("head -c 32 /dev/urandom"), "{told}");
    }
}

#[test]
fn a_command_for_a_folder_that_is_not_there_makes_none() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    for args in [&["shop", "list", "--brand", "demo"][..], &["brand", "list"]] {
        let refused = admin(&data, args);
        assert!(!refused.status.success());
        assert!(String::from_utf8_lossy(&refused.stderr).contains("there is no data folder"), "{refused:?}");
    }
    assert!(!queues(&data, &["stats"]).status.success());
    assert!(!data.exists());
}

fn command(data: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
    command.args(args).args(["--embedded", "--data"]).arg(data).output().unwrap()
}

async fn found(url: &str, key: &str, path: &str) -> serde_json::Value {
    let get = reqwest::Client::new().get(format!("{url}{path}")).bearer_auth(key);
    get.send().await.unwrap().json().await.unwrap()
}

/// The visitor of docs/WALKTHROUGH.md buys; the data is copied while it is written; the copy serves, and knows her.
#[tokio::test]
async fn a_visitor_is_demonstrated_looked_after_and_backed_up() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut first = server(&data);
    first.arg("--demo");
    let running = Guarded::start("server", &first, &folder.path().join("log")).unwrap();
    let key = running.line_after("  secret key  ", START).unwrap();
    let url = running.line_after("listening on ", START).unwrap();
    for (part, topics) in [("cart", 2), ("order", 1), ("refund", 2)] {
        let sent = stdout(&command(&data, &["demo", part, "--url", &url]));
        assert_eq!(sent.lines().filter(|line| line.contains("\"success\":true")).count(), topics, "{sent}");
    }
    let nowhere = command(&data, &["demo", "cart", "--url", "http://127.0.0.1:1"]);
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("--url"), "{nowhere:?}");
    let ada = "/api/customers/by/email/ada@example.com/360";
    let end = std::time::Instant::now() + START;
    while found(&url, &key, ada).await["refunded"]["USD"] != "50.00" {
        assert!(std::time::Instant::now() < end, "{}", found(&url, &key, ada).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let seen = stdout(&command(&data, &["doctor"]));
    assert!(seen.lines().count() > 8 && seen.lines().all(|line| line.starts_with("ok ")), "{seen}");
    let ill =
        command(&data, &["--smtp-url", "smtp://127.0.0.1:1", "--public-url", "http://127.0.0.1:1", "doctor"]);
    let told = String::from_utf8_lossy(&ill.stdout).into_owned();
    assert!(
        !ill.status.success() && told.contains("WRONG e-mail") && told.contains("WRONG public"),
        "{told}"
    );

    let copy = folder.path().join("copy");
    let copied = stdout(&command(&data, &["backup", copy.to_str().unwrap()]));
    assert_eq!(copied.lines().count(), 4, "{copied}");
    assert!(!command(&data, &["backup", copy.to_str().unwrap()]).status.success(), "nothing is written over");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        for file in std::fs::read_dir(&copy).unwrap() {
            let mode = file.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "nobody else reads a backup");
        }
    }
    running.stop().unwrap();
    let restored = Guarded::start("server", &server(&copy), &folder.path().join("log2")).unwrap();
    let url = restored.line_after("listening on ", START).unwrap();
    assert_eq!(found(&url, &key, ada).await["refunded"]["USD"], "50.00");
    // Its secrets open: a signed webhook is taken.
    stdout(&command(&copy, &["demo", "refund", "--url", &url]));
    restored.stop().unwrap();
}
