//! Names of users, requests and Stripe's objects, built only by checking, and the composite keys made of them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a string is no identifier. The text names the limit that was broken, never the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// The string is empty.
    #[error("{what} is empty")]
    Empty {
        /// Which identifier was being read.
        what: &'static str,
    },
    /// The string has too many characters.
    #[error("{what} is longer than {max_chars} characters")]
    TooLong {
        /// Which identifier was being read.
        what: &'static str,
        /// The most characters it may have.
        max_chars: usize,
    },
}

macro_rules! identifiers {
    ($($(#[$doc:meta])* $name:ident($what:literal, $max_chars:literal);)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            #[doc = concat!("Checks that the text has 1 to ", $max_chars, " characters.")]
            ///
            /// # Errors
            /// [`InvalidId`] if it has none or too many.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidId> {
                let text = text.into();
                if text.is_empty() {
                    return Err(InvalidId::Empty { what: $what });
                }
                // Bytes are counted first: most texts are short, and no text has more characters than bytes.
                if text.len() > $max_chars && text.chars().count() > $max_chars {
                    return Err(InvalidId::TooLong { what: $what, max_chars: $max_chars });
                }
                Ok(Self(text))
            }

            /// The identifier as it was given.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    )*};
}

identifiers! {
    /// The product's own user or team: any string of 1 to 128 characters.
    UserId("user_id", 128);
    /// Names the request a usage event served; chosen by the AI service.
    RequestId("request_id", 128);
    /// Stripe's customer, `cus_…`.
    CustomerId("customer", 255);
    /// Stripe's subscription, `sub_…`.
    SubscriptionId("subscription", 255);
    /// Stripe's invoice, `in_…`.
    InvoiceId("invoice", 255);
    /// Stripe's price, `price_…`.
    PriceId("price", 255);
    /// Stripe's checkout session, `cs_…`.
    CheckoutSessionId("checkout session", 255);
    /// Stripe's event, `evt_…`, or the identifier of a hint that we made ourselves.
    EventId("event id", 255);
    /// A plan of the price list.
    PlanId("plan", 64);
    /// A meter of the price list.
    MeterId("meter", 64);
}

/// Joins the parts of a composite key so that no two lists of parts ever give the same key (G9): each part is preceded by its
/// length in bytes.
///
/// ```
/// use tokentill::domain::id::composite_key;
/// assert_eq!(composite_key(&["ada", "r/1"]), "3:ada/3:r/1");
/// assert_ne!(composite_key(&["a/1:b", "c"]), composite_key(&["a", "b/1:c"]));
/// ```
#[must_use]
pub fn composite_key(parts: &[&str]) -> String {
    let mut key = String::with_capacity(parts.iter().map(|part| part.len().saturating_add(5)).sum());
    for part in parts {
        if !key.is_empty() {
            key.push('/');
        }
        key.push_str(&part.len().to_string());
        key.push(':');
        key.push_str(part);
    }
    key
}

/// The parts that a composite key was made of; `None` if the text is none.
///
/// ```
/// use tokentill::domain::id::composite_parts;
/// assert_eq!(composite_parts("3:ada/3:r/1"), Some(vec!["ada", "r/1"]));
/// assert_eq!(composite_parts("ada/r/1"), None);
/// ```
#[must_use]
pub fn composite_parts(key: &str) -> Option<Vec<&str>> {
    let mut parts = Vec::new();
    let mut rest = key;
    loop {
        let (length, after) = rest.split_once(':')?;
        let (part, after) = after.split_at_checked(length.parse().ok()?)?;
        parts.push(part);
        if after.is_empty() {
            return Some(parts);
        }
        rest = after.strip_prefix('/')?;
    }
}

/// One of `shards` numbers: spreads keys evenly and stays the same for ever.
///
/// Stored items depend on it, so the hash is written out here instead of using the standard library's, which may change.
#[must_use]
pub fn shard_of(text: &str, shards: u8) -> u8 {
    u8::try_from(stable_hash(text).checked_rem(u64::from(shards)).unwrap_or(0)).unwrap_or(0)
}

/// FNV-1a of the text, its halves mixed; the same for ever.
#[must_use]
pub fn stable_hash(text: &str) -> u64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    // The high bits are mixed in because FNV's low bits alone are weak for short texts.
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_user_id_has_1_to_128_characters_of_any_kind() {
        assert!(UserId::new("").is_err());
        assert!(UserId::new("ü".repeat(128)).is_ok());
        assert!(UserId::new("ü".repeat(129)).is_err());
        assert!(UserId::new("a/b#c?d%2F\u{0}").is_ok());
    }

    proptest! {
        /// Ids made to collide: the same text, parted elsewhere. Without the lengths these would be one key.
        #[test]
        fn composite_keys_never_collide(a in "[a:/1]{0,4}", b in "[a:/1]{0,4}", c in "[a:/1]{0,4}") {
            let (front, back, whole) = (format!("{a}/{b}"), format!("{b}/{c}"), format!("{a}/{b}/{c}"));
            let keys = [vec![a.as_str(), &back], vec![&front, &c], vec![&whole], vec![&a, &b, &c]].map(|parts| composite_key(&parts));
            for (at, key) in keys.iter().enumerate() {
                prop_assert!(!keys[at + 1..].contains(key), "{key} stands for two lists");
            }
        }
    }

    proptest! {
        #[test]
        fn a_composite_key_is_read_as_it_was_made(parts in proptest::collection::vec("[a:/1ü]{0,4}", 1..4)) {
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            let key = composite_key(&parts);
            prop_assert_eq!(composite_parts(&key), Some(parts));
            let longer = format!("{key}/");
            prop_assert_eq!(composite_parts(&longer), None);
        }
    }

    #[test]
    fn shards_are_stable_and_evenly_used() {
        let mut used = [0_u32; 16];
        for n in 0..16_000 {
            used[usize::from(shard_of(&format!("req_{n}"), 16))] += 1;
        }
        assert!(used.iter().all(|count| (800..1200).contains(count)), "{used:?}");
    }
}
