//! End-to-end tests: the real template, deployed by the SAM CLI on the local stack, with IAM enforced. See `tests/`.
