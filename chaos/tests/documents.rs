//! The documents' commands, as a new user would paste them: every `sh` block is run, in order, on both profiles, and the block behind it
//! is what it must print.
//!
//! A block marked `sh elsewhere` needs what no test machine has (root, Docker, a name in the DNS), or another long-running process; a block
//! marked `sh embedded` or `sh services` is that profile's. In what must be printed, `…` stands for anything; white space does not count.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use stack::receiver::{Mailbox, Receiver};
use stack::system::{Options, Profile, SECRET_KEY, System};

/// What is run, with how many blocks there are at least: a page that lost its marks would pass by having nothing to run.
const PAGES: [(&str, &str, usize); 4] = [
    ("WALKTHROUGH", include_str!("../../docs/WALKTHROUGH.md"), 9),
    ("AUTOMATIONS", include_str!("../../docs/AUTOMATIONS.md"), 5),
    ("OPERATIONS", include_str!("../../docs/OPERATIONS.md"), 5),
    ("README", include_str!("../../README.md"), 1),
];

/// A block of commands, and what it prints.
#[derive(Debug)]
struct Block {
    line: usize,
    commands: String,
    prints: Option<String>,
}

/// The blocks that a profile runs.
fn blocks(page: &str, profile: Profile) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    // Whether the block before is one that is run, and nothing but white space and text lies between.
    let mut fence: Option<(String, usize, String)> = None;
    let mut last_runs = false;
    for (at, line) in page.lines().enumerate() {
        match (&mut fence, line.strip_prefix("```")) {
            (None, Some(info)) => fence = Some((info.trim().to_owned(), at + 2, String::new())),
            (Some((_, _, text)), None) => writeln!(text, "{line}").unwrap(),
            (Some(_), Some(_)) => {
                let (info, line, text) = fence.take().unwrap();
                let mut words = info.split_whitespace();
                let (language, of) = (words.next().unwrap_or_default(), words.next());
                let ours = match (of, profile) {
                    (None, _)
                    | (Some("embedded"), Profile::Embedded)
                    | (Some("services"), Profile::Services) => true,
                    (Some("embedded" | "services" | "elsewhere"), _) => false,
                    (Some(other), _) => panic!("line {line}: a block is marked {other:?}"),
                };
                match language {
                    "sh" => {
                        last_runs = ours;
                        if ours {
                            found.push(Block { line, commands: text, prints: None });
                        }
                    }
                    "json" | "text" if last_runs => {
                        found.last_mut().unwrap().prints = Some(text);
                        last_runs = false;
                    }
                    _ => last_runs = false,
                }
            }
            (None, None) => {}
        }
    }
    found
}

/// Whether a text is as a pattern says.
fn is_like(text: &str, pattern: &str) -> bool {
    let bare = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    let (text, pattern) = (bare(text), bare(pattern));
    let parts: Vec<&str> = pattern.split('…').collect();
    let Some(mut rest) = text.strip_prefix(parts[0]) else { return false };
    if parts.len() == 1 {
        return rest.is_empty();
    }
    for part in &parts[1..parts.len() - 1] {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(parts[parts.len() - 1])
}

/// Runs all blocks of a page in one shell; panics at the first that fails or prints something else.
fn run(page: &str, blocks: &[Block], folder: &Path, set: &[(&str, String)]) {
    let mut script = String::from("set -euo pipefail\nsleep() { command sleep $(( $1 * 3 )); }\n");
    for (at, block) in blocks.iter().enumerate() {
        let file = folder.join(format!("{page}-{at}.out"));
        writeln!(script, "exec > '{}'\n{}", file.display(), block.commands).unwrap();
    }
    let mut shell = Command::new("bash");
    shell.arg("-c").arg(&script).current_dir(folder).envs(set.iter().map(|(name, value)| (name, value)));
    let done = shell.output().unwrap();
    let mut ran = 0;
    for (at, block) in blocks.iter().enumerate() {
        let Ok(printed) = std::fs::read_to_string(folder.join(format!("{page}-{at}.out"))) else { break };
        ran = at + 1;
        if let Some(pattern) =
            block.prints.as_deref().filter(|_| done.status.success() || at + 1 < blocks.len())
        {
            assert!(
                is_like(&printed, pattern),
                "{page}, line {}:\n{}\nprints\n{printed}\ninstead of\n{pattern}",
                block.line,
                block.commands
            );
        }
    }
    assert!(
        done.status.success(),
        "{page}, block {ran} at line {}: {}",
        blocks[ran.saturating_sub(1)].line,
        String::from_utf8_lossy(&done.stderr)
    );
}

async fn are_followed(profile: Profile) {
    let (hooks, mailbox) = (Receiver::start(false).await.unwrap(), Mailbox::start().await.unwrap());
    let mut options = Options::new(profile, env!("CARGO_BIN_EXE_chaos").into());
    options.outside_args =
        ["--allow-private-destinations", "--smtp-url", &mailbox.url, "--public-url", "https://t.example"]
            .map(str::to_owned)
            .to_vec();
    let mut system = System::start(options).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    for role in ["server", "workers"] {
        let program = folder.path().join(role);
        let script = format!("#!/bin/sh\nexec '{}' __role {role} \"$@\"\n", env!("CARGO_BIN_EXE_chaos"));
        std::fs::write(&program, script).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let mut set = vec![
        ("PATH", path),
        ("U", system.access.url.clone()),
        ("HOOK", format!("{}/hook", hooks.url)),
        ("TRIBUTARY_SECRET_KEY", SECRET_KEY.to_owned()),
    ];
    set.extend(system.environment());
    for (page, text, least) in PAGES {
        let blocks = blocks(text, profile);
        assert!(blocks.len() >= least, "{page} has {} blocks to run", blocks.len());
        run(page, &blocks, folder.path(), &set);
        println!(
            "{page}: {} blocks, {} of them compared",
            blocks.len(),
            blocks.iter().filter(|b| b.prints.is_some()).count()
        );
    }
    // What the pages send has arrived.
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while mailbox.mails().is_empty() || hooks.hooks().is_empty() {
        assert!(std::time::Instant::now() < end, "no letter, or no webhook");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    system.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documents_commands_work_embedded() {
    are_followed(Profile::Embedded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documents_commands_work_on_services() {
    are_followed(Profile::Services).await;
}

#[test]
fn a_print_is_compared_with_its_pattern() {
    for (text, pattern, like) in [
        ("{\"a\": 1}\n", "{\"a\":1}", true),
        ("{\"a\":1,\"b\":2}", "{\"a\":1…", true),
        ("{\"a\":1,\"b\":2}", "{…\"b\":2}", true),
        ("{\"a\":1,\"b\":2}", "{…\"b\":3}", false),
        ("{\"a\":1,\"b\":2}", "{…\"b\":2…\"a\"…", false),
        ("ab", "a", false),
    ] {
        assert_eq!(is_like(text, pattern), like, "{text} {pattern}");
    }
    let page = "```sh\na\n```\n\ntext\n\n```json\n1\n```\n```sh services\nb\n```\n```sh elsewhere\nc\n```\n```json\n2\n```\n";
    let of = |profile| blocks(page, profile).into_iter().map(|b| (b.commands, b.prints)).collect::<Vec<_>>();
    let first = ("a\n".to_owned(), Some("1\n".to_owned()));
    assert_eq!(of(Profile::Embedded), std::slice::from_ref(&first));
    assert_eq!(of(Profile::Services), [first, ("b\n".to_owned(), None)]);
}
