//! Zone files, as a crash, another version or a stranger may have left them.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = shared::stats::Snapshot::parse(bytes);
});
