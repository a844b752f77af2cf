//! What programs of others say: real clients, a real origin, real load.

#![forbid(unsafe_code)]

use std::fs;

use integration::{Finished, Judge, Nginx, Origin, Proxy, ok};

/// Runs curl quietly, failing on errors of its own, with `arguments` and the proxy's URL of `path`.
fn curl(proxy: &Proxy, arguments: &[&str], path: &str) -> Finished {
    let mut command = Judge::Curl.command();
    command.args(["--silent", "--show-error", "--max-time", "60", "--noproxy", "*"]).args(arguments);
    Finished::of(command.arg(format!("http://{}{path}", proxy.address())))
}

/// A proxy before an nginx.
fn before_nginx(nginx: &Nginx, settings: &str) -> Proxy {
    Proxy::start(&format!(
        "{settings}
upstreams: {{app: {{servers: [{{address: '{}'}}]}}}}
routes: [{{match: {{path: {{prefix: /}}}}, upstream: app}}]",
        nginx.address()
    ))
}

#[test]
fn curl_gets_what_nginx_serves() {
    let nginx = Nginx::start(
        "gzip on; gzip_min_length 1; gzip_types text/plain; default_type text/plain; if_modified_since before;",
    );
    let proxy = before_nginx(&nginx, "");
    let text = "0123456789".repeat(20_000);
    fs::write(nginx.file("a.txt"), &text).expect("a file");
    assert_eq!(curl(&proxy, &[], "/a.txt").output(), text);
    assert_eq!(curl(&proxy, &["--http1.0"], "/a.txt").output(), text);
    assert_eq!(curl(&proxy, &["--compressed"], "/a.txt").output(), text);
    assert_eq!(curl(&proxy, &["--range", "5-14"], "/a.txt").output(), "5678901234");
    let head = curl(&proxy, &["--head"], "/a.txt").output();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("Content-Length: 200000\r\n"), "{head}");
    let status = ["--output", "/dev/null", "--write-out", "%{http_code} %{num_connects}"];
    let cached = ["--header", "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT"];
    assert_eq!(curl(&proxy, &[&status[..], &cached].concat(), "/a.txt").output(), "304 1");
    assert_eq!(curl(&proxy, &status, "/nothing").output(), "404 1");
    // Three on one connection.
    let url = format!("http://{}/a.txt", proxy.address());
    let reused = curl(&proxy, &["--output", "/dev/null", &url, "--output", "/dev/null", &url], "/a.txt");
    assert_eq!(reused.code, 0, "{reused:?}");
}

#[test]
fn curl_uploads_and_expects_to_be_told_to() {
    let origin = Origin::start(|mut wire, _| {
        while let Some(head) = wire.next_head() {
            if head.field("Expect").is_some() {
                wire.send("HTTP/1.1 100 Continue\r\n\r\n");
            }
            let length = head.field("Content-Length").and_then(|length| length.parse().ok()).expect("a length");
            let body = wire.exactly(length);
            wire.send(ok(&body.len().to_string()));
        }
    });
    let proxy = Proxy::before(&origin);
    let body = proxy.file("body");
    fs::write(&body, vec![b'x'; 3 << 20]).expect("a file");
    let from_file = format!("@{}", body.display());
    let expecting = ["--header", "Expect: 100-continue", "--data-binary", &from_file];
    assert_eq!(curl(&proxy, &expecting, "/").output(), (3 << 20).to_string());
    let plain = ["--header", "Expect:", "--data-binary", &from_file];
    assert_eq!(curl(&proxy, &plain, "/").output(), (3 << 20).to_string());
}

#[test]
fn curl_speaks_the_proxy_protocol() {
    let proxy = Proxy::start(
        "listeners: [{address: '127.0.0.1:{port}', proxy_protocol: true}]
routes: [{match: {path: {prefix: /}}, respond: {status: 200, body: '$remote_addr'}}]",
    );
    assert_eq!(curl(&proxy, &["--haproxy-protocol"], "/").output(), "127.0.0.1");
    assert_ne!(curl(&proxy, &["--output", "/dev/null"], "/").code, 0);
}

