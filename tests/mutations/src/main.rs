//! Takes guards out of the product, one at a time, and sees to it that a test notices.
//!
//! Each `tests/mutations/NAME.patch` removes one guard; its first lines say which guarantee the guard is for, what it is, and
//! which tests have to fail without it. What is changed is a copy under `target/mutations`, never the files that are worked on.
//! A test that fails for another reason proves nothing: it has to pass without the patch, and a patch that does not compile
//! counts as a failure of the patch.

mod copy;
mod list;
mod trial;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use copy::Copy;
use list::Mutation;
use trial::{Verdict, passes, tried};

/// Takes guards out, one at a time, and sees to it that the tests which it names fail.
#[derive(Debug, Parser)]
struct Arguments {
    /// Say what there is, and try nothing.
    #[arg(long, conflicts_with_all = ["all", "rotate"])]
    list: bool,
    /// Try all of them.
    #[arg(long, conflicts_with = "rotate")]
    all: bool,
    /// Try so many, chosen by the commit's hash, so that all come round.
    #[arg(long, value_name = "N", conflicts_with = "names")]
    rotate: Option<usize>,
    /// Try these, by the names of their files without `.patch`.
    names: Vec<String>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let root = root();
    let all = list::read(&root)?;
    if arguments.list {
        for mutation in &all {
            println!("{:<44} {:<4} {}", mutation.name, mutation.guarantee, mutation.guard);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = choose(&all, &arguments, &root)?;
    println!("{} of {} mutations", chosen.len(), all.len());

    let copy = Copy::of(&root)?;
    passes(&copy, &chosen)?;
    let mut missed = 0_usize;
    println!("\n{:<44} {:<4} {:>6}  noticed", "mutation", "", "s");
    for mutation in &chosen {
        let (verdict, took) = tried(&copy, mutation)?;
        println!("{:<44} {:<4} {:>6}  {verdict}", mutation.name, mutation.guarantee, took.as_secs());
        if !matches!(verdict, Verdict::Noticed { .. }) {
            missed = missed.saturating_add(1);
        }
    }
    println!("\n{} tried, {missed} not noticed", chosen.len());
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The repository's root.
fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).unwrap_or(own).to_owned()
}

fn choose<'a>(all: &'a [Mutation], arguments: &Arguments, root: &Path) -> Result<Vec<&'a Mutation>> {
    if arguments.all {
        return Ok(all.iter().collect());
    }
    if let Some(count) = arguments.rotate {
        let first = place_of(&commit(root)?, all.len())?;
        return Ok(all.iter().cycle().skip(first).take(count.min(all.len())).collect());
    }
    ensure!(!arguments.names.is_empty(), "say which: --list shows them, --all tries all, --rotate 3 tries three");
    let named = |name: &String| {
        let found = all.iter().find(|mutation| mutation.name == *name);
        found.with_context(|| format!("there is no mutation {name}; --list shows them"))
    };
    arguments.names.iter().map(named).collect()
}

/// The commit that is worked on.
fn commit(root: &Path) -> Result<String> {
    let answer = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(root).output().context("git cannot be run")?;
    ensure!(answer.status.success(), "the mutations rotate by the commit's hash, and this is no Git repository");
    Ok(String::from_utf8(answer.stdout)?)
}

/// Where in the list a commit begins.
fn place_of(commit: &str, count: usize) -> Result<usize> {
    let digits = commit.get(..8).context("a commit's hash is longer")?;
    let number = usize::try_from(u32::from_str_radix(digits, 16)?)?;
    Ok(number.checked_rem(count).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_begin_all_over_the_list() {
        let begins = |commit: &str| place_of(commit, 50).unwrap();
        assert_eq!((begins("00000031e0"), begins("00000032ff")), (49, 0));
        let places: std::collections::BTreeSet<usize> =
            (0..2_000_u32).map(|n| begins(&format!("{:08x}", n.wrapping_mul(2_654_435_761)))).collect();
        assert_eq!(places.len(), 50);
    }
}
