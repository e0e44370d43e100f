//! Where things lie: the checkout, and the folders the local stack keeps under `target/local`.

use std::path::{Path, PathBuf};

/// The root of the checkout.
#[must_use]
pub fn checkout() -> PathBuf {
    // Two levels above this crate, which is compiled and run in the same checkout.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Everything the local stack writes lies below this folder.
#[must_use]
pub fn local_folder() -> PathBuf {
    checkout().join("target").join("local")
}
