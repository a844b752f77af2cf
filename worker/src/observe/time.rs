//! The time of day as text, made once a second.

#![forbid(unsafe_code)]

use crate::message::decimal;

/// A second of UTC in the forms that logs and header fields want.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    second: u64,
    iso8601: [u8; 25],
    local: [u8; 26],
    http: [u8; 29],
}

impl Clock {
    /// At the epoch.
    pub(crate) fn new() -> Clock {
        let mut clock = Clock {
            second: 0,
            iso8601: *b"0000-00-00T00:00:00+00:00",
            local: *b"00/000/0000:00:00:00 +0000",
            http: *b"000, 00 000 0000 00:00:00 GMT",
        };
        clock.write();
        clock
    }

    /// Moves to `unix_millis`, milliseconds since the epoch. Free within the same second.
    pub(crate) fn set(&mut self, unix_millis: u64) {
        let second = unix_millis / 1000;
        if second != self.second {
            self.second = second;
            self.write();
        }
    }

    /// `2026-11-23T12:00:00+00:00`.
    pub(crate) fn iso8601(&self) -> &[u8] {
        &self.iso8601
    }

    /// `23/Nov/2026:12:00:00 +0000`, as the common log format has it.
    pub(crate) fn local(&self) -> &[u8] {
        &self.local
    }

    /// `Mon, 23 Nov 2026 12:00:00 GMT`, as the Date field has it (RFC 9110 section 5.6.7).
    pub(crate) fn http(&self) -> &[u8] {
        &self.http
    }

    fn write(&mut self) {
        let days = self.second / 86_400;
        let (year, month, day) = date(days);
        // 1970-01-01 was a Thursday.
        let weekday = pick(b"ThuFriSatSunMonTueWed", (days % 7) as usize);
        let name = pick(b"JanFebMarAprMayJunJulAugSepOctNovDec", month - 1);

        decimal::fill(year, &mut self.iso8601[..4]);
        decimal::fill(month as u64, &mut self.iso8601[5..7]);
        decimal::fill(day, &mut self.iso8601[8..10]);
        decimal::fill(self.second / 3600 % 24, &mut self.iso8601[11..13]);
        decimal::fill(self.second / 60 % 60, &mut self.iso8601[14..16]);
        decimal::fill(self.second % 60, &mut self.iso8601[17..19]);

        let (year, day, time) = (&self.iso8601[..4], &self.iso8601[8..10], &self.iso8601[11..19]);
        self.local[..2].copy_from_slice(day);
        self.local[3..6].copy_from_slice(name);
        self.local[7..11].copy_from_slice(year);
        self.local[12..20].copy_from_slice(time);

        self.http[..3].copy_from_slice(weekday);
        self.http[5..7].copy_from_slice(day);
        self.http[8..11].copy_from_slice(name);
        self.http[12..16].copy_from_slice(year);
        self.http[17..25].copy_from_slice(time);
    }
}

/// The `at`th of names that are three letters each.
fn pick(names: &'static [u8], at: usize) -> &'static [u8] {
    &names[3 * at..3 * at + 3]
}

/// Year, month and day of the Gregorian calendar, `days` after 1970-01-01.
fn date(mut days: u64) -> (u64, usize, u64) {
    // A calendar that begins in March has its leap days last: of each four years, century and 400 years alike.
    const FROM_MARCH_OF_YEAR_0: u64 = 719_468;
    const IN_400_YEARS: u64 = 146_097;
    const IN_CENTURY: u64 = 36_524;
    const IN_4_YEARS: u64 = 1461;
    days += FROM_MARCH_OF_YEAR_0;
    let mut year = 400 * (days / IN_400_YEARS);
    days %= IN_400_YEARS;
    let centuries = (days / IN_CENTURY).min(3);
    days -= centuries * IN_CENTURY;
    let fours = days / IN_4_YEARS;
    days -= fours * IN_4_YEARS;
    let years = (days / 365).min(3);
    days -= years * 365;
    year += 100 * centuries + 4 * fours + years;
    let mut month = 3;
    for length in [31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    if month > 12 { (year + 1, month - 12, days + 1) } else { (year, month, days + 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let mut clock = Clock::new();
        for (second, iso8601, local, http) in [
            (0, "1970-01-01T00:00:00", "01/Jan/1970:00:00:00", "Thu, 01 Jan 1970 00:00:00"),
            (784_111_777, "1994-11-06T08:49:37", "06/Nov/1994:08:49:37", "Sun, 06 Nov 1994 08:49:37"),
            (951_782_400, "2000-02-29T00:00:00", "29/Feb/2000:00:00:00", "Tue, 29 Feb 2000 00:00:00"),
            (951_868_799, "2000-02-29T23:59:59", "29/Feb/2000:23:59:59", "Tue, 29 Feb 2000 23:59:59"),
            (1_767_225_599, "2025-12-31T23:59:59", "31/Dec/2025:23:59:59", "Wed, 31 Dec 2025 23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00", "01/Mar/2100:00:00:00", "Mon, 01 Mar 2100 00:00:00"),
        ] {
            clock.set(second * 1000 + 999);
            assert_eq!(clock.iso8601(), [iso8601, "+00:00"].concat().as_bytes());
            assert_eq!(clock.local(), [local, " +0000"].concat().as_bytes());
            assert_eq!(clock.http(), [http, " GMT"].concat().as_bytes());
        }
        clock.set(u64::MAX);
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut last = (1969, 12, 31);
        for days in 0..200_000 {
            let (year, month, day) = date(days);
            let next_day = (year, month, day) == (last.0, last.1, last.2 + 1);
            let next_month = (year, month, day) == (last.0, last.1 + 1, 1) && last.2 >= 28;
            let next_year = (year, month, day) == (last.0 + 1, 1, 1) && (last.1, last.2) == (12, 31);
            assert!(next_day || next_month || next_year, "{last:?} {year}-{month}-{day}");
            last = (year, month, day);
        }
    }
}
