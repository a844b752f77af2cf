//! Why an exchange did not go well.
//!
//! Status, retryability, who is to blame and the log's token are each one `match` here, and nowhere else.

/// Who caused it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The one who asked.
    Client,
    /// The one who was to answer.
    Server,
    /// This proxy: its configuration or its limits.
    Proxy,
}

/// How far the exchange had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Choosing what to do with the request.
    Route,
    /// Opening a connection to a server.
    Connect,
    /// Writing to that side.
    Send,
    /// Reading that side's head.
    Head,
    /// Reading that side's body.
    Body,
    /// Moving bytes of an upgraded connection.
    Tunnel,
}

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It broke a rule of the protocol; the text names the rule.
    Malformed(&'static str),
    /// It asked for something that is not offered; the text names it.
    Unsupported(&'static str),
    /// A protocol version other than HTTP/1.0 and HTTP/1.1.
    Version,
    /// A request target that fills the whole head limit.
    TargetTooLong,
    /// A head or a body over its limit of bytes, or fields over their limit of number.
    TooLarge,
    /// It took longer than its time limit.
    Timeout,
    /// The whole exchange took longer than its time limit.
    Deadline,
    /// The connection ended too early.
    Closed,
    /// The connection was refused or could not be made.
    Refused,
    /// No route takes the request.
    NoRoute,
    /// The method is not for proxies.
    Method,
    /// An expectation that can't be met.
    Expectation,
    /// Want of descriptors, connections or memory.
    Exhausted,
    /// Others like it have killed workers.
    Quarantined,
    /// The worker was stopped, or failed, while it was under way.
    Abandoned,
}

/// Why an exchange did not go well: who, when, what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) side: Side,
    pub(crate) stage: Stage,
    pub(crate) kind: Kind,
}

impl Fault {
    #[cold]
    #[inline(never)]
    pub(crate) const fn client(stage: Stage, kind: Kind) -> Fault {
        Fault { side: Side::Client, stage, kind }
    }

    #[cold]
    #[inline(never)]
    pub(crate) const fn server(stage: Stage, kind: Kind) -> Fault {
        Fault { side: Side::Server, stage, kind }
    }

    #[cold]
    #[inline(never)]
    pub(crate) const fn proxy(stage: Stage, kind: Kind) -> Fault {
        Fault { side: Side::Proxy, stage, kind }
    }

    /// The status that tells the client (RFC 9110 §15), or that the log shows when there is no one left to tell.
    pub(crate) fn status(self) -> u16 {
        match (self.side, self.kind) {
            (_, Kind::NoRoute) => 404,
            (_, Kind::Method) => 405,
            (_, Kind::Expectation) => 417,
            (_, Kind::Exhausted | Kind::Abandoned | Kind::Quarantined) => 503,
            (_, Kind::Deadline) => 504,
            (Side::Client, Kind::Unsupported(_)) => 501,
            (Side::Client, Kind::Version) => 505,
            (Side::Client, Kind::TargetTooLong) => 414,
            (Side::Client, Kind::TooLarge) if self.stage == Stage::Head => 431,
            (Side::Client, Kind::TooLarge) => 413,
            (Side::Client, Kind::Timeout) => 408,
            // nginx's code for a client that left; it is only ever logged.
            (Side::Client, Kind::Closed | Kind::Refused) => 499,
            (Side::Client, Kind::Malformed(_)) => 400,
            (Side::Server, Kind::Timeout) => 504,
            (Side::Server | Side::Proxy, _) => 502,
        }
    }

    /// Whether another attempt is safe although this one may have reached a server: it ended before a byte of an
    /// answer came.
    pub(crate) fn is_unanswered(self) -> bool {
        self.side == Side::Server
            && matches!((self.stage, self.kind), (Stage::Connect, _) | (Stage::Send | Stage::Head, Kind::Closed))
    }

    /// Whether the client has gone, so that there is no one to answer.
    pub(crate) fn is_client_gone(self) -> bool {
        self.side == Side::Client && (self.kind == Kind::Closed || self.stage == Stage::Send)
    }

