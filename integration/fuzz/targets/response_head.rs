//! Response heads, as they come from the network.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| worker::fuzz::response_head(bytes));
