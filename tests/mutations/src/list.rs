//! The mutations there are: patches with a few lines of their own before them.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};

/// Where the patches are.
pub(crate) const FOLDER: &str = "tests/mutations";

/// One guard that is taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mutation {
    /// Its file's name, without `.patch`.
    pub(crate) name: String,
    /// Which guarantee the guard is for.
    pub(crate) guarantee: String,
    /// What the guard is.
    pub(crate) guard: String,
    /// The tests that have to fail without it.
    pub(crate) fails: Vec<Named>,
}

/// A test by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Named {
    /// Its package.
    pub(crate) package: String,
    /// `lib`, or the integration test it is in.
    pub(crate) target: String,
    /// Its path there.
    pub(crate) path: String,
}

/// All of them, by their names.
pub(crate) fn read(root: &Path) -> Result<Vec<Mutation>> {
    let folder = root.join(FOLDER);
    let mut mutations = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "patch") {
            continue;
        }
        let name = path.file_stem().and_then(|name| name.to_str()).context("a patch's name is no text")?;
        let text = fs::read_to_string(&path)?;
        mutations.push(parse(name, &text).with_context(|| format!("{name}.patch"))?);
    }
    mutations.sort_by(|a, b| a.name.cmp(&b.name));
    ensure!(!mutations.is_empty(), "there are no patches in {}", folder.display());
    Ok(mutations)
}

