//! Moves bodies from a source to a sink, one piece at a time: what the sink has not taken is not asked of the source.
//!
//! Deliberately ignorant of protocol versions: they are behind [`Source`] and [`Sink`].

mod splice;
pub(crate) mod tunnel;

use std::pin::pin;

use crate::message::body::{Sink, Source};
use crate::message::fault::Fault;
use crate::runtime::executor;
use crate::runtime::sync::now;
use splice::Pipe;

/// Payload of fewer bytes than this is copied: making a pipe ready costs more than it saves.
const DIRECT_BYTES_MIN: u64 = 32 * 1024;
/// What a piece counts for at least, in bytes: a body of single bytes costs by the piece.
const PIECE_BYTES_MIN: u64 = 1024;
/// How much one task moves before others have their turn, in bytes.
const TURN_BYTES_MAX: u64 = 512 * 1024;

/// Moves the whole body. `note` is told of the bytes of each piece.
///
/// # Errors
/// The fault of whichever side failed first.
pub(crate) async fn copy(source: &mut impl Source, sink: &mut impl Sink, note: impl Fn(u64)) -> Result<(), Fault> {
    let mut moved = 0;
    loop {
        if let Some((payload, trailers)) = source.last() {
            return sink.finish(payload, trailers).await;
        }
        if let Some((from, count)) = source.direct()
            && count >= DIRECT_BYTES_MIN
            && from.descriptor().is_some()
            && let Ok(pipe) = Pipe::take()
            && sink.announce(count).await?
        {
            splice::transfer(pipe, source, sink, count, &note).await?;
        }
        let payload = {
            let mut next = pin!(source.next());
            match now(next.as_mut()).await {
                Some(payload) => payload,
                None => {
                    // Nothing is held back while nothing comes.
                    sink.flush().await?;
                    next.await
                }
            }
        };
        match payload? {
            Some(payload) => {
                moved += (payload.len() as u64).max(PIECE_BYTES_MIN);
                note(payload.len() as u64);
                sink.write(payload).await?;
            }
            // There is an end to it, which the next turn of this loop passes on.
            None => continue,
        }
        if moved >= TURN_BYTES_MAX {
            moved = 0;
            executor::yield_now().await;
        }
    }
}
