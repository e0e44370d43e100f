//! Life stories.

mod plays;
