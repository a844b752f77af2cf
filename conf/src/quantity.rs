//! Durations and sizes as people write them: `1h30m`, `500ms`, `16KiB`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::value::Invalid;

/// A duration, 1 ms to 365 days: whole numbers with units, largest first, each unit at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Period(pub(crate) Duration);

/// A size: a whole number of bytes, or of KiB, MiB, GiB or TiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bytes(pub(crate) u64);

const PERIOD_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Units of time in milliseconds, largest first.
const PERIOD_UNITS: [(&str, u64); 5] =
    [("d", 24 * 3_600_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Units of size in bytes, largest first.
const SIZE_UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl FromStr for Period {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Period, Invalid> {
        let millis = if let Ok(number) = text.parse::<u64>() {
            return Err(Invalid::new(format!("`{text}` has no unit")).hint(match number {
                0 => "a time limit cannot be nothing: write 500ms, 30s, 5m or 1h".to_string(),
                _ => format!("write {number}s for seconds, or {number}ms, {number}m, {number}h"),
            }));
        } else {
            millis(text).ok_or_else(|| {
                Invalid::new(format!("`{text}` is not a duration")).hint("write it as 500ms, 30s, 5m, 1h or 1h30m")
            })?
        };
        let period = Duration::from_millis(millis);
        if period.is_zero() || period > PERIOD_MAX {
            return Err(Invalid::new(format!("`{text}` is out of range")).hint("a duration is from 1ms to 365d"));
        }
        Ok(Period(period))
    }
}

/// The sum of a text's parts, unless one of them is not a number with a unit smaller than the one before it.
fn millis(mut text: &str) -> Option<u64> {
    let mut units = PERIOD_UNITS.as_slice();
    let mut total = 0_u64;
    while !text.is_empty() {
        let (number, rest) = split_number(text)?;
        let end = rest.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(rest.len());
        let index = units.iter().position(|(name, _)| *name == &rest[..end])?;
        total = number.checked_mul(units[index].1).and_then(|part| total.checked_add(part))?;
        units = &units[index + 1..];
        text = &rest[end..];
    }
    Some(total)
}

impl FromStr for Bytes {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Bytes, Invalid> {
        let wrong = || Invalid::new(format!("`{text}` is not a size")).hint("write it as 512, 16KiB, 10MiB or 1GiB");
        let (number, unit) = split_number(text).ok_or_else(wrong)?;
        let factor = match SIZE_UNITS.iter().find(|(name, _)| *name == unit) {
            Some((_, factor)) => *factor,
            None if unit.is_empty() => 1,
            None => return Err(guessed_unit(text, number, unit).unwrap_or_else(wrong)),
        };
        number.checked_mul(factor).map(Bytes).ok_or_else(|| Invalid::new(format!("`{text}` is too large")))
    }
}

/// `10M`, `10MB` and `10mb` mean different things to different people: name the form that means one.
fn guessed_unit(text: &str, number: u64, unit: &str) -> Option<Invalid> {
    let letter = unit.chars().next()?.to_ascii_uppercase();
    let (name, _) = SIZE_UNITS.iter().find(|(name, _)| name.starts_with(letter))?;
    let rest = unit[1..].to_ascii_lowercase();
    matches!(rest.as_str(), "" | "b" | "ib").then(|| {
        Invalid::new(format!("`{text}` is not a size"))
            .hint(format!("write {number}{name}: units are KiB, MiB, GiB and TiB, powers of 1024"))
    })
}

/// A leading whole number and what follows it.
fn split_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        for (name, millis) in PERIOD_UNITS {
            // Days are read but not written: 48h is what people say in a configuration.
            if name != "d" && rest >= millis {
                write!(f, "{}{name}", rest / millis)?;
                rest %= millis;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIZE_UNITS.iter().find(|(_, size)| self.0 != 0 && self.0.is_multiple_of(*size)) {
            Some((name, size)) => write!(f, "{}{name}", self.0 / size),
            None => self.0.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_write() {
        let table = [
            ("500ms", 500, "500ms"),
            ("30s", 30_000, "30s"),
            ("90s", 90_000, "1m30s"),
            ("1h30m", 5_400_000, "1h30m"),
            ("2d", 172_800_000, "48h"),
            ("1m5ms", 60_005, "1m5ms"),
        ];
        for (text, millis, written) in table {
            let period: Period = text.parse().unwrap();
            assert_eq!(period.0, Duration::from_millis(millis), "{text}");
            assert_eq!(period.to_string(), written);
        }
    }

    #[test]
    fn wrong_durations_are_refused_with_a_hint() {
        let wrong = [
            "30",
            "0",
            "0s",
            "s",
            "",
            "1.5s",
            "-1s",
            "1s1h",
            "1s1s",
            "1 s",
            "1S",
            "400d",
            "99999999999999999999s",
            "1h9999999999999999999ms",
            "½s",
        ];
        for text in wrong {
            assert!(text.parse::<Period>().unwrap_err().hint.is_some(), "{text}");
        }
        assert_eq!("30".parse::<Period>().unwrap_err().hint.unwrap(), "write 30s for seconds, or 30ms, 30m, 30h");
    }

    #[test]
    fn sizes_read_and_write() {
        let table = [("0", 0, "0"), ("1000", 1000, "1000"), ("16KiB", 16_384, "16KiB"), ("1024KiB", 1 << 20, "1MiB")];
        for (text, bytes, written) in table {
            assert_eq!(text.parse(), Ok(Bytes(bytes)));
            assert_eq!(Bytes(bytes).to_string(), written);
        }
    }

    #[test]
    fn a_wrong_size_names_the_right_unit() {
        for (text, hint) in [("10M", "10MiB"), ("10mb", "10MiB"), ("1G", "1GiB"), ("5kib", "5KiB"), ("5 KiB", "16KiB")]
        {
            let invalid = text.parse::<Bytes>().unwrap_err();
            assert!(invalid.hint.as_ref().unwrap().contains(hint), "{text}: {invalid}");
        }
        for text in ["", "MiB", "-1", "1.5MiB", "16777216TiB", "99999999999999999999", "1é"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }
}
