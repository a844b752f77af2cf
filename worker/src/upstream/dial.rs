//! Opens connections to servers.

use std::io::{self, IoSlice};

use super::Server;
use super::pool::Connection;
use crate::message::fault::{Fault, Kind, Stage};
use crate::proto::transfer::Patience;
use crate::runtime::clock;
use crate::runtime::net::{self, Stream};
use crate::runtime::timer::{Elapsed, Timer};

/// Opens a connection to `server` and sends `greeting`, a PROXY protocol header or nothing, as its first bytes. It must be
/// done within `patience`.
///
/// # Errors
/// Why there is no connection: a fault of the server, or the proxy is out of descriptors.
pub(crate) async fn connect(
    server: &Server,
    greeting: &[u8],
    timer: &Timer,
    patience: Patience,
) -> Result<Connection, Fault> {
    if !net::has_room() {
        return Err(Fault::proxy(Stage::Connect, Kind::Exhausted));
    }
    let due = clock::now().saturating_add(patience.step).min(patience.deadline);
    server.cells.connects.inc();
    let opened = timer.until(due, async {
        let stream = Stream::connect(&server.address).await?;
        if !greeting.is_empty() {
            // A new socket's buffer holds far more than a greeting.
            let written = std::future::poll_fn(|cx| stream.poll_write(cx, &[IoSlice::new(greeting)])).await?;
            if written < greeting.len() {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(stream)
    });
    let kind = match opened.await {
        Ok(Ok(stream)) => return Ok(Connection { stream, born: clock::now(), requests: 0 }),
        Ok(Err(error)) if net::is_exhaustion(&error) => return Err(Fault::proxy(Stage::Connect, Kind::Exhausted)),
        Ok(Err(_)) => Kind::Refused,
        // The server has not had its time.
        Err(Elapsed) if clock::now() >= patience.deadline => return Err(Fault::proxy(Stage::Connect, Kind::Deadline)),
        Err(Elapsed) => Kind::Timeout,
    };
    server.cells.connect_failures.inc();
    Err(Fault::server(Stage::Connect, kind))
}
