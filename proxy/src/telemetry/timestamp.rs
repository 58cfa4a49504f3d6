//! Points in time as text.

use std::cell::Cell;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::digits::decimal;

/// As [`write_rfc3339`], in a string.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let mut out = Vec::with_capacity(27);
    write_rfc3339(&mut out, time);
    String::from_utf8(out).unwrap_or_default()
}

/// A second of Unix time, and its text up to the dot.
type Second = (u64, [u8; 20]);

thread_local! {
    /// That of the last time that was written: records come by the thousand in one.
    static LAST: Cell<Second> = const { Cell::new((0, *b"1970-01-01T00:00:00.")) };
}

/// `2026-11-21T05:01:39.123456Z` (RFC 3339 §5.6).
pub(crate) fn write_rfc3339(out: &mut Vec<u8>, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (mut known, mut text) = LAST.get();
    if known != since.as_secs() {
        (known, text) = (since.as_secs(), second(since.as_secs()));
        LAST.set((known, text));
    }
    out.extend_from_slice(&text);
    decimal(out, since.subsec_micros().into(), 6);
    out.push(b'Z');
}

/// How long a reading of both clocks serves: so late it is noticed that somebody has set the one.
const FRESH: Duration = Duration::from_millis(10);

thread_local! {
    /// What both clocks said at one moment.
    static READ: Cell<Option<(Instant, SystemTime)>> = const { Cell::new(None) };
}

/// The time of day at `now`, which was just read: the two clocks go at the same pace, so that reading the other one too is spared.
pub(crate) fn wall(now: Instant) -> SystemTime {
    if let Some((instant, time)) = READ.get()
        && let Some(since) = now.checked_duration_since(instant).filter(|since| *since < FRESH)
    {
        return time + since;
    }
    let time = SystemTime::now();
    // Who had to wait in between would be wrong for as long.
    if now.elapsed() < Duration::from_micros(2) {
        READ.set(Some((now, time)));
    }
    time
}

/// `21/Nov/2026:05:01:39 +0000`, in UTC, as the common log format has it (Apache httpd, mod_log_config, `%t`).
pub(crate) fn write_clf(out: &mut Vec<u8>, time: SystemTime) {
    const MONTHS: &[&[u8; 3]; 12] =
        &[b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    let unix = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let (days, seconds) = (unix / 86_400, unix % 86_400);
    let (year, month, day) = civil(days);
    decimal(out, day, 2);
    out.push(b'/');
    out.extend_from_slice(MONTHS[(month as usize - 1) % MONTHS.len()]);
    let parts =
        [(b'/', year, 4), (b':', seconds / 3600, 2), (b':', seconds / 60 % 60, 2), (b':', seconds % 60, 2)];
    for (before, value, width) in parts {
        out.push(before);
        decimal(out, value, width);
    }
    out.extend_from_slice(b" +0000");
}

fn second(unix: u64) -> [u8; 20] {
    let (days, seconds) = (unix / 86_400, unix % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let parts = [(year, 4, b'-'), (month, 2, b'-'), (day, 2, b'T'), (hour, 2, b':'), (minute, 2, b':')];
    let mut text = Vec::with_capacity(20);
    for (value, width, after) in parts.into_iter().chain([(second, 2, b'.')]) {
        decimal(&mut text, value, width);
        text.push(after);
    }
    // Years have four digits for 8000 years to come.
    text.try_into().unwrap_or(*b"9999-12-31T23:59:59.")
}

/// Days since 1970-01-01 as year, month and day of the Gregorian calendar, counting years from March so that the leap
/// day comes last (Hinnant, “chrono-compatible low-level date algorithms”).
fn civil(days: u64) -> (u64, u64, u64) {
    const DAYS_TO_MARCH_OF_YEAR_0: u64 = 719_468;
    const DAYS_IN_400_YEARS: u64 = 146_097;
    let days = days + DAYS_TO_MARCH_OF_YEAR_0;
    let (era, day) = (days / DAYS_IN_400_YEARS, days % DAYS_IN_400_YEARS);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    (year, month, day_of_year - (153 * from_march + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (951_868_800, "2000-03-01T00:00:00.000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            let mut out = Vec::new();
            write_rfc3339(&mut out, UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(String::from_utf8(out).unwrap(), expected);
            assert_eq!(
                rfc3339(UNIX_EPOCH + Duration::new(seconds, 1_234_999)),
                expected.replace(".000000", ".001234")
            );
        }
    }

    #[test]
    fn the_time_of_day_is_what_its_clock_says() {
        for _ in 0..100 {
            let before = SystemTime::now();
            let told = wall(Instant::now());
            // A clock that is being slewed, and a thread that had to wait between the two readings.
            let off = told.duration_since(before).unwrap_or_else(|error| error.duration());
            assert!(off < Duration::from_millis(500), "{off:?}");
            std::thread::sleep(Duration::from_micros(300));
        }
    }

    #[test]
    fn the_common_log_format_has_its_own_order() {
        let mut out = Vec::new();
        write_clf(&mut out, UNIX_EPOCH + Duration::from_secs(951_782_399));
        assert_eq!(String::from_utf8(out).unwrap(), "28/Feb/2000:23:59:59 +0000");
    }
}
