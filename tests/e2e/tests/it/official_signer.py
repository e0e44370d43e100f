"""Signs webhook payloads with the official `stripe` package, and says what that package's own verifier makes of each.

Prints a JSON list; the Rust test beside it compares our verifier with it.
"""

import json
import time

import stripe

SECRET = "whsec_official_signer"
NOW = int(time.time())

SNAPSHOT = json.dumps(
    {
        "id": "evt_snapshot",
        "object": "event",
        "type": "invoice.paid",
        "created": NOW,
        "livemode": False,
        "data": {"object": {"id": "in_1", "object": "invoice", "customer": "cus_1", "description": "caf\u00e9 \u20ac"}},
    },
    ensure_ascii=False,
)
THIN = json.dumps(
    {
        "id": "evt_thin",
        "object": "v2.core.event",
        "type": "v1.customer.subscription.updated",
        "created": "2026-11-22T12:00:00.000Z",
        "livemode": False,
        "related_object": {"id": "sub_1", "type": "subscription", "url": "/v1/subscriptions/sub_1"},
    }
)


def signed(payload, secret, timestamp):
    return stripe.WebhookSignature.generate_signature_header(payload, secret, timestamp=timestamp)


def believed(payload, header, secret):
    try:
        return bool(stripe.WebhookSignature.verify_header(payload, header, secret, 300))
    except stripe.SignatureVerificationError:
        return False


def case(name, payload, header, event_id, secret=SECRET):
    return {
        "name": name,
        "payload": payload,
        "header": header,
        "secret": secret,
        "now": NOW,
        "event_id": event_id,
        "official_believes": believed(payload, header, secret),
    }


cases = []
for kind, payload, event_id in [("snapshot", SNAPSHOT, "evt_snapshot"), ("thin", THIN, "evt_thin")]:
    good = signed(payload, SECRET, NOW)
    rolled = signed(payload, "whsec_old", NOW)
    cases += [
        case(f"{kind}: as signed", payload, good, event_id),
        case(f"{kind}: with the old secret's signature first", payload, rolled + "," + good.split(",", 1)[1], event_id),
        case(f"{kind}: with another secret", payload, rolled, event_id),
        case(f"{kind}: another body", payload.replace("evt_", "evt_x"), good, event_id),
        case(f"{kind}: a minute old", payload, signed(payload, SECRET, NOW - 60), event_id),
        case(f"{kind}: an hour old", payload, signed(payload, SECRET, NOW - 3600), event_id),
    ]
print(json.dumps(cases))
