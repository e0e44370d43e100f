//! The API key: where it comes from, and a wrapper that does not show it.

use std::future::Future;

use http::HeaderValue;

/// A Stripe API key. It has no `Debug` and no `Display`, and is kept only in the form in which it is sent.
#[derive(Clone)]
pub struct SecretKey(HeaderValue);

/// Why a text is no API key. It never holds the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// Nothing but white space.
    #[error("the Stripe API key is blank")]
    Blank,
    /// Something that no API key contains, such as a line break or a second word.
    #[error("the Stripe API key holds a character that no API key has")]
    Malformed,
}

impl SecretKey {
    /// Checks that the text can be a key; white space around it is dropped.
    ///
    /// # Errors
    /// [`InvalidKey`] if it is blank or has characters that no key has.
    pub fn new(text: &str) -> Result<Self, InvalidKey> {
        let text = text.trim();
        if text.is_empty() {
            return Err(InvalidKey::Blank);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(InvalidKey::Malformed);
        }
        let mut header = HeaderValue::from_str(&format!("Bearer {text}")).map_err(|_| InvalidKey::Malformed)?;
        header.set_sensitive(true);
        Ok(Self(header))
    }

    /// The value of the `Authorization` header, marked as sensitive.
    pub(super) fn authorization(&self) -> HeaderValue {
        self.0.clone()
    }
}

/// Where the API key comes from. It is asked before every call, because keys are rotated without a deployment; a source that
/// has to fetch the key keeps it for a bounded time.
pub trait KeySource: Send + Sync {
    /// The key to use now.
    ///
    /// # Errors
    /// Why there is none at the moment, in words that hold no secret.
    fn key(&self) -> impl Future<Output = Result<SecretKey, String>> + Send;
}

/// A key that never changes, for tests and for an operator's one command.
pub struct FixedKey(pub SecretKey);

impl KeySource for FixedKey {
    async fn key(&self) -> Result<SecretKey, String> {
        Ok(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blank_or_broken_key_is_refused_without_being_shown() {
        assert_eq!(SecretKey::new(" \n").err(), Some(InvalidKey::Blank));
        for broken in ["sk_test_a\nsk_test_b", "sk_test_a sk_test_b", "sk_test_ü"] {
            assert_eq!(SecretKey::new(broken).err(), Some(InvalidKey::Malformed));
        }
        assert!(!InvalidKey::Malformed.to_string().contains("sk_test"));
    }

    #[test]
    fn white_space_around_a_key_is_dropped_and_the_header_hides_it() {
        let header = SecretKey::new("sk_test_hidden\n").ok().map(|key| key.authorization()).unwrap();
        assert_eq!(header.as_bytes(), b"Bearer sk_test_hidden");
        assert_eq!(format!("{header:?}"), "Sensitive");
    }
}
