//! Chance: the domain is handed identifiers, it never draws them.

/// An identifier that nobody has drawn before: 122 random bits.
#[must_use]
pub fn identifier() -> String {
    format!("tokentill-{}", uuid::Uuid::new_v4().simple())
}
