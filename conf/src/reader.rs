//! Reads typed values from a [`Node`] and reports everything that does not fit, where serde by itself would stop at
//! the first thing.
//!
//! Three rules make that possible. A mapping's unknown and repeated keys are reported here and kept from the type.
//! Every value that may fail by itself sits in a [`crate::field::Field`], which turns a failure into `Bad` and lets its
//! siblings go on. A failure is reported once, by the innermost reader that saw it: so a type must fail inside its
//! visitor.

mod failure;

use std::collections::HashMap;

use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use self::failure::Failure;
use crate::node::Node;
use crate::place::At;
use crate::problem::Report;
use crate::suggest;
use crate::value::Invalid;

/// Reads a document's root; `None` if it is no mapping.
pub(crate) fn read<'de, T: Deserialize<'de>>(node: &Node, at: At<'_>, report: &Report) -> Option<T> {
    T::deserialize(Reader { node, at, report }).ok()
}

/// A place in the document, being read.
struct Reader<'a> {
    node: &'a Node,
    at: At<'a>,
    report: &'a Report,
}

impl Reader<'_> {
    /// Reports a failure that nobody has reported yet.
    fn settle<V>(&self, result: Result<V, Failure>) -> Result<V, Failure> {
        result.map_err(|Failure(invalid)| {
            if let Some(invalid) = invalid {
                self.report.error(&self.at, invalid);
            }
            Failure(None)
        })
    }

    /// The entries of a mapping, without those that repeat a key.
    fn entries<'n>(&self, entries: &'n [(String, Node)]) -> Vec<(&'n str, &'n Node)> {
        let mut seen = HashMap::new();
        let mut kept = Vec::with_capacity(entries.len());
        for (key, node) in entries {
            let occurrence = seen.entry(key.as_str()).and_modify(|n| *n += 1).or_insert(0);
            if *occurrence == 0 {
                kept.push((key.as_str(), node));
            } else {
                let invalid = Invalid::new(format!("the key `{key}` is given more than once"));
                self.report.key_error(&self.at.key(key), *occurrence, invalid.hint("keep one of them"));
            }
        }
        kept
    }

    /// Reports a key that nothing reads, and returns the one that was probably meant.
    fn unknown_key(&self, key: &str, known: &[&'static str]) -> Option<&'static str> {
        let meant: Option<&'static str> = suggest::nearest(key, known.iter().copied());
        let invalid = Invalid::new(format!("unknown key `{key}`")).hint(match meant {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("known here: {}", known.join(", ")),
        });
        self.report.key_error(&self.at.key(key), 0, invalid);
        meant
    }
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        let result = match self.node {
            Node::Null => visitor.visit_unit(),
            Node::Bool(value) => visitor.visit_bool(*value),
            Node::Integer(value) => integer(*value, visitor),
            Node::Float(value) => visitor.visit_f64(*value),
            Node::Text(text) => visitor.visit_str(text),
            Node::List(items) => visitor.visit_seq(Items { reader: &self, items, next: 0 }),
            Node::Map(entries) => {
                visitor.visit_map(Entries { reader: &self, entries: self.entries(entries).into_iter(), value: None })
            }
        };
        self.settle(result)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.node {
            Node::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        // Asked for itself, a derived type would take a list for its fields in order.
        let Node::Map(entries) = self.node else {
            let invalid = Invalid::new(format!("expected a mapping, found {}", describe(self.node)));
            return self.settle(Err(Failure::of(invalid)));
        };
        let given = self.entries(entries);
        let mut entries: Vec<_> = given.iter().copied().filter(|(key, _)| fields.contains(key)).collect();
        for (key, node) in given {
            let is_own = self.at.is_root() && key.starts_with("x-");
            if is_own || fields.contains(&key) {
                continue;
            }
            // A slip is read as what was meant: it is one problem, not also a key that is missing.
            let meant = self.unknown_key(key, fields);
            entries.extend(meant.filter(|name| entries.iter().all(|(key, _)| key != name)).map(|name| (name, node)));
        }
        let result = visitor.visit_map(Entries { reader: &self, entries: entries.into_iter(), value: None });
        self.settle(result)
    }

    /// An enum is one of two things: words in lower case, one of which the text must be; or forms (`Text`, `List`,
    /// `Map`, `Bool`), among which the value's own decides.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let form = match self.node {
            Node::Text(_) | Node::Integer(_) => "Text",
            Node::List(_) => "List",
            Node::Map(_) => "Map",
            Node::Bool(_) => "Bool",
            Node::Null | Node::Float(_) => "",
        };
        let result = match self.node {
            _ if variants.contains(&form) => visitor.visit_enum(Chosen { variant: form, reader: &self }),
            Node::Text(word) if variants.contains(&word.as_str()) => {
                visitor.visit_enum(Chosen { variant: word, reader: &self })
            }
            Node::Text(word) if !variants.contains(&"Map") => Err(Failure::of(unknown_word(word, variants))),
            node => Err(Failure::of(Invalid::new(format!("{} does not fit here", describe(node))))),
        };
        self.settle(result)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map identifier ignored_any
    }
}

