//! A demo origin: something to proxy to, that shows what arrived and can be slow, large, streaming or failing.

#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::fmt::Write;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixListener;
use tokio::time::{Interval, interval, sleep};

/// The most bytes that `/bytes/N` answers.
const BYTES_MAX: u64 = 1 << 30;
/// The longest that `/slow/MS` waits.
const SLOW_MS_MAX: u64 = 600_000;
/// A frame of `/bytes/N`.
static CHUNK: [u8; 64 << 10] = [0; 64 << 10];
/// Events of `/stream`, and the time between two.
const EVENTS: u32 = 10;
const EVENT_PAUSE: Duration = Duration::from_millis(500);

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

/// Serves all who connect. `name` is how it calls itself.
pub(crate) async fn serve(socket: UnixListener, name: &'static str) {
    loop {
        match socket.accept().await {
            Ok((stream, _)) => {
                let service =
                    service_fn(move |request| async move { Ok::<_, Infallible>(answer(name, request).await) });
                let mut http = hyper::server::conn::http1::Builder::new();
                let connection = http.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
                tokio::task::spawn_local(async move {
                    // A peer that breaks off is its own business.
                    let _ = connection.await;
                });
            }
            // Descriptors have run out, or the peer was gone already.
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn answer(name: &'static str, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let (what, argument) = (parts.next().unwrap_or(""), parts.next());
    let number = argument.and_then(|argument| argument.parse::<u64>().ok());
    let mut answer = match (what, argument, number) {
        ("echo", ..) => echo(name, request).await,
        _ if !matches!(*request.method(), Method::GET | Method::HEAD) => {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only; /echo takes any method\n".into());
            answer.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
            answer
        }
        ("", None, _) => page(name),
        ("stream", None, _) => stream(name),
        ("bytes", _, Some(count)) if count <= BYTES_MAX => bytes(count),
        ("status", _, Some(code @ 200..=599)) => status(code),
        ("slow", _, Some(milliseconds)) if milliseconds <= SLOW_MS_MAX => {
            sleep(Duration::from_millis(milliseconds)).await;
            text(StatusCode::OK, format!("origin {name} answers after {milliseconds} ms\n"))
        }
        _ => text(StatusCode::NOT_FOUND, format!("origin {name} has {PLACES}\n")),
    };
    answer.headers_mut().insert("x-origin", hyper::header::HeaderValue::from_static(name));
    answer
}

const PLACES: &str = "/ /echo /stream /bytes/N /status/N /slow/MS";

fn page(name: &str) -> Answer {
    let links: String = ["/echo", "/stream", "/bytes/1024", "/status/404", "/slow/500"]
        .iter()
        .map(|path| format!("<li><a href=\"{path}\">{path}</a>"))
        .collect();
    let body = format!(
        "<!doctype html>\n<meta charset=utf-8>\n<title>Sluice: origin {name}</title>\n\
         <style>body{{font:18px/1.5 system-ui;max-width:32em;margin:4em auto;padding:0 1em}}</style>\n\
         <h1>It runs.</h1>\n<p>This page came from demo origin <b>{name}</b> through Sluice. Load it again: the other \
         origin answers.\n<ul>{links}</ul>\n<p>In a terminal, try <code>sluice stats</code> and <code>sluice top</code>.\n"
    );
    let mut answer = text(StatusCode::OK, body);
    answer.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/html; charset=utf-8"));
    answer
}

/// What arrived, as text: the head as the origin read it, then the body, streamed back as it comes.
async fn echo(name: &str, request: Request<Incoming>) -> Answer {
    let mut head = format!("origin {name} got\n\n{} {} {:?}\n", request.method(), request.uri(), request.version());
    for (field, value) in request.headers() {
        // Writing to a String cannot fail.
        let _ = writeln!(head, "{field}: {}", String::from_utf8_lossy(value.as_bytes()));
    }
    head.push('\n');
    let body = Echo { head: Some(head.into()), body: request.into_body() };
    let mut answer = Response::new(body.boxed());
    answer.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

fn stream(name: &'static str) -> Answer {
    let mut answer =
        Response::new(Events { name, sent: 0, ticks: interval(EVENT_PAUSE) }.map_err(|never| match never {}).boxed());
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-store"));
    answer
}

fn bytes(count: u64) -> Answer {
    let mut answer = Response::new(Zeros(count).map_err(|never| match never {}).boxed());
    answer.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/octet-stream"));
    answer
}

fn status(code: u64) -> Answer {
    let status = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(StatusCode::OK);
    let has_body = !matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED);
    text(status, if has_body { format!("{status}\n") } else { String::new() })
}

fn text(status: StatusCode, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

/// A text, then what comes in.
struct Echo {
    head: Option<Bytes>,
    body: Incoming,
}

impl Body for Echo {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.head.take() {
            Some(head) => Poll::Ready(Some(Ok(Frame::data(head)))),
            None => Pin::new(&mut self.body).poll_frame(cx),
        }
    }
}

/// That many zero bytes; its length is known beforehand.
struct Zeros(u64);

impl Body for Zeros {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let length = usize::try_from(self.0).map_or(CHUNK.len(), |left| left.min(CHUNK.len()));
        self.0 -= length as u64;
        Poll::Ready((length != 0).then(|| Ok(Frame::data(Bytes::from_static(&CHUNK[..length])))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}

/// Server-sent events, one a tick.
struct Events {
    name: &'static str,
    sent: u32,
    ticks: Interval,
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.sent == EVENTS {
            return Poll::Ready(None);
        }
        std::task::ready!(self.ticks.poll_tick(cx));
        self.sent += 1;
        let event = format!("id: {0}\ndata: event {0} of {EVENTS} from origin {1}\n\n", self.sent, self.name);
        Poll::Ready(Some(Ok(Frame::data(event.into()))))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::task::LocalSet;

    use super::*;

    async fn ask(path: &std::path::Path, request: &str) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    #[test]
    fn places() {
        let table = [
            ("GET /", "HTTP/1.1 200 OK", "It runs."),
            ("POST /echo?x=1", "HTTP/1.1 200 OK", "POST /echo?x=1 HTTP/1.1"),
            ("GET /bytes/70000", "content-length: 70000", "\0\0\0"),
            ("HEAD /bytes/5", "content-length: 5", ""),
            ("GET /bytes/x", "HTTP/1.1 404", "/slow/MS"),
            ("GET /bytes/99999999999", "HTTP/1.1 404", ""),
            ("GET /status/503", "HTTP/1.1 503", "503 Service Unavailable"),
            ("GET /status/204", "HTTP/1.1 204", ""),
            ("GET /status/999", "HTTP/1.1 404", ""),
            ("GET /slow/1", "HTTP/1.1 200 OK", "after 1 ms"),
            ("DELETE /", "HTTP/1.1 405", "GET and HEAD only"),
            ("GET /nowhere", "HTTP/1.1 404", "origin a has"),
        ];
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(LocalSet::new().run_until(async {
            tokio::task::spawn_local(serve(UnixListener::bind(&path).unwrap(), "a"));
            for (line, head, body) in table {
                let answer = ask(&path, &format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await;
                let (got_head, got_body) = answer.split_once("\r\n\r\n").unwrap();
                assert!(got_head.contains(head) && got_head.contains("x-origin: a"), "{line}: {got_head}");
                assert!(got_body.contains(body), "{line}: {got_body}");
            }
            let answer = ask(
                &path,
                "PUT /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            )
            .await;
            assert!(answer.contains("\r\nabc\r\n"), "{answer}");
        }));
    }
}
