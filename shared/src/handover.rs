//! Connections that move from one worker to another: a `SOCK_SEQPACKET` pair that a master brokers, offers one way,
//! answers the other.
//!
//! # Whose a connection is
//!
//! The old worker stops reading and writing a connection before it offers it. The new one does not touch it before its
//! answer [`Taken`](Answer::Taken) lies in the old one's queue: **that step of the kernel is the change of owner**. Before
//! it the connection is the old worker's, which goes on with it should the new one refuse, die or be late; after it, it is
//! the new one's, and ends with it. So never do two workers read one connection.
//!
//! - The new worker dies: the old one reads the answers that came before the end of the stream, and keeps the rest.
//! - The old worker dies: answers can't be sent any more, and what was not answered ends with it.
//! - The new worker is late: the old one shuts its queue first ([`Handover::revoke`]), so that no answer comes any more.
//!   What it finds there was taken, what it does not find was not. The new one's answer fails, and it closes its copies.
//!
//! # What is sent
//!
//! Workers of different versions talk to each other. An offer is version, frame, number, kind, place, then the record: fields
//! in order, each behind its length. Fields are only ever appended; those of a later version are passed over. What a
//! reader does not know, a version, a kind, is refused: then the connection stays where it is. Version, frame and number
//! stay where they are for ever. At most [`WINDOW_RECORDS`] are unanswered at a time, which bounds the descriptors in
//! flight. A record that is long for a message is a sealed file, the last of the descriptors.

#![forbid(unsafe_code)]

mod record;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socketpair};

use crate::fd;
use record::Unreadable;

pub use record::{Account, Client, Record, Tunnel, Way};

/// The most records that are offered and not answered.
pub const WINDOW_RECORDS: usize = 64;
/// The most bytes of a record. Two heads and what is unsent each way come to half of it.
pub const RECORD_BYTES_MAX: usize = 512 << 10;

/// A record of more bytes than this goes as a file.
const INLINE_BYTES_MAX: usize = 8 << 10;
/// What stands before a record: version, frame, number (4 bytes), kind, place.
const HEAD_BYTES: usize = 8;

const VERSION: u8 = 1;
const OFFER: u8 = 1;
const ANSWER: u8 = 2;

const INLINE: u8 = 0;
const SEALED: u8 = 1;

/// What a new worker says to an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The connection is mine now.
    Taken,
    /// It stays yours.
    Refused(Refusal),
}

/// Why a worker does not take a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It does not understand the record, or lacked the descriptors to receive it.
    Unreadable,
    /// It has no room for another one.
    Room,
    /// It does not serve that listener.
    Listener,
    /// Something that this version has no word for.
    Other,
}

/// A connection that is offered.
#[derive(Debug)]
pub struct Offer {
    /// What the answer has to name.
    pub number: u32,
    /// The record and its descriptors, as many as it asks for; or why it has to be refused.
    pub content: Result<(Record, Vec<OwnedFd>), Refusal>,
}

/// One end of a handover; non-blocking, closed on exec.
#[derive(Debug)]
pub struct Handover(OwnedFd);

