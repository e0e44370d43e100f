"""Drives a running sandbox with Stripe's own Python package: python official_client.py http://127.0.0.1:PORT

What the package sends must be understood, and what the sandbox answers must be what the package expects.
Plain asserts: the first that fails ends the script with a traceback and a status that is not 0.
"""

import http.server
import sys
import threading
import time

import stripe

SANDBOX = sys.argv[1]
HOUR = 3600
DAY = 24 * HOUR
START = 1_800_000_000  # 2027-01-15 08:00:00 UTC, a whole minute and hour

client = stripe.StripeClient("sk_test_official", base_addresses={"api": SANDBOX}, max_network_retries=0)
v1 = client.v1


def control(path, **form):
    """Calls the sandbox's own API."""
    import json
    import urllib.parse
    import urllib.request

    body = urllib.parse.urlencode(form).encode()
    with urllib.request.urlopen(f"{SANDBOX}/_sandbox/{path}", data=body) as answer:
        return json.load(answer)


def poll(what, condition, seconds=20.0):
    """Waits, within a bound, until the condition gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"timed out waiting for {what}")


def refused(expected, call, *arguments, **named):
    """The error a call must end with."""
    try:
        call(*arguments, **named)
    except expected as error:
        assert error.request_id, "every answer has a Request-Id"
        return error
    raise AssertionError(f"expected {expected.__name__}")


class Receiver:
    """A webhook endpoint that verifies signatures with the official package."""

    def __init__(self, verify=stripe.Webhook.construct_event):
        self.events = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                event = verify(body, self.headers["stripe-signature"], receiver.secret)
                receiver.events.append(event)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/webhook"
        self.secret = None

    def wait_for(self, kind, count=1):
        return poll(
            f"{count} × {kind}",
            lambda: (found := [e for e in self.events if e.type == kind]) and len(found) >= count and found,
        )


def advance(clock, to):
    """Advances a test clock and waits until it is ready."""
    assert v1.test_helpers.test_clocks.advance(clock, {"frozen_time": to}).status == "advancing"
    ready = poll("the clock", lambda: (c := v1.test_helpers.test_clocks.retrieve(clock)).status == "ready" and c)
    assert ready.frozen_time == to


def catalogue():
    """A flat price and a metered one, found again by their lookup keys."""
    meter = v1.billing.meters.create(
        {
            "display_name": "Requests",
            "event_name": "requests",
            "default_aggregation": {"formula": "sum"},
            "customer_mapping": {"event_payload_key": "stripe_customer_id", "type": "by_id"},
            "value_settings": {"event_payload_key": "value"},
        }
    )
    assert meter.status == "active" and meter.default_aggregation.formula == "sum"
    error = refused(
        stripe.InvalidRequestError,
        v1.billing.meters.create,
        {"display_name": "Again", "event_name": "requests", "default_aggregation": {"formula": "sum"}},
    )
    assert error.param == "event_name"
    product = v1.products.create({"name": "Pro"})
    base = v1.prices.create(
        {
            "product": product.id,
            "currency": "usd",
            "unit_amount": 1900,
            "recurring": {"interval": "month"},
            "lookup_key": "pro_base",
        }
    )
    assert base.unit_amount == 1900 and base.recurring.usage_type == "licensed"
    metered = v1.prices.create(
        {
            "product": product.id,
            "currency": "usd",
            "unit_amount_decimal": "0.25",
            "recurring": {"interval": "month", "usage_type": "metered", "meter": meter.id},
            "lookup_key": "pro_requests",
        }
    )
    assert metered.unit_amount is None and str(metered.unit_amount_decimal) == "0.25"
    found = v1.prices.list({"lookup_keys": ["pro_base", "pro_requests"], "expand": ["data.product"]})
    assert {price.id for price in found.data} == {base.id, metered.id}
    assert all(price.product.name == "Pro" for price in found.data)
    refused(
        stripe.InvalidRequestError,
        v1.prices.create,
        {"product": product.id, "currency": "usd", "unit_amount": 1, "recurring": {"interval": "month"}, "lookup_key": "pro_base"},
    )
    return meter, base, metered


def unknown_things_are_refused():
    error = refused(stripe.InvalidRequestError, v1.customers.create, {"colour": "blue"})
    assert error.code == "parameter_unknown" and error.param == "colour" and error.http_status == 400
    error = refused(stripe.InvalidRequestError, v1.customers.list, {"expand": ["data.sources"]})
    assert error.http_status == 400
    error = refused(stripe.InvalidRequestError, v1.customers.retrieve, "cus_nobody")
    assert error.code == "resource_missing" and error.http_status == 404
    error = refused(stripe.InvalidRequestError, v1.payouts.list)
    assert error.http_status == 404
    live = stripe.StripeClient("sk_live_x", base_addresses={"api": SANDBOX}, max_network_retries=0)
    refused(stripe.AuthenticationError, live.v1.customers.list)
    old = stripe.StripeClient(
        "sk_test_x", stripe_version="2024-06-20", base_addresses={"api": SANDBOX}, max_network_retries=0
    )
    refused(stripe.InvalidRequestError, old.v1.customers.list)


def idempotency_keys_replay():
    first = v1.customers.create({"email": "key@example.com"}, {"idempotency_key": "k1"})
    again = v1.customers.create({"email": "key@example.com"}, {"idempotency_key": "k1"})
    assert again.id == first.id
    assert again.last_response.headers["idempotent-replayed"] == "true"
    refused(stripe.IdempotencyError, v1.customers.create, {"email": "other@example.com"}, {"idempotency_key": "k1"})


def customers_are_kept():
    customer = v1.customers.create({"email": "grace@example.com", "metadata": {"user_id": "grace", "team": "navy"}})
    changed = v1.customers.update(customer.id, {"name": "Grace", "metadata": {"team": ""}})
    assert changed.name == "Grace" and changed.metadata.to_dict() == {"user_id": "grace"}
    assert [c.id for c in v1.customers.list({"email": "grace@example.com"}).data] == [customer.id]
    assert v1.customers.list({"email": "Grace@example.com"}).data == []
    error = refused(
        stripe.InvalidRequestError,
        v1.customers.update,
        customer.id,
        {"invoice_settings": {"default_payment_method": "pm_card_visa"}},
    )
    assert "must be attached" in str(error)
    assert v1.customers.delete(customer.id).deleted
    assert v1.customers.retrieve(customer.id).deleted
    several = [v1.customers.create({"email": "page@example.com"}).id for _ in range(5)]
    pages = v1.customers.list({"email": "page@example.com", "limit": 2})
    assert pages.has_more and [c.id for c in pages.auto_paging_iter()] == several[::-1]


def checkout_gives_a_subscription(base, metered, receiver):
    session = v1.checkout.sessions.create(
        {
            "mode": "subscription",
            "success_url": "https://example.com/thanks",
            "client_reference_id": "ada",
            "customer_email": "ada@example.com",
            "line_items": [{"price": base.id, "quantity": 1}, {"price": metered.id}],
            "subscription_data": {"metadata": {"user_id": "ada"}, "billing_mode": {"type": "flexible"}},
            "expand": ["line_items"],
        }
    )
    assert session.status == "open" and session.url and session.amount_total == 1900
    assert len(session.line_items.data) == 2
    control(f"checkout/sessions/{session.id}/complete", payment_method="pm_card_visa")
    done = v1.checkout.sessions.retrieve(session.id, {"expand": ["customer", "subscription.latest_invoice"]})
    assert done.status == "complete" and done.payment_status == "paid"
    assert done.customer.email == "ada@example.com"
    assert done.subscription.status == "active" and done.subscription.metadata["user_id"] == "ada"
    assert done.subscription.billing_mode.type == "flexible"
    assert done.subscription.latest_invoice.status == "paid"
    assert not hasattr(done.subscription, "current_period_end"), "the period moved to the items"
    assert done.subscription.items.data[0].current_period_end > done.subscription.created
    event = receiver.wait_for("checkout.session.completed")[0]
    assert event.data.object.client_reference_id == "ada" and event.api_version == "2026-09-30.endive"
    receiver.wait_for("customer.subscription.created")
    updated = receiver.wait_for("customer.subscription.updated")[0]
    assert updated.data.previous_attributes["status"] == "incomplete"
    receiver.wait_for("invoice.paid")
    found = v1.checkout.sessions.list({"customer": done.customer.id, "status": "complete"})
    assert [s.id for s in found.data] == [session.id]
    declined = v1.checkout.sessions.create(
        {"mode": "subscription", "success_url": "https://example.com", "line_items": [{"price": base.id, "quantity": 1}]}
    )
    try:
        control(f"checkout/sessions/{declined.id}/complete", payment_method="pm_card_chargeCustomerFail")
        raise AssertionError("a declined card completes nothing")
    except OSError as error:
        assert error.code == 402
    assert v1.checkout.sessions.retrieve(declined.id).status == "open"


def the_portal_opens():
    """A session needs a configuration; the first one is the default."""
    customer = v1.customers.create({"metadata": {"user_id": "portal"}})
    error = refused(stripe.InvalidRequestError, v1.billing_portal.sessions.create, {"customer": customer.id})
    assert "default configuration has not been created" in error.user_message
    configuration = v1.billing_portal.configurations.create(
        {
            "business_profile": {"headline": "Your plan"},
            "features": {
                "customer_update": {"enabled": True, "allowed_updates": ["email"]},
                "invoice_history": {"enabled": True},
                "payment_method_update": {"enabled": True},
                "subscription_cancel": {"enabled": True, "mode": "at_period_end"},
            },
        }
    )
    assert configuration.is_default and configuration.features.subscription_cancel.mode == "at_period_end"
    changed = v1.billing_portal.configurations.update(configuration.id, {"default_return_url": "https://example.com/"})
    assert changed.features.payment_method_update.enabled
    assert [c.id for c in v1.billing_portal.configurations.list({"is_default": True}).data] == [configuration.id]
    session = v1.billing_portal.sessions.create({"customer": customer.id})
    assert session.url.startswith("https://billing.stripe.com/") and session.return_url == "https://example.com/"


def meter_events_count_once(meter, base, metered):
    now = int(time.time())
    customer = v1.customers.create({"payment_method": "pm_card_visa"}).id

    def send(value, identifier, timestamp=now, to=customer):
        return v1.billing.meter_events.create(
            {
                "event_name": "requests",
                "identifier": identifier,
                "timestamp": timestamp,
                "payload": {"stripe_customer_id": to, "value": value},
            }
        )

    assert send("7", "id-1").identifier == "id-1"
    error = refused(stripe.InvalidRequestError, send, "7", "id-1")
    assert "An event already exists with identifier id-1." in str(error) and error.code is None
    for value in ("1.5", "many", "1234567890123456", ""):
        refused(stripe.InvalidRequestError, send, value, "id-2")
    refused(stripe.InvalidRequestError, send, "1", "id-2", now - 36 * DAY)
    refused(stripe.InvalidRequestError, send, "1", "id-2", now + 6 * 60)
    send("5", "id-3", to="cus_nobody")  # taken, and thrown away later
    send("-2", "id-4", now - DAY)
    minute = now - now % 60
    whole = v1.billing.meters.event_summaries.list(
        meter.id, {"customer": customer, "start_time": minute - 3 * DAY, "end_time": minute + 60}
    )
    assert [s.aggregated_value for s in whole.data] == [5.0]
    day = now - now % DAY
    by_day = v1.billing.meters.event_summaries.list(
        meter.id,
        {"customer": customer, "start_time": day - 2 * DAY, "end_time": day + DAY, "value_grouping_window": "day"},
    )
    assert [(s.start_time, s.aggregated_value) for s in by_day.data] == [(day, 7.0), (day - DAY, -2.0)]
    refused(
        stripe.InvalidRequestError,
        v1.billing.meters.event_summaries.list,
        meter.id,
        {"customer": customer, "start_time": minute + 1, "end_time": minute + 60},
    )


def usage_that_is_thrown_away_is_told(receiver):
    meter = v1.billing.meters.create(
        {"display_name": "Words", "event_name": "words", "default_aggregation": {"formula": "sum"}}
    )
    destination = control("event_destinations", url=receiver.url, **{"enabled_events[]": "*"})
    receiver.secret = destination["secret"]
    for name in ("words", "no_such_meter"):
        v1.billing.meter_events.create(
            {"event_name": name, "identifier": name, "payload": {"stripe_customer_id": "cus_nobody", "value": "1"}}
        )
    reports = lambda: [e for e in receiver.events if e.type == "v1.billing.meter.error_report_triggered"]
    told = poll("the report", lambda: [e for e in reports() if e.related_object.id == meter.id])[0]
    assert told.fetch_related_object().event_name == "words"
    reason = told.fetch_event().data.reason
    assert reason.error_count == 1 and reason.error_types[0].code == "meter_event_customer_not_found"
    assert reason.error_types[0].sample_errors[0].request.identifier == "words"
    unknown = receiver.wait_for("v1.billing.meter.no_meter_found")[0].fetch_event()
    assert unknown.data.reason.error_types[0].code == "no_meter" and unknown.data.validation_end


def a_month_passes_and_a_payment_fails(meter, base, metered, receiver):
    clock = v1.test_helpers.test_clocks.create({"frozen_time": START, "name": "a month"}).id
    customer = v1.customers.create({"test_clock": clock, "email": "linus@example.com"}).id
    assert v1.customers.list({"email": "linus@example.com"}).data == []
    assert len(v1.customers.list({"email": "linus@example.com", "test_clock": clock}).data) == 1
    error = refused(
        stripe.InvalidRequestError, v1.subscriptions.create, {"customer": customer, "items": [{"price": base.id}]}
    )
    assert "no attached payment source" in str(error)
    good = v1.payment_methods.attach("pm_card_visa", {"customer": customer}).id
    bad = v1.payment_methods.attach("pm_card_chargeCustomerFail", {"customer": customer}).id
    v1.customers.update(customer, {"invoice_settings": {"default_payment_method": good}})
    subscription = v1.subscriptions.create(
        {
            "customer": customer,
            "items": [{"price": base.id}, {"price": metered.id}],
            "billing_mode": {"type": "flexible"},
            "metadata": {"user_id": "linus"},
            "expand": ["latest_invoice"],
        }
    )
    assert subscription.status == "active" and subscription.created == START
    assert subscription.latest_invoice.amount_paid == 1900
    end = subscription.items.data[0].current_period_end
    assert end == START + 31 * DAY
    refused(
        stripe.InvalidRequestError, v1.test_helpers.test_clocks.advance, clock, {"frozen_time": START + 90 * DAY}
    )
    v1.billing.meter_events.create(
        {
            "event_name": "requests",
            "timestamp": START + 60,
            "payload": {"stripe_customer_id": customer, "value": "1000"},
        }
    )
    v1.customers.update(customer, {"invoice_settings": {"default_payment_method": bad}})

    advance(clock, end)
    renewed = v1.subscriptions.retrieve(subscription.id, {"expand": ["latest_invoice"]})
    assert renewed.items.data[0].current_period_start == end
    assert renewed.latest_invoice.status == "draft" and renewed.status == "active"

    advance(clock, end + HOUR)
    overdue = v1.subscriptions.retrieve(subscription.id, {"expand": ["latest_invoice"]})
    invoice = overdue.latest_invoice
    assert overdue.status == "past_due"
    assert invoice.status == "open" and invoice.attempted and invoice.attempt_count == 1
    assert invoice.next_payment_attempt == end + HOUR + 3 * DAY
    assert invoice.amount_due == 1900 + 250, "a month ahead, and 1,000 requests at 0.25 cents"
    assert invoice.parent.subscription_details.subscription == subscription.id
    assert {line.pricing.price_details.price for line in invoice.lines.data} == {base.id, metered.id}
    failed = [e for e in receiver.wait_for("invoice.payment_failed") if e.data.object.id == invoice.id]
    assert failed[0].data.object.attempt_count == 1
    assert abs(failed[0].created - time.time()) < 60, "events are created in real time, whatever the clock says"

    advance(clock, end + 8 * DAY)
    invoice = v1.invoices.retrieve(invoice.id)
    assert invoice.attempt_count == 4 and invoice.next_payment_attempt is None
    assert v1.subscriptions.list({"customer": customer, "status": "past_due"}).data[0].id == subscription.id
    error = refused(stripe.CardError, v1.invoices.pay, invoice.id)
    assert error.code == "card_declined"

    v1.customers.update(customer, {"invoice_settings": {"default_payment_method": good}})
    assert v1.invoices.pay(invoice.id).status == "paid"
    assert v1.subscriptions.retrieve(subscription.id).status == "active"
    refused(stripe.InvalidRequestError, v1.invoices.pay, invoice.id)

    leaving = v1.subscriptions.update(subscription.id, {"cancel_at_period_end": True})
    next_end = leaving.items.data[0].current_period_end
    assert leaving.status == "active" and leaving.cancel_at == next_end
    advance(clock, next_end + 2 * HOUR)
    gone = v1.subscriptions.retrieve(subscription.id)
    assert gone.status == "canceled" and gone.ended_at == next_end
    assert v1.subscriptions.list({"customer": customer}).data == []
    assert len(v1.subscriptions.list({"customer": customer, "status": "all", "expand": ["data.latest_invoice"]}).data) == 1
    deleted = [e for e in receiver.wait_for("customer.subscription.deleted") if e.data.object.id == subscription.id]
    assert deleted[0].data.object.ended_at == next_end
    receiver.wait_for("test_helpers.test_clock.ready")
    assert v1.test_helpers.test_clocks.delete(clock).deleted


def events_are_listed(receiver):
    listed = v1.events.list({"types": ["invoice.paid", "invoice.payment_failed"], "limit": 100})
    assert {e.type for e in listed.data} == {"invoice.paid", "invoice.payment_failed"}
    one = v1.events.retrieve(listed.data[0].id)
    assert one.data.object.object == "invoice"
    failures = v1.events.list({"created": {"gte": int(time.time()) - 60}, "type": "invoice.payment_failed"})
    assert len(failures.data) >= 4
    assert v1.events.list({"created": {"gt": int(time.time()) + 60}}).data == []
    poll("every delivery", lambda: not v1.events.list({"delivery_success": False}).data)

    control("delivery", mode="drop")
    v1.customers.create({"email": "lost@example.com"})
    lost = v1.events.list({"delivery_success": False}).data
    assert [e.type for e in lost] == ["customer.created"]
    control("delivery", mode="twice")
    twice = v1.customers.create({}).id
    poll("both deliveries", lambda: len([e for e in receiver.events if e.data.object.id == twice]) == 2)
    control("delivery", mode="normal")
    control(f"events/{lost[0].id}/resend")
    poll("the event sent again", lambda: any(e.id == lost[0].id for e in receiver.events))


def main():
    # The package does not repeat a call that met a rate limit, and this script is none about them.
    control("settings", global_rate=0, endpoint_rate=0)
    receiver = Receiver()
    endpoint = v1.webhook_endpoints.create(
        {"url": receiver.url, "enabled_events": ["*"], "api_version": "2026-09-30.endive"}
    )
    receiver.secret = endpoint.secret
    refused(
        stripe.InvalidRequestError, v1.webhook_endpoints.create, {"url": receiver.url, "enabled_events": ["no.such"]}
    )
    unknown_things_are_refused()
    idempotency_keys_replay()
    customers_are_kept()
    meter, base, metered = catalogue()
    checkout_gives_a_subscription(base, metered, receiver)
    the_portal_opens()
    meter_events_count_once(meter, base, metered)
    usage_that_is_thrown_away_is_told(Receiver(client.parse_event_notification))
    a_month_passes_and_a_payment_fails(meter, base, metered, receiver)
    events_are_listed(receiver)
    assert v1.webhook_endpoints.delete(endpoint.id).deleted
    print("the official client is content")


main()
