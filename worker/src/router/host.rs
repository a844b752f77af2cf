//! Hosts, from the most specific level to the least.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use conf::model::HostPattern;
use memchr::memchr_iter;

/// A value for each host pattern. Clients choose what is looked up but never what is in it, so its hash needs no secret.
pub(super) struct Hosts<T> {
    exact: Map<T>,
    below: Map<T>,
    below_bytes_max: usize,
    any: Option<T>,
}

type Map<T> = HashMap<Box<[u8]>, T, BuildHasherDefault<Mix>>;

impl<T> Hosts<T> {
    /// The values of the patterns that match `host`: its own, those of the wildcards above it from the longest to the
    /// shortest, and that of any host.
    pub(super) fn levels(&self, host: &[u8]) -> impl Iterator<Item = &T> {
        // Without wildcards no dot needs looking at.
        let searched = if self.below.is_empty() { &[] } else { host };
        let above = memchr_iter(b'.', searched).map(|dot| &host[dot + 1..]);
        let below = above.filter(|name| name.len() <= self.below_bytes_max).filter_map(|name| self.below.get(name));
        let exact = if self.exact.is_empty() { None } else { self.exact.get(host) };
        exact.into_iter().chain(below).chain(&self.any)
    }
}

/// `None` is any host. Of equal patterns the last one stands.
impl<'p, T> FromIterator<(Option<&'p HostPattern>, T)> for Hosts<T> {
    fn from_iter<I: IntoIterator<Item = (Option<&'p HostPattern>, T)>>(patterns: I) -> Hosts<T> {
        let mut hosts = Hosts { exact: Map::default(), below: Map::default(), below_bytes_max: 0, any: None };
        for (pattern, value) in patterns {
            match pattern {
                Some(HostPattern::Exact(name)) => drop(hosts.exact.insert(name.as_bytes().into(), value)),
                Some(HostPattern::Wildcard(name)) => {
                    hosts.below_bytes_max = hosts.below_bytes_max.max(name.len());
                    hosts.below.insert(name.as_bytes().into(), value);
                }
                None => hosts.any = Some(value),
            }
        }
        hosts
    }
}

/// Multiply and fold, eight bytes at a time.
#[derive(Default)]
struct Mix(u64);

impl Mix {
    fn mix(&mut self, word: u64) {
        // 2^64 over the golden ratio, made odd: it carries each bit upwards, and folding carries the upper half down.
        let product = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }
}

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.mix(u64::from_le_bytes(last));
    }

    /// The length, which a slice's hash begins with.
    fn write_usize(&mut self, length: usize) {
        self.mix(!(length as u64));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_the_most_specific_to_the_least() {
        let pattern = |text: &str| match text.strip_prefix("*.") {
            Some(name) => Some(HostPattern::Wildcard(name.into())),
            None => (text != "*").then(|| HostPattern::Exact(text.into())),
        };
        let patterns = ["*", "*.com", "*.b.com", "a.b.com", "*.a.b.com"].map(|text| (pattern(text), text));
        let hosts: Hosts<&str> = patterns.iter().map(|(pattern, text)| (pattern.as_ref(), *text)).collect();
        for (host, expected) in [
            ("a.b.com", &["a.b.com", "*.b.com", "*.com", "*"][..]),
            ("x.a.b.com", &["*.a.b.com", "*.b.com", "*.com", "*"]),
            ("b.com", &["*.com", "*"]),
            ("com", &["*"]),
            ("com.", &["*"]),
            ("", &["*"]),
        ] {
            assert_eq!(hosts.levels(host.as_bytes()).copied().collect::<Vec<_>>(), expected, "{host}");
        }
    }
}