impl Handover {
    /// Both ends.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn pair() -> nix::Result<(Handover, Handover)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Handover(a), Handover(b)))
    }

    /// The end that another process handed over; it must be an end of a [`pair`](Handover::pair).
    #[must_use]
    pub fn from_fd(descriptor: OwnedFd) -> Handover {
        Handover(descriptor)
    }

    /// The descriptor, to be sent to a worker.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Offers a connection. The caller has at most [`WINDOW_RECORDS`] unanswered.
    ///
    /// # Errors
    /// `WouldBlock` when the queue is full; `BrokenPipe` when the other end is gone; `InvalidInput` for a record over
    /// [`RECORD_BYTES_MAX`]; else what the kernel lacks. Nothing was sent then.
    pub fn offer(&self, number: u32, record: &Record, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let (kind, body) = record.encode();
        if body.len() > RECORD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the record is too large"));
        }
        let is_inline = body.len() <= INLINE_BYTES_MAX;
        let mut frame = head(OFFER, number).to_vec();
        frame.extend_from_slice(&[kind, if is_inline { INLINE } else { SEALED }]);
        if is_inline {
            frame.extend_from_slice(&body);
            return fd::send(self.as_fd(), &frame, descriptors);
        }
        let file = fd::seal("connection", &body)?;
        let all: Vec<_> = descriptors.iter().copied().chain([file.as_fd()]).collect();
        fd::send(self.as_fd(), &frame, &all)
    }

    /// The next offer, or `None` when the old worker is gone.
    ///
    /// # Errors
    /// `WouldBlock` when there is none yet; `InvalidData` for what is no offer at all.
    pub fn next_offer(&self) -> io::Result<Option<Offer>> {
        let mut frame = [0; HEAD_BYTES + INLINE_BYTES_MAX];
        let (length, descriptors) = match fd::receive(self.as_fd(), &mut frame) {
            // It was too long or its descriptors did not all arrive. Its number did.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let number = offer_number(&frame).ok_or(error)?;
                return Ok(Some(Offer { number, content: Err(Refusal::Unreadable) }));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            other => other?,
        };
        if length == 0 {
            return Ok(None);
        }
        let frame = &frame[..length];
        let number = offer_number(frame).ok_or_else(|| invalid("no offer of a connection"))?;
        Ok(Some(Offer { number, content: read(frame, descriptors).map_err(|Unreadable| Refusal::Unreadable) }))
    }

    /// Answers an offer. With [`Answer::Taken`] the connection is the caller's if this succeeds, and not otherwise.
    ///
    /// # Errors
    /// `BrokenPipe` when the old worker has gone or has taken the offer back.
    pub fn answer(&self, number: u32, answer: Answer) -> io::Result<()> {
        let word = match answer {
            Answer::Taken => 1,
            Answer::Refused(Refusal::Unreadable) => 2,
            Answer::Refused(Refusal::Room) => 3,
            Answer::Refused(Refusal::Listener) => 4,
            Answer::Refused(Refusal::Other) => 0,
        };
        fd::send(self.as_fd(), &[&head(ANSWER, number)[..], &[word]].concat(), &[])
    }

    /// The next answer and the number that it names, or `None` when no more can come.
    ///
    /// # Errors
    /// `WouldBlock` when there is none yet; `InvalidData` for what is none.
    pub fn next_answer(&self) -> io::Result<Option<(u32, Answer)>> {
        let mut frame = [0; 64];
        let length = loop {
            match fd::receive(self.as_fd(), &mut frame) {
                // The new worker died with offers unread. What it had answered is still there.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                other => break other?.0,
            }
        };
        match &frame[..length] {
            [] => Ok(None),
            // Of whatever version: what is not plainly taken is refused.
            [_, ANSWER, a, b, c, d, word, ..] => {
                let answer = match word {
                    1 => Answer::Taken,
                    2 => Answer::Refused(Refusal::Unreadable),
                    3 => Answer::Refused(Refusal::Room),
                    4 => Answer::Refused(Refusal::Listener),
                    _ => Answer::Refused(Refusal::Other),
                };
                Ok(Some((u32::from_le_bytes([*a, *b, *c, *d]), answer)))
            }
            _ => Err(invalid("no answer to an offer")),
        }
    }

    /// Takes back what was not answered: no answer arrives from now on. Those that have can still be read, up to `None`.
    ///
    /// # Errors
    /// None that matter: it fails when the other end is gone, and then no answer arrives either.
    pub fn revoke(&self) -> io::Result<()> {
        Ok(shutdown(self.as_raw_fd(), Shutdown::Read)?)
    }
}

