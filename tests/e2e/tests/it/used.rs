//! A stack in use: by a service with boto3, by another one with the Python client, and by a person with `cargo till`.

use local::{Options, Stack};

#[tokio::test]
async fn services_report_to_one_stack_and_a_person_looks_after_it() {
    let _turn = crate::turn().await;
    // One for all three: most of the time goes into starting it.
    let stack = Stack::start(Options { report: false, ..Options::default() }).await.unwrap();
    crate::producer::is_counted_once(&stack).await;
    crate::python::is_gated_and_metered(&stack).await;
    crate::cli::looks_and_sends_again(&stack).await;
    stack.shutdown().await.unwrap();
}
