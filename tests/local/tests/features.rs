//! What keeps builds short.

#![expect(clippy::unwrap_used, reason = "a test says by failing what is wrong")]

use std::collections::BTreeSet;
use std::process::Command;

use local::{FUNCTIONS, checkout};

/// Every package a build of these functions compiles, with its features.
fn compiled(functions: &[&str]) -> BTreeSet<String> {
    let mut tree = Command::new(env!("CARGO"));
    tree.args(["tree", "--edges", "normal,build", "--prefix", "none", "--no-dedupe", "--format", "{p} {f}", "--locked"]);
    for function in functions {
        tree.args(["--package", function]);
    }
    let told = tree.current_dir(checkout()).output().unwrap();
    assert!(told.status.success(), "cargo tree: {}", String::from_utf8_lossy(&told.stderr));
    String::from_utf8(told.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// `sam build` builds the functions one by one, `cargo local` all at once. Only with the same features everywhere are the
/// dependencies compiled once, rather than once more for every function.
#[test]
fn every_function_compiles_its_dependencies_with_the_same_features() {
    let together = compiled(&FUNCTIONS);
    for function in FUNCTIONS {
        let alone = compiled(&[function]);
        let differing: Vec<&String> = alone.difference(&together).collect();
        assert!(
            differing.is_empty(),
            "built alone, {function} compiles {differing:?} with other features than the functions together: \
             switch the same features on for all of them, in the workspace's Cargo.toml"
        );
    }
}

/// cargo-lambda sets `panic = "abort"` unless the profile says otherwise; then one panicking record would end the function, and
/// the whole batch with it.
#[test]
fn a_panic_unwinds_in_the_functions_that_are_deployed() {
    let manifest: toml::Value = toml::from_str(&std::fs::read_to_string(checkout().join("Cargo.toml")).unwrap()).unwrap();
    let panic = manifest["profile"]["release"].get("panic").and_then(toml::Value::as_str);
    assert_eq!(panic, Some("unwind"), "say panic = \"unwind\" in [profile.release]");
}
