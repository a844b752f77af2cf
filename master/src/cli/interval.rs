//! How often to look, as it is given on the command line.

#![forbid(unsafe_code)]

use std::str::FromStr;
use std::time::Duration;

/// 100 ms to 1 h: a whole number and `ms`, `s` or `m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interval(pub(crate) Duration);

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Interval, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            _ => return Err("write it as 500ms, 1s or 1m".into()),
        };
        let millis = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_ms));
        match millis {
            Some(millis @ 100..=3_600_000) => Ok(Interval(Duration::from_millis(millis))),
            _ => Err("an interval is from 100ms to 60m".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        for (text, millis) in [("100ms", Some(100)), ("1s", Some(1_000)), ("60m", Some(3_600_000))] {
            assert_eq!(text.parse().ok(), millis.map(|millis| Interval(Duration::from_millis(millis))));
        }
        for text in ["", "1", "s", "99ms", "61m", "1.5s", "-1s", "99999999999999999999m"] {
            assert!(text.parse::<Interval>().is_err(), "{text}");
        }
    }
}
