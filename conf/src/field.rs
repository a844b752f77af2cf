//! A value that may fail by itself, while its siblings go on.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{Deserialize, Deserializer, Visitor};

use crate::place::At;
use crate::problem::Report;
use crate::value::Invalid;

/// A value that the text may give, or give wrongly.
///
/// Only [`crate::reader`] may read one: a failure vanishes here, and the reader is who reported it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum Field<T> {
    /// It is not there, or there is nothing after its key.
    #[default]
    Absent,
    /// It is there, but no `T`. That was reported.
    Bad,
    /// It is there.
    Given(T),
}

impl<T> Field<T> {
    /// The value, if there is a good one.
    pub(crate) fn given(&self) -> Option<&T> {
        match self {
            Field::Given(value) => Some(value),
            Field::Absent | Field::Bad => None,
        }
    }

    /// Whether the text says nothing of it.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Field::Absent)
    }

    /// Whether there is a value, and it is wrong.
    pub(crate) fn is_bad(&self) -> bool {
        matches!(self, Field::Bad)
    }

    /// The value; reports when there is none though there must be.
    pub(crate) fn needed(&self, at: &At<'_>, report: &Report, hint: &str) -> Option<&T> {
        if self.is_absent() {
            report.error(at, Invalid::new("this is missing").hint(hint));
        }
        self.given()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Field<T>, D::Error> {
        struct Lenient<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Lenient<T> {
            type Value = Field<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value or nothing")
            }

            fn visit_none<E>(self) -> Result<Field<T>, E> {
                Ok(Field::Absent)
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Field<T>, D::Error> {
                Ok(T::deserialize(deserializer).map_or(Field::Bad, Field::Given))
            }
        }

        deserializer.deserialize_option(Lenient(PhantomData))
    }
}

/// Whether a value is written inline or has a definition of its own, the schema of a wrapper is the schema of what it
/// wraps.
impl<T: JsonSchema> JsonSchema for Field<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}
