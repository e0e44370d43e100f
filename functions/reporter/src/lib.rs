//! The `reporter` function.
