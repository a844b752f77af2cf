//! What the operator means: the text of a configuration, checked and made into a model, and everything that can be told
//! about it.
//!
//! Text goes through four steps, each in a module of its own: `raw` parses YAML into a tree, `reader` fits the tree to
//! the types that `raw` declares, `validate` checks them against each other and fills in what was not said, and
//! [`model`] is the result. Problems are collected on the way and reported all at once.
//!
//! Everything here is a function of text: no clock, no environment, and no file but through [`Source`].

#![forbid(unsafe_code)]

pub mod diff;
pub mod model;
pub mod problem;
pub mod reference;
pub mod shadow;
pub mod source;
pub mod template;
pub mod value;

mod effective;
mod field;
mod form;
#[cfg(test)]
mod generated;
mod leaf;
mod node;
mod pattern;
mod place;
mod position;
mod quantity;
mod raw;
mod reader;
mod schema;
mod suggest;
mod validate;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use crate::problem::{Problem, Problems, Severity};
pub use crate::reference::reference;
pub use crate::schema::schema;
pub use crate::source::{Disk, Source};

use crate::model::Config;
use crate::place::At;
use crate::problem::{Document, Report};
use crate::raw::{File, Include, Part};
use crate::value::Invalid;

/// A configuration that can be used.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// What it means.
    pub config: Config,
    /// What is legal but unwise.
    pub warnings: Vec<Problem>,
    /// The files that it was read from, the main one first.
    pub files: Vec<PathBuf>,
    /// The configuration in effect: one text with every default filled in, which reads back as the same configuration.
    pub text: String,
    /// The main file, as it is named and as it reads.
    main: (String, String),
}

impl Loaded {
    /// Something wrong with a setting of the main file that shows only on the machine which is to run it. `path` is its
    /// place in the document.
    #[must_use]
    pub fn problem(&self, path: &str, message: String, hint: &str) -> Problem {
        let (file, text) = &self.main;
        Problem::at(file, text, path, Invalid::new(message).hint(hint))
    }
}

/// The settings that say which running proxy a configuration is of, and how long it may take to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whereabouts {
    /// See [`Config::runtime_dir`].
    pub runtime_dir: Option<PathBuf>,
    /// See [`Config::pid_file`].
    pub pid_file: Option<PathBuf>,
    /// See [`Config::shutdown_timeout`].
    pub shutdown_timeout: Duration,
}

/// Reads of a configuration file no more than where its proxy is: it may be wrong otherwise, as a file under change is.
///
/// # Errors
/// Every problem of the file, if it is not even YAML or these settings are wrong themselves.
pub fn whereabouts(path: &Path, source: &dyn Source) -> Result<Whereabouts, Problems> {
    let mut reading = Reading::default();
    match source.read(path) {
        Ok(text) => reading.main(path, text, Some(source)),
        Err(error) => reading.unread(path, &error),
    }
    let file = &reading.main;
    let is_told = !file.runtime_dir.is_bad() && !file.pid_file.is_bad() && !file.shutdown_timeout.is_bad();
    if !is_told || reading.sections.is_empty() || reading.report.has_syntax_errors() {
        return reading.finish().map(|loaded| Whereabouts::of(loaded.config));
    }
    Ok(Whereabouts::of(validate::config(&reading.main, &reading.sections, &reading.report)))
}

impl Whereabouts {
    fn of(config: Config) -> Whereabouts {
        let Config { runtime_dir, pid_file, shutdown_timeout, .. } = config;
        Whereabouts { runtime_dir, pid_file, shutdown_timeout }
    }
}

/// Reads a configuration file and those it includes.
///
/// # Errors
/// Every problem that makes the configuration unusable, and the warnings too.
pub fn load(path: &Path, source: &dyn Source) -> Result<Loaded, Problems> {
    let mut reading = Reading::default();
    match source.read(path) {
        Ok(text) => reading.main(path, text, Some(source)),
        Err(error) => reading.unread(path, &error),
    }
    reading.finish()
}

/// Reads a configuration from a text by itself; an `include` in it is refused.
///
/// # Errors
/// As [`load`]; the problems carry `name` as their file.
pub fn parse(text: &str, name: &str) -> Result<Loaded, Problems> {
    let mut reading = Reading::default();
    reading.main(Path::new(name), text.to_string(), None);
    let mut loaded = reading.finish()?;
    loaded.files.clear();
    Ok(loaded)
}

/// A configuration on its way in.
#[derive(Default)]
struct Reading {
    report: Report,
    texts: Vec<(PathBuf, String)>,
    main: File,
    sections: Vec<(usize, Part)>,
}

