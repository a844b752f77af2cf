//! A document as a tree of values, before anything is known of what they mean.
//!
//! Both duplicates of a key are kept, so that the reader can report them; the first one counts.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// How deep lists and mappings may nest.
pub(crate) const DEPTH_MAX: usize = 64;

/// What a document may grow to in memory: aliases of aliases make a small text huge.
pub(crate) const EXPANDED_BYTES_MAX: usize = 128 << 20;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    /// Nothing, as after `key:`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number, as decimal digits.
    Integer(i128),
    /// Any other number.
    Float(f64),
    /// A scalar that is none of these, or one in quotes.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the text.
    Map(Vec<(String, Node)>),
}

impl Node {
    /// The value of a key.
    pub(crate) fn field(&self, key: &str) -> Option<&Node> {
        let Node::Map(entries) = self else { return None };
        entries.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// A mapping, from keys and values in order.
    pub(crate) fn map<K: Into<String>>(entries: impl IntoIterator<Item = (K, Node)>) -> Node {
        Node::Map(entries.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }

    /// A list.
    pub(crate) fn list(items: impl IntoIterator<Item = Node>) -> Node {
        Node::List(items.into_iter().collect())
    }

    /// Text, as something displays itself.
    pub(crate) fn text(value: impl fmt::Display) -> Node {
        Node::Text(value.to_string())
    }
}

/// Builds a tree from any serde format, within what is left of a budget of bytes.
pub(crate) struct Build<'a> {
    budget_bytes: &'a Cell<usize>,
    depth: usize,
}

impl<'a> Build<'a> {
    /// A build of a whole document.
    pub(crate) fn within(budget_bytes: &'a Cell<usize>) -> Build<'a> {
        Build { budget_bytes, depth: 0 }
    }

    fn spend<E: Error>(&self, text_bytes: usize) -> Result<(), E> {
        let cost = text_bytes + size_of::<Node>();
        let left = self.budget_bytes.get().checked_sub(cost);
        self.budget_bytes.set(left.ok_or_else(|| E::custom("aliases make the document too large"))?);
        Ok(())
    }

    fn below<E: Error>(&self) -> Result<Build<'a>, E> {
        if self.depth == DEPTH_MAX {
            return Err(E::custom(format_args!("lists and mappings nest deeper than {DEPTH_MAX}")));
        }
        Ok(Build { budget_bytes: self.budget_bytes, depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Build<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Build<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value without a tag")
    }

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        self.spend(0).map(|()| Node::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Node, E> {
        self.spend(0).map(|()| Node::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Node, E> {
        self.spend(0).map(|()| Node::Integer(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Node, E> {
        self.spend(0).map(|()| Node::Integer(value.into()))
    }

    fn visit_i128<E: Error>(self, value: i128) -> Result<Node, E> {
        self.spend(0).map(|()| Node::Integer(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Node, E> {
        self.spend(0).map(|()| Node::Float(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Node, E> {
        self.spend(value.len()).map(|()| Node::Text(value.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        self.spend(0)?;
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(self.below()?)? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        self.spend(0)?;
        let mut entries = Vec::new();
        while let Some(key) = access.next_key_seed(self.below()?)? {
            let key = match key {
                Node::Text(text) => text,
                Node::Integer(number) => number.to_string(),
                Node::Bool(value) => value.to_string(),
                _ => return Err(A::Error::custom("a key must be text")),
            };
            entries.push((key, access.next_value_seed(self.below()?)?));
        }
        merge(entries).map(Node::Map).ok_or_else(|| A::Error::custom("`<<` takes a mapping, or a list of mappings"))
    }
}

/// Obeys the merge key: the entries of `<<` are added, as far as they are not given.
fn merge(mut entries: Vec<(String, Node)>) -> Option<Vec<(String, Node)>> {
    while let Some(index) = entries.iter().position(|(key, _)| key == "<<") {
        let sources = match entries.remove(index).1 {
            Node::List(items) => items,
            other => vec![other],
        };
        for source in sources {
            let Node::Map(defaults) = source else { return None };
            for (key, value) in defaults {
                if !entries.iter().any(|(given, _)| *given == key) {
                    entries.push((key, value));
                }
            }
        }
    }
    Some(entries)
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Node::Null => serializer.serialize_unit(),
            Node::Bool(value) => serializer.serialize_bool(*value),
            Node::Integer(value) => serializer.serialize_i128(*value),
            Node::Float(value) => serializer.serialize_f64(*value),
            Node::Text(text) => serializer.serialize_str(text),
            Node::List(items) => serializer.collect_seq(items),
            Node::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}
