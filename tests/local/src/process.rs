//! Processes that end with us: each child leads a process group, which is ended as a whole.

use std::fs::TryLockError;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, getpgid, kill_process, kill_process_group, test_kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};

use crate::progress::poll;

/// Which process: its id and when it began, so that a reused id is never mistaken for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pid: i32,
    began: String,
}

impl Identity {
    /// The running process of that id, if there is one.
    fn of(pid: i32) -> Option<Self> {
        began(pid).map(|began| Self { pid, began })
    }

    /// This very process.
    pub(crate) fn own() -> Option<Self> {
        i32::try_from(std::process::id()).ok().and_then(Self::of)
    }

    pub(crate) fn is_running(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// What a file written by [`Identity::write`] names, if it can be read.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, serde_json::to_vec(self)?).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Ends the process group this process leads: politely, then by force.
    pub(crate) async fn end_group(&self) -> Result<()> {
        let Some(group) = Pid::from_raw(self.pid) else { return Ok(()) };
        for signal in [Signal::TERM, Signal::KILL] {
            if kill_process_group(group, signal).is_err() {
                return Ok(());
            }
            let gone = poll("a process group to end", Duration::from_secs(4), Duration::from_millis(20), || async {
                Ok(test_kill_process_group(group).is_err().then_some(()))
            });
            if gone.await.is_ok() {
                return Ok(());
            }
        }
        bail!("process group {} does not end", self.pid)
    }
}

/// When a process began, as the system tells it; `None` if there is no such process, or only its remains.
#[cfg(target_os = "linux")]
fn began(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets and may itself hold blanks and brackets.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let ticks = fields.nth(18)?;
    (state != "Z").then(|| ticks.to_owned())
}

/// When a process began, as the system tells it; `None` if there is no such process, or only its remains.
#[cfg(not(target_os = "linux"))]
fn began(pid: i32) -> Option<String> {
    let told = std::process::Command::new("ps").args(["-o", "stat=,lstart=", "-p", &pid.to_string()]).output().ok()?;
    let line = String::from_utf8(told.stdout).ok()?;
    let (state, began) = line.trim().split_once(char::is_whitespace)?;
    (!state.starts_with('Z')).then(|| began.trim().to_owned())
}

/// Every process whose environment has this variable with this value, `NAME=value`, as far as the system shows it.
#[cfg(target_os = "linux")]
fn with_variable(variable: &str) -> Result<Vec<i32>> {
    let has_it = |pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
    };
    let processes = std::fs::read_dir("/proc").context("cannot read /proc")?;
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(ids.filter(has_it).collect())
}

/// Every process whose environment has this variable with this value, `NAME=value`, as far as the system shows it.
#[cfg(not(target_os = "linux"))]
fn with_variable(variable: &str) -> Result<Vec<i32>> {
    // BSD's `e` shows the environment behind the command; a value without blanks is one word of it.
    let told = std::process::Command::new("ps").args(["axeww", "-o", "pid=,command="]).output().context("cannot run ps")?;
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    let has_it = |line: &&str| line.split_whitespace().any(|word| word == variable);
    Ok(text.lines().filter(has_it).filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect())
}

/// A child and every process it starts, as one process group that ends with this value.
#[derive(Debug)]
struct Group {
    child: Child,
    identity: Identity,
}

impl Group {
    fn start(command: &mut Command) -> Result<Self> {
        let child = command.process_group(0).spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).context("it ended at once")?;
        let identity = Identity::of(pid).context("it ended at once")?;
        Ok(Self { child, identity })
    }

    async fn end(&mut self) -> Result<()> {
        // Waited for at the same time: an ended leader that nobody waits for still counts as a member of its group.
        let (ended, _) = tokio::join!(self.identity.end_group(), self.child.wait());
        ended
    }
}

impl Drop for Group {
    /// The way out on Ctrl-C, on an error and in a failing test.
    fn drop(&mut self) {
        if let Some(group) = Pid::from_raw(self.identity.pid) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// A child that runs for as long as we do.
#[derive(Debug)]
pub(crate) struct Service {
    name: &'static str,
    group: Group,
    identity_file: PathBuf,
    log: PathBuf,
}

impl Service {
    /// Starts a command, its output going to a log file.
    pub(crate) fn start(name: &'static str, command: &mut Command, identity_file: PathBuf, log: PathBuf) -> Result<Self> {
        let output = std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command
            // The pipe is never written: it breaks when we end, however we end, and the child watches it.
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output);
        let group = Group::start(command).with_context(|| format!("cannot start {name}; see {}", log.display()))?;
        group.identity.write(&identity_file)?;
        Ok(Self { name, group, identity_file, log })
    }

    /// Fails when the process has ended by itself.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.group.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}:\n{}", self.name, tail(&self.log)),
        }
    }

    /// Kills, by force and alone, every process of this service that has this variable with this value, `NAME=value`.
    pub(crate) async fn kill_members(&self, variable: &str) -> Result<()> {
        let group = Pid::from_raw(self.group.identity.pid);
        // Only what this very service started: another stack on this machine has functions of the same names.
        let is_ours = |pid: &i32| Pid::from_raw(*pid).is_some_and(|pid| getpgid(Some(pid)).ok() == group);
        let processes = poll("a process to be running", Duration::from_secs(6), Duration::from_millis(20), || async {
            let found: Vec<Identity> = with_variable(variable)?.into_iter().filter(is_ours).filter_map(Identity::of).collect();
            Ok((!found.is_empty()).then_some(found))
        })
        .await
        .with_context(|| format!("looking for {variable} among the processes of {}", self.name))?;
        for process in &processes {
            match kill_process(Pid::from_raw(process.pid).context("no process")?, Signal::KILL) {
                // One that ended by itself meanwhile.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        poll("killed processes to be gone", Duration::from_secs(4), Duration::from_millis(20), || async {
            Ok((!processes.iter().any(Identity::is_running)).then_some(()))
        })
        .await
    }

    pub(crate) async fn end(mut self) -> Result<()> {
        self.group.end().await
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.identity_file);
    }
}

/// Runs a command to its end; what it says goes to a log, whose end is shown if it fails.
pub(crate) async fn run(name: &str, command: &mut Command, log: &Path) -> Result<()> {
    let identity_file = log.with_extension("pid");
    if let Some(left_over) = Identity::read(&identity_file).filter(Identity::is_running) {
        // It would go on building, and take away under our hands what we build.
        left_over.end_group().await?;
    }
    let output = std::fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let mut group = Group::start(command).with_context(|| format!("cannot start {name}"))?;
    group.identity.write(&identity_file)?;
    let status = group.child.wait().await?;
    let _ = std::fs::remove_file(&identity_file);
    anyhow::ensure!(status.success(), "{name} ended with {status}; {} ends with:\n{}", log.display(), tail(log));
    Ok(())
}

/// Waits until no other process holds the lock. It is let go when the file is dropped, however we end.
pub(crate) async fn lock(path: &Path) -> Result<std::fs::File> {
    let file = std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut told = false;
    loop {
        // Tried again and again rather than waited for, so that Ctrl-C is still heard.
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                if !told {
                    eprintln!("local: waiting for another local stack, which holds {}", path.display());
                    told = true;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
    }
}

/// The last lines of a log, for an error message.
fn tail(log: &Path) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(25)).map(|line| format!("  | {line}\n")).collect()
}
