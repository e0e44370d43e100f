//! Instruction counts: the same on every machine, whatever else runs on it.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cases::{CASES, Case};

/// How many more rounds the second run plays than the first.
const ROUNDS: u32 = 20;
/// How many rounds the first run plays, so that what is only done once is in both.
const BEFORE: u32 = 5;

/// Plays one benchmark so often, in this process.
///
/// # Errors
/// There is none of that name, or it does not work.
pub fn play(name: &str, rounds: u32) -> Result<()> {
    let mut play = Case::named(name)?.prepared()?;
    (0..rounds).try_for_each(|_| play())
}

/// Prints what each benchmark costs: the difference between two runs under Valgrind, by the rounds that one plays more.
///
/// # Errors
/// Valgrind is not there or does not understand the program.
pub fn print_table() -> Result<()> {
    println!("| benchmark | what it does | instructions | of an event |\n|---|---|---|---|");
    for case in CASES {
        let more = counted(case.name, BEFORE + ROUNDS)?.saturating_sub(counted(case.name, BEFORE)?);
        let of_a_round = more / u64::from(ROUNDS);
        let of_an_event = match case.events {
            1 => String::new(),
            events => grouped(of_a_round / u64::from(events)),
        };
        println!("| {} | {} | {} | {of_an_event} |", case.name, case.what, grouped(of_a_round));
    }
    Ok(())
}

fn counted(name: &str, rounds: u32) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["play", name, &rounds.to_string()])
        // The functions' log.
        .stdout(Stdio::null())
        .output()
        .context("valgrind does not start; Debian has it in the package of that name")?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} ended with {}:\n{told}", output.status);
    let line = told.lines().find(|line| line.contains("I refs:") || line.contains("I   refs:"));
    let count = line.and_then(|line| line.rsplit(' ').next()).context("valgrind counted nothing")?;
    Ok(count.replace(',', "").parse()?)
}

/// A number with commas.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let mut groups = Vec::new();
    let (head, mut rest) = digits.split_at(first);
    if !head.is_empty() {
        groups.push(head);
    }
    while !rest.is_empty() {
        let (group, others) = rest.split_at(3);
        groups.push(group);
        rest = others;
    }
    groups.join(",")
}
