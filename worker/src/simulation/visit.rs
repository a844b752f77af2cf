//! A client's side of a connection, and what it may come to hear.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use fastrand::Rng;

use super::Play;
use super::script::Outcome::{self, Answer, Cut, Nothing, Status};
use super::script::{Case, Flaw};
use super::wire::{Body, Head, Wire};
use crate::runtime::clock::SECOND;
use crate::runtime::net::Stream;
use crate::runtime::sync::{Signal, both};

/// How a client misbehaves, once so many bytes were written or, for the last two, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whim {
    Stalls,
    Resets,
    HalfCloses,
    Leaves,
    /// It reads nothing for a while.
    Sulks,
}

/// A client's connection.
#[derive(Debug, Clone)]
pub(super) struct Visit {
    pub(super) numbers: Range<usize>,
    pub(super) is_pipelined: bool,
    /// Waits for the proxy to close the connection.
    pub(super) stays: bool,
    pub(super) whim: Option<(Whim, usize)>,
}

/// All that a client read, and whether the connection ended in order, if it did.
pub(super) type Ended = (Vec<u8>, Option<bool>);

/// What a client has of an answer.
pub(super) struct Heard {
    pub(super) status: u16,
    pub(super) is_scripted: bool,
    pub(super) payload: Vec<u8>,
    pub(super) is_whole: bool,
    pub(super) is_last: bool,
}

impl Visit {
    /// Asks and listens, and gives back what was heard and how the connection ended.
    pub(super) async fn run(&self, stream: Stream, mut dice: Rng, play: &Play) -> Ended {
        let stream = Rc::new(stream);
        let (mut pen, mut ear) = (Wire::new(&stream, dice.fork()), Wire::new(&stream, dice.fork()));
        let (answered, news) = (Cell::new(0), Signal::default());
        let ask = async {
            let mut left = match self.whim {
                Some((Whim::Stalls | Whim::Resets | Whim::HalfCloses, at)) => at,
                _ => usize::MAX,
            };
            for (place, case) in play.cases[self.numbers.clone()].iter().enumerate() {
                if !self.is_pipelined {
                    news.until(|| answered.get() >= place).await;
                }
                let count = left.min(case.wire.len());
                left -= count;
                if !pen.write(&case.wire[..count]).await {
                    return Ok(());
                }
                if count < case.wire.len() {
                    break;
                }
            }
            match self.whim {
                Some((Whim::Resets, _)) => {
                    pen.stream.reset();
                    Err(())
                }
                Some((Whim::HalfCloses, _)) => pen.stream.shutdown_write().map_err(drop),
                _ => Ok(()),
            }
        };
        let listen = async {
            let mut sulks = matches!(self.whim, Some((Whim::Sulks, _)));
            while ear.read().await {
                answered.set(self.heard(&ear.input, None, play).iter().filter(|heard| heard.is_whole).count());
                news.raise();
                match self.whim {
                    Some((Whim::Leaves, at)) if ear.input.len() >= at => break,
                    Some((Whim::Sulks, at)) if ear.input.len() >= at && std::mem::take(&mut sulks) => {
                        ear.sleep(5 * SECOND).await
                    }
                    _ if answered.get() == self.numbers.len() && !self.stays => break,
                    _ => {}
                }
            }
            Err(())
        };
        let _: Result<(), ()> = both(ask, listen).await;
        (ear.input, ear.end)
    }