    /// One word for the log: side, stage and kind.
    pub(crate) fn token(self) -> &'static str {
        use Kind::*;
        use Side::*;
        match (self.side, self.stage, self.kind) {
            (_, _, NoRoute) => "no_route",
            (_, _, Method) => "method_not_allowed",
            (_, _, Expectation) => "expectation_failed",
            (_, _, Exhausted) => "proxy_exhausted",
            (_, _, Abandoned) => "proxy_stopped",
            (_, _, Quarantined) => "quarantined",
            (_, _, Deadline) => "exchange_deadline",
            (Client, Stage::Head, TooLarge | TargetTooLong) => "client_head_too_large",
            (Client, Stage::Head, Timeout) => "client_head_timeout",
            (Client, Stage::Head, Closed) => "client_closed",
            (Client, Stage::Head, Version) => "client_version",
            (Client, Stage::Head, _) => "client_head_malformed",
            (Client, Stage::Body, TooLarge) => "client_body_too_large",
            (Client, Stage::Body, Timeout) => "client_body_timeout",
            (Client, Stage::Body, Malformed(_)) => "client_body_malformed",
            (Client, Stage::Send, Timeout) => "client_send_timeout",
            (Client, Stage::Tunnel, Timeout) => "tunnel_idle",
            (Client, ..) => "client_closed",
            (Server, Stage::Connect, Timeout) => "server_connect_timeout",
            (Server, Stage::Connect, _) => "server_connect_failed",
            (Server, Stage::Send, Timeout) => "server_send_timeout",
            (Server, Stage::Head, Timeout) => "server_head_timeout",
            (Server, Stage::Head, Malformed(_) | Unsupported(_) | Version | TooLarge) => "server_head_malformed",
            (Server, Stage::Body, Timeout) => "server_body_timeout",
            (Server, Stage::Body, Malformed(_)) => "server_body_malformed",
            (Server, Stage::Body, _) => "server_body_cut",
            (Server, ..) => "server_closed",
            (Proxy, ..) => "proxy",
        }
    }

    /// A sentence for the person who gets the answer.
    pub(crate) fn sentence(self) -> &'static str {
        match (self.side, self.kind) {
            (_, Kind::Malformed(rule) | Kind::Unsupported(rule)) if self.side == Side::Client => rule,
            (_, Kind::NoRoute) => "Nothing is served at this address.",
            (_, Kind::Method) => "This method is not offered here.",
            (_, Kind::Expectation) => "Only the expectation 100-continue can be met.",
            (_, Kind::Exhausted) => "The proxy has no connection left for this request. Try again shortly.",
            (_, Kind::Abandoned) => "The proxy was stopped before the exchange was over.",
            (_, Kind::Quarantined) => "Requests like this one have made the proxy fail. It is not taken for a while.",
            (_, Kind::Deadline) => "The exchange took longer than it may.",
            (Side::Client, Kind::Version) => "Only HTTP/1.0 and HTTP/1.1 are spoken here.",
            (Side::Client, Kind::TargetTooLong) => "The request target is too long.",
            (Side::Client, Kind::TooLarge) if self.stage == Stage::Head => "The request's header fields are too large.",
            (Side::Client, Kind::TooLarge) => "The request's body is too large.",
            (Side::Client, _) => "The request did not arrive in time.",
            (_, Kind::Timeout) => "The server behind this proxy did not answer in time.",
            (_, Kind::Refused) => "The server behind this proxy could not be reached.",
            (_, Kind::Closed) => "The server behind this proxy closed the connection without an answer.",
            _ => "The server behind this proxy gave an answer that can't be passed on.",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        for (fault, status, token) in [
            (Fault::client(Stage::Head, Kind::Malformed("x")), 400, "client_head_malformed"),
            (Fault::client(Stage::Head, Kind::Closed), 499, "client_closed"),
            (Fault::client(Stage::Head, Kind::TooLarge), 431, "client_head_too_large"),
            (Fault::client(Stage::Body, Kind::TooLarge), 413, "client_body_too_large"),
            (Fault::client(Stage::Head, Kind::Timeout), 408, "client_head_timeout"),
            (Fault::client(Stage::Send, Kind::Closed), 499, "client_closed"),
            (Fault::server(Stage::Connect, Kind::Refused), 502, "server_connect_failed"),
            (Fault::server(Stage::Connect, Kind::Timeout), 504, "server_connect_timeout"),
            (Fault::server(Stage::Head, Kind::Timeout), 504, "server_head_timeout"),
            (Fault::server(Stage::Head, Kind::Malformed("x")), 502, "server_head_malformed"),
            (Fault::server(Stage::Body, Kind::Closed), 502, "server_body_cut"),
            (Fault::proxy(Stage::Route, Kind::NoRoute), 404, "no_route"),
            (Fault::proxy(Stage::Route, Kind::Quarantined), 503, "quarantined"),
            (Fault::proxy(Stage::Head, Kind::Deadline), 504, "exchange_deadline"),
        ] {
            assert_eq!((fault.status(), fault.token()), (status, token), "{fault:?}");
        }
    }

    #[test]
    fn only_an_attempt_without_an_answer_may_be_repeated() {
        assert!(Fault::server(Stage::Connect, Kind::Timeout).is_unanswered());
        assert!(Fault::server(Stage::Send, Kind::Closed).is_unanswered());
        assert!(Fault::server(Stage::Head, Kind::Closed).is_unanswered());
        assert!(!Fault::server(Stage::Head, Kind::Timeout).is_unanswered());
        assert!(!Fault::server(Stage::Body, Kind::Closed).is_unanswered());
        assert!(!Fault::client(Stage::Send, Kind::Closed).is_unanswered());
    }
}
