//! Where the places of a document are in its text.
//!
//! A second, marked pass over the text, made only for a document with something to report: values are read by serde,
//! which forgets where they stood.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, Span};

use crate::node::DEPTH_MAX;
use crate::place::{At, enclosing};

/// A line and a column, both from 1; the column counts characters.
pub(crate) type Position = (usize, usize);

/// What of a place is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spot {
    /// Its value.
    Value,
    /// Its key, in the occurrence with this number when the key is given more than once.
    Key(usize),
    /// Neither: this very position.
    Exactly(Position),
}

/// The positions of every key and value of one document.
#[derive(Debug, Default)]
pub(crate) struct Positions {
    places: HashMap<String, Vec<Entry>>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    key: Position,
    value: Position,
}

impl Positions {
    /// Reads a document as far as it is well-formed.
    pub(crate) fn read(text: &str) -> Positions {
        let mut events = Events(Parser::new_from_str(text));
        let mut positions = Positions::default();
        if let Some((event, span)) = events.next() {
            positions.value(&mut events, &event, span, &At::root(0), None);
        }
        positions
    }

    /// The position of a place, or of the nearest place around it that stands in the text.
    pub(crate) fn of(&self, path: &str, spot: Spot) -> Position {
        if let Spot::Exactly(position) = spot {
            return position;
        }
        if let Some(entries) = self.places.get(path) {
            return match (spot, entries.as_slice()) {
                (Spot::Key(number), [.., last]) => entries.get(number).unwrap_or(last).key,
                (Spot::Value, [first, ..]) => first.value,
                (_, _) => (1, 1),
            };
        }
        enclosing(path).map_or((1, 1), |path| self.of(path, Spot::Value))
    }

    /// Notes a value and all in it; `None` when the events end early or nest deeper than values may.
    fn value(
        &mut self,
        events: &mut Events<'_>,
        event: &Event<'_>,
        span: Span,
        at: &At<'_>,
        key: Option<Position>,
    ) -> Option<()> {
        let value = position(span.start);
        self.places.entry(at.to_string()).or_default().push(Entry { key: key.unwrap_or(value), value });
        match event {
            _ if at.depth() > DEPTH_MAX => None,
            Event::SequenceStart(..) => self.list(events, at),
            Event::MappingStart(..) => self.map(events, at),
            _ => Some(()),
        }
    }

    fn list(&mut self, events: &mut Events<'_>, at: &At<'_>) -> Option<()> {
        for index in 0.. {
            match events.next()? {
                (Event::SequenceEnd, _) => break,
                (event, span) => self.value(events, &event, span, &at.index(index), None)?,
            }
        }
        Some(())
    }

    fn map(&mut self, events: &mut Events<'_>, at: &At<'_>) -> Option<()> {
        loop {
            match events.next()? {
                (Event::MappingEnd, _) => return Some(()),
                (Event::Scalar(name, ..), key) => {
                    let (event, span) = events.next()?;
                    self.value(events, &event, span, &at.key(&name), Some(position(key.start)))?;
                }
                // A key that is no scalar was refused when values were read: nothing is reported below it.
                _ => return None,
            }
        }
    }
}

/// The events of the first document's nodes.
struct Events<'a>(Parser<'a, saphyr_parser::StrInput<'a>>);

impl<'a> Iterator for Events<'a> {
    type Item = (Event<'a>, Span);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.0.next_event()?.ok()? {
                (Event::StreamStart | Event::DocumentStart(_) | Event::Nothing, _) => {}
                (Event::DocumentEnd | Event::StreamEnd, _) => return None,
                item => return Some(item),
            }
        }
    }
}

fn position(mark: Marker) -> Position {
    (mark.line(), mark.col() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found() {
        let text = "a: &a 1\nlist:\n  - x: é\n    y: [1, {z: 2}]\n  - *a\na: 2\n";
        let positions = Positions::read(text);
        let table = [
            ("a", Spot::Value, (1, 4)),
            ("a", Spot::Key(1), (6, 1)),
            ("a", Spot::Key(0), (1, 1)),
            ("list[0].x", Spot::Value, (3, 8)),
            ("list[0].y[1].z", Spot::Key(0), (4, 13)),
            ("list[0].y[1].absent", Spot::Value, (4, 12)),
            ("nowhere", Spot::Value, (1, 1)),
        ];
        for (path, spot, expected) in table {
            assert_eq!(positions.of(path, spot), expected, "{path}");
        }
    }
}