/// Reads the lines before the patch: `Guarantee: …`, `Guard: …` and a `Fails: PACKAGE TARGET PATH` for each test.
fn parse(name: &str, text: &str) -> Result<Mutation> {
    let (head, _) = text.split_once("\n---").context("it has no patch: a line that begins with `---`")?;
    let mut mutation = Mutation { name: name.to_owned(), guarantee: String::new(), guard: String::new(), fails: Vec::new() };
    for line in head.lines().filter(|line| !line.is_empty()) {
        match line.split_once(": ") {
            Some(("Guarantee", guarantee)) => guarantee.clone_into(&mut mutation.guarantee),
            Some(("Guard", guard)) => guard.clone_into(&mut mutation.guard),
            Some(("Fails", test)) => match test.split(' ').collect::<Vec<_>>().as_slice() {
                [package, target, path] => mutation.fails.push(Named {
                    package: (*package).to_owned(),
                    target: (*target).to_owned(),
                    path: (*path).to_owned(),
                }),
                _ => bail!("a test is named as `Fails: PACKAGE TARGET PATH`: {test}"),
            },
            _ => bail!("before the patch stand Guarantee, Guard and Fails, each once, Fails more often: {line}"),
        }
    }
    let is_whole = !mutation.guarantee.is_empty() && !mutation.guard.is_empty() && !mutation.fails.is_empty();
    ensure!(is_whole, "Guarantee, Guard and Fails have to be there");
    Ok(mutation)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::PathBuf, process::Command};

    use super::*;
    use crate::root;

    /// Where a package is.
    fn folder_of(package: &str) -> PathBuf {
        let root = root();
        match package {
            "tokentill" => root.join("shared"),
            "till" => root.join("cli"),
            "handlers" | "simulator" | "local" => root.join("tests").join(package),
            function => root.join("functions").join(function),
        }
    }

    /// Whether a test of that name stands where it is said to.
    fn is_there(test: &Named) -> bool {
        let mut modules: Vec<&str> = test.path.split("::").collect();
        let name = modules.pop().unwrap();
        modules.retain(|module| *module != "tests");
        let modules: PathBuf = modules.iter().collect();
        let folder = folder_of(&test.package);
        let files = if test.target == "lib" {
            vec![folder.join("src").join(&modules).with_extension("rs"), folder.join("src").join(&modules).join("mod.rs")]
        } else {
            let tests = folder.join("tests");
            vec![tests.join(&test.target).join(&modules).with_extension("rs"), tests.join(&test.target).with_extension("rs")]
        };
        let is_in = |file: &PathBuf| fs::read_to_string(file).is_ok_and(|source| source.contains(&format!("fn {name}(")));
        files.iter().any(is_in)
    }

    #[test]
    fn every_patch_still_applies_to_what_is_there() {
        let root = root();
        for mutation in read(&root).unwrap() {
            let patch = format!("{FOLDER}/{}.patch", mutation.name);
            let applied = Command::new("git").args(["apply", "--check", &patch]).current_dir(&root).output().unwrap();
            assert!(applied.status.success(), "{patch}: {}", String::from_utf8_lossy(&applied.stderr));
        }
    }

    #[test]
    fn every_test_that_a_patch_names_is_there() {
        for mutation in read(&root()).unwrap() {
            for test in &mutation.fails {
                assert!(is_there(test), "{}: {test:?}", mutation.name);
            }
        }
    }

    /// A change to a test, or to two guards at once, would prove nothing.
    #[test]
    fn a_patch_changes_one_file_of_the_product() {
        let root = root();
        for mutation in read(&root).unwrap() {
            let text = fs::read_to_string(root.join(FOLDER).join(format!("{}.patch", mutation.name))).unwrap();
            let changed: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("+++ b/")).collect();
            let [file] = changed.as_slice() else { panic!("{} changes {changed:?}", mutation.name) };
            let is_product = ["shared/src/", "functions/", "cli/src/"].iter().any(|folder| file.starts_with(folder));
            assert!(is_product || *file == "template.yaml", "{}: {file}", mutation.name);
            let source = fs::read_to_string(root.join(file)).unwrap();
            let tests_begin = source.lines().position(|line| line == "#[cfg(test)]").unwrap_or(usize::MAX);
            for place in text.lines().filter_map(|line| line.strip_prefix("@@ -")) {
                let line: usize = place.split([',', ' ']).next().unwrap().parse().unwrap();
                assert!(line < tests_begin, "{} changes a test", mutation.name);
            }
        }
    }

    #[test]
    fn every_guarantee_has_a_guard_that_is_taken_out() {
        let read = read(&root()).unwrap();
        let covered: BTreeSet<&str> = read.iter().map(|mutation| mutation.guarantee.as_str()).collect();
        let missing: Vec<String> =
            (1..=12).map(|n| format!("G{n}")).filter(|guarantee| !covered.contains(guarantee.as_str())).collect();
        assert_eq!(missing, Vec::<String>::new());
        assert_eq!(covered.len(), 12, "a guarantee is one of G1 to G12: {covered:?}");
    }

    /// The table of the page: for each guarantee its guards, and what has to fail without each.
    fn table(mutations: &[Mutation]) -> String {
        let mut rows: Vec<(u32, String)> = mutations
            .iter()
            .map(|mutation| {
                let tests: BTreeSet<String> = mutation.fails.iter().map(shown).collect();
                let tests = tests.into_iter().collect::<Vec<_>>().join(", ");
                let number = mutation.guarantee.trim_start_matches('G').parse().unwrap();
                (number, format!("| {} | {} | `{}` | {tests} |", mutation.guarantee, mutation.guard, mutation.name))
            })
            .collect();
        rows.sort();
        let rows = rows.into_iter().map(|(_, row)| row + "\n").collect::<String>();
        format!("\n| | guard | taken out by | without it fails |\n|---|---|---|---|\n{rows}")
    }

    /// A test as the page names it.
    fn shown(test: &Named) -> String {
        let (module, name) = test.path.rsplit_once("::").unwrap_or((&test.target, &test.path));
        let module = module.trim_end_matches("::tests");
        let of = match (test.package.as_str(), test.target.as_str()) {
            ("tokentill", "lib") => module.to_owned(),
            ("handlers", "it") => format!("it::{module}"),
            (package, _) => format!("{package}::{module}"),
        };
        format!("`{of}`: `{name}`")
    }

    #[test]
    fn the_guarantees_page_shows_every_guard_that_is_taken_out() {
        const MARKS: [&str; 2] = ["<!-- mutations: begin -->", "<!-- mutations: end -->"];
        let root = root();
        let page = root.join("docs/guarantees.md");
        let text = fs::read_to_string(&page).unwrap();
        let (before, rest) = text.split_once(MARKS[0]).unwrap();
        let (shown, after) = rest.split_once(MARKS[1]).unwrap();
        let expected = table(&read(&root).unwrap());
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::write(&page, format!("{before}{}{expected}{}{after}", MARKS[0], MARKS[1])).unwrap();
        } else {
            assert_eq!(shown, expected, "UPDATE_EXPECT=1 cargo test -p mutations writes it");
        }
    }

    #[test]
    fn a_patch_says_what_it_is_for() {
        let text = "Guarantee: G1\nGuard: a signature\nFails: tokentill lib a::b\nFails: handlers it c::d\n\n--- a/x\n+++ b/x\n";
        let mutation = parse("no-signature", text).unwrap();
        assert_eq!((mutation.guarantee.as_str(), mutation.guard.as_str()), ("G1", "a signature"));
        assert_eq!(mutation.fails[1].path, "c::d");
        for wrong in
            ["Guarantee: G1\n\n--- a/x\n", "Guarantee: G1\nGuard: x\nFails: a::b\n\n--- a\n", "Guard\n\n--- a\n", "--- a"]
        {
            assert!(parse("x", wrong).is_err(), "{wrong}");
        }
    }
}
