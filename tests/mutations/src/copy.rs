//! A copy of the tracked files, in which guards are taken out and put back.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::list::{FOLDER, Mutation};

/// Left out: no mutation names a test of it, and it would be built for each, since its program is called like the handlers'.
const LEFT_OUT: &str = "tests/simulator/tests";

/// The copy. Files that are the same as before are left alone, so that only what a patch touches is compiled anew.
#[derive(Debug)]
pub(crate) struct Copy {
    root: PathBuf,
    /// Where it is.
    pub(crate) tree: PathBuf,
    /// The builds' folder, the repository's own: what comes from registries is built once.
    pub(crate) target: PathBuf,
}

impl Copy {
    /// Makes it, or brings it up to date.
    pub(crate) fn of(root: &Path) -> Result<Self> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |folder| root.join(folder));
        let copy = Self { root: root.to_owned(), tree: target.join("mutations/tree"), target };
        let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output().context("git cannot be run")?;
        ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
        let listed = String::from_utf8(listed.stdout)?;
        let files: BTreeSet<PathBuf> =
            listed.split_terminator('\0').map(PathBuf::from).filter(|file| !file.starts_with(LEFT_OUT)).collect();
        for file in &files {
            copy.restore(file)?;
        }
        remove_others(&copy.tree, &copy.tree, &files)?;
        Ok(copy)
    }

    /// Makes a file of the copy what it is in the repository, if it is not.
    fn restore(&self, file: &Path) -> Result<()> {
        let (from, to) = (self.root.join(file), self.tree.join(file));
        // A file that was deleted and is still tracked is in neither.
        let present = if from.is_file() { fs::read(&from)? } else { return Ok(()) };
        if fs::read(&to).is_ok_and(|copied| copied == present) {
            return Ok(());
        }
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&to, present).with_context(|| format!("cannot write {}", to.display()))
    }

    /// Does something with a guard taken out of the copy, and puts it back.
    pub(crate) fn without<T>(&self, mutation: &Mutation, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let patch = self.root.join(FOLDER).join(format!("{}.patch", mutation.name));
        let mut git = Command::new("git");
        git.arg("apply").arg(&patch).current_dir(&self.tree);
        // Else it would take the repository around the copy for the one to patch.
        git.env("GIT_CEILING_DIRECTORIES", self.tree.parent().unwrap_or(&self.tree));
        let applied = git.output().context("git cannot be run")?;
        ensure!(applied.status.success(), "{} does not apply: {}", mutation.name, String::from_utf8_lossy(&applied.stderr));
        let done = work();
        let changed = fs::read_to_string(&patch)?;
        for file in changed.lines().filter_map(|line| line.strip_prefix("+++ b/")) {
            self.restore(Path::new(file))?;
        }
        done
    }
}

/// Removes what is in the copy and no longer in the repository.
fn remove_others(tree: &Path, folder: &Path, files: &BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(tree, &path, files)?;
        } else if !path.strip_prefix(tree).is_ok_and(|file| files.contains(file)) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
