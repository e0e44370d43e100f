//! Writes the inputs that the targets begin with into a folder, one file each, for libFuzzer: see `tests/fuzz/run`.

use std::{error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("say which folder the seeds are to be written into")?);
    for (target, _) in fuzz::TARGETS {
        let folder = folder.join(target);
        fs::create_dir_all(&folder)?;
        for (n, seed) in fuzz::seeds(target).iter().enumerate() {
            fs::write(folder.join(n.to_string()), seed)?;
        }
    }
    Ok(())
}
