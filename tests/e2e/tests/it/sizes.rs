//! How large the functions are, as they are deployed.

use local::{FUNCTIONS, function_binaries};

/// A cold start loads the whole binary.
const MOST_BYTES: u64 = 9_000_000;

#[tokio::test]
async fn no_binary_is_larger_than_9_mb() {
    let _alone = crate::alone().await;
    let mut too_large = Vec::new();
    println!("| function | MB |\n|---|---|");
    for (name, path) in function_binaries(&FUNCTIONS).await.unwrap() {
        let bytes = std::fs::metadata(&path).unwrap().len();
        println!("| {name} | {}.{} |", bytes / 1_000_000, bytes / 100_000 % 10);
        if bytes > MOST_BYTES {
            too_large.push(name);
        }
    }
    assert!(too_large.is_empty(), "over 9 MB: {too_large:?}");
}
