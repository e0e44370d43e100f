//! The tables of docs/performance.md that need no process but this one.

use anyhow::{Result, bail};
use benches::{instructions, stream};

const USAGE: &str = "\
benches instructions      instructions of the small benchmarks, counted by Valgrind
benches stream [EVENTS]   usage through the usage function without its I/O; a million events unless said otherwise
benches play NAME ROUNDS  plays one small benchmark, for a profiler";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["instructions"] => instructions::print_table(),
        ["stream"] => stream::run(1_000_000),
        ["stream", events] => stream::run(events.parse()?),
        ["play", name, rounds] => instructions::play(name, rounds.parse()?),
        _ => bail!("{USAGE}"),
    }
}
