//! The house stays tidy: no giants, no circles, no references to what is not there. What is not yet as it should be has a number here
//! that may only fall.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Most lines of a file, its tests apart.
const MOST_LINES: usize = 500;
/// Most lines of a function, its tests apart.
const MOST_IN_A_FUNCTION: usize = 70;
/// Doc comments of three words or fewer: they say what the name says. May only fall.
const SHORT_DOCS: usize = 80;

const CRATES: [&str; 7] = ["core", "server", "workers", "simulator", "stack", "loadtest", "chaos"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if !matches!(name, "target" | ".git" | "node_modules") {
                walk(&path, found);
            }
        } else {
            found.push(path);
        }
    }
}

/// The sources of a crate's folder, each with its path from the root, without its test module.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut paths = Vec::new();
    walk(&root().join(folder), &mut paths);
    paths.sort();
    let rust = paths.into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "rs"));
    rust.map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap().to_owned();
        (path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned(), text)
    })
    .collect()
}

/// All sources that are no tests.
fn all_sources() -> Vec<(String, String)> {
    let folders =
        CRATES.iter().flat_map(|of| ["src", "examples", "benches"].map(|sub| format!("{of}/{sub}")));
    folders.flat_map(|folder| sources(&folder)).collect()
}

#[test]
fn no_file_is_a_giant() {
    let giants: Vec<String> = all_sources()
        .iter()
        .map(|(path, text)| (text.lines().count(), path))
        .filter(|(lines, _)| *lines > MOST_LINES)
        .map(|(lines, path)| format!("{path}: {lines} lines"))
        .collect();
    assert!(giants.is_empty(), "a file has one job, and at most {MOST_LINES} lines: {giants:#?}");
}

/// Functions with their first line, by what rustfmt makes of them: the end stands where the beginning does.
fn functions(text: &str) -> Vec<(&str, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let words: Vec<&str> = trimmed.split_whitespace().take(5).collect();
        let is_function = words.iter().position(|word| *word == "fn").is_some_and(|place| {
            words[..place]
                .iter()
                .all(|word| word.starts_with("pub") || matches!(*word, "async" | "const" | "in"))
        });
        if !is_function || trimmed.starts_with("//") {
            continue;
        }
        let indent = &line[..line.len() - trimmed.len()];
        let end = format!("{indent}}}");
        let length = lines[at..].iter().position(|line| {
            *line == end
                || (line.ends_with(';') && line.starts_with(indent) && !line[indent.len()..].starts_with(' '))
        });
        found.push((trimmed, length.map_or(1, |length| length + 1)));
    }
    found
}

#[test]
fn no_function_is_a_giant() {
    let mut giants = Vec::new();
    for (path, text) in all_sources() {
        let long = functions(&text).into_iter().filter(|(_, lines)| *lines > MOST_IN_A_FUNCTION);
        giants.extend(long.map(|(line, lines)| format!("{path}: {lines} lines: {line}")));
    }
    assert!(giants.is_empty(), "a function has at most {MOST_IN_A_FUNCTION} lines: {giants:#?}");
    let counter = "fn long() {\n".to_owned() + &"    step();\n".repeat(MOST_IN_A_FUNCTION) + "}\n";
    assert_eq!(functions(&counter), [("fn long() {", MOST_IN_A_FUNCTION + 2)], "the test would notice one");
}

#[test]
fn doc_comments_say_what_the_name_does_not() {
    let mut short = 0;
    for (_, text) in CRATES.iter().flat_map(|of| sources(of)) {
        let docs: Vec<Option<&str>> =
            text.lines().map(|line| line.trim_start().strip_prefix("///")).collect();
        for (at, doc) in docs.iter().enumerate() {
            let alone = (at == 0 || docs[at - 1].is_none()) && docs.get(at + 1).is_none_or(Option::is_none);
            let words = doc.map_or(0, |doc| doc.split_whitespace().count());
            short += usize::from(alone && (1..=3).contains(&words));
        }
    }
    assert!(short <= SHORT_DOCS, "{short} doc comments have three words or fewer; {SHORT_DOCS} had before");
}

/// Phrases of this project's own that have a term of the field. Matched in lower case, as whole words.
const BANNED: [&str; 22] = [
    "work off",
    "works off",
    "worked off",
    "working off",
    "work it off",
    "works it off",
    "working it off",
    "is away",
    "are away",
    "was away",
    "were away",
    "stays away",
    "gone away",
    "come again",
    "comes again",
    "anew",
    "signpost",
    "second wall",
    "parcel",
    "parcels",
    "courier",
    "outlets",
];

fn banned(text: &str) -> Vec<&'static str> {
    let words: Vec<&str> =
        text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect();
    let text = format!(" {} ", words.join(" ").to_lowercase());
    BANNED.into_iter().filter(|phrase| text.contains(&format!(" {phrase} "))).collect()
}

#[test]
fn texts_use_the_terms_of_the_field() {
    let mut paths = Vec::new();
    for folder in [
        "core/src",
        "server/src",
        "workers/src",
        "docs",
        "ops",
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    ] {
        let path = root().join(folder);
        match path.is_dir() {
            true => walk(&path, &mut paths),
            false => paths.push(path),
        }
    }
    let mut found = Vec::new();
    for path in paths {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (line, text) in text.lines().enumerate() {
            found.extend(
                banned(text).iter().map(|phrase| format!("{}:{}: {phrase}", path.display(), line + 1)),
            );
        }
    }
    assert!(found.is_empty(), "docs/GLOSSARY.md has the terms: {found:#?}");
    assert_eq!(
        banned("// Redis is away, and the item comes again."),
        ["is away", "comes again"],
        "one is noticed"
    );
}