/// Hands over a number in the narrowest type, which is the one that visitors know.
fn integer<'de, V: Visitor<'de>>(value: i128, visitor: V) -> Result<V::Value, Failure> {
    match (u64::try_from(value), i64::try_from(value)) {
        (Ok(value), _) => visitor.visit_u64(value),
        (_, Ok(value)) => visitor.visit_i64(value),
        _ => visitor.visit_i128(value),
    }
}

fn unknown_word(word: &str, known: &[&'static str]) -> Invalid {
    Invalid::new(format!("unknown value `{word}`")).hint(match suggest::nearest(word, known.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("known here: {}", known.join(", ")),
    })
}

fn describe(node: &Node) -> &'static str {
    match node {
        Node::Null => "nothing",
        Node::Bool(_) => "true or false",
        Node::Integer(_) | Node::Float(_) => "a number",
        Node::Text(_) => "text",
        Node::List(_) => "a list",
        Node::Map(_) => "a mapping",
    }
}

/// The items of a list.
struct Items<'r, 'a> {
    reader: &'r Reader<'a>,
    items: &'a [Node],
    next: usize,
}

impl<'de> SeqAccess<'de> for Items<'_, '_> {
    type Error = Failure;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Failure> {
        let Some(node) = self.items.get(self.next) else { return Ok(None) };
        let at = self.reader.at.index(self.next);
        self.next += 1;
        if *node == Node::Null {
            self.reader.report.error(&at, Invalid::new("an empty item").hint("remove it, or say what it is"));
        }
        seed.deserialize(Reader { node, at, report: self.reader.report }).map(Some)
    }
}

/// The entries of a mapping.
struct Entries<'r, 'a> {
    reader: &'r Reader<'a>,
    entries: std::vec::IntoIter<(&'a str, &'a Node)>,
    value: Option<(&'a str, &'a Node)>,
}

impl<'de> MapAccess<'de> for Entries<'_, '_> {
    type Error = Failure;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Failure> {
        self.value = self.entries.next();
        self.value.map(|(key, _)| seed.deserialize(de::value::StrDeserializer::new(key))).transpose()
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Failure> {
        let (key, node) = self.value.take().unwrap_or(("", &Node::Null));
        seed.deserialize(Reader { node, at: self.reader.at.key(key), report: self.reader.report })
    }
}

/// The variant of an enum that was decided on, and its content: the same place again.
struct Chosen<'r, 'a> {
    variant: &'r str,
    reader: &'r Reader<'a>,
}

impl<'de> EnumAccess<'de> for Chosen<'_, '_> {
    type Error = Failure;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Failure> {
        let variant = seed.deserialize(de::value::StrDeserializer::new(self.variant))?;
        Ok((variant, self))
    }
}

impl<'de> VariantAccess<'de> for Chosen<'_, '_> {
    type Error = Failure;

    fn unit_variant(self) -> Result<(), Failure> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Failure> {
        let Reader { node, at, report } = *self.reader;
        seed.deserialize(Reader { node, at, report })
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, _visitor: V) -> Result<V::Value, Failure> {
        Err(de::Error::custom("a form has one content"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Failure> {
        Err(de::Error::custom("a form has one content"))
    }
}
