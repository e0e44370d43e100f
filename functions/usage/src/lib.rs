//! The `usage` function.