impl Reading {
    /// Reads the main file's text; with a source, also what it includes.
    fn main(&mut self, path: &Path, text: String, source: Option<&dyn Source>) {
        self.main = self.document(path, text).unwrap_or_default();
        let part = self.main.take_part();
        self.sections.push((0, part));
        let include = std::mem::take(&mut self.main.include);
        let root = At::root(0);
        let at = root.key("include");
        match include.given() {
            Some(Include::Text(pattern)) => self.include(pattern, &at, source),
            Some(Include::List(patterns)) => {
                for (index, pattern) in patterns.iter().enumerate() {
                    if let Some(pattern) = pattern.given() {
                        self.include(pattern, &at.index(index), source);
                    }
                }
            }
            None => {}
        }
    }

    /// Reads the files that a pattern names, except those that were read.
    fn include(&mut self, pattern: &str, at: &At<'_>, source: Option<&dyn Source>) {
        let Some(source) = source else {
            let invalid = Invalid::new("a text by itself includes nothing").hint("put its content in place of this");
            return self.report.error(at, invalid);
        };
        if pattern.is_empty() {
            return self.report.error(at, Invalid::new("an empty path").hint("name a file, or remove this"));
        }
        let directory = self.texts.first().and_then(|(main, _)| main.parent()).unwrap_or(Path::new(""));
        let path = directory.join(pattern);
        if Path::new(pattern).parent().is_some_and(|parent| source::is_pattern(&parent.to_string_lossy())) {
            let invalid = Invalid::new("`*` and `?` stand in the last part of a path only");
            return self.report.error(at, invalid.hint("name each directory"));
        }
        let paths = if source::is_pattern(pattern) { source.glob(&path) } else { Ok(vec![path.clone()]) };
        for path in paths.unwrap_or_else(|error| self.refuse(at, &path, &error)) {
            if self.texts.iter().any(|(read, _)| *read == path) {
                continue;
            }
            match source.read(&path) {
                Ok(text) => {
                    let number = self.texts.len();
                    let part = self.document(&path, text).unwrap_or_default();
                    self.sections.push((number, part));
                }
                Err(error) => drop(self.refuse(at, &path, &error)),
            }
        }
    }

    /// Reads a text as a document of some shape; `None` when it has not even its outline.
    fn document<'de, T: serde::Deserialize<'de>>(&mut self, path: &Path, text: String) -> Option<T> {
        let number = self.texts.len();
        let tree = raw::tree(&text);
        self.texts.push((path.to_path_buf(), text));
        match tree {
            Ok(node) => reader::read(&node, At::root(number), &self.report),
            Err((position, invalid)) => {
                self.report.syntax_error(number, position, invalid);
                None
            }
        }
    }

    /// Reports that a file could not be read at all.
    fn unread(&mut self, path: &Path, error: &io::Error) {
        self.texts.push((path.to_path_buf(), String::new()));
        self.report.error(&At::root(0), Invalid::new(format!("cannot be read: {error}")));
    }

    fn refuse(&self, at: &At<'_>, path: &Path, error: &io::Error) -> Vec<PathBuf> {
        self.report.error(at, Invalid::new(format!("{} cannot be read: {error}", path.display())));
        Vec::new()
    }

