//! Text with variables in nginx's notation: `$host`, `${arg_x}`, `$$` for a dollar sign.
//!
//! Only the parse is here; the worker renders.

mod variable;

use std::fmt;

pub use self::variable::Variable;
use crate::value::Invalid;

/// Text with variables, parsed. An empty one renders to nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Template {
    /// Literal text and variables in order; no two literals are neighbours.
    pub parts: Vec<Part>,
}

/// A piece of a [`Template`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Text as it stands.
    Literal(String),
    /// What a variable stands for at run time.
    Variable(Variable),
}

/// Why a text is no template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateError {
    /// Bytes of the text before the dollar sign that is wrong.
    pub offset: usize,
    /// What is wrong with it, and what would be right.
    pub invalid: Invalid,
}

impl Template {
    /// Reads a text.
    ///
    /// # Errors
    /// A dollar sign that neither begins a known variable nor is doubled.
    pub fn parse(text: &str) -> Result<Template, TemplateError> {
        let mut template = Template::default();
        let mut rest = text;
        while let Some(dollar) = rest.find('$') {
            template.literal(&rest[..dollar]);
            let offset = text.len() - rest.len() + dollar;
            let after = &rest[dollar + 1..];
            rest = match after.strip_prefix('$') {
                Some(after) => {
                    template.literal("$");
                    after
                }
                None => template.variable(after).map_err(|invalid| TemplateError { offset, invalid })?,
            };
        }
        template.literal(rest);
        Ok(template)
    }

    /// The text before the first variable and between variables, in pieces.
    pub fn literals(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Literal(text) => Some(text.as_str()),
            Part::Variable(_) => None,
        })
    }

    fn literal(&mut self, text: &str) {
        match self.parts.last_mut() {
            _ if text.is_empty() => {}
            Some(Part::Literal(before)) => before.push_str(text),
            _ => self.parts.push(Part::Literal(text.to_string())),
        }
    }

    /// Reads a variable from what follows its dollar sign; returns what follows the variable.
    fn variable<'a>(&mut self, text: &'a str) -> Result<&'a str, Invalid> {
        let (name, rest) = match text.strip_prefix('{') {
            Some(braced) => braced
                .split_once('}')
                .ok_or_else(|| Invalid::new("`${` without `}`").hint("a dollar sign by itself is written `$$`"))?,
            None => text.split_at(text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len())),
        };
        self.parts.push(Part::Variable(Variable::named(name)?));
        Ok(rest)
    }
}

impl fmt::Display for Template {
    /// A text that reads back as the same template.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts.iter().try_for_each(|part| match part {
            Part::Literal(text) => f.write_str(&text.replace('$', "$$")),
            Part::Variable(variable) => write!(f, "${{{variable}}}"),
        })
    }
}

impl From<TemplateError> for Invalid {
    fn from(error: TemplateError) -> Invalid {
        error.invalid
    }
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.invalid.fmt(f)
    }
}

impl std::error::Error for TemplateError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_variables_come_apart() {
        let literal = |text: &str| Part::Literal(text.to_string());
        let table = [
            ("", vec![]),
            ("plain", vec![literal("plain")]),
            ("a$$b$$", vec![literal("a$b$")]),
            ("$host", vec![Part::Variable(Variable::Host)]),
            ("x-$status.", vec![literal("x-"), Part::Variable(Variable::Status), literal(".")]),
            ("${uri}s", vec![Part::Variable(Variable::Uri), literal("s")]),
            ("$http_User_Agent", vec![Part::Variable(Variable::Http("user-agent".into()))]),
            ("$arg_Q", vec![Part::Variable(Variable::Arg("Q".into()))]),
            ("$request_uri$is_args", vec![Part::Variable(Variable::RequestUri), Part::Variable(Variable::IsArgs)]),
        ];
        for (text, parts) in table {
            let template = Template::parse(text).unwrap();
            assert_eq!(template.parts, parts, "{text}");
            assert_eq!(Template::parse(&template.to_string()), Ok(template), "{text}");
        }
    }

    #[test]
    fn wrong_variables_are_refused_with_a_hint() {
        let table = [
            ("costs 5$", 7, "$$"),
            ("$hots", 0, "`$host`"),
            ("a${remote_adr}", 1, "`$remote_addr`"),
            ("$xyzzy", 0, "$$"),
            ("${host", 0, "$$"),
            ("$http_", 0, "http_user_agent"),
            ("${http_a-b}", 0, "http_user_agent"),
            ("é$é", 2, "$$"),
        ];
        for (text, offset, hint) in table {
            let error = Template::parse(text).unwrap_err();
            assert_eq!(error.offset, offset, "{text}");
            assert!(error.invalid.hint.as_ref().unwrap().contains(hint), "{text}: {error}");
        }
    }
}
