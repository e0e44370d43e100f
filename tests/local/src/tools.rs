//! The Python tools: found, installed once into `target/local/venv`, found again.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::place::{checkout, local_folder};
use crate::process;
use crate::progress::step;

const OLDEST_PYTHON: (u32, u32) = (3, 10);
const CANDIDATES: [&str; 6] = ["python3", "python3.13", "python3.12", "python3.11", "python3.10", "python"];

/// The tools' virtual environment.
#[derive(Debug, Clone)]
pub struct Tools {
    folder: PathBuf,
}

impl Tools {
    /// The tools, installed if they are not, or not as `tests/local/requirements.txt` says.
    ///
    /// # Errors
    /// No Python of at least 3.10 on this machine, or pip could not install.
    pub async fn ready() -> Result<Self> {
        let folder = local_folder();
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let tools = Self { folder: folder.join("venv") };

        // Several test programs may arrive here at once; the first installs, the others wait.
        let _lock = process::lock(&folder.join("venv.lock")).await?;

        let requirements = checkout().join("tests/local/requirements.txt");
        let text = std::fs::read(&requirements).with_context(|| format!("cannot read {}", requirements.display()))?;
        let wanted = hex::encode(Sha256::digest(&text));
        let stamp = tools.folder.join("installed");
        if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) && tools.python().exists() {
            return Ok(tools);
        }

        let python = find_python()?;
        if tools.folder.exists() {
            std::fs::remove_dir_all(&tools.folder).context("cannot remove the old target/local/venv")?;
        }
        step("installing the Python tools into target/local/venv (once; 100 MB to load, 1 GB on disk)", async {
            let log = folder.join("venv.log");
            let mut make = tokio::process::Command::new(&python);
            make.args(["-m", "venv"]).arg(&tools.folder);
            process::run("python -m venv (Debian has it in the package python3-venv)", &mut make, &log).await?;
            let mut install = tokio::process::Command::new(tools.python());
            // No resolving: the file holds every package the tools need, each with its hashes.
            install
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"])
                .arg("--requirement")
                .arg(&requirements);
            process::run("pip install", &mut install, &log).await
        })
        .await?;
        std::fs::write(&stamp, wanted).context("cannot write target/local/venv/installed")?;
        Ok(tools)
    }

    /// The virtual environment's Python interpreter.
    #[must_use]
    pub fn python(&self) -> PathBuf {
        self.program("python")
    }

    /// One of the tools' programs.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }

    /// A search path on which the tools come first: SAM finds cargo-lambda there, and cargo-lambda its linker.
    ///
    /// # Errors
    /// The present `PATH` cannot be taken apart.
    pub fn search_path(&self) -> Result<OsString> {
        let present = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(self.folder.join("bin")).chain(std::env::split_paths(&present));
        std::env::join_paths(folders).context("PATH cannot be extended")
    }
}

/// The tools' Python interpreter, installed if need be: for tests that hold us against official clients.
///
/// # Errors
/// As [`Tools::ready`].
pub async fn python() -> Result<PathBuf> {
    Ok(Tools::ready().await?.python())
}

fn find_python() -> Result<PathBuf> {
    let mut seen = Vec::new();
    for candidate in CANDIDATES {
        match version_of(Path::new(candidate)) {
            Ok(version) if version >= OLDEST_PYTHON => return Ok(PathBuf::from(candidate)),
            Ok((major, minor)) => seen.push(format!("{candidate} is {major}.{minor}")),
            Err(_) => {}
        }
    }
    let seen = if seen.is_empty() { "there is none on the PATH".to_owned() } else { seen.join(", ") };
    bail!("`cargo local` needs Python 3.10 or newer ({seen}). Install it, then run this again.")
}

fn version_of(python: &Path) -> Result<(u32, u32)> {
    let told = Command::new(python).args(["-c", "import sys; print(*sys.version_info[:2])"]).output()?;
    ensure!(told.status.success(), "no answer");
    let text = String::from_utf8(told.stdout)?;
    let (major, minor) = text.trim().split_once(' ').context("no version")?;
    Ok((major.parse()?, minor.parse()?))
}
