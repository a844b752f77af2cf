//! Where in a document something is: the path from its root, built on the stack while the document is walked.

use std::fmt;

/// A place in a document: `routes[2].match.hosts[0]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'a> {
    parent: Option<&'a At<'a>>,
    step: Step<'a>,
    depth: usize,
}

#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    /// The root of the file with this number.
    Root(usize),
    Key(&'a str),
    Index(usize),
}

impl<'a> At<'a> {
    /// The root of the file with this number.
    pub(crate) fn root(file: usize) -> At<'a> {
        At { parent: None, step: Step::Root(file), depth: 0 }
    }

    /// The value of a key.
    pub(crate) fn key(&'a self, key: &'a str) -> At<'a> {
        At { parent: Some(self), step: Step::Key(key), depth: self.depth + 1 }
    }

    /// An item of a list.
    pub(crate) fn index(&'a self, index: usize) -> At<'a> {
        At { parent: Some(self), step: Step::Index(index), depth: self.depth + 1 }
    }

    /// Which file the place is in.
    pub(crate) fn file(&self) -> usize {
        match (self.step, self.parent) {
            (Step::Root(file), _) => file,
            (_, Some(parent)) => parent.file(),
            (_, None) => 0,
        }
    }

    /// How many steps it is away from the root.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// Whether this is the root of its document.
    pub(crate) fn is_root(&self) -> bool {
        self.parent.is_none()
    }
}

/// The path that encloses a path; `None` above the root.
pub(crate) fn enclosing(path: &str) -> Option<&str> {
    (!path.is_empty()).then(|| path.rfind(['.', '[']).map_or("", |end| &path[..end]))
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(parent) = self.parent else { return Ok(()) };
        parent.fmt(f)?;
        match self.step {
            Step::Root(_) => Ok(()),
            Step::Key(key) if parent.is_root() => f.write_str(key),
            Step::Key(key) => write!(f, ".{key}"),
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_as_a_path() {
        let root = At::root(3);
        let routes = root.key("routes");
        let route = routes.index(2);
        let hosts = route.key("hosts");
        assert_eq!((root.to_string().as_str(), root.file()), ("", 3));
        assert_eq!((hosts.to_string().as_str(), hosts.file()), ("routes[2].hosts", 3));
        assert_eq!(enclosing("routes[2].hosts"), Some("routes[2]"));
        assert_eq!(enclosing("routes[2]"), Some("routes"));
        assert_eq!(enclosing("routes"), Some(""));
        assert_eq!(enclosing(""), None);
    }
}
