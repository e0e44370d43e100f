//! The same event in the shapes in which Stripe may deliver it: snapshots of several API versions, and thin.
//!
//! An endpoint's API version is set at Stripe, by a person, and may be years old. Sources of the older layouts: Stripe's changelog
//! of 2025-03-31.basil (a subscription's period moved to its items, an invoice's subscription to `parent`, and its `charge` and
//! `payment_intent` to its payments), and "Expanding responses".

use serde_json::{Value, json};
use tokentill::domain::{envelope, hint::Hint, time::EpochSecs};

/// How an event is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// In the version that is pinned, as the sandbox makes it.
    Pinned,
    /// In the layout before basil.
    BeforeBasil,
    /// In a version to come: fields that nobody knows, and only a few that are known.
    ToCome,
    /// With the customer's object in place of its id.
    Expanded,
    /// Without its customer. The type of a subscription or an invoice has one, but so it was with other fields that are null today.
    Nobodys,
    /// Thin.
    Thin,
}

pub(super) const SHAPES: [Shape; 6] =
    [Shape::Pinned, Shape::BeforeBasil, Shape::ToCome, Shape::Expanded, Shape::Nobodys, Shape::Thin];

impl Shape {
    /// The hint that `webhook` makes of the event in this shape.
    pub(super) fn hint(self, event: &Value) -> Hint {
        let body = self.of(event).to_string();
        envelope::read(body.as_bytes(), EpochSecs::new(0), false).expect("it is an event")
    }

    fn of(self, event: &Value) -> Value {
        let mut event = event.clone();
        match self {
            Self::Pinned => {}
            Self::BeforeBasil => {
                event["api_version"] = json!("2024-06-20");
                before_basil(&mut event["data"]["object"]);
            }
            Self::ToCome => {
                event["api_version"] = json!("2028-03-29.fig");
                event["reason"] = json!({"type": "unheard_of", "details": [null, 1.5]});
                let object = &mut event["data"]["object"];
                let mut few = json!({"status": {"phase": "running"}, "amounts": [{"value": "12", "unit": "cents"}]});
                for field in ["id", "object", "customer"] {
                    if let Some(value) = object.get(field) {
                        few[field] = value.clone();
                    }
                }
                *object = few;
            }
            Self::Expanded => {
                if let Some(customer) = event["data"]["object"].get_mut("customer") {
                    let id = customer.take();
                    *customer = json!({"id": id, "object": "customer", "email": null, "metadata": {"user_id": "mallory"}});
                }
            }
            Self::Nobodys => {
                if let Some(customer) = event["data"]["object"].get_mut("customer") {
                    *customer = Value::Null;
                }
            }
            Self::Thin => {
                let object = &event["data"]["object"];
                let created = EpochSecs::new(event["created"].as_i64().unwrap()).to_string();
                return json!({
                    // A thin event has an id of its own.
                    "id": event["id"].as_str().unwrap().replacen("evt_", "evt_thin", 1),
                    "object": "v2.core.event",
                    "type": format!("v1.{}", event["type"].as_str().unwrap()),
                    "created": created.replace('Z', ".123Z"),
                    "livemode": false,
                    "context": null,
                    "related_object": {"id": object["id"], "type": object["object"], "url": "/v1/…"},
                    "snapshot_event": event["id"],
                });
            }
        }
        event
    }
}

/// Puts a subscription's or an invoice's fields where they stood until 2025.
fn before_basil(object: &mut Value) {
    match object["object"].as_str() {
        Some("subscription") => {
            for field in ["current_period_start", "current_period_end"] {
                object[field] = object["items"]["data"][0][field].take();
            }
            for item in object["items"]["data"].as_array_mut().unwrap() {
                let item = item.as_object_mut().unwrap();
                item.retain(|field, _| !field.starts_with("current_period_"));
            }
            let subscription = object.as_object_mut().unwrap();
            subscription.retain(|field, _| {
                !["billing_mode", "billing_schedules", "discounts", "status_details"].contains(&field.as_str())
            });
            subscription.insert("discount".to_owned(), Value::Null);
        }
        Some("invoice") => {
            object["subscription"] = object["parent"]["subscription_details"]["subscription"].take();
            object["paid"] = json!(object["status"] == "paid");
            object["charge"] = json!("ch_old");
            object["payment_intent"] = json!("pi_old");
            object.as_object_mut().unwrap().remove("parent");
        }
        _ => {}
    }
}
