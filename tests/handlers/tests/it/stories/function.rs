//! Through the function.
