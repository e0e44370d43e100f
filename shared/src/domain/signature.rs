//! Whether a request to the webhook really comes from Stripe, and recently (G1).
//!
//! Stripe signs `"{t}.{body}"` with HMAC-SHA256 and sends `Stripe-Signature: t=…,v1=…[,v1=…]`; while a secret is being rolled
//! there is one `v1` for each active secret. Source: Stripe's documentation, "Verify webhook signatures manually". Unlike
//! Stripe's own libraries we refuse a moment too far in the *future* as well.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::time::EpochSecs;

/// How far `t` may lie from now, in either direction.
pub const TOLERANCE_SECS: i64 = 300;

/// A header longer than this is refused unread; Stripe's own is below 300 bytes even with several secrets.
const MAX_HEADER_BYTES: usize = 4_096;

/// One or several active secrets, none of them blank.
///
/// There is deliberately no `Debug` for the secrets: they must never reach a log.
#[derive(Clone)]
pub struct WebhookSecrets(Vec<String>);

/// The configured value holds no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no webhook secret is configured: store the endpoint's signing secret (whsec_…) in the SSM parameter")]
pub struct NoSecret;

impl WebhookSecrets {
    /// Reads secrets separated by white space or commas.
    ///
    /// # Errors
    /// [`NoSecret`] if there is none: an empty HMAC key would be a valid one, and anybody could sign with it.
    pub fn parse(text: &str) -> Result<Self, NoSecret> {
        // HMAC fills a short key up with zeros, so zeros alone are the empty key, too.
        let is_blank = |part: &&str| part.bytes().all(|byte| byte == 0);
        let parts = text.split(|c: char| c.is_whitespace() || c == ',').filter(|part| !is_blank(part));
        let secrets: Vec<String> = parts.map(str::to_owned).collect();
        if secrets.is_empty() { Err(NoSecret) } else { Ok(Self(secrets)) }
    }
}

impl std::fmt::Debug for WebhookSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WebhookSecrets({})", self.0.len())
    }
}

/// Why a request is not believed. The texts hold nothing of the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no header.
    #[error("the Stripe-Signature header is missing")]
    Missing,
    /// The header is not `t=…,v1=…`.
    #[error("the Stripe-Signature header is malformed")]
    Malformed,
    /// No `v1` was made with one of our secrets over this body.
    #[error("no signature matches: check that the endpoint's signing secret is the one configured")]
    Mismatch,
    /// `t` is too long ago.
    #[error("the signature has expired")]
    Expired,
    /// `t` is too far ahead.
    #[error("the signature lies in the future")]
    Future,
}

/// Checks the header against the raw bytes of the body.
///
/// The comparison takes the same time wherever the first difference is; every candidate is tried with every secret, whether
/// or not one has matched already.
///
/// # Errors
/// [`Refused`] says why the request is not believed; the age is looked at only once the signature is known to be good.
pub fn verify(header: Option<&str>, body: &[u8], secrets: &WebhookSecrets, now: EpochSecs) -> Result<(), Refused> {
    let header = header.ok_or(Refused::Missing)?;
    if header.len() > MAX_HEADER_BYTES {
        return Err(Refused::Malformed);
    }
    let signed = Signed::parse(header).ok_or(Refused::Malformed)?;
    let mut matches = false;
    for secret in &secrets.0 {
        // HMAC takes a key of any length, so this cannot fail; were it to, nothing would match.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else { continue };
        // The timestamp is signed as it was written, so it is fed as text: `t=007` and `t=7` differ.
        mac.update(signed.timestamp_text.as_bytes());
        mac.update(b".");
        mac.update(body);
        for candidate in &signed.candidates {
            matches |= mac.clone().verify_slice(candidate).is_ok();
        }
    }
    if !matches {
        return Err(Refused::Mismatch);
    }
    match now.secs_since(signed.timestamp) {
        age if age > TOLERANCE_SECS => Err(Refused::Expired),
        age if age < -TOLERANCE_SECS => Err(Refused::Future),
        _ => Ok(()),
    }
}

struct Signed<'a> {
    timestamp: EpochSecs,
    timestamp_text: &'a str,
    candidates: Vec<[u8; 32]>,
}

