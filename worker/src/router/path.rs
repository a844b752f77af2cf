//! Paths: a compressed trie, so that a lookup costs what the path's length costs, however many patterns there are.

#![forbid(unsafe_code)]

use std::ops::Range;

use conf::model::PathPattern;

/// Path patterns of one level of hosts, with the index of the route that each belongs to.
pub(super) struct Paths {
    /// The root first; the children of a node are neighbours, in order of their first byte.
    nodes: Vec<Node>,
    /// The labels of all nodes.
    text: Vec<u8>,
}

/// Where some patterns part or end.
struct Node {
    /// The bytes between the parent and here.
    label: Range<usize>,
    /// The first of them, so that siblings can be told apart without reading labels.
    first: u8,
    children: Range<usize>,
    /// The route of the exact path that ends here.
    exact: Option<usize>,
    /// The route of the prefix that ends here.
    prefix: Option<usize>,
}

/// A pattern's bytes, whether it is a prefix, and its route.
type Entry<'p> = (&'p [u8], bool, usize);

impl Paths {
    /// Compiles patterns; of equal ones the lowest index stands.
    pub(super) fn new<'p>(patterns: impl IntoIterator<Item = (&'p PathPattern, usize)>) -> Paths {
        let mut entries: Vec<Entry<'_>> = patterns
            .into_iter()
            .map(|(pattern, index)| match pattern {
                PathPattern::Exact(path) => (path.as_bytes(), false, index),
                PathPattern::Prefix(path) => (path.as_bytes(), true, index),
            })
            .collect();
        entries.sort_unstable();
        let mut paths = Paths { nodes: vec![Node::empty()], text: Vec::new() };
        let mut pending = vec![(0, &entries[..], 0)];
        while let Some((at, entries, depth)) = pending.pop() {
            let children = paths.fill(at, entries, depth);
            pending.extend(children);
        }
        paths
    }

    /// The route of the exact path, else that of the longest prefix.
    pub(super) fn find(&self, path: &[u8]) -> Option<usize> {
        let (mut node, mut rest, mut found) = (&self.nodes[0], path, None);
        while let Some(after) = rest.strip_prefix(&self.text[node.label.clone()]) {
            found = node.prefix.or(found);
            let Some(first) = after.first() else { return node.exact.or(found) };
            let children = &self.nodes[node.children.clone()];
            let Ok(child) = children.binary_search_by_key(first, |child| child.first) else { break };
            (node, rest) = (&children[child], after);
        }
        found
    }

    /// Makes the node at `at` of sorted entries that share their first `depth` bytes, up to the parent. Returns what its
    /// children, whose places it makes, are to be made of.
    fn fill<'e, 'p>(
        &mut self,
        at: usize,
        entries: &'e [Entry<'p>],
        depth: usize,
    ) -> impl Iterator<Item = (usize, &'e [Entry<'p>], usize)> + use<'e, 'p> {
        // What the first and the last of sorted entries share, all share.
        let (first, last) = (entries.first().map_or(&[][..], |e| e.0), entries.last().map_or(&[][..], |e| e.0));
        let end = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        let label = self.text.len()..self.text.len() + end - depth;
        self.text.extend_from_slice(&first[depth..end]);

        let (here, below) = entries.split_at(entries.partition_point(|entry| entry.0.len() == end));
        let route = |prefix| here.iter().find(|entry| entry.1 == prefix).map(|entry| entry.2);
        let groups = below.chunk_by(move |a, b| a.0[end] == b.0[end]);
        let start = self.nodes.len();
        self.nodes.extend(groups.clone().map(|_| Node::empty()));
        self.nodes[at] = Node {
            first: self.text.get(label.start).copied().unwrap_or(0),
            label,
            children: start..self.nodes.len(),
            exact: route(false),
            prefix: route(true),
        };
        groups.enumerate().map(move |(child, group)| (start + child, group, end))
    }
}

impl Node {
    fn empty() -> Node {
        Node { label: 0..0, first: 0, children: 0..0, exact: None, prefix: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let patterns = ["/api", "=/api", "/api/v1", "/api/v2", "=/", "/apple", "/api", "=/api/v1/x"];
        let patterns = patterns.map(|text| match text.strip_prefix('=') {
            Some(path) => PathPattern::Exact(path.into()),
            None => PathPattern::Prefix(text.into()),
        });
        let paths = Paths::new(patterns.iter().enumerate().map(|(index, pattern)| (pattern, index)));
        for (path, expected) in [
            ("", None),
            ("/", Some(4)),
            ("/ap", None),
            ("/api", Some(1)),
            ("/apix", Some(0)),
            ("/api/", Some(0)),
            ("/api/v1", Some(2)),
            ("/api/v1/", Some(2)),
            ("/api/v1/x", Some(7)),
            ("/api/v1/xy", Some(2)),
            ("/api/v3", Some(0)),
            ("/apple/pie", Some(5)),
            ("/b", None),
        ] {
            assert_eq!(paths.find(path.as_bytes()), expected, "{path}");
        }
        assert_eq!(Paths::new([]).find(b"/"), None);
    }

    #[test]
    fn a_deep_chain_of_prefixes_needs_no_stack() {
        let patterns: Vec<_> = (1..2000).map(|length| PathPattern::Prefix("/".repeat(length))).collect();
        let paths = Paths::new(patterns.iter().enumerate().map(|(index, pattern)| (pattern, index)));
        assert_eq!(paths.find("/".repeat(5000).as_bytes()), Some(1998));
        assert_eq!(paths.find(b"///"), Some(2));
    }
}
