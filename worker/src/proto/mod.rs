//! The wire forms of HTTP/1.1 and of the PROXY protocol: bytes in, meaning out, and back. Only `transfer` knows sockets.

pub(crate) mod chunked;
pub(crate) mod framing;
pub(crate) mod h1;
pub(crate) mod hop;
pub(crate) mod proxy_protocol;
pub(crate) mod transfer;
pub(crate) mod uri;
