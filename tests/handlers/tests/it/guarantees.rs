//! `docs/guarantees.md` names tests; they are there.

use std::{collections::BTreeSet, path::Path};

const PAGE: &str = include_str!("../../../../docs/guarantees.md");

/// Every function of the repository's own code that stands behind `#[test]` or `#[tokio::test]`, and those in `proptest!`.
fn tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut folders: Vec<_> = ["shared", "functions", "cli", "tests"].iter().map(|folder| root.join(folder)).collect();
    let mut names = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = std::fs::read_to_string(path).unwrap();
                let tests = source.split("test]").skip(1).filter_map(|rest| rest.split_once("fn ")?.1.split_once('('));
                names.extend(tests.map(|(name, _)| name.to_owned()));
            }
        }
    }
    names
}

/// What the page names as a test: several words in a code span.
fn named(text: &str) -> BTreeSet<&str> {
    let spans = text.split('`').skip(1).step_by(2);
    let is_name = |span: &&str| {
        span.matches('_').count() >= 3 && span.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    spans.filter(is_name).collect()
}

#[test]
fn every_test_that_the_guarantees_name_is_there() {
    let (tests, named) = (tests(), named(PAGE));
    assert!(named.len() > 100, "the page names {} tests", named.len());
    let missing: Vec<&&str> = named.iter().filter(|name| !tests.contains(**name)).collect();
    assert!(missing.is_empty(), "no tests of these names: {missing:#?}");
}

/// What the field has met: ten cases of the webhook path, sixteen of the usage path, six of time and operation.
#[test]
fn every_fault_case_has_a_test() {
    for case in 1..=32 {
        let rows: Vec<&str> = PAGE.lines().filter(|line| line.starts_with(&format!("| {case} | "))).collect();
        assert_eq!(rows.len(), 1, "case {case} has one row");
        assert!(!named(rows[0]).is_empty(), "case {case} names no test");
    }
}
