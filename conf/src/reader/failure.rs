//! How a value fails on its way through serde.

use std::fmt;

use serde::de;

use crate::value::Invalid;

/// Why a value was not read; `None` once that was reported.
#[derive(Debug)]
pub(super) struct Failure(pub(super) Option<Invalid>);

impl Failure {
    pub(super) fn of(invalid: Invalid) -> Failure {
        Failure(Some(invalid))
    }
}

impl de::Error for Failure {
    /// The first line is the message, the rest the hint: the form in which [`Invalid`] displays itself.
    fn custom<T: fmt::Display>(text: T) -> Failure {
        let text = text.to_string();
        Failure::of(match text.split_once('\n') {
            Some((message, hint)) => Invalid::new(message).hint(hint),
            None => Invalid::new(text),
        })
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Failure {
        let (found, quoted) = match found {
            de::Unexpected::Bool(value) => ("true or false", Some(value.to_string())),
            de::Unexpected::Unsigned(value) => ("a number", Some(value.to_string())),
            de::Unexpected::Signed(value) => ("a number", Some(value.to_string())),
            de::Unexpected::Float(value) => ("a number", Some(value.to_string())),
            de::Unexpected::Str(_) => ("text", None),
            de::Unexpected::Seq => ("a list", None),
            de::Unexpected::Map => ("a mapping", None),
            _ => ("this", None),
        };
        let expected = match expected.to_string() {
            name if name == "a sequence" => "a list".to_string(),
            name if name == "a string" => "text".to_string(),
            name => name,
        };
        let invalid = Invalid::new(format!("expected {expected}, found {found}"));
        Failure::of(match quoted {
            Some(value) if expected == "text" => {
                invalid.hint(format!("if text is meant, put it in quotes: \"{value}\""))
            }
            _ => invalid,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |invalid| invalid.fmt(f))
    }
}

impl std::error::Error for Failure {}
