//! What is asked and how servers treat it, as a seed draws it.

use std::cell::Cell;

use fastrand::Rng;

use self::Outcome::{Answer, Cut, Nothing, Status};

/// What no server may send.
pub(super) const MALFORMED: [&str; 6] = [
    "gar bage\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx",
    "HTTP/1.1 200 OK\nX-Id: 0\n\n",
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Le",
];

/// What a client may come to hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The scripted answer.
    Answer,
    /// An answer of the proxy's own.
    Status(u16),
    /// The beginning of the scripted answer.
    Cut,
    Nothing,
}

/// What a server does after it has written what it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Serve,
    Close,
    Reset,
    Hang,
}

/// How a server treats a request.
#[derive(Debug, Clone)]
pub(super) struct Script {
    /// It gives the connection up without an answer: whenever that has carried a request before, or in any case.
    pub(super) vanishes: Option<Vanishing>,
    pub(super) interims: usize,
    /// It answers before it has read the body, or without reading it at all.
    pub(super) is_early: bool,
    pub(super) is_deaf: bool,
    pub(super) wire: Vec<u8>,
    pub(super) then: Then,
    pub(super) outcomes: Vec<Outcome>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Vanishing {
    pub(super) only_if_reused: bool,
    /// How much of a head is sent before.
    pub(super) sends: &'static str,
    pub(super) by_reset: bool,
}

/// What is wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    Head,
    Chunk,
}

/// A request, and what is to become of it.
#[derive(Clone)]
pub(super) struct Case {
    pub(super) number: usize,
    pub(super) method: &'static str,
    pub(super) minor: u8,
    pub(super) body: Vec<u8>,
    pub(super) flaw: Option<Flaw>,
    pub(super) wire: Vec<u8>,
    pub(super) head_bytes: usize,
    pub(super) status: u16,
    pub(super) answer: Vec<u8>,
    pub(super) script: Script,
    /// How many servers saw it, and whether one of them vanished.
    pub(super) seen: Cell<u32>,
    pub(super) was_left: Cell<bool>,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Script { wire, outcomes, .. } = &self.script;
        let script = Script { wire: Vec::new(), ..self.script.clone() };
        write!(
            f,
            "{} {} HTTP/1.{} of {} bytes, flaw {:?}, ",
            self.method,
            self.number,
            self.minor,
            self.body.len(),
            self.flaw
        )?;
        write!(
            f,
            "seen {} times, {} bytes answered as {} bytes, {script:?} -> {outcomes:?}; ",
            self.seen.get(),
            self.answer.len(),
            wire.len()
        )?;
        write!(f, "{:?}", String::from_utf8_lossy(&wire[..wire.len().min(150)]))
    }
}

impl Case {
    pub(super) fn draw(number: usize, dice: &mut Rng) -> Case {
        let method = *dice.choice(["GET", "GET", "HEAD", "POST", "POST"].iter()).expect("not empty");
        let (minor, is_chunked) = (u8::from(dice.u8(0..5) > 0), dice.bool());
        let body = if method == "POST" { text(dice, 3000) } else { Vec::new() };
        let flaw = match dice.u8(0..40) {
            0 if method != "HEAD" => Some(Flaw::Head),
            1 | 2 if method == "POST" && minor == 1 && is_chunked => Some(Flaw::Chunk),
            _ => None,
        };
        let host = if flaw == Some(Flaw::Head) { "Host sim" } else { "Host: sim" };
        let keeps = if minor == 0 && dice.bool() { "Connection: keep-alive\r\n" } else { "" };
        let mut wire = format!("{method} /{number} HTTP/1.{minor}\r\n{host}\r\n{keeps}").into_bytes();
        let mut framed = body.clone();
        if method == "POST" && minor == 1 && is_chunked {
            wire.extend(b"Transfer-Encoding: chunked\r\n");
            framed = chunks(&body, dice);
            framed.extend(if flaw == Some(Flaw::Chunk) { &b"zz\r\n\r\n"[..] } else { b"0\r\n\r\n" });
        } else if method == "POST" {
            wire.extend(format!("Content-Length: {}\r\n", body.len()).into_bytes());
        }
        wire.extend(b"\r\n");
        let head_bytes = wire.len();
        wire.extend(framed);
        let status = *dice.choice([200, 200, 200, 404, 503, 204].iter()).expect("not empty");
        let answer = if status == 204 { Vec::new() } else { text(dice, 4000) };
        let script = Script::draw(number, method, status, &answer, dice);
        let (seen, was_left) = (Cell::new(0), Cell::new(false));
        Case { number, method, minor, body, flaw, wire, head_bytes, status, answer, script, seen, was_left }
    }

