//! The demo month on the deployed stack, as `cargo local --once` plays it.

use local::{Options, Stack, demo};

#[tokio::test]
async fn every_row_of_the_demo_month_is_as_expected_and_every_sample_event_invokes_its_function() {
    let _turn = crate::turn().await;
    let stack = Stack::start(Options::default()).await.unwrap();
    let table = demo::play(&stack).await.unwrap();
    println!("{table}");
    let ok = table.ok();
    crate::samples::each_invokes_its_function(&stack).await;
    stack.shutdown().await.unwrap();
    assert!(ok, "some row is not as expected:\n{table}");
}
