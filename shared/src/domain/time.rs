//! Moments, days and minutes, all in UTC and all as whole numbers.
//!
//! Nothing here reads a clock: time is an input of the domain.

use std::fmt;

use jiff::{SignedDuration, Timestamp, civil, tz::TimeZone};
use serde::{Deserialize, Serialize};

/// Seconds in a minute, an hour and a day. UTC days always have 86,400 seconds in Unix time.
pub const MINUTE_SECS: i64 = 60;
/// Seconds in an hour.
pub const HOUR_SECS: i64 = 3_600;
/// Seconds in a UTC day.
pub const DAY_SECS: i64 = 86_400;

/// A moment in whole seconds since 1970-01-01T00:00:00Z.
///
/// Always within the years 1 to 9999, so that it can be written as RFC 3339 and read again; also if it was read from somewhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "i64", into = "i64")]
pub struct EpochSecs(i64);

/// The last moment: 9999-12-30T22:00:00Z. The day after is in year 10000 by some clocks, so `jiff` has no timestamp for it.
const LAST_SECOND: i64 = 253_402_207_200;
/// The first second of year 1.
const YEAR_1: i64 = -62_135_596_800;

impl EpochSecs {
    /// The moment so many seconds after 1970; out-of-range numbers become the first or last representable moment.
    #[must_use]
    pub fn new(secs: i64) -> Self {
        Self(secs.clamp(YEAR_1, LAST_SECOND))
    }

    /// From milliseconds, rounded down.
    #[must_use]
    pub fn from_ms(ms: i64) -> Self {
        Self::new(ms.div_euclid(1000))
    }

    /// Reads RFC 3339, with or without a fraction of a second (which is cut off) and with any offset.
    #[must_use]
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        // jiff accepts more than RFC 3339 (a bracketed time zone, a comma, a space): none of that is promised here.
        if text.len() > 40 || text.contains('[') || !text.contains(['T', 't']) {
            return None;
        }
        let timestamp: Timestamp = text.parse().ok()?;
        Some(Self::new(timestamp.as_millisecond().div_euclid(1000)))
    }

    /// The number of seconds since 1970.
    #[must_use]
    pub fn as_secs(self) -> i64 {
        self.0
    }

    /// The moment `secs` later (earlier, if negative).
    #[must_use]
    pub fn plus_secs(self, secs: i64) -> Self {
        Self::new(self.0.saturating_add(secs))
    }

    /// The moment `days` times 86,400 seconds later.
    #[must_use]
    pub fn plus_days(self, days: i64) -> Self {
        self.plus_secs(days.saturating_mul(DAY_SECS))
    }

    /// Seconds from `earlier` to this moment; negative if `earlier` is later.
    #[must_use]
    pub fn secs_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The UTC day this moment is in.
    #[must_use]
    pub fn day(self) -> UtcDay {
        UtcDay(self.0.div_euclid(DAY_SECS))
    }

    /// The start of the minute this moment is in.
    #[must_use]
    pub fn minute(self) -> Self {
        Self::new(self.0.div_euclid(MINUTE_SECS).saturating_mul(MINUTE_SECS))
    }

    /// The start of the hour this moment is in.
    #[must_use]
    pub fn hour(self) -> Self {
        Self::new(self.0.div_euclid(HOUR_SECS).saturating_mul(HOUR_SECS))
    }

    /// The civil date and time in UTC.
    #[must_use]
    pub fn civil(self) -> civil::DateTime {
        let timestamp = Timestamp::UNIX_EPOCH.checked_add(SignedDuration::from_secs(self.0)).unwrap_or(Timestamp::UNIX_EPOCH);
        timestamp.to_zoned(TimeZone::UTC).datetime()
    }

    /// The moment of a civil date and time in UTC.
    #[must_use]
    pub fn from_civil(datetime: civil::DateTime) -> Self {
        // What is no timestamp lies before the first moment or after the last.
        let beyond = |_| Self::new(if datetime.year() < 1 { i64::MIN } else { i64::MAX });
        datetime.to_zoned(TimeZone::UTC).map_or_else(beyond, |zoned| Self::new(zoned.timestamp().as_second()))
    }
}

impl From<i64> for EpochSecs {
    fn from(secs: i64) -> Self {
        Self::new(secs)
    }
}

impl From<EpochSecs> for i64 {
    fn from(moment: EpochSecs) -> Self {
        moment.0
    }
}

