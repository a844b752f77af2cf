//! What is wrong with a configuration, told so that it can be put right.

use std::cell::RefCell;
use std::fmt;

use crate::place::At;
use crate::position::{Position, Positions, Spot};
use crate::value::Invalid;

/// One thing wrong, or unwise, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was named.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The place in the document, such as `listeners[0].address`; empty for the whole document.
    pub path: String,
    /// Whether the configuration can be used all the same.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub hint: Option<String>,
    /// The line of the file, for show; empty when there is none.
    pub snippet: String,
}

impl Problem {
    /// What is wrong with the value at `path` of a document.
    pub(crate) fn at(file: &str, text: &str, path: &str, Invalid { message, hint }: Invalid) -> Problem {
        let (line, column) = Positions::read(text).of(path, Spot::Value);
        let (file, path, snippet) = (file.to_owned(), path.to_owned(), snippet(text, line));
        Problem { file, line, column, path, severity: Severity::Error, message, hint, snippet }
    }
}

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// Legal but unwise.
    Warning,
}

/// Every problem of a configuration, in the order of its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

/// The most characters of a line that are shown with a problem.
const SNIPPET_CHARS_MAX: usize = 160;

impl fmt::Display for Problem {
    /// Several lines without a closing newline: what and where, the line of the file, what would be right.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { file, line, column, .. } = self;
        write!(f, "{file}:{line}:{column}: {}: ", self.severity)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", Plain(&self.path))?;
        }
        write!(f, "{}", Plain(&self.message))?;
        if !self.snippet.trim().is_empty() && *column <= SNIPPET_CHARS_MAX {
            let gutter = line.to_string();
            write!(f, "\n  {gutter} | {}", Plain(&self.snippet))?;
            write!(f, "\n  {:1$} | {2:3$}^", "", gutter.len(), "", column - 1)?;
        }
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\n  hint: {}", Plain(hint)))
    }
}

impl fmt::Display for Problems {
    /// Problems one after another, each as [`Problem`] writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        })
    }
}

/// Text from a file on its way to a terminal: a control character becomes a space, so that it commands nothing.
struct Plain<'a>(&'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| fmt::Write::write_char(f, if c.is_control() { ' ' } else { c }))
    }
}

/// A text that was read, and the name it goes by in messages.
#[derive(Debug)]
pub(crate) struct Document<'a> {
    pub(crate) name: &'a str,
    pub(crate) text: &'a str,
}

/// Collects problems while documents are read and checked. Shared by all who check, hence the cell.
#[derive(Debug, Default)]
pub(crate) struct Report {
    found: RefCell<Vec<Found>>,
}

#[derive(Debug)]
struct Found {
    file: usize,
    path: String,
    spot: Spot,
    severity: Severity,
    invalid: Invalid,
    /// Where the thing stands that this one collides with.
    first: Option<Origin>,
}

/// A place that outlives the walk which came by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    file: usize,
    path: String,
}

impl Report {
    /// A value that makes the configuration unusable.
    pub(crate) fn error(&self, at: &At<'_>, invalid: Invalid) {
        self.push(at, Spot::Value, Severity::Error, invalid);
    }

    /// A key that makes the configuration unusable, in the occurrence with this number.
    pub(crate) fn key_error(&self, at: &At<'_>, occurrence: usize, invalid: Invalid) {
        self.push(at, Spot::Key(occurrence), Severity::Error, invalid);
    }

    /// Something legal but unwise.
    pub(crate) fn warning(&self, at: &At<'_>, invalid: Invalid) {
        self.push(at, Spot::Value, Severity::Warning, invalid);
    }

    /// Something unwise that shows only after the walk.
    pub(crate) fn warning_from(&self, Origin { file, path }: &Origin, invalid: Invalid) {
        let (file, path) = (*file, path.clone());
        let (spot, severity) = (Spot::Key(0), Severity::Warning);
        self.found.borrow_mut().push(Found { file, path, spot, severity, invalid, first: None });
    }

