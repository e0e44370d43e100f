//! Usage to Stripe, one meter event for each report, and what Stripe's meters have of it.

use std::collections::HashMap;

use stripe_billing::{
    billing_meter::ListBillingMeter, billing_meter_event::CreateBillingMeterEvent,
    billing_meter_event_summary::ListIdBillingMeterEventSummary,
};
use stripe_client_core::StripeRequest as _;
use tokio::sync::Mutex;

use super::{
    Stripe,
    decode::{Meter, MeterEvent, MeterSummary},
    key::KeySource,
    state::{Longer, PAGE, page_of, read, unreadable},
};
use crate::{
    domain::{id::CustomerId, report::MeterReport, time::EpochSecs},
    ports::{Delivered, MeterSink, MeterSummaries, StripeError},
};

pub(super) const METER_EVENTS: &str = "/v1/billing/meter_events";
const METERS: &str = "/v1/billing/meters";
const SUMMARIES: &str = "/v1/billing/meters/{id}/event_summaries";

/// The ids of meters by their event names. Its lock is held while Stripe is asked, so that tasks that want the same answer ask
/// once.
pub(super) type KnownMeters = Mutex<HashMap<String, String>>;

impl<K: KeySource> MeterSink for Stripe<K> {
    async fn send(&self, report: &MeterReport) -> Result<Delivered, StripeError> {
        // The payload's keys are the defaults of a meter's `customer_mapping` and `value_settings`.
        let payload = HashMap::from([
            ("stripe_customer_id".to_owned(), report.customer.as_str().to_owned()),
            ("value".to_owned(), report.quantity.to_string()),
        ]);
        let event = CreateBillingMeterEvent::new(&report.event_name, payload)
            .identifier(&report.identifier)
            .timestamp(report.minute.as_secs());
        match self.client.send(METER_EVENTS, event.build().customize::<MeterEvent>()).await {
            Ok(taken) if taken.value.identifier.as_deref() == Some(report.identifier.as_str()) => Ok(Delivered::Now),
            // A success that does not name our event is no proof that Stripe has it; sending it again does no harm.
            Ok(taken) => Err(unproven("the answer does not name the meter event".to_owned(), taken.request_id)),
            Err(StripeError::Unreadable { reason, request_id }) => Err(unproven(reason, request_id)),
            Err(error) if is_known_identifier(report, &error) => Ok(Delivered::Before),
            Err(error) => Err(error),
        }
    }
}

impl<K: KeySource> MeterSummaries for Stripe<K> {
    async fn total(
        &self,
        event_name: &str,
        customer: &CustomerId,
        from: EpochSecs,
        until: EpochSecs,
    ) -> Result<u64, StripeError> {
        let meter = self.meter(event_name).await?;
        let list = ListIdBillingMeterEventSummary::new(meter.as_str(), customer.as_str(), until.as_secs(), from.as_secs());
        let list = list.limit(PAGE);
        let pages = self.list(SUMMARIES, Longer::IsAnError, page_of!(list)).await?;
        let request_id = pages.last().map(|page| page.request_id.clone()).unwrap_or_default();
        let values = read(pages, MeterSummary::read)?;
        let total = values.into_iter().try_fold(0_u64, u64::checked_add);
        total.ok_or_else(|| unreadable("the meter event summaries' sum is beyond all bounds".to_owned(), &request_id))
    }
}

impl<K: KeySource> Stripe<K> {
    /// The id of the meter of this event name: of several the active one, else the newest. A name that was found is not looked up
    /// again; one that was not is, the next time.
    async fn meter(&self, event_name: &str) -> Result<String, StripeError> {
        let mut known = self.meters.lock().await;
        if let Some(id) = known.get(event_name) {
            return Ok(id.clone());
        }
        let list = ListBillingMeter::new().limit(PAGE);
        let pages = self.list(METERS, Longer::IsAnError, page_of!(list)).await?;
        let request_id = pages.last().map(|page| page.request_id.clone()).unwrap_or_default();
        let mut meters = read(pages, Meter::read)?;
        // The best of a name comes last. Stripe lists the newest first, which decides where two were created in one second.
        meters.reverse();
        meters.sort_by_key(|meter| (meter.active, meter.created));
        for meter in meters {
            known.insert(meter.event_name, meter.id);
        }
        known.get(event_name).cloned().ok_or(StripeError::NotFound { request_id })
    }
}

fn unproven(reason: String, request_id: String) -> StripeError {
    StripeError::Unavailable { reason, retry_after_secs: None, request_id }
}

/// Whether Stripe refused the event because it has one with this identifier.
///
/// The v1 API answers with status 400, type `invalid_request_error`, no code, and the message "An event already exists with
/// identifier …" (source: <https://github.com/langfuse/langfuse/pull/16292>, which quotes the answer). The v2 API's code for
/// the same is `duplicate_meter_event` (source: Stripe's OpenAPI description, `v2.error.duplicate_meter_event`); it is taken
/// too, in case v1 gets it. A message counts only if it names this very identifier: to believe too much here is to lose usage.
fn is_known_identifier(report: &MeterReport, error: &StripeError) -> bool {
    let StripeError::Refused { status: 400, code, message, .. } = error else {
        return false;
    };
    let names_it = message.split_once("identifier").is_some_and(|(before, after)| {
        let quotes = |c: char| c.is_whitespace() || matches!(c, '\'' | '"' | '`' | ':' | '.');
        before.contains("already exists") && after.trim_matches(quotes) == report.identifier
    });
    code == "duplicate_meter_event" || names_it
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{id::CustomerId, time::EpochSecs};

    fn refused(status: u16, code: &str, message: &str) -> StripeError {
        StripeError::Refused { status, code: code.to_owned(), message: message.to_owned(), request_id: "req_1".to_owned() }
    }

    #[test]
    fn only_the_refusal_of_this_very_identifier_means_delivered() {
        let report = MeterReport {
            customer: CustomerId::new("cus_1").unwrap(),
            event_name: "requests".to_owned(),
            identifier: "rep_7f".to_owned(),
            quantity: 1,
            minute: EpochSecs::new(0),
        };
        let known = |error: StripeError| is_known_identifier(&report, &error);
        let plain = "invalid_request_error";
        assert!(known(refused(400, plain, "An event already exists with identifier rep_7f.")));
        assert!(known(refused(400, "resource_already_exists", "An event already exists with identifier `rep_7f`")));
        assert!(known(refused(400, "duplicate_meter_event", "A meter event with a duplicate identifier was sent.")));

        assert!(!known(refused(400, plain, "An event already exists with identifier rep_7f2.")));
        assert!(!known(refused(400, plain, "An event already exists with identifier rep_7.")));
        assert!(!known(refused(400, plain, "Invalid identifier: rep_7f")));
        assert!(!known(refused(400, plain, "The meter already exists")));
        assert!(!known(refused(409, plain, "An event already exists with identifier rep_7f.")));
        assert!(!known(StripeError::NotFound { request_id: "req_1".to_owned() }));
    }
}
