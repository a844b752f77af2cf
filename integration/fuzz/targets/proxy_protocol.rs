//! PROXY protocol headers, of both versions, as they come from the network.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| worker::fuzz::proxy_protocol(bytes));
