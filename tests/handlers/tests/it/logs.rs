//! What the functions print (G10).
//!
//! The handlers print to standard output as they do in Lambda. The one place where all of that can be read is another process, so
//! this runs every other test of this binary in one, with its output uncaptured, and looks through it.

use std::{collections::BTreeSet, process::Command};

use serde_json::Value;

use crate::{
    samples::{BODY_MARK, EMAIL, SERVICE_TOKEN, WEBHOOK_SECRET},
    sell::STRIPE_KEY,
};

#[test]
fn no_secret_signature_address_or_body_is_ever_printed() {
    let mut everything_else = Command::new(std::env::current_exe().unwrap());
    // The longest tables of orders and crashes, and great loads, print nothing that their shorter relatives do not.
    let skipped = ["--skip", "logs::", "--skip", "load::", "--skip", "every_order", "--skip", "at_any_point"];
    let output = everything_else.arg("--nocapture").args(skipped).output().unwrap();
    let printed = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));

    // First that there is something to look through: lines of every function, with errors among them.
    let lines: Vec<Value> = printed.lines().filter_map(|line| serde_json::from_str(&line[line.find('{')?..]).ok()).collect();
    let functions: BTreeSet<&str> = lines.iter().filter_map(|line| line["function"].as_str()).collect();
    assert_eq!(functions, BTreeSet::from(["access", "notifier", "reporter", "sweeper", "sync", "usage", "webhook"]));
    for function in functions {
        let tells = |line: &&Value| line["function"] == function && (line["error"].is_string() || line["errors"].is_array());
        assert!(lines.iter().any(|line| tells(&line)), "{function} prints no error in any test");
    }

    let tokens = ["token_old", "token_new", "token_wrong", "token_sample", STRIPE_KEY];
    // Whoever has the link to one of Stripe's pages acts as the customer there.
    let pages = ["checkout.stripe.com", "billing.stripe.com", "invoice.stripe.com", "app.example.com"];
    let others = [WEBHOOK_SECRET, SERVICE_TOKEN, EMAIL, BODY_MARK, "ada@example.com", "Bearer", "v1="];
    for planted in others.iter().chain(&tokens).chain(&pages) {
        let told: Vec<_> = printed.lines().filter(|line| line.contains(*planted)).collect();
        assert!(told.is_empty(), "{planted}: {told:#?}");
    }
    // The log may say what a webhook secret looks like (`whsec_…`), but none of them.
    let secrets = |line: &&str| line.split("whsec_").skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric()));
    assert_eq!(printed.lines().find(secrets), None);
    // A signature or a hash of a secret: 64 hexadecimal digits in a row.
    for line in printed.lines() {
        let longest = line.split(|c: char| !c.is_ascii_hexdigit()).map(str::len).max().unwrap_or(0);
        assert!(longest < 64, "{line}");
    }
}
