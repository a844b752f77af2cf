//! The seeds of the fuzz targets, replayed: what once was worth trying must never crash again.
//!
//! A crash that fuzzing finds becomes a seed here, with a name that says what it is.

#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

/// Gives every seed of `target` to `parse`, whole and cut short at every length.
fn replay(target: &str, parse: impl Fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut count = 0;
    for entry in fs::read_dir(&directory).expect("seeds").flatten() {
        let seed = fs::read(entry.path()).expect("a seed");
        let step = (seed.len() / 256).max(1);
        for length in (0..seed.len()).step_by(step) {
            parse(&seed[..length]);
        }
        parse(&seed);
        count += 1;
    }
    assert!(count >= 4, "only {count} seeds in {}", directory.display());
}

#[test]
fn request_heads() {
    replay("request_head", worker::fuzz::request_head);
}

#[test]
fn response_heads() {
    replay("response_head", worker::fuzz::response_head);
}

#[test]
fn chunked_bodies() {
    replay("chunked", worker::fuzz::chunked);
}

#[test]
fn proxy_protocol_headers() {
    replay("proxy_protocol", worker::fuzz::proxy_protocol);
}

#[test]
fn configurations() {
    replay("yaml", |bytes| {
        if let Ok(text) = std::str::from_utf8(bytes)
            && let Err(problems) = conf::parse(text, "seed.yaml")
        {
            assert!(!problems.to_string().is_empty());
        }
    });
}

#[test]
fn zones() {
    replay("zone", |bytes| {
        // Whether it is understood is the zone's own tests' matter.
        let _ = shared::stats::Snapshot::parse(bytes);
    });
}
