//! What the system tells of a process.

use std::time::Duration;

use anyhow::{Context, Result};

/// The processor time that a process has used so far, all its present threads.
///
/// # Errors
/// There is no such process.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let mut sum_ns: u64 = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).context("no such process")? {
        // A thread may end while we look.
        let Ok(told) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        let ns: u64 = told.split_whitespace().next().context("schedstat is empty")?.parse()?;
        sum_ns = sum_ns.saturating_add(ns);
    }
    Ok(Duration::from_nanos(sum_ns))
}

/// The most memory that a process ever had, in kilobytes.
///
/// # Errors
/// There is no such process.
pub(crate) fn most_memory_kb(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("no such process")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

/// The middle one of several durations.
#[must_use]
pub(crate) fn median(mut of: Vec<Duration>) -> Duration {
    of.sort_unstable();
    of.get(of.len() / 2).copied().unwrap_or_default()
}