    /// The answers in what was read.
    pub(super) fn heard(&self, mut wire: &[u8], end: Option<bool>, play: &Play) -> Vec<Heard> {
        const KNOWN: &str = "allow connection content-length content-type date transfer-encoding x-id x-request-id";
        let mut all = Vec::new();
        for case in &play.cases[self.numbers.clone()] {
            let (head, status) = loop {
                let Some(head) = Head::parse(wire) else { return all };
                assert!(head.line.starts_with("HTTP/1.1 "), "{:?}", head.line);
                assert!(
                    head.fields.iter().all(|(name, _)| KNOWN.split(' ').any(|known| known == name)),
                    "{:?}",
                    head.fields
                );
                wire = &wire[head.bytes..];
                match head.line[9..12].parse().expect("a status") {
                    100 | 103 if case.minor > 0 => {}
                    status => break (head, status),
                }
            };
            // Of a request that could not be read the method is not known.
            let is_bodyless = case.method == "HEAD" && !matches!(status, 400 | 408) || status == 204;
            let (connection, to_end) = (head.field("connection"), wire.len());
            let until_end = Body { payload: wire.to_vec(), bytes: to_end, is_whole: end == Some(true) };
            let none = Body { payload: Vec::new(), bytes: 0, is_whole: true };
            let framed = if is_bodyless { Some(none) } else { head.body(wire) };
            let is_last =
                framed.is_none() || connection == Some("close") || case.minor == 0 && connection != Some("keep-alive");
            let Body { payload, bytes, is_whole } = framed.unwrap_or(until_end);
            let is_scripted = head.field("x-id").is_some_and(|id| id == case.number.to_string());
            wire = &wire[bytes..];
            all.push(Heard { status, is_scripted, payload, is_whole, is_last });
            assert!(!is_whole || !is_last || wire.is_empty(), "more comes after the last answer");
            if !is_whole || is_last {
                return all;
            }
        }
        assert!(wire.is_empty(), "more comes than was asked for");
        all
    }

    pub(super) fn check(&self, wire: &[u8], end: Option<bool>, play: &Play) {
        let all = self.heard(wire, end, play);
        let (mut is_open, mut start) = (true, 0);
        for (place, case) in play.cases[self.numbers.clone()].iter().enumerate() {
            let heard = all.get(place);
            let outcome = match heard {
                None => Nothing,
                Some(heard) if heard.is_scripted => {
                    let planned = if case.method == "HEAD" { &[][..] } else { &case.answer };
                    assert!(
                        heard.status == case.status && planned.starts_with(&heard.payload),
                        "another answer: {case:?}"
                    );
                    assert!(!heard.is_whole || planned == heard.payload, "a cut answer looks whole: {case:?}");
                    if heard.is_whole { Answer } else { Cut }
                }
                Some(heard) => Status(heard.status),
            };
            let expected = if is_open { self.outcomes(case, start, play) } else { vec![Nothing] };
            assert!(expected.contains(&outcome), "{outcome:?} instead of {expected:?}: {case:?}, {self:?}");
            is_open &= heard.is_some_and(|heard| heard.is_whole && !heard.is_last);
            start += case.wire.len();
        }
    }

    /// What may become of a case whose request is the client's bytes from `start` on.
    pub(super) fn outcomes(&self, case: &Case, start: usize, play: &Play) -> Vec<Outcome> {
        let mut outcomes = if play.refuses == [true; 2] { vec![Status(502)] } else { case.outcomes() };
        let needs_body = !case.script.is_early && outcomes == [Answer] && !case.was_left.get();
        let stalls_at = match self.whim {
            Some((Whim::Stalls, at)) => at,
            _ => usize::MAX,
        };
        if stalls_at <= start {
            return vec![Nothing];
        }
        let refusals = [
            case.flaw.map(|_| Status(400)),
            (stalls_at < start.saturating_add(case.wire.len())).then_some(Status(408)),
        ];
        let mut refusals: Vec<_> = refusals.into_iter().flatten().collect();
        let is_headless = case.flaw == Some(Flaw::Head) || stalls_at < start + case.head_bytes;
        if !refusals.is_empty() && (is_headless || needs_body) {
            outcomes = refusals;
        } else if !refusals.is_empty() {
            refusals.extend([Cut, Nothing]);
            outcomes.extend(refusals);
        }
        // A body that only the connection's end ends is cut by a reset, which takes earlier answers with it.
        let is_cut = |case: &Case| case.minor == 0 && case.outcomes().contains(&Cut);
        let is_reset = play.cases[case.number..self.numbers.end].iter().any(is_cut);
        if is_reset || !matches!(self.whim, None | Some((Whim::Stalls, _))) {
            outcomes.extend([Cut, Nothing]);
        }
        outcomes
    }
}
