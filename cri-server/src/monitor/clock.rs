//! Wall-clock time, its text in log lines, and the boot's identity.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since the epoch.
pub fn now_ns() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// A time as log lines carry it: RFC 3339, UTC, always nine digits of fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp([u8; 30]);

impl Stamp {
    /// The present.
    pub fn now() -> Self {
        Self::at(now_ns())
    }

    /// `ns` nanoseconds after the epoch. Years 0 to 9999.
    pub fn at(ns: i64) -> Self {
        let (seconds, fraction) = (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
        let (days, second) = (seconds.div_euclid(86400), seconds.rem_euclid(86400));
        let (year, month, day) = civil(days);
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        digits(&mut text[0..4], year);
        digits(&mut text[5..7], month);
        digits(&mut text[8..10], day);
        digits(&mut text[11..13], second / 3600);
        digits(&mut text[14..16], second / 60 % 60);
        digits(&mut text[17..19], second % 60);
        digits(&mut text[20..29], fraction);
        Self(text)
    }

    /// The text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn digits(place: &mut [u8], mut value: i64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Year, month and day of a day number since the epoch, in the proleptic Gregorian calendar. Counts from
/// 1 March of year 0, so that the leap day is the last of its year.
fn civil(days: i64) -> (i64, i64, i64) {
    const ERA: i64 = 146_097;
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(ERA), days.rem_euclid(ERA));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The kernel's random id of this boot; empty where `/proc` does not tell.
pub fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_full() {
        let check = |seconds: i64, nanoseconds: i64, expect: &str| {
            let stamp = Stamp::at(seconds * 1_000_000_000 + nanoseconds);
            assert_eq!(std::str::from_utf8(stamp.as_bytes()).unwrap(), expect);
        };
        check(0, 0, "1970-01-01T00:00:00.000000000Z");
        check(951_782_399, 1, "2000-02-28T23:59:59.000000001Z");
        check(951_782_400, 0, "2000-02-29T00:00:00.000000000Z");
        check(1_709_251_199, 999_999_999, "2024-02-29T23:59:59.999999999Z");
        check(1_767_225_599, 120_000_000, "2025-12-31T23:59:59.120000000Z");
        check(4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z");
        check(-1, 0, "1969-12-31T23:59:59.000000000Z");
    }
}