    /// What its client may hear, if that is up to the server alone.
    pub(super) fn outcomes(&self) -> Vec<Outcome> {
        match self.script.vanishes {
            Some(_) if self.was_left.get() && self.method == "POST" => vec![Status(502)],
            // A server that began its answer has perhaps acted on the request: to give up is as good as to repeat.
            Some(Vanishing { only_if_reused: true, sends, .. }) if !sends.is_empty() && self.was_left.get() => {
                vec![Answer, Status(502)]
            }
            // A server that closes what is kept for reuse may take a request with it that may not be repeated.
            _ if self.method == "POST" && self.seen.get() == 0 => [&self.script.outcomes[..], &[Status(502)]].concat(),
            _ => self.script.outcomes.clone(),
        }
    }
}

impl Script {
    pub(super) fn draw(number: usize, method: &str, status: u16, answer: &[u8], dice: &mut Rng) -> Script {
        let (closes, framing) = (dice.u8(0..4) == 0, dice.u8(0..3));
        let mut wire = format!("HTTP/1.1 {status} X\r\nX-Id: {number}\r\n").into_bytes();
        let (mut framed, mut then) = (answer.to_vec(), if closes { Then::Close } else { Then::Serve });
        if closes && dice.bool() {
            wire.extend(b"Connection: close\r\n");
        }
        match framing {
            _ if status == 204 => {}
            0 => wire.extend(format!("Content-Length: {}\r\n", answer.len()).into_bytes()),
            1 => {
                wire.extend(b"Transfer-Encoding: chunked\r\n");
                framed = [&chunks(answer, dice)[..], b"0\r\n", if dice.bool() { b"X-Id: 0\r\n" } else { b"" }, b"\r\n"]
                    .concat();
            }
            _ => then = Then::Close,
        }
        wire.extend(b"\r\n");
        let head_bytes = wire.len();
        wire.extend(if method == "HEAD" { b"" } else { &framed[..] });
        let body_bytes = wire.len() - head_bytes;
        let is_early = dice.u8(0..3) == 0;
        let mut script = Script {
            vanishes: None,
            interims: if dice.u8(0..3) == 0 { dice.usize(1..4) } else { 0 },
            is_early,
            is_deaf: is_early && dice.bool(),
            wire,
            then,
            outcomes: vec![Answer],
        };
        script.spoil(head_bytes, body_bytes, framing, dice);
        if script.is_deaf && script.then == Then::Serve {
            script.then = Then::Close;
        }
        script
    }

    /// Puts a fault in, perhaps.
    pub(super) fn spoil(&mut self, head_bytes: usize, body_bytes: usize, framing: u8, dice: &mut Rng) {
        match dice.u8(0..20) {
            kind @ 0..=2 => {
                let sends =
                    *dice.choice(["", "", "HTTP/1.1 20", "HTTP/1.1 200 OK\r\nX-Half: "].iter()).expect("not empty");
                let only_if_reused = kind > 0;
                self.vanishes = Some(Vanishing { only_if_reused, sends, by_reset: dice.bool() });
                self.outcomes = vec![if only_if_reused { Answer } else { Status(502) }];
            }
            3 => {
                self.wire.truncate(dice.usize(..head_bytes));
                (self.then, self.outcomes) = (Then::Hang, vec![Status(504)]);
            }
            4 => {
                self.wire = dice.choice(MALFORMED.iter()).expect("not empty").as_bytes().to_vec();
                (self.then, self.outcomes) = (Then::Close, vec![Status(502)]);
            }
            5..=8 if body_bytes > 0 => {
                self.wire.truncate(head_bytes + dice.usize(..body_bytes));
                let ways: &[Then] =
                    if framing == 2 { &[Then::Reset, Then::Hang] } else { &[Then::Reset, Then::Hang, Then::Close] };
                self.then = *dice.choice(ways.iter()).expect("not empty");
                self.outcomes = vec![Cut, Nothing];
                // A client that is slow to take interim responses keeps the proxy from reading before the reset.
                if self.then == Then::Reset && self.interims > 0 {
                    self.outcomes.push(Status(502));
                }
            }
            _ => {}
        }
    }
}

pub(super) fn text(dice: &mut Rng, limit: usize) -> Vec<u8> {
    let length = match dice.u8(0..5) {
        0 => 0,
        1 | 2 => dice.usize(1..60),
        _ => dice.usize(1..limit),
    };
    std::iter::repeat_with(|| dice.alphanumeric() as u8).take(length).collect()
}

/// A chunked body without its last chunk.
pub(super) fn chunks(body: &[u8], dice: &mut Rng) -> Vec<u8> {
    let size = dice.usize(1..1500);
    body.chunks(size).flat_map(|chunk| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat()).collect()
}
