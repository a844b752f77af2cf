//! The design's *nevers*, read off the sources.
//!
//! What a crate or a module may not name, where `unsafe` may stand, which words are no names: each rule is a function
//! from a source to what is wrong with it, and a table below shows that it bites.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

/// The only production files with unsafe code. A directory ends with `/`.
const UNSAFE: &[&str] = &[
    "shared/src/zone/",
    "shared/src/fd.rs",
    "master/src/spawn.rs",
    "master/src/daemon.rs",
    "worker/src/stack.rs",
    "worker/tests/allocations.rs",
];

/// Where what may not be named, apart from the exceptions.
const UNNAMED: &[Unnamed] = &[
    Unnamed { within: "conf/", names: &["mio", "nix", "rustls", "h2", "tokio", "shared", "worker"], but: &[] },
    Unnamed { within: "shared/", names: &["conf", "mio", "rustls", "h2", "tokio", "worker"], but: &[] },
    Unnamed { within: "worker/", names: &["master", "sluice", "serde_yaml"], but: &[] },
    Unnamed { within: "worker/", names: &["std::thread"], but: &["worker/src/helper.rs", "worker/tests/"] },
    Unnamed {
        within: "master/",
        names: &["tokio", "hyper", "hyper_util", "std::thread", "h2", "rustls"],
        but: &["master/src/control/"],
    },
    Unnamed { within: "", names: &["serde_yaml"], but: &["conf/src/raw.rs"] },
];

/// The floors of the worker, lowest first: a module names its own floor and those below.
const FLOORS: &[&[&str]] = &[
    &["runtime", "message", "helper", "stack"],
    &["proto", "tls", "observe"],
    &["router", "middleware", "balance", "upstream", "relay"],
    &["site"],
    &["pipeline"],
    &["downstream", "command"],
    &["lib", "fuzz", "simulation"],
];

/// The floor whose modules never name one another.
const STRANGERS: usize = 2;

/// Words that name nothing.
const EMPTY_WORDS: &[&str] = &["util", "utils", "common", "helpers", "manager", "context"];

struct Unnamed {
    within: &'static str,
    names: &'static [&'static str],
    but: &'static [&'static str],
}

/// A production source: its path from the repository's root, and its code without comments, literals and tests.
struct Source {
    path: String,
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        let production = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
        Source { path: path.to_owned(), code: code_of(production) }
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.path == *place || (place.ends_with('/') && self.path.starts_with(place)))
    }

    fn words(&self) -> impl Iterator<Item = &str> {
        self.code.split(|c: char| !is_word(c)).filter(|word| !word.is_empty())
    }

    /// The worker's module at the crate's root that this file is part of.
    fn worker_module(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("worker/src/")?;
        inside.split('/').next().map(|first| first.trim_end_matches(".rs"))
    }

    /// Modules at the crate's root that the code names, as `crate::a` or in `crate::{a, b::c}`.
    fn crate_modules(&self) -> Vec<&str> {
        let mut modules = Vec::new();
        for (at, _) in self.code.match_indices("crate::") {
            let rest = &self.code[at + "crate::".len()..];
            match rest.strip_prefix('{') {
                Some(list) => modules.extend(first_words(list)),
                None => modules.extend(rest.split(|c: char| !is_word(c)).next()),
            }
        }
        modules
    }
}

/// What is wrong with the names that a source uses.
fn wrong_names(source: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    for rule in UNNAMED.iter().filter(|rule| source.path.starts_with(rule.within) && !source.is_in(rule.but)) {
        for name in rule.names.iter().filter(|name| names_crate(&source.code, name)) {
            wrong.push(format!("{} names {name}", source.path));
        }
    }
    if source.path.starts_with("worker/") && source.code.replace("tokio::io", "").contains("tokio") {
        wrong.push(format!("{} names more of tokio than tokio::io", source.path));
    }
    wrong
}

/// Unsafe code where none may be.
fn wrong_unsafe(source: &Source) -> Option<String> {
    let stands = source.words().any(|word| word == "unsafe") && !source.is_in(UNSAFE);
    stands.then(|| format!("{} has unsafe code", source.path))
}

/// Files, modules and types that are named for nothing in particular.
fn empty_names(source: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    for part in source.path.split('/').map(|part| part.trim_end_matches(".rs")) {
        if EMPTY_WORDS.contains(&part) {
            wrong.push(format!("{}: {part} is no name for a file", source.path));
        }
    }
    let words: Vec<_> = source.words().collect();
    for pair in words.windows(2).filter(|pair| matches!(pair[0], "struct" | "enum" | "trait" | "mod" | "type")) {
        let lower = pair[1].to_ascii_lowercase();
        if EMPTY_WORDS.iter().any(|word| lower.ends_with(word)) && source.path != "integration/tests/architecture.rs" {
            wrong.push(format!("{}: {} {} says nothing", source.path, pair[0], pair[1]));
        }
    }
    wrong
}

/// Modules of the worker that reach up, or over to a stranger.
fn wrong_floors(source: &Source) -> Vec<String> {
    let floor_of = |module: &str| FLOORS.iter().position(|floor| floor.contains(&module));
    let Some(own) = source.worker_module() else { return Vec::new() };
    let Some(floor) = floor_of(own) else { return vec![format!("worker/src/{own} has no floor: give it one")] };
    let mut wrong = Vec::new();
    for other in source.crate_modules().into_iter().filter(|other| *other != own) {
        let Some(other_floor) = floor_of(other) else { continue };
        if other_floor > floor {
            wrong.push(format!("{} reaches up to {other}", source.path));
        }
        if other_floor == floor && floor == STRANGERS {
            wrong.push(format!("{} names its stranger {other}", source.path));
        }
    }
    wrong
}

