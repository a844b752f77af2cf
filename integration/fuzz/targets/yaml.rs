//! Configurations, as an operator may have mistyped them.

#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Err(problems) = conf::parse(text, "fuzz.yaml") {
        // What is wrong must be sayable too.
        assert!(!problems.to_string().is_empty());
    }
});