impl fmt::Display for EpochSecs {
    /// RFC 3339 in UTC, without a fraction: `2026-11-22T12:00:00Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}Z", self.civil().strftime("%Y-%m-%dT%H:%M:%S"))
    }
}

impl fmt::Debug for EpochSecs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A UTC day, counted from 1970-01-01.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UtcDay(i64);

impl UtcDay {
    /// The first second of the day.
    #[must_use]
    pub fn start(self) -> EpochSecs {
        EpochSecs::new(self.0.saturating_mul(DAY_SECS))
    }

    /// The first second after the day.
    #[must_use]
    pub fn end(self) -> EpochSecs {
        self.next().start()
    }

    /// The day after.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Reads `YYYY-MM-DD`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let date: civil::Date = text.parse().ok()?;
        Some(EpochSecs::from_civil(date.at(0, 0, 0, 0)).day())
    }
}

impl fmt::Display for UtcDay {
    /// `YYYY-MM-DD`: sorts as the days do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.start().civil().date())
    }
}

impl fmt::Debug for UtcDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for UtcDay {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UtcDay {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("a day is YYYY-MM-DD"))
    }
}

/// The first second of the calendar month (UTC) that `at` is in, and of the one after.
#[must_use]
pub fn calendar_month(at: EpochSecs) -> (EpochSecs, EpochSecs) {
    let first = at.civil().date().first_of_month();
    let next = first.last_of_month().tomorrow().unwrap_or(first);
    (EpochSecs::from_civil(first.at(0, 0, 0, 0)), EpochSecs::from_civil(next.at(0, 0, 0, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc_3339_in_any_offset_is_read_to_the_second() {
        let read = |text: &str| EpochSecs::parse_rfc3339(text).map(|at| at.to_string());
        assert_eq!(read("2026-11-22T12:00:00Z").as_deref(), Some("2026-11-22T12:00:00Z"));
        assert_eq!(read("2026-11-22T12:00:00.999+01:00").as_deref(), Some("2026-11-22T11:00:00Z"));
        assert_eq!(read("2024-02-29T23:59:59Z").as_deref(), Some("2024-02-29T23:59:59Z"));
        for bad in ["", "2026-11-22", "2026-11-22T12:00:00", "1764000000", "2026-13-01T00:00:00Z", "2026-11-22T12:00:00Z[UTC]"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_calendar_month_ends_where_the_next_begins() {
        let month = |text: &str| {
            let (start, end) = calendar_month(EpochSecs::parse_rfc3339(text).unwrap());
            format!("{start} {end}")
        };
        assert_eq!(month("2026-11-30T23:59:59Z"), "2026-11-01T00:00:00Z 2026-12-01T00:00:00Z");
        assert_eq!(month("2024-02-29T00:00:00Z"), "2024-02-01T00:00:00Z 2024-03-01T00:00:00Z");
        assert_eq!(month("2026-12-31T12:00:00Z"), "2026-12-01T00:00:00Z 2027-01-01T00:00:00Z");
    }

    #[test]
    fn a_number_that_is_no_moment_is_read_as_the_nearest_one() {
        let read = |text: &str| serde_json::from_str::<EpochSecs>(text).unwrap().to_string();
        assert_eq!(read("1795348800"), "2026-11-22T12:00:00Z");
        assert_eq!(read("9223372036854775807"), "9999-12-30T22:00:00Z");
        assert_eq!(read("-9223372036854775808"), "0001-01-01T00:00:00Z");
        assert_eq!(serde_json::to_string(&EpochSecs::new(1_795_348_800)).unwrap(), "1795348800");
        for at in [YEAR_1, YEAR_1 + 1, LAST_SECOND - 1, LAST_SECOND].map(EpochSecs::new) {
            assert_eq!(EpochSecs::parse_rfc3339(&at.to_string()), Some(at), "the first and the last can be written, too");
        }
    }

    proptest! {
        #[test]
        fn every_moment_is_written_as_it_is_read(secs in YEAR_1..=LAST_SECOND) {
            let at = EpochSecs::new(secs);
            prop_assert_eq!(EpochSecs::parse_rfc3339(&at.to_string()), Some(at));
            prop_assert!(at.day().start() <= at && at < at.day().end() || at.day().end() == EpochSecs::new(LAST_SECOND));
            prop_assert_eq!(UtcDay::parse(&at.day().to_string()), Some(at.day()));
        }
    }
}