impl AsFd for Handover {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Handover {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn head(frame: u8, number: u32) -> [u8; 6] {
    let [a, b, c, d] = number.to_le_bytes();
    [VERSION, frame, a, b, c, d]
}

/// The number of an offer of any version.
fn offer_number(frame: &[u8]) -> Option<u32> {
    match frame {
        [_, OFFER, a, b, c, d, ..] => Some(u32::from_le_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}

fn read(frame: &[u8], mut descriptors: Vec<OwnedFd>) -> Result<(Record, Vec<OwnedFd>), Unreadable> {
    let Some(([VERSION, _, _, _, _, _, kind, place], body)) = frame.split_first_chunk::<HEAD_BYTES>() else {
        return Err(Unreadable);
    };
    let record = match *place {
        INLINE => Record::decode(*kind, body)?,
        SEALED => {
            let file = descriptors.pop().ok_or(Unreadable)?;
            Record::decode(*kind, &fd::unseal(file, RECORD_BYTES_MAX).map_err(|_| Unreadable)?)?
        }
        _ => return Err(Unreadable),
    };
    if record.descriptors() == descriptors.len() { Ok((record, descriptors)) } else { Err(Unreadable) }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::record::tests::{client, tunnel};
    use super::*;

    #[test]
    fn offers_arrive_with_their_descriptors_however_long_they_are() {
        let (old, new) = Handover::pair().unwrap();
        assert_eq!(new.next_offer().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let (mut reader, writer) = io::pipe().unwrap();
        let null = File::open("/dev/null").unwrap();
        let all = [null.as_fd(), null.as_fd(), null.as_fd(), writer.as_fd()];
        for (number, unsent) in [(1, 10), (u32::MAX, 100_000)] {
            old.offer(number, &tunnel(unsent), &all).unwrap();
            let offer = new.next_offer().unwrap().unwrap();
            let (record, mut descriptors) = offer.content.unwrap();
            assert_eq!((offer.number, record, descriptors.len()), (number, tunnel(unsent), 4));
            File::from(descriptors.pop().unwrap()).write_all(b"x").unwrap();
        }
        let mut came = [0; 2];
        reader.read_exact(&mut came).unwrap();
        assert_eq!(&came, b"xx");
        let too_large = old.offer(0, &tunnel(RECORD_BYTES_MAX), &all).unwrap_err();
        assert_eq!(too_large.kind(), io::ErrorKind::InvalidInput);
        drop(old);
        assert!(new.next_offer().unwrap().is_none());
    }

    #[test]
    fn what_is_not_known_is_refused_by_its_number() {
        let (old, new) = Handover::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        let (kind, body) = Record::Waiting(client()).encode();
        let frame = |version, kind, place| [&[version, OFFER, 5, 0, 0, 0, kind, place][..], &body].concat();
        let good = frame(VERSION, kind, INLINE);
        let long = [&good[..], &[0; INLINE_BYTES_MAX]].concat();
        for (frame, count) in [
            (&frame(VERSION + 1, kind, INLINE)[..], 1),
            (&frame(VERSION, 9, INLINE), 1),
            (&frame(VERSION, kind, 9), 1),
            (&frame(VERSION, kind, SEALED), 1),
            (&good, 0),
            (&good, 2),
            (&good[..6], 1),
            (&long, 1),
        ] {
            fd::send(old.as_fd(), frame, &vec![null.as_fd(); count]).unwrap();
            let offer = new.next_offer().unwrap().unwrap();
            assert_eq!((offer.number, offer.content.unwrap_err()), (5, Refusal::Unreadable));
        }
        fd::send(old.as_fd(), &[VERSION, 7, 0], &[]).unwrap();
        assert_eq!(new.next_offer().unwrap_err().kind(), io::ErrorKind::InvalidData);
        fd::send(old.as_fd(), &good, &[null.as_fd()]).unwrap();
        assert!(new.next_offer().unwrap().unwrap().content.is_ok());
    }

    #[test]
    fn answers_come_before_the_end_and_none_after_it() {
        let (old, new) = Handover::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        for number in 0..3 {
            old.offer(number, &Record::Waiting(client()), &[null.as_fd()]).unwrap();
        }
        let refusals = [Refusal::Unreadable, Refusal::Room, Refusal::Listener, Refusal::Other];
        let answers: Vec<_> = refusals.into_iter().map(Answer::Refused).chain([Answer::Taken]).collect();
        for (number, answer) in (0..).zip(&answers) {
            new.answer(number, *answer).unwrap();
        }
        // It dies, with offers unread.
        drop(new);
        for (number, answer) in (0..).zip(answers) {
            assert_eq!(old.next_answer().unwrap(), Some((number, answer)));
        }
        assert_eq!(old.next_answer().unwrap(), None);
        let offered = old.offer(9, &Record::Waiting(client()), &[null.as_fd()]);
        assert_eq!(offered.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn what_was_taken_back_can_not_be_taken() {
        let (old, new) = Handover::pair().unwrap();
        new.answer(1, Answer::Taken).unwrap();
        assert_eq!(old.next_answer().unwrap(), Some((1, Answer::Taken)));
        assert_eq!(old.next_answer().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        new.answer(2, Answer::Taken).unwrap();
        old.revoke().unwrap();
        assert_eq!(new.answer(3, Answer::Taken).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(old.next_answer().unwrap(), Some((2, Answer::Taken)));
        assert_eq!(old.next_answer().unwrap(), None);
    }
}
