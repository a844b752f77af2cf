//! Values inside a line: what would end the line or the quotes is escaped, and what is too long is cut.

#![forbid(unsafe_code)]

use std::fmt::{self, Write};

/// How a value is set off from its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quoting {
    /// Not at all.
    None,
    /// In quotes when it is empty or holds a space, a quote or an equals sign.
    IfNeeded,
    /// As a string of RFC 8259 section 7.
    Json,
}

/// Appends `value`, at most `limit_bytes` of it once escaped, not counting quotes and the mark `…` of a cut.
pub(super) fn append(line: &mut String, limit_bytes: usize, quoting: Quoting, value: fmt::Arguments<'_>) {
    let start = line.len();
    if quoting != Quoting::None {
        line.push('"');
    }
    let body = line.len();
    let quoted = quoting != Quoting::None;
    let mut escape = Escape { line, end: body + limit_bytes, quoted, cut: false };
    // A Display that fails leaves what it wrote.
    let _ = escape.write_fmt(value);
    if quoting == Quoting::IfNeeded {
        let text = &line[body..];
        if !text.is_empty() && !text.contains([' ', '"', '=', '\\']) {
            line.remove(start);
            return;
        }
    }
    if quoted {
        line.push('"');
    }
}

struct Escape<'l> {
    line: &'l mut String,
    end: usize,
    quoted: bool,
    cut: bool,
}

impl Write for Escape<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if self.cut {
                break;
            }
            let before = self.line.len();
            match character {
                '"' | '\\' if self.quoted => self.line.extend(['\\', character]),
                '\n' => self.line.push_str("\\n"),
                '\r' => self.line.push_str("\\r"),
                '\t' => self.line.push_str("\\t"),
                // RFC 8259 section 7: all below U+0020 must be escaped; U+007F to U+009F move terminals too.
                control if control.is_control() => write!(self.line, "\\u{:04x}", u32::from(control))?,
                other => self.line.push(other),
            }
            if self.line.len() > self.end {
                self.line.truncate(before);
                self.line.push('…');
                self.cut = true;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        for (quoting, value, expected) in [
            (Quoting::None, "a \"b\"", "a \"b\""),
            (Quoting::None, "a\u{1b}[0m\n", "a\\u001b[0m\\n"),
            (Quoting::IfNeeded, "plain", "plain"),
            (Quoting::IfNeeded, "", "\"\""),
            (Quoting::IfNeeded, "a=b", "\"a=b\""),
            (Quoting::Json, "\\\u{85}", "\"\\\\\\u0085\""),
            (Quoting::Json, "0123456789abcdef", "\"0123456789ab…\""),
            (Quoting::Json, "0123456789a\n", "\"0123456789a…\""),
        ] {
            let mut line = String::new();
            append(&mut line, 12, quoting, format_args!("{value}"));
            assert_eq!(line, expected);
        }
    }
}
