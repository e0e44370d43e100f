//! The `access` function.
