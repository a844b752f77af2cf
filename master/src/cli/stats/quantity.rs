//! Numbers for people: at most six characters, three digits that mean something.

#![forbid(unsafe_code)]

use shared::clock::SECOND_NS;

/// `9999`, `12.3k`, `4.56M`.
pub(crate) fn count(count: u64) -> String {
    if count < 10_000 { count.to_string() } else { scaled(count, 1_000, &["k", "M", "G", "T", "P", "E"]) }
}

/// A count a second: `0`, `0.25`, `7.50`, `123`, `12.3k`.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(crate) fn rate(count: u64, seconds: f64) -> String {
    match count as f64 / seconds.max(f64::MIN_POSITIVE) {
        0.0 => "0".into(),
        rate @ ..9.995 => format!("{rate:.2}"),
        rate => self::count(rate.round() as u64),
    }
}

/// `999B`, `12.3K`, `4.56M`: powers of 1024.
pub(crate) fn bytes(bytes: u64) -> String {
    if bytes < 1_000 { format!("{bytes}B") } else { scaled(bytes, 1_024, &["K", "M", "G", "T", "P", "E"]) }
}

/// `850us`, `1.23ms`, `4.56s`; a dash for none.
pub(crate) fn latency(nanoseconds: Option<u64>) -> String {
    match nanoseconds {
        None => "-".into(),
        Some(ns @ ..1_000) => format!("{ns}ns"),
        Some(ns) => scaled(ns, 1_000, &["us", "ms", "s", "ks", "Ms", "Gs"]),
    }
}

/// `59s`, `12m 3s`, `4h 05m`, `12d 3h`.
pub(crate) fn age(nanoseconds: u64) -> String {
    let seconds = nanoseconds / SECOND_NS;
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3_600 => format!("{minutes}m {}s", seconds % 60),
        3_600..86_400 => format!("{hours}h {:02}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// `value` in the first unit that leaves less than a thousand of it.
#[expect(clippy::cast_precision_loss)]
fn scaled(value: u64, base: u64, units: &[&str]) -> String {
    let (mut scaled, mut unit) = (value as f64 / base as f64, 0);
    while scaled >= 999.5 && unit + 1 < units.len() {
        scaled /= base as f64;
        unit += 1;
    }
    let unit = units[unit];
    match scaled {
        ..9.995 => format!("{scaled:.2}{unit}"),
        ..99.95 => format!("{scaled:.1}{unit}"),
        _ => format!("{scaled:.0}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (text, expected) in [
            (count(9_999), "9999"),
            (count(10_000), "10.0k"),
            (count(999_499), "999k"),
            (count(999_500), "1.00M"),
            (count(u64::MAX), "18.4E"),
            (rate(0, 0.0), "0"),
            (rate(1, 4.0), "0.25"),
            (rate(200, 2.0), "100"),
            (rate(50_000, 2.0), "25.0k"),
            (bytes(999), "999B"),
            (bytes(1_000), "0.98K"),
            (bytes(1_536), "1.50K"),
            (bytes(1 << 30), "1.00G"),
            (latency(None), "-"),
            (latency(Some(31)), "31ns"),
            (latency(Some(1_234_567)), "1.23ms"),
            (latency(Some(2_000_000_000)), "2.00s"),
            (age(59 * SECOND_NS), "59s"),
            (age(3_599 * SECOND_NS), "59m 59s"),
            (age(3_900 * SECOND_NS), "1h 05m"),
            (age(90_000 * SECOND_NS), "1d 1h"),
        ] {
            assert_eq!(text, expected);
        }
    }
}