#[test]
fn nginx_takes_a_large_upload() {
    let nginx = Nginx::start(
        "location /up { client_body_buffer_size 64k; proxy_pass http://ADDRESS/sink; proxy_request_buffering on; }
         location /sink { return 204; }",
    );
    let proxy = before_nginx(&nginx, "");
    let body = proxy.file("body");
    fs::write(&body, vec![b'x'; 32 << 20]).expect("a file");
    let upload = ["--output", "/dev/null", "--write-out", "%{http_code}", "--upload-file"];
    let path = body.display().to_string();
    assert_eq!(curl(&proxy, &[&upload[..], &[&path]].concat(), "/up").output(), "204");
}

#[test]
fn wrk_sees_no_error() {
    let nginx = Nginx::start("");
    fs::write(nginx.file("1k"), vec![b'x'; 1024]).expect("a file");
    let proxy = before_nginx(&nginx, "worker_processes: 2");
    let mut command = Judge::Wrk.command();
    command.args(["--threads", "1", "--connections", "64", "--duration", "3s"]);
    let report = Finished::of(command.arg(format!("http://{}/1k", proxy.address()))).output();
    // It prints these lines only when there is something to report.
    for trouble in ["Socket errors", "Non-2xx"] {
        assert!(!report.contains(trouble), "{report}");
    }
    assert!(report.contains("requests in"), "{report}");
}

/// An echo server and its clients, of which neither knows that there is a proxy between.
const WEBSOCKETS: &str = r#"
import asyncio, os, sys
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

async def echo(socket):
    async for message in socket:
        await socket.send(message)

async def talk(url, number):
    async with connect(url, max_size=None) as socket:
        for message in ("hello %d" % number, os.urandom(300_000), "", "\u00e9" * 70_000):
            await socket.send(message)
            assert await socket.recv() == message
        pong = await socket.ping(b"alive")
        await pong

async def main():
    async with serve(echo, "127.0.0.1", int(sys.argv[1]), max_size=None):
        await asyncio.gather(*(talk(sys.argv[2], number) for number in range(20)))
    print("all echoed")

asyncio.run(main())
"#;

#[test]
fn websockets_are_echoed() {
    let port = integration::free_port();
    let proxy = Proxy::start(&format!(
        "upstreams: {{app: {{servers: [{{address: '127.0.0.1:{port}'}}]}}}}
routes: [{{match: {{path: {{prefix: /}}}}, upstream: app}}]"
    ));
    let mut command = Judge::Python.command();
    command.args(["-c", WEBSOCKETS, &port.to_string(), &format!("ws://{}/", proxy.address())]);
    assert_eq!(Finished::of(&mut command).output(), "all echoed\n");
}

/// Slow heads, slow bodies and slow reads, as many as it takes; the service stays available to everyone else.
#[test]
fn slowhttptest_does_not_deny_the_service() {
    let nginx = Nginx::start("");
    fs::write(nginx.file("big"), vec![b'x'; 4 << 20]).expect("a file");
    let proxy = before_nginx(
        &nginx,
        "timeouts: {client_head: 1s, client_body: 1s, client_send: 1s, keep_alive: 1s}\nlimits: {connections: 300}",
    );
    let url = format!("http://{}/big", proxy.address());
    for attack in
        [&["-H", "-i", "2"][..], &["-B", "-i", "2", "-s", "8192"], &["-X", "-w", "512", "-y", "1024", "-n", "2"]]
    {
        let mut command = Judge::Slowhttptest.command();
        command.args(["-c", "400", "-r", "200", "-l", "5", "-p", "5", "-u", &url]).args(attack);
        let report = Finished::of(&mut command);
        let text = report.stdout + &report.stderr;
        assert!(text.contains("service available") && !text.contains("NO"), "{attack:?}: {text}");
        assert_eq!(proxy.client().get("/big").body.len(), 4 << 20, "{attack:?}");
    }
}
