//! Billing periods: where one ends and the next begins, to the second, without asking Stripe.
//!
//! Stripe counts periods from an anchor and clamps the day of the month where a month is too short (31 January, 28 February,
//! 31 March, …). Source: Stripe's documentation, "Set the subscription billing renewal date".

use jiff::{Span, civil};
use serde::{Deserialize, Serialize};

use super::{
    price_list::Interval,
    time::{DAY_SECS, EpochSecs},
};

/// How periods follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cycle {
    /// The moment periods are counted from.
    pub anchor: EpochSecs,
    /// The unit of a period.
    pub interval: Interval,
    /// How many units make a period, at least 1.
    pub count: u16,
}

impl Cycle {
    /// The first second of the period that is `n` periods from the anchor.
    ///
    /// Always counted from the anchor, so that a clamped day (28 February) does not stay clamped.
    #[must_use]
    pub fn boundary(&self, n: i64) -> EpochSecs {
        let units = n.saturating_mul(i64::from(self.count.max(1)));
        match self.interval {
            Interval::Day => self.anchor.plus_days(units),
            Interval::Week => self.anchor.plus_days(units.saturating_mul(7)),
            Interval::Month => self.plus_months(units),
            Interval::Year => self.plus_months(units.saturating_mul(12)),
        }
    }

    fn plus_months(&self, months: i64) -> EpochSecs {
        let moved: Result<civil::DateTime, _> =
            Span::new().try_months(months).and_then(|span| self.anchor.civil().checked_add(span));
        // Beyond the calendar there is only the last moment; no subscription gets there.
        moved.map_or(EpochSecs::new(i64::MAX), EpochSecs::from_civil)
    }

    /// The period that `at` lies in: its first second, and the first second after it.
    #[must_use]
    pub fn period_containing(&self, at: EpochSecs) -> (EpochSecs, EpochSecs) {
        let typical_secs = match self.interval {
            Interval::Day => DAY_SECS,
            Interval::Week => DAY_SECS.saturating_mul(7),
            Interval::Month => 2_629_746,
            Interval::Year => 31_556_952,
        }
        .saturating_mul(i64::from(self.count.max(1)));
        // A guess from the average length is off by at most one either way.
        let mut n = at.secs_since(self.anchor).checked_div_euclid(typical_secs).unwrap_or(0);
        while self.boundary(n) > at {
            n = n.saturating_sub(1);
        }
        // At the end of the calendar every further boundary is the last moment.
        while self.boundary(n.saturating_add(1)) <= at && self.boundary(n) < self.boundary(n.saturating_add(1)) {
            n = n.saturating_add(1);
        }
        (self.boundary(n), self.boundary(n.saturating_add(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> EpochSecs {
        EpochSecs::parse_rfc3339(text).unwrap()
    }

    fn cycle(anchor: &str, interval: Interval, count: u16) -> Cycle {
        Cycle { anchor: at(anchor), interval, count }
    }

    #[test]
    fn a_clamped_day_comes_back_when_the_month_is_long_enough() {
        let monthly = cycle("2026-01-31T10:00:05Z", Interval::Month, 1);
        let boundaries: Vec<_> = (0..5).map(|n| monthly.boundary(n).to_string()).collect();
        assert_eq!(
            boundaries,
            [
                "2026-01-31T10:00:05Z",
                "2026-02-28T10:00:05Z",
                "2026-03-31T10:00:05Z",
                "2026-04-30T10:00:05Z",
                "2026-05-31T10:00:05Z"
            ]
        );
        let yearly = cycle("2024-02-29T00:00:00Z", Interval::Year, 1);
        assert_eq!(
            (yearly.boundary(1).to_string(), yearly.boundary(4).to_string()),
            ("2025-02-28T00:00:00Z".into(), "2028-02-29T00:00:00Z".into())
        );
    }

    #[test]
    fn the_second_of_a_renewal_belongs_to_the_new_period() {
        let monthly = cycle("2026-01-31T10:00:05Z", Interval::Month, 1);
        let shown = |text: &str| {
            let (start, end) = monthly.period_containing(at(text));
            format!("{start} {end}")
        };
        assert_eq!(shown("2026-02-28T10:00:04Z"), "2026-01-31T10:00:05Z 2026-02-28T10:00:05Z");
        assert_eq!(shown("2026-02-28T10:00:05Z"), "2026-02-28T10:00:05Z 2026-03-31T10:00:05Z");
        assert_eq!(shown("2025-12-31T10:00:05Z"), "2025-12-31T10:00:05Z 2026-01-31T10:00:05Z");
    }

    #[test]
    fn the_first_and_the_last_moment_there_are_have_a_period() {
        for interval in [Interval::Day, Interval::Week, Interval::Month, Interval::Year] {
            let cycle = cycle("2026-01-31T10:00:05Z", interval, 1);
            let (first, last) = (EpochSecs::new(i64::MIN), EpochSecs::new(i64::MAX));
            assert_eq!(cycle.period_containing(first).0, first, "{interval:?}");
            assert_eq!(cycle.period_containing(last).1, last, "{interval:?}");
        }
    }

    proptest! {
        #[test]
        fn every_moment_is_in_exactly_one_period_and_periods_are_contiguous(
            anchor in 0_i64..4_000_000_000, offset in -500_000_000_i64..500_000_000, count in 1_u16..7, unit in 0..4,
        ) {
            let interval = [Interval::Day, Interval::Week, Interval::Month, Interval::Year][usize::try_from(unit).unwrap()];
            let cycle = Cycle { anchor: EpochSecs::new(anchor), interval, count };
            let moment = EpochSecs::new(anchor + offset);
            let (start, end) = cycle.period_containing(moment);
            prop_assert!(start <= moment && moment < end);
            prop_assert_eq!(cycle.period_containing(end).0, end);
            prop_assert_eq!(cycle.period_containing(end.plus_secs(-1)), (start, end));
        }
    }
}