/// Everything that is wrong with a source.
fn wrongs(source: &Source) -> Vec<String> {
    let mut wrong = wrong_names(source);
    wrong.extend(wrong_unsafe(source));
    wrong.extend(empty_names(source));
    wrong.extend(wrong_floors(source));
    wrong
}

#[test]
fn no_never_is_broken() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    let mut files = Vec::new();
    for package in ["conf", "shared", "worker", "master", "integration"] {
        collect(&root.join(package), &mut files);
    }
    assert!(files.len() > 50, "only {} sources found", files.len());
    let mut wrong = Vec::new();
    for file in files {
        let path = file.strip_prefix(root).expect("below the root").display().to_string();
        wrong.extend(wrongs(&Source::new(&path, &fs::read_to_string(&file).expect("a source"))));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// A crate that may have no unsafe code says so to the compiler as well.
#[test]
fn crates_without_unsafe_code_forbid_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    for head in ["conf/src/lib.rs", "integration/src/lib.rs"] {
        let text = fs::read_to_string(root.join(head)).expect("a source");
        assert!(text.contains("#![forbid(unsafe_code)]"), "{head}");
    }
}

#[test]
fn each_rule_bites() {
    for (path, text, says) in [
        ("conf/src/a.rs", "use nix::unistd;", "names nix"),
        ("conf/src/raw/b.rs", "fn f() { serde_yaml::from_str(t) }", "names serde_yaml"),
        ("shared/src/a.rs", "use conf::model::Config;", "names conf"),
        ("worker/src/site.rs", "use std::thread;", "names std::thread"),
        ("worker/src/site.rs", "use std::{fmt, thread};", "names std::thread"),
        ("worker/src/site.rs", "use tokio::net::TcpStream;", "more of tokio"),
        ("master/src/cycle.rs", "async fn f() { tokio::spawn(x) }", "names tokio"),
        ("worker/src/relay/mod.rs", "fn f() { unsafe { g() } }", "has unsafe code"),
        ("worker/src/util.rs", "", "no name for a file"),
        ("master/src/a.rs", "pub struct WorkerManager;", "says nothing"),
        ("worker/src/router/mod.rs", "use crate::upstream::Pool;", "stranger upstream"),
        ("worker/src/proto/h1.rs", "use crate::{message::Head, site::Site};", "reaches up to site"),
        ("worker/src/novelty.rs", "", "has no floor"),
    ] {
        let found = wrongs(&Source::new(path, text));
        assert!(found.iter().any(|wrong| wrong.contains(says)), "{path}: {text:?} was found {found:?}");
    }
    for (path, text) in [
        ("conf/src/raw.rs", "use serde_yaml::Value;"),
        ("conf/src/a.rs", "// unlike nix::unistd\nconst A: &str = \"nix::unistd { unsafe }\";"),
        ("worker/src/helper.rs", "use std::thread;"),
        ("shared/src/fd.rs", "fn f() { unsafe { g() } }"),
        ("worker/src/pipeline.rs", "use crate::{router::Router, upstream::{Pool, Lease}};"),
        ("worker/src/site.rs", "#![forbid(unsafe_code)]\nuse tokio::io::AsyncRead;"),
        ("master/src/control/mod.rs", "use tokio::runtime;"),
        ("worker/src/site.rs", "use std::task::Context;\n#[cfg(test)]\nmod tests {\nuse std::thread;\n}"),
    ] {
        assert_eq!(wrongs(&Source::new(path, text)), Vec::<String>::new(), "{path}: {text:?}");
    }
}

/// Whether `code` names a crate or, with `::` in `name`, one of its modules.
fn names_crate(code: &str, name: &str) -> bool {
    if let Some((parent, module)) = name.split_once("::") {
        let in_list = |at: usize| first_words(&code[at..]).contains(&module);
        let listed = format!("{parent}::{{");
        return mentions(code, name) || code.match_indices(&listed).any(|(at, _)| in_list(at + listed.len()));
    }
    mentions(code, &format!("{name}::")) || mentions(code, &format!("use {name}"))
}

/// Whether `what` stands in `code` as whole words and not behind another path.
fn mentions(code: &str, what: &str) -> bool {
    code.match_indices(what).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + what.len()..].chars().next();
        let ends = what.ends_with(':') || !after.is_some_and(is_word);
        !before.is_some_and(|c| is_word(c) || c == ':' || c == '.') && ends
    })
}

/// The first word of each entry of a `use` list, whose opening brace has been passed.
fn first_words(list: &str) -> Vec<&str> {
    let (mut words, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                words.extend(list[start..at].split(|c: char| !is_word(c)).find(|word| !word.is_empty()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    words
}

/// Rust without comments and without what is in string and character literals.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if c == 'r' && !code.ends_with(is_word) && (rest.starts_with("r\"") || rest.starts_with("r#")) {
            raw_literal_len(rest)
        } else if c == '"' {
            literal_len(rest, '"')
        } else if rest.starts_with("'\\") || rest.chars().nth(2) == Some('\'') && c == '\'' {
            literal_len(rest, '\'')
        } else {
            0
        };
        if skipped == 0 {
            code.push(c);
        }
        rest = &rest[skipped.max(c.len_utf8())..];
    }
    code
}

/// The length of a literal that begins and ends with `quote`.
fn literal_len(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if c == quote && !escaped {
            return at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    text.len()
}

/// The length of a raw string, or 0 if this is an identifier like `r#type`.
fn raw_literal_len(text: &str) -> usize {
    let hashes = text[1..].chars().take_while(|c| *c == '#').count();
    if !text[1 + hashes..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    text[2 + hashes..].find(&end).map_or(text.len(), |at| 2 + hashes + at + end.len())
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            collect(&path, files);
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
}