    /// Checks what was read.
    fn finish(self) -> Result<Loaded, Problems> {
        // Without its main file's outline a configuration lacks everything: only the cause is worth telling.
        let config = (!self.sections.is_empty() && !self.report.has_syntax_errors())
            .then(|| validate::config(&self.main, &self.sections, &self.report));
        let names: Vec<String> = self.texts.iter().map(|(path, _)| path.display().to_string()).collect();
        let files: Vec<Document<'_>> =
            names.iter().zip(&self.texts).map(|(name, (_, text))| Document { name, text }).collect();
        let main = names.first().cloned().zip(self.texts.first().map(|(_, text)| text.clone())).unwrap_or_default();
        let has_errors = self.report.has_errors();
        let problems = self.report.finish(&files);
        match config {
            Some(config) if !has_errors => Ok(Loaded {
                text: raw::print(&effective::tree(&config)),
                config,
                warnings: problems,
                files: self.texts.into_iter().map(|(path, _)| path).collect(),
                main,
            }),
            _ => Err(Problems(problems)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::reference::EXAMPLE;

    /// Files in memory.
    struct Shelf(BTreeMap<PathBuf, &'static str>);

    impl Shelf {
        fn new(files: &[(&str, &'static str)]) -> Shelf {
            Shelf(files.iter().map(|(path, text)| (PathBuf::from(path), *text)).collect())
        }
    }

    impl Source for Shelf {
        fn read(&self, path: &Path) -> io::Result<String> {
            self.0.get(path).map(ToString::to_string).ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        fn glob(&self, pattern: &Path) -> io::Result<Vec<PathBuf>> {
            let directory = pattern.parent();
            Ok(self.0.keys().filter(|path| path.parent() == directory).cloned().collect())
        }
    }

    const MAIN: &str = "
include: [conf.d/*.yaml, more.yaml]
listeners: [{address: 127.0.0.1:80}]
routes: [{match: {path: /}, upstream: a}]
";

    #[test]
    fn included_files_are_added_in_order() {
        let shelf = Shelf::new(&[
            ("/etc/s.yaml", MAIN),
            ("/etc/conf.d/1.yaml", "upstreams: {a: {servers: [10.0.0.1:80]}}"),
            ("/etc/conf.d/2.yaml", "routes: [{match: {path: /2}, upstream: a}]"),
            ("/etc/more.yaml", "x-note: ignored\nlisteners: [{address: '[::1]:80'}]"),
        ]);
        let loaded = load(Path::new("/etc/s.yaml"), &shelf).unwrap();
        let names: Vec<_> = loaded.config.routes.iter().map(|route| route.name.as_str()).collect();
        assert_eq!(names, ["/*", "/2*"]);
        assert_eq!(loaded.config.listeners.len(), 2);
        assert_eq!(loaded.files.len(), 4);
        assert_eq!(parse(&loaded.text, "effective").unwrap().config, loaded.config);
    }

    #[test]
    fn problems_name_the_included_file() {
        let shelf = Shelf::new(&[
            ("/etc/s.yaml", MAIN),
            ("/etc/conf.d/1.yaml", "timeouts: {}\nupstreams:\n  a: {servers: [10.0.0.1]}"),
            ("/etc/conf.d/2.yaml", "listeners: [{address: 127.0.0.1:80}]"),
        ]);
        let problems = load(Path::new("/etc/s.yaml"), &shelf).unwrap_err();
        let found: Vec<_> = problems.0.iter().map(|p| (p.file.as_str(), p.line, p.column, p.path.as_str())).collect();
        assert_eq!(
            found,
            [
                ("/etc/s.yaml", 2, 26, "include[1]"),
                ("/etc/conf.d/1.yaml", 1, 1, "timeouts"),
                ("/etc/conf.d/1.yaml", 3, 17, "upstreams.a.servers[0]"),
                ("/etc/conf.d/2.yaml", 1, 23, "listeners[0].address"),
            ]
        );
        let hint = problems.0[3].hint.as_deref();
        assert_eq!(hint, Some("the first is at /etc/s.yaml:3:23 (listeners[0].address)"));
    }

    #[test]
    fn a_file_that_is_not_there_is_one_problem() {
        let problems = load(Path::new("/absent.yaml"), &Shelf::new(&[])).unwrap_err();
        assert_eq!(problems.0.len(), 1);
        assert!(problems.to_string().starts_with("/absent.yaml:1:1: error: cannot be read"), "{problems}");
    }

    #[test]
    fn text_that_is_no_yaml_is_one_problem_with_its_position() {
        let problems = parse("listeners:\n  - address: [\n", "x").unwrap_err();
        assert_eq!((problems.0.len(), problems.0[0].line), (1, 3), "{problems}");
        let problems = parse("just text", "x").unwrap_err();
        assert!(problems.0[0].message.contains("expected a mapping"), "{problems}");
    }

    #[test]
    fn a_text_by_itself_includes_nothing() {
        let problems = parse("include: a.yaml\nlisteners: [{address: 127.0.0.1:80}]", "x").unwrap_err();
        assert!(problems.0.iter().any(|problem| problem.path == "include"), "{problems}");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "([a-z_]{1,9}|[\\[\\]{}:,*&!|>'\"#%@~.$/-]| |\n|\n  |: |- |<<|[0-9]|\\PC){0,60}") {
            let _ = parse(&text, "any").map_err(|problems| problems.to_string());
        }

        #[test]
        fn no_damage_makes_it_panic(at in 0..EXAMPLE.len(), length in 0..40_usize, with in "\\PC{0,8}") {
            let (head, tail) = EXAMPLE.split_at(at);
            let damaged = format!("{head}{with}{}", tail.get(length..).unwrap_or_default());
            let _ = parse(&damaged, "any").map_err(|problems| problems.to_string());
        }
    }

    #[test]
    fn a_file_that_is_wrong_elsewhere_still_says_where_its_proxy_is() {
        let told = |text: &'static str| {
            let shelf = Shelf::new(&[("/a.yaml", text)]);
            whereabouts(Path::new("/a.yaml"), &shelf).map(|told| told.runtime_dir)
        };
        assert_eq!(told("runtime_dir: /run/a\nworker_processes: many").unwrap(), Some("/run/a".into()));
        assert_eq!(told("routes: 7").unwrap(), None);
        assert!(told("runtime_dir: [a]").is_err());
        assert!(told("runtime_dir: /run/a\nroutes: [").is_err());
    }
}
