//! What a configuration names, as the zone sees it.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use super::error::ZoneError;
use super::layout::{Kind, NAME_BYTES_MAX};

/// The route of requests that matched none, or were refused before they could; every catalog has it.
pub const NO_ROUTE: &str = "(none)";

/// The names of a configuration's objects. One name is one object: it keeps counters and health from catalog to catalog.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    /// Listeners by address.
    pub listeners: Vec<String>,
    /// Routes by name, without the reserved [`NO_ROUTE`].
    pub routes: Vec<String>,
    /// Upstreams by name, each with its servers by address.
    pub upstreams: Vec<(String, Vec<String>)>,
}

/// One object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    /// Unique in its kind.
    pub(super) key: String,
    pub(super) name: String,
    /// The upstream of a server.
    pub(super) parent: Option<String>,
}

/// The key of a server.
pub(super) fn server_key(upstream: &str, address: &str) -> String {
    format!("{upstream}\0{address}")
}

impl Catalog {
    /// All objects, an upstream before its servers.
    ///
    /// # Errors
    /// For a name that is too long, or there twice.
    pub(super) fn entries(&self) -> Result<Vec<Entry>, ZoneError> {
        let plain = |kind| move |name: &String| Entry { kind, key: name.clone(), name: name.clone(), parent: None };
        let mut entries: Vec<Entry> = self.listeners.iter().map(plain(Kind::Listener)).collect();
        entries.push(plain(Kind::Route)(&NO_ROUTE.to_owned()));
        entries.extend(self.routes.iter().map(plain(Kind::Route)));
        for (upstream, servers) in &self.upstreams {
            entries.push(plain(Kind::Upstream)(upstream));
            entries.extend(servers.iter().map(|address| Entry {
                kind: Kind::Server,
                key: server_key(upstream, address),
                name: address.clone(),
                parent: Some(upstream.clone()),
            }));
        }
        let mut seen = BTreeSet::new();
        for entry in &entries {
            let (what, name) = (entry.kind.plural(), &entry.name);
            if name.len() > NAME_BYTES_MAX {
                return Err(ZoneError::NameTooLong { what, name: name.clone() });
            }
            if !seen.insert((entry.kind, &entry.key)) {
                return Err(ZoneError::Duplicate { what, name: name.clone() });
            }
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_short() {
        let good = Catalog { routes: vec!["r".repeat(NAME_BYTES_MAX)], ..Catalog::default() };
        assert_eq!(good.entries().unwrap().len(), 2);
        for routes in [vec!["r".repeat(NAME_BYTES_MAX + 1)], vec!["a".into(), "a".into()], vec![NO_ROUTE.into()]] {
            assert!(Catalog { routes, ..Catalog::default() }.entries().is_err());
        }
        let upstream =
            |name: &str, servers: &[&str]| (name.to_owned(), servers.iter().map(ToString::to_string).collect());
        let twice = Catalog { upstreams: vec![upstream("a", &["s", "s"])], ..Catalog::default() };
        assert!(matches!(twice.entries(), Err(ZoneError::Duplicate { what: "servers", .. })));
        let shared = Catalog { upstreams: vec![upstream("a", &["s"]), upstream("b", &["s"])], ..Catalog::default() };
        assert_eq!(shared.entries().unwrap().len(), 5);
    }
}
