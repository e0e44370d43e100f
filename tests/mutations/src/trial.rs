//! One trial: the named tests are built and run in the copy, with a guard and without.

use std::{
    collections::BTreeSet,
    fmt,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::{
    copy::Copy,
    list::{Mutation, Named},
};

/// Selected always: with these every dependency is built with the same features as for the whole workspace, so that it is the
/// same build. Cargo runs of them what is named, and nothing else.
const PACKAGES: [&str; 4] = ["tokentill", "handlers", "local", "simulator"];

/// Cargo takes a crate of the copy for the one that is worked on, since it stands at the same place of its workspace: it would leave
/// a mutated one where the next build finds it and believes it to be fresh. Another setting makes another build of the library,
/// and of all that depends on it; this one means nothing (the default is 256).
const OWN_BUILD: &str = "profile.dev.package.tokentill.codegen-units=255";

/// A build and its tests that say nothing for so long are stuck.
const SILENCE: Duration = Duration::from_secs(900);

/// Whether a guard's loss is noticed.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Every test that is named failed.
    Noticed {
        /// How many these are.
        tests: usize,
    },
    /// These passed all the same.
    Missed(Vec<String>),
    /// It could not be tried: most likely the patch does not compile any more.
    Broken(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Noticed { tests: 1 } => f.write_str("by the test it names"),
            Self::Noticed { tests } => write!(f, "by the {tests} tests it names"),
            Self::Missed(passed) => write!(f, "NOT by {}", passed.join(", ")),
            Self::Broken(why) => write!(f, "NOT TRIED: {why}"),
        }
    }
}

/// Sees to it that all named tests pass as things are.
pub(crate) fn passes(copy: &Copy, mutations: &[&Mutation]) -> Result<()> {
    let tests: BTreeSet<&Named> = mutations.iter().flat_map(|mutation| &mutation.fails).collect();
    println!("building and running {} tests as things are", tests.len());
    let ran = run(copy, &tests)?;
    ensure!(ran.failed.is_empty() && ran.is_success, "as things are, these fail: {:?}\n{}", ran.failed, ran.told());
    ensure!(ran.passed == tests.len(), "{} tests are named and {} were run\n{}", tests.len(), ran.passed, ran.told());
    Ok(())
}

/// Takes a guard out and looks which of its tests fail.
pub(crate) fn tried(copy: &Copy, mutation: &Mutation) -> Result<(Verdict, Duration)> {
    let began = Instant::now();
    let tests: BTreeSet<&Named> = mutation.fails.iter().collect();
    let ran = copy.without(mutation, || run(copy, &tests))?;
    let passed: Vec<String> =
        tests.iter().filter(|test| !ran.failed.contains(&test.path)).map(|test| test.path.clone()).collect();
    let verdict = if passed.is_empty() {
        Verdict::Noticed { tests: tests.len() }
    } else if ran.failed.len().saturating_add(ran.passed) == tests.len() {
        Verdict::Missed(passed)
    } else {
        Verdict::Broken(ran.told())
    };
    Ok((verdict, began.elapsed()))
}

/// What Cargo said.
struct Ran {
    is_success: bool,
    passed: usize,
    failed: BTreeSet<String>,
    lines: Vec<String>,
}

impl Ran {
    /// The end of it.
    fn told(&self) -> String {
        let from = self.lines.len().saturating_sub(60);
        self.lines.iter().skip(from).map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

fn run(copy: &Copy, tests: &BTreeSet<&Named>) -> Result<Ran> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["--config", OWN_BUILD, "test", "--locked", "--no-fail-fast", "--color", "never"]).current_dir(&copy.tree);
    let packages: BTreeSet<&str> = tests.iter().map(|test| test.package.as_str()).chain(PACKAGES).collect();
    for package in packages {
        cargo.args(["--package", package]);
    }
    for target in tests.iter().map(|test| test.target.as_str()).collect::<BTreeSet<_>>() {
        if target == "lib" {
            cargo.arg("--lib")
        } else {
            cargo.args(["--test", target])
        };
    }
    cargo.args(["--", "--exact"]).args(tests.iter().map(|test| test.path.as_str()));
    cargo.env("CARGO_TARGET_DIR", &copy.target);
    // Most of a crate stays as it is when one guard is taken out of it.
    cargo.env("CARGO_INCREMENTAL", "1");
    let lines = lines_of(cargo)?;
    read(lines.0, lines.1)
}

/// Runs a command to its end. All it says, and whether it succeeded.
fn lines_of(mut command: Command) -> Result<(Vec<String>, bool)> {
    let (reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    let mut child = command.spawn().context("cargo cannot be run")?;
    // It holds the pipe's other end, which would keep the reading from coming to an end.
    drop(command);
    let (sender, receiver) = mpsc::channel();
    let reading = std::thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    let mut lines = Vec::new();
    loop {
        match receiver.recv_timeout(SILENCE) {
            Ok(line) => lines.push(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                    kill_process_group(group, Signal::KILL)?;
                }
                child.wait()?;
                bail!("nothing was heard for {} seconds: {lines:#?}", SILENCE.as_secs());
            }
        }
    }
    let status = child.wait()?;
    reading.join().map_err(|_| anyhow::anyhow!("what cargo says could not be read"))?;
    Ok((lines, status.success()))
}

/// Reads which tests passed and failed from the ends of the test programs' reports: what tests print may stand anywhere else.
fn read(lines: Vec<String>, is_success: bool) -> Result<Ran> {
    let mut passed = 0_usize;
    let mut failed = BTreeSet::new();
    let mut is_list = false;
    for line in &lines {
        if let Some((_, counts)) = line.split_once("test result: ").and_then(|(_, rest)| rest.split_once(". ")) {
            let count = counts.split(' ').next().unwrap_or_default();
            passed = passed.saturating_add(count.parse().with_context(|| format!("cannot read how many passed: {line}"))?);
        }
        // `failures:` is followed by their names, one a line, the second time it is said.
        match line.strip_prefix("    ").filter(|name| is_list && !name.contains(' ')) {
            Some(name) => {
                failed.insert(name.to_owned());
            }
            None => is_list = line == "failures:",
        }
    }
    Ok(Ran { is_success, passed, failed, lines })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passed_and_failed_is_read_from_the_reports_ends() {
        let text = "running 2 tests\n{\"a\":1}test a::b ... ok\n\nfailures:\n\n---- c::d stdout ----\n\nthread panicked\n\n\nfailures:\n    \
                    c::d\n\ntest result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.1s\n\n\
                    test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.0s";
        let ran = read(text.lines().map(str::to_owned).collect(), false).unwrap();
        assert_eq!((ran.passed, ran.failed), (3, BTreeSet::from(["c::d".to_owned()])));
    }

    #[test]
    fn what_does_not_compile_has_no_reports() {
        let ran = read(vec!["error[E0425]: cannot find value `x` in this scope".to_owned()], false).unwrap();
        assert_eq!((ran.passed, ran.failed.len()), (0, 0));
    }
}