impl<'a> Signed<'a> {
    /// Other schemes (`v0`) and candidates that are not 64 hexadecimal digits are passed over: they can never match.
    fn parse(header: &'a str) -> Option<Self> {
        let mut timestamp_text = None;
        let mut candidates = Vec::new();
        for part in header.split(',') {
            match part.trim().split_once('=')? {
                // Two moments would leave open which one was signed.
                ("t", _) if timestamp_text.is_some() => return None,
                ("t", text) => timestamp_text = Some(text),
                ("v1", hexadecimal) => {
                    let mut candidate = [0_u8; 32];
                    if hex::decode_to_slice(hexadecimal, &mut candidate).is_ok() {
                        candidates.push(candidate);
                    }
                }
                _ => {}
            }
        }
        let timestamp_text = timestamp_text?;
        // Digits only: `parse` alone would accept a sign.
        if timestamp_text.is_empty() || !timestamp_text.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        Some(Self { timestamp: EpochSecs::new(timestamp_text.parse().ok()?), timestamp_text, candidates })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BODY: &[u8] = b"{\"id\": \"evt_1\",\r\n \"type\":\"caf\xc3\xa9\"}";
    const NOW: i64 = 1_764_000_000;

    fn sign(secret: &str, t: &str, body: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        mac.update(t.as_bytes());
        mac.update(b".");
        mac.update(body);
        hex::encode(mac.finalize().into_bytes())
    }

    fn check(header: &str) -> Result<(), Refused> {
        let secrets = WebhookSecrets::parse("whsec_new, whsec_old").unwrap();
        verify(Some(header), BODY, &secrets, EpochSecs::new(NOW))
    }

    #[test]
    fn a_recent_signature_by_any_active_secret_is_good() {
        let t = NOW.to_string();
        let (new, old, alien) = (sign("whsec_new", &t, BODY), sign("whsec_old", &t, BODY), sign("whsec_x", &t, BODY));
        for good in [
            format!("t={t},v1={new}"),
            format!("t={t},v1={old}"),
            format!("t={t},v1={new},v1={old}"),
            format!("t={t},v1={old},v1={new}"),
            format!("t={t},v1={alien},v1={new}"),
            format!("v1={new},t={t}"),
            format!("t={t}, v1={new}, v0=abc"),
            format!("t={t},v1=zz,v1={new}"),
            format!("t={t},v1={}", new.to_uppercase()),
        ] {
            assert_eq!(check(&good), Ok(()), "{good}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let t = NOW.to_string();
        let good = sign("whsec_new", &t, BODY);
        for (header, why) in [
            (String::new(), Refused::Malformed),
            ("t".into(), Refused::Malformed),
            (format!("v1={good}"), Refused::Malformed),
            (format!("t=,v1={good}"), Refused::Malformed),
            (format!("t=+{t},v1={good}"), Refused::Malformed),
            (format!("t=soon,v1={good}"), Refused::Malformed),
            (format!("t={t},t={t},v1={good}"), Refused::Malformed),
            (format!("t={t},v1={good},"), Refused::Malformed),
            (format!("t={t},v1={good},x={}", "y".repeat(10_000)), Refused::Malformed),
            (format!("t={t}"), Refused::Mismatch),
            (format!("t={t},v0={good}"), Refused::Mismatch),
            (format!("t={t},v1={}", &good[1..]), Refused::Mismatch),
            (format!("t={t},v1={}", &good[2..]), Refused::Mismatch),
            (format!("t={t},v1={good}00"), Refused::Mismatch),
            (format!("t={},v1={good}", NOW + 1), Refused::Mismatch),
            (format!("t=0{t},v1={good}"), Refused::Mismatch),
            (format!("t={t},v1={}", sign("", &t, BODY)), Refused::Mismatch),
            (format!("t={t},v1={}", sign("whsec_new", &t, b"{}")), Refused::Mismatch),
        ] {
            assert_eq!(check(&header), Err(why), "{header}");
        }
        let secrets = WebhookSecrets::parse("whsec_new").unwrap();
        assert_eq!(verify(None, BODY, &secrets, EpochSecs::new(NOW)), Err(Refused::Missing));
    }

    #[test]
    fn the_window_is_300_seconds_both_ways() {
        let at = |offset: i64| {
            let t = (NOW + offset).to_string();
            check(&format!("t={t},v1={}", sign("whsec_new", &t, BODY)))
        };
        assert_eq!((at(-300), at(300)), (Ok(()), Ok(())));
        assert_eq!((at(-301), at(301)), (Err(Refused::Expired), Err(Refused::Future)));
        let huge = "9223372036854775807";
        assert_eq!(check(&format!("t={huge},v1={}", sign("whsec_new", huge, BODY))), Err(Refused::Future));
    }

    #[test]
    fn a_header_is_read_up_to_4_kb() {
        let t = NOW.to_string();
        let good = format!("t={t},v1={},x=", sign("whsec_new", &t, BODY));
        let long = |bytes: usize| good.clone() + &"y".repeat(bytes - good.len());
        assert_eq!((check(&long(4_096)), check(&long(4_097))), (Ok(()), Err(Refused::Malformed)));
    }

    #[test]
    fn a_blank_secret_is_no_secret() {
        for blank in ["", " ", ",", " ,\n", "\0", " \0\0,\0"] {
            assert_eq!(WebhookSecrets::parse(blank).unwrap_err(), NoSecret);
        }
        assert_eq!(format!("{:?}", WebhookSecrets::parse("whsec_a whsec_b").unwrap()), "WebhookSecrets(2)");
    }

    proptest! {
        #[test]
        fn no_header_panics_and_none_is_good_by_chance(header in ".{0,200}") {
            prop_assert!(check(&header).is_err());
        }

        #[test]
        fn changing_any_byte_of_the_body_breaks_the_signature(at in 0..BODY.len(), flip in 1_u8..) {
            let t = NOW.to_string();
            let header = format!("t={t},v1={}", sign("whsec_new", &t, BODY));
            let mut body = BODY.to_vec();
            body[at] ^= flip;
            let secrets = WebhookSecrets::parse("whsec_new").unwrap();
            prop_assert_eq!(verify(Some(&header), &body, &secrets, EpochSecs::new(NOW)), Err(Refused::Mismatch));
        }
    }
}
