//! What an exchange writes on while it runs: kept by whoever runs exchanges, and wiped for the next one, so that a warm
//! connection allocates nothing.

use crate::message::fault::{Fault, Kind, Stage};
use crate::message::head::{Known, Request, ResponseHead};
use crate::message::request_id::RequestIds;
use crate::observe::time::Clock;
use crate::proto::uri::{self, Host, Malformed, Target};
use crate::runtime::buffer::Buffer;
use crate::runtime::clock;
use crate::runtime::timer::Timer;

/// The largest block of memory that is kept for the next exchange, in bytes.
const KEPT_BYTES_MAX: usize = 16 * 1024;

/// Room for one exchange at a time.
pub(crate) struct Desk {
    /// When the exchange's first byte came.
    pub(crate) started: u64,
    /// The request's host in lower case, without port.
    pub(crate) host: Vec<u8>,
    /// Host and port as sent: what a server is told.
    pub(crate) authority: Vec<u8>,
    /// The request's path, normalised.
    pub(crate) path: Vec<u8>,
    query: Vec<u8>,
    /// The target in origin-form, as sent.
    pub(crate) target: Vec<u8>,
    /// A request's head on its way to a server.
    pub(crate) to_server: Vec<u8>,
    /// Lines or a body of the proxy's own making.
    pub(crate) draft: Vec<u8>,
    pub(crate) page: Vec<u8>,
    pub(crate) response: ResponseHead,
    /// What was read of the response; its head lies at the front.
    pub(crate) inbox: Option<Buffer>,
    pub(crate) upward: Timer,
    pub(crate) downward: Timer,
    pub(crate) ids: RequestIds,
    pub(crate) clock: Clock,
}

impl Desk {
    pub(crate) fn new() -> Desk {
        Desk {
            started: 0,
            host: Vec::new(),
            authority: Vec::new(),
            path: Vec::new(),
            query: Vec::new(),
            target: Vec::new(),
            to_server: Vec::new(),
            draft: Vec::new(),
            page: Vec::new(),
            response: ResponseHead::default(),
            inbox: None,
            upward: Timer::new(),
            downward: Timer::new(),
            ids: RequestIds::new(fastrand::u64(..)),
            clock: Clock::new(),
        }
    }

    /// Wipes it for an exchange whose first byte came at `started`.
    pub(crate) fn begin(&mut self, started: u64) {
        self.started = started;
        self.clock.set(clock::wall_millis());
        self.response.status = 0;
        self.inbox = None;
        for block in [
            &mut self.host,
            &mut self.authority,
            &mut self.path,
            &mut self.query,
            &mut self.target,
            &mut self.to_server,
            &mut self.draft,
            &mut self.page,
        ] {
            block.clear();
            if block.capacity() > KEPT_BYTES_MAX {
                *block = Vec::new();
            }
        }
    }

    /// Takes the target apart and decides which host is meant (RFC 9112 §3.2, §3.3).
    ///
    /// # Errors
    /// The rule that target or Host breaks.
    pub(crate) fn place(&mut self, request: Request<'_>) -> Result<(), Fault> {
        let malformed = |Malformed(rule)| Fault::client(Stage::Head, Kind::Malformed(rule));
        let rule = |rule| malformed(Malformed(rule));
        let target = uri::parse_target(request.target(), request.method()).map_err(malformed)?;
        let mut fields = request.head.fields.all(Known::Host, request.bytes);
        let host = match (fields.next(), fields.next()) {
            (Some(_), Some(_)) => return Err(rule("Host is given more than once.")),
            (None, _) if request.head.minor > 0 => return Err(rule("Host is missing.")),
            (None, _) => None,
            (Some(text), _) => Some(uri::parse_host(text).map_err(malformed)?),
        };
        if !host.is_none_or(|host| target.agrees_with(&host)) {
            return Err(rule("The request target names another host than Host does."));
        }
        if let Some(Host { text, name, .. }) = host.or(target.host) {
            self.authority.extend_from_slice(text);
            self.host.extend(name.iter().map(u8::to_ascii_lowercase));
        }
        self.set_target(&target).map_err(malformed)
    }

    fn set_target(&mut self, target: &Target<'_>) -> Result<(), Malformed> {
        self.target.extend_from_slice(target.path);
        if let Some(query) = target.query {
            self.target.push(b'?');
            self.target.extend_from_slice(query);
            self.query.extend_from_slice(query);
        }
        // RFC 9112 §3.2.4: `*` means the server as a whole, which is whoever serves `/`.
        let path = if target.path == b"*" { b"/" } else { target.path };
        let normal = uri::normalise(path, &mut self.draft)?;
        self.path.extend_from_slice(normal);
        self.draft.clear();
        Ok(())
    }

    /// The query, if the target has one.
    pub(crate) fn query(&self) -> Option<&[u8]> {
        memchr::memchr(b'?', &self.target).is_some().then_some(&self.query[..])
    }
}
