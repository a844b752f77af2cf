//! Templates rendered: text with variables, for bodies and for header fields.

#![forbid(unsafe_code)]

use conf::template::{Part, Template, Variable};

use super::escape;

/// What variables stand for in an exchange.
pub(crate) trait Variables {
    /// Appends a variable's value; false, with nothing appended, when it has none.
    fn append(&self, variable: &Variable, out: &mut Vec<u8>) -> bool;
}

/// Appends the text as it is; a variable without a value is nothing.
pub(crate) fn render(template: &Template, variables: &impl Variables, out: &mut Vec<u8>) {
    for part in &template.parts {
        match part {
            Part::Literal(text) => out.extend_from_slice(text.as_bytes()),
            Part::Variable(variable) => {
                variables.append(variable, out);
            }
        }
    }
}

/// The same for a field's value: nothing in it can end the field, whatever a client put into a variable.
pub(crate) fn render_field(template: &Template, variables: &impl Variables, out: &mut Vec<u8>) {
    let start = out.len();
    render(template, variables, out);
    escape::field(out, start);
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;

    impl Variables for Fixed {
        fn append(&self, variable: &Variable, out: &mut Vec<u8>) -> bool {
            let value: &[u8] = match variable {
                Variable::Host => b"example.com",
                Variable::Arg(_) => b"1\r\nSet-Cookie: a",
                _ => return false,
            };
            out.extend_from_slice(value);
            true
        }
    }

    #[test]
    fn a_variable_cannot_end_a_field() {
        let template = Template {
            parts: vec![
                Part::Literal("https://".into()),
                Part::Variable(Variable::Host),
                Part::Variable(Variable::Fault),
                Part::Literal("/?".into()),
                Part::Variable(Variable::Arg("a".into())),
            ],
        };
        let (mut body, mut field) = (Vec::new(), b"\r\n".to_vec());
        render(&template, &Fixed, &mut body);
        render_field(&template, &Fixed, &mut field);
        assert_eq!(body, b"https://example.com/?1\r\nSet-Cookie: a");
        assert_eq!(field, b"\r\nhttps://example.com/?1  Set-Cookie: a");
    }
}