/// The paths of a `use` declaration: `a::{b, c::{d}}` is `a::b` and `a::c::d`.
fn paths(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some(brace) = tree.find('{') else { return vec![tree.split(" as ").next().unwrap().to_owned()] };
    let (prefix, inside) = (&tree[..brace], &tree[brace + 1..tree.rfind('}').unwrap()]);
    let (mut depth, mut from, mut parts) = (0, 0, Vec::new());
    for (at, sign) in inside.char_indices() {
        match sign {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inside[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inside[from..]);
    let parts = parts.into_iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(paths).map(|path| format!("{prefix}{path}")).collect()
}

/// The files of a crate that each of its files imports from. A folder and its `mod.rs` are one: what a folder's files share is their own.
fn imports(of: &str) -> BTreeMap<String, BTreeSet<String>> {
    let files = sources(&format!("{of}/src"));
    let module = |path: &str| {
        let path = path.strip_prefix(&format!("{of}/src/")).unwrap().strip_suffix(".rs").unwrap().to_owned();
        path.strip_suffix("/mod").map_or(path.clone(), str::to_owned)
    };
    let modules: BTreeSet<String> = files.iter().map(|(path, _)| module(path)).collect();
    let mut graph = BTreeMap::new();
    for (path, text) in &files {
        let own = module(path);
        let mut to = BTreeSet::new();
        for declaration in text.split("\nuse ").skip(1).filter_map(|rest| rest.split_once(';')) {
            for path in paths(&declaration.0.replace('\n', " ")) {
                let Some(path) = path.strip_prefix("crate::") else { continue };
                let parts: Vec<&str> = path.split("::").map(str::trim).collect();
                let file = (1..=parts.len())
                    .rev()
                    .map(|many| parts[..many].join("/"))
                    .find(|it| modules.contains(it));
                to.extend(file.filter(|file| {
                    !own.starts_with(&format!("{file}/"))
                        && !file.starts_with(&format!("{own}/"))
                        && *file != own
                }));
            }
        }
        graph.insert(own, to);
    }
    graph
}

/// Files that are reached from themselves.
fn in_circles(graph: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<&str> {
    let reached = |from: &str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(at) = next.pop() {
            for to in graph.get(at).into_iter().flatten() {
                if seen.insert(to.as_str()) {
                    next.push(to);
                }
            }
        }
        seen
    };
    graph.keys().map(String::as_str).filter(|file| reached(file).contains(file)).collect()
}

#[test]
fn files_do_not_import_each_other_in_a_circle() {
    let mut circles = Vec::new();
    for of in CRATES {
        circles.extend(in_circles(&imports(of)).into_iter().map(|file| format!("{of}/src/{file}")));
    }
    assert!(
        circles.is_empty(),
        "files of one crate import each other, directly or through others: {circles:#?}"
    );
    let counter = BTreeMap::from([
        ("a".to_owned(), BTreeSet::from(["b".to_owned()])),
        ("b".to_owned(), BTreeSet::from(["a".to_owned()])),
    ]);
    assert_eq!(in_circles(&counter).len(), 2, "the test would notice one");
}

/// What the documents name in code: files, a file's items (`file.rs: name`), constants of modules (`module::CONST`).
#[test]
fn what_the_documents_name_is_there() {
    let mut paths = Vec::new();
    walk(&root(), &mut paths);
    let files: Vec<String> =
        paths.iter().map(|path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned()).collect();
    let documents = files.iter().filter(|path| path.ends_with(".md") && !path.starts_with("CHANGELOG"));
    let mut gone = Vec::new();
    for document in documents {
        let text = fs::read_to_string(root().join(document)).unwrap();
        for quoted in text.split('`').skip(1).step_by(2) {
            if let Some(why) = is_gone(quoted, &files) {
                gone.push(format!("{document}: `{quoted}`: {why}"));
            }
        }
    }
    assert!(gone.is_empty(), "documents name what is not there: {gone:#?}");
    assert!(is_gone("core/src/nowhere.rs", &files).is_some(), "the test would notice a file");
    assert!(is_gone("core/src/lib.rs: nothing_of_the_kind", &files).is_some(), "and an item");
}

fn is_gone(quoted: &str, files: &[String]) -> Option<&'static str> {
    let (path, item) = quoted.split_once(": ").unwrap_or((quoted, ""));
    let endings = [".rs", ".lua", ".sql"];
    // `{a,b}.rs` is `a.rs` and `b.rs`.
    if let Some((before, rest)) = path.split_once('{')
        && let Some((names, after)) = rest.split_once('}')
    {
        return names.split(',').find_map(|name| is_gone(&format!("{before}{name}{after}"), files));
    }
    if path.starts_with('.')
        || path.contains(char::is_whitespace)
        || !endings.iter().any(|ending| path.ends_with(ending))
    {
        return None;
    }
    let found: Vec<&String> =
        files.iter().filter(|file| *file == path || file.ends_with(&format!("/{path}"))).collect();
    if found.is_empty() {
        return Some("no such file");
    }
    // A long name may be cut short with an ellipsis; only names of items are looked up, not sentences.
    for name in item.split(", ").map(|name| name.trim_end_matches(['…', '_'])) {
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
        let is_there = |file: &&String| fs::read_to_string(root().join(file)).unwrap().contains(name);
        if is_name && !found.iter().any(is_there) {
            return Some("the file does not have it");
        }
    }
    None
}