    fn push(&self, at: &At<'_>, spot: Spot, severity: Severity, invalid: Invalid) {
        self.found.borrow_mut().push(Found {
            file: at.file(),
            path: at.to_string(),
            spot,
            severity,
            invalid,
            first: None,
        });
    }

    /// Whether anything found makes the configuration unusable.
    pub(crate) fn has_errors(&self) -> bool {
        self.found.borrow().iter().any(|found| found.severity == Severity::Error)
    }

    /// Text that is no YAML at all, by the position that the reader stumbled at.
    pub(crate) fn syntax_error(&self, file: usize, position: Position, invalid: Invalid) {
        self.push(&At::root(file), Spot::Exactly(position), Severity::Error, invalid);
    }

    /// A value that may stand only once and stood before, at `first`.
    pub(crate) fn repeated(&self, at: &At<'_>, first: &Origin, message: String) {
        self.push(at, Spot::Value, Severity::Error, Invalid::new(message));
        if let Some(found) = self.found.borrow_mut().last_mut() {
            found.first = Some(first.clone());
        }
    }

    /// Whether some text is no YAML at all.
    pub(crate) fn has_syntax_errors(&self) -> bool {
        self.found.borrow().iter().any(|found| matches!(found.spot, Spot::Exactly(_)))
    }

    /// Everything found, in the order of the files and of their text.
    pub(crate) fn finish(self, files: &[Document<'_>]) -> Vec<Problem> {
        let found = self.found.into_inner();
        let concerns = |found: &Found, file| found.file == file || found.first.as_ref().is_some_and(|o| o.file == file);
        let positions: Vec<Option<Positions>> = (0..files.len())
            .map(|file| found.iter().any(|found| concerns(found, file)).then(|| Positions::read(files[file].text)))
            .collect();
        let position = |file: usize, path: &str, spot| match positions.get(file) {
            Some(Some(positions)) => positions.of(path, spot),
            _ => (1, 1),
        };
        let mut problems: Vec<(usize, Problem)> = found
            .into_iter()
            .map(|found| {
                let (line, column) = position(found.file, &found.path, found.spot);
                let named = files.get(found.file).map_or(("", ""), |file| (file.name, file.text));
                let first = found.first.map(|Origin { file, path }| {
                    let (line, column) = position(file, &path, Spot::Value);
                    let name = files.get(file).map_or("", |file| file.name);
                    format!("the first is at {name}:{line}:{column} ({path})")
                });
                let problem = Problem {
                    file: named.0.to_string(),
                    line,
                    column,
                    path: found.path,
                    severity: found.severity,
                    message: found.invalid.message,
                    hint: first.or(found.invalid.hint),
                    snippet: snippet(named.1, line),
                };
                (found.file, problem)
            })
            .collect();
        problems.sort_by_key(|(file, problem)| (*file, problem.line, problem.column));
        problems.into_iter().map(|(_, problem)| problem).collect()
    }
}

impl Origin {
    /// Remembers a place.
    pub(crate) fn of(at: &At<'_>) -> Origin {
        Origin { file: at.file(), path: at.to_string() }
    }
}

/// A line of a text, cut to a length that can be shown.
fn snippet(text: &str, line: usize) -> String {
    text.lines().nth(line.saturating_sub(1)).unwrap_or_default().chars().take(SNIPPET_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_shows_where_and_what_would_be_right() {
        let report = Report::default();
        let root = At::root(0);
        report.warning(&root.key("b"), Invalid::new("unwise\x1b[31m"));
        report.key_error(&root.key("a"), 0, Invalid::new("wrong").hint("right"));
        assert!(report.has_errors());
        let problems = Problems(report.finish(&[Document { name: "x.yaml", text: "a: 1\nb: 2\n" }]));
        let expected = "x.yaml:1:1: error: a: wrong\n  1 | a: 1\n    | ^\n  hint: right\n\
                        x.yaml:2:4: warning: b: unwise [31m\n  2 | b: 2\n    |    ^";
        assert_eq!(problems.to_string(), expected);
    }
}
