//! The sample events as anybody would try them: each invokes its deployed function.

use local::Stack;
use serde_json::Value;

/// What a sample makes its function answer, told from outside: a batch without failures, or an HTTP status. The samples' signatures
/// have expired and their tokens are nobody's, so 400 and 401 are the right answers.
pub(crate) async fn each_invokes_its_function(stack: &Stack) {
    for (function, sample, expected) in [
        ("webhook", include_str!("../../../../events/webhook-checkout-completed.json"), "400"),
        ("webhook", include_str!("../../../../events/webhook-payment-failed.json"), "400"),
        ("webhook", include_str!("../../../../events/webhook-thin.json"), "400"),
        ("webhook", include_str!("../../../../events/webhook-meter-error.json"), "400"),
        ("sync", include_str!("../../../../events/account-change.json"), "no failures"),
        ("usage", include_str!("../../../../events/usage.json"), "no failures"),
        ("usage", include_str!("../../../../events/usage-batch.json"), "no failures"),
        ("reporter", include_str!("../../../../events/scheduled.json"), "nothing"),
        ("sweeper", include_str!("../../../../events/scheduled.json"), "nothing"),
        ("access", include_str!("../../../../events/access.json"), "401"),
        ("access", include_str!("../../../../events/check.json"), "401"),
        ("access", include_str!("../../../../events/usage-query.json"), "401"),
        ("access", include_str!("../../../../events/usage-events.json"), "401"),
        ("access", include_str!("../../../../events/usage-of-request.json"), "401"),
        ("access", include_str!("../../../../events/checkout.json"), "401"),
        ("access", include_str!("../../../../events/portal.json"), "401"),
    ] {
        let event: Value = serde_json::from_str(sample).unwrap();
        let invoked = stack.aws().invoke(&stack.function(function).unwrap(), &event).await.unwrap();
        assert!(!invoked.failed, "{function}: {}", invoked.payload);
        let is = match (&invoked.payload["statusCode"], &invoked.payload["batchItemFailures"]) {
            (Value::Number(status), _) => status.to_string(),
            (_, Value::Array(failures)) if failures.is_empty() => "no failures".to_owned(),
            (Value::Null, Value::Null) => "nothing".to_owned(),
            _ => invoked.payload.to_string(),
        };
        assert_eq!(is, expected, "{function} with {}", &sample[..200.min(sample.len())]);
    }
}
