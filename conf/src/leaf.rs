//! Scalars that mean something: how they are read, and what the schema says of them.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use crate::field::Field;
use crate::value::Invalid;

/// A value that is written as one scalar.
pub(crate) trait Leaf: FromStr<Err = Invalid> {
    /// What a message calls it: "expected ...".
    const EXPECTED: &'static str;

    /// The same, where it takes more than a constant.
    fn expected() -> Cow<'static, str> {
        Self::EXPECTED.into()
    }

    /// Whether `true` and `false` mean something, namely `on` and `off`.
    const BOOLEAN: bool = false;

    /// What the schema says of its form.
    fn schema() -> Schema;
}

/// A leaf, on its way from serde.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Written<T>(pub(crate) T);

/// A mapping from names to values, in the order of the text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Named<T>(pub(crate) Vec<(String, Field<T>)>);

impl<T> Field<Written<T>> {
    /// The value, or the default when the text says nothing good.
    pub(crate) fn or(&self, default: T) -> T
    where
        T: Clone,
    {
        self.given().map_or(default, |written| written.0.clone())
    }
}

impl<'de, T: Leaf> Deserialize<'de> for Written<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Written<T>, D::Error> {
        struct Scalar<T>(PhantomData<T>);

        impl<T: Leaf> Visitor<'_> for Scalar<T> {
            type Value = Written<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&T::expected())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Written<T>, E> {
                text.parse().map(Written).map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Written<T>, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Written<T>, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Written<T>, E> {
                match (T::BOOLEAN, value) {
                    (true, true) => self.visit_str("on"),
                    (true, false) => self.visit_str("off"),
                    (false, _) => Err(E::invalid_type(de::Unexpected::Bool(value), &self)),
                }
            }
        }

        deserializer.deserialize_any(Scalar(PhantomData))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Named<T>, D::Error> {
        struct Pairs<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Pairs<T> {
            type Value = Named<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping from names to values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Named<T>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = access.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Named(pairs))
            }
        }

        deserializer.deserialize_map(Pairs(PhantomData))
    }
}

impl<T: Leaf> JsonSchema for Written<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        T::expected()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut schema = T::schema();
        schema.insert("title".into(), T::expected().into());
        schema
    }
}

impl<T: JsonSchema> JsonSchema for Named<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Named{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "object", "additionalProperties": generator.subschema_for::<T>()})
    }
}
