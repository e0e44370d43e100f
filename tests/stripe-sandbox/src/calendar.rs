//! Calendar arithmetic of billing periods, in UTC.

use jiff::{Span, Timestamp, civil::DateTime, tz::TimeZone};

/// Seconds of an hour.
pub(crate) const HOUR_SECS: i64 = 3_600;
/// Seconds of a day.
pub(crate) const DAY_SECS: i64 = 24 * HOUR_SECS;

/// The unit of a recurring price.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interval {
    /// A day of 24 hours (UTC knows no other).
    Day,
    /// Seven days.
    Week,
    /// A calendar month.
    Month,
    /// A calendar year.
    Year,
}

impl Interval {
    /// Stripe's word for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Year => "year",
        }
    }

    /// The interval of Stripe's word.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        [Self::Day, Self::Week, Self::Month, Self::Year].into_iter().find(|interval| interval.name() == name)
    }
}

/// The `count`-th boundary after `anchor`.
///
/// Always counted from the anchor, never from the boundary before, so that a subscription of 31 January renews on 28
/// February and then on 31 March. Source: "Billing cycle" ("Set the subscription billing renewal date").
/// Times outside the calendar's range stay where they are.
pub(crate) fn boundary(anchor: i64, interval: Interval, count: i64) -> i64 {
    let span = match interval {
        Interval::Day => return anchor.saturating_add(count.saturating_mul(DAY_SECS)),
        Interval::Week => return anchor.saturating_add(count.saturating_mul(7 * DAY_SECS)),
        Interval::Month => Span::new().try_months(count),
        Interval::Year => Span::new().try_years(count),
    };
    let moved = || -> Result<i64, jiff::Error> {
        let start: DateTime = Timestamp::from_second(anchor)?.to_zoned(TimeZone::UTC).datetime();
        let end = start.checked_add(span?)?;
        Ok(end.to_zoned(TimeZone::UTC)?.timestamp().as_second())
    };
    moved().unwrap_or(anchor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_second()
    }

    #[test]
    fn a_month_is_clamped_from_the_anchor_and_never_drifts() {
        let anchor = at("2026-01-31T10:20:30Z");
        let ends = ["2026-02-28T10:20:30Z", "2026-03-31T10:20:30Z", "2026-04-30T10:20:30Z", "2026-05-31T10:20:30Z"];
        for (count, end) in (1..).zip(ends) {
            assert_eq!(boundary(anchor, Interval::Month, count), at(end));
        }
        assert_eq!(boundary(anchor, Interval::Month, 25), at("2028-02-29T10:20:30Z"));
    }

    #[test]
    fn a_leap_day_renews_on_the_last_of_february() {
        let anchor = at("2028-02-29T00:00:00Z");
        assert_eq!(boundary(anchor, Interval::Year, 1), at("2029-02-28T00:00:00Z"));
        assert_eq!(boundary(anchor, Interval::Year, 4), at("2032-02-29T00:00:00Z"));
    }

    #[test]
    fn days_and_weeks_are_counted_in_seconds() {
        assert_eq!(boundary(100, Interval::Day, 2), 100 + 2 * DAY_SECS);
        assert_eq!(boundary(100, Interval::Week, 1), 100 + 7 * DAY_SECS);
    }
}
