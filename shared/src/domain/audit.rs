//! Reading the ledger back: in which order, from where on, and what a row's keys say in words.

use std::collections::BTreeMap;

use super::{
    counting::{LedgerRow, TIME_SHARDS},
    id::{MeterId, RequestId, SubscriptionId, composite_parts, shard_of},
    time::{EpochSecs, UtcDay},
};

/// What was counted in each UTC hour, per meter.
pub type ByHour = BTreeMap<EpochSecs, BTreeMap<MeterId, u64>>;

/// A row's place among a user's rows, by which a page goes on where the one before it ended.
///
/// The order is by moment, newest first. Rows of one second are ordered by their shard of the time index, and within a shard as
/// the index has them, which it keeps although it does not say how. So the place is exact however many rows share a second, no
/// row before it has to be read again, and rows that come in at the top change nothing below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The row's moment.
    pub at: EpochSecs,
    /// Its request.
    pub request_id: RequestId,
    /// Which of the request's rows.
    pub row: String,
}

impl Position {
    /// A row's place; `None` if the row's keys are not of a version we know.
    #[must_use]
    pub fn of(row: &LedgerRow) -> Option<Self> {
        let request_id = RequestId::new(row.request_id.as_str()).ok()?;
        Some(Self { at: moment(&row.at_key)?, request_id, row: row.row.clone() })
    }

    /// The shard of the time index that the row is in.
    #[must_use]
    pub fn shard(&self) -> u8 {
        shard_of(self.request_id.as_str(), TIME_SHARDS)
    }
}

/// The moment that a key of the time index says: the row's own, in the account's time.
#[must_use]
pub fn moment(at_key: &str) -> Option<EpochSecs> {
    at_key.parse().ok().map(EpochSecs::new)
}

/// Where something was counted, as a tally's key says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountedIn {
    /// The UTC day.
    pub day: UtcDay,
    /// The segment.
    pub segment: SegmentName,
}

/// A segment, as far as its key names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SegmentName {
    /// A period of a subscription, on one set of prices.
    Billed {
        /// The subscription that bills it.
        subscription: SubscriptionId,
        /// Its first second.
        start: EpochSecs,
    },
    /// A month on the free tier.
    Free {
        /// The month's first second.
        start: EpochSecs,
    },
}

impl CountedIn {
    /// Reads a tally's key; `None` if it is not of a version we know.
    #[must_use]
    pub fn read(tally_key: &str) -> Option<Self> {
        let (day, segment) = tally_key.split_once('/')?;
        let start = |text: &str| text.parse().ok().map(EpochSecs::new);
        let segment = match composite_parts(segment)?.as_slice() {
            ["billed", subscription, first, ..] => {
                SegmentName::Billed { subscription: SubscriptionId::new(*subscription).ok()?, start: start(first)? }
            }
            ["free", first] => SegmentName::Free { start: start(first)? },
            _ => return None,
        };
        Some(Self { day: UtcDay::parse(day)?, segment })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        account::tests::subscribed,
        counting::{Intake, judge, tally_key},
        price_list::PriceList,
        segment::place,
        usage::{Message, read_message},
    };

    /// The row of a call of that request, at 2026-11-22T11:59:00Z.
    fn row(request_id: &str) -> LedgerRow {
        let event = serde_json::json!({
            "request_id": request_id, "user_id": "ada", "endpoint": "/v1/x", "tokens_in": 1, "tokens_out": 0, "success": true,
            "timestamp": "2026-11-22T11:59:00Z",
        });
        let Ok(Message::Events(mut entries)) = read_message(&event.to_string()) else { panic!("{event}") };
        let intake = Intake { received_at_ms: 1_795_348_800_000, written_by: "invocation".into(), retention_days: 400 };
        let at = EpochSecs::parse_rfc3339("2026-11-22T11:59:00Z").unwrap();
        judge(&entries.remove(0).unwrap(), at, None, &PriceList::shipped().unwrap(), &intake).row
    }

    #[test]
    fn a_rows_place_is_where_the_time_index_has_it() {
        let mut shards = std::collections::BTreeSet::new();
        for request in 0..200 {
            let row = row(&format!("req_{request}"));
            let place = Position::of(&row).unwrap();
            assert_eq!(place.at.to_string(), "2026-11-22T11:59:00Z");
            assert_eq!((place.request_id.as_str(), &place.row), (row.request_id.as_str(), &row.row));
            assert_eq!(row.time_key, format!("3:ada/2:{:02}", place.shard()));
            shards.insert(place.shard());
        }
        assert_eq!(shards.len(), usize::from(TIME_SHARDS));
        let of_another_version = LedgerRow { at_key: "2026-11-22".into(), ..row("req_1") };
        assert_eq!(Position::of(&of_another_version), None);
    }

    #[test]
    fn a_tallys_key_says_in_words_where_something_was_counted() {
        let account = subscribed("2026-11-10T08:30:15Z");
        let prices = PriceList::shipped().unwrap();
        let read = |at: &str| {
            let at = EpochSecs::parse_rfc3339(at).unwrap();
            let segment = place(Some(&account), &prices, at).segment_key().unwrap();
            CountedIn::read(&tally_key(at.day(), &segment)).unwrap()
        };
        let start = |text: &str| EpochSecs::parse_rfc3339(text).unwrap();
        let billed =
            SegmentName::Billed { subscription: SubscriptionId::new("sub_1").unwrap(), start: start("2026-11-10T08:30:15Z") };
        assert_eq!(read("2026-11-22T12:00:00Z").segment, billed);
        assert_eq!(read("2026-11-22T12:00:00Z").day.to_string(), "2026-11-22");
        assert_eq!(read("2026-11-09T12:00:00Z").segment, SegmentName::Free { start: start("2026-11-01T00:00:00Z") });
    }

    #[test]
    fn a_key_of_another_version_is_not_guessed_at() {
        for key in ["", "2026-11-22", "2026-11-22/", "2026-11-22/billed/sub_1", "2026-11-22/4:paid/3:now", "today/4:free/1:0"] {
            assert_eq!(CountedIn::read(key), None, "{key}");
        }
    }
}
