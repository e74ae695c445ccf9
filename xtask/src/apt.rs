//! Debian's packages, fetched by apt itself: with the machine's mirror and proxy settings and checked signatures, but with
//! folders of its own, so that the machine's package lists, sources and packages stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::proc;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What has not come by then will not come.
const LIMIT: Duration = Duration::from_secs(300);

/// apt with a source list, package lists and a download cache of its own. To it no package is installed.
pub(crate) struct Apt {
    folder: PathBuf,
    /// Why the lists of a suite could not be had, if so.
    failed: Vec<String>,
}

/// What of apt this machine lacks.
pub(crate) fn lack() -> Option<String> {
    let programs = ["apt-get", "apt-cache", "dpkg-deb"];
    let missing = programs.into_iter().find(|program| !proc::on_path(program))?;
    Some(format!("`{missing}` is not installed: not a Debian system"))
}

impl Apt {
    /// Everything lies in `folder`; packages come from `main` of the `suites`, whose lists are fetched now. A suite that the
    /// mirror does not have is said so, and left out.
    ///
    /// # Errors
    /// This is no Debian system, its apt knows no Debian mirror, or the lists of no suite can be fetched.
    pub(crate) fn new(folder: &Path, suites: &[&str]) -> Result<Self> {
        if let Some(lack) = lack() {
            bail!(lack);
        }
        let targets = proc::quiet(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(SITE)|$(LABEL)",
            "Created-By: Packages",
        ]))?;
        let mirror = debian_mirror(&targets).context("apt's sources name no Debian mirror")?;
        let signed = if Path::new(KEYRING).is_file() { format!("[signed-by={KEYRING}] ") } else { String::new() };
        for sub in ["state/lists/partial", "cache/archives/partial"] {
            let path = folder.join(sub);
            fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        }
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))
        };
        write("status", "")?;
        let mut apt = Self { folder: folder.to_owned(), failed: Vec::new() };
        let mut lines = String::new();
        for suite in suites {
            let line = format!("deb {signed}{mirror} {suite} main\n");
            write("sources.list", &line)?;
            // By itself a list that cannot be fetched is a warning, and the old one is kept, or none.
            let options = ["-o", "APT::Update::Error-Mode=any", "-o", "APT::Get::List-Cleanup=false"];
            match apt.run("apt-get", &[&["update", "-q"], &options[..]].concat()) {
                Ok(_) => lines.push_str(&line),
                Err(error) => apt.failed.push(format!("{suite}: {error:#}")),
            }
        }
        if lines.is_empty() {
            bail!("read the package lists: {}", apt.failed.join("\n"));
        }
        apt.failed.iter().for_each(|failed| proc::say(&format!("apt: without suite {failed}")));
        write("sources.list", &lines)?;
        Ok(apt)
    }

    /// What could not be looked at, to be added to an error message.
    pub(crate) fn without(&self) -> String {
        self.failed.iter().map(|failed| format!("\nnot looked at: suite {failed}")).collect()
    }

    /// Runs `apt-get` or `apt-cache`; files that it is told to `download` arrive in the folder.
    ///
    /// # Errors
    /// It fails, or takes longer than five minutes.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let option = |key: &str, path: &str| format!("{key}={}", self.folder.join(path).display());
        let options = [
            option("Dir::State", "state"),
            option("Dir::Cache", "cache"),
            option("Dir::Etc::SourceList", "sources.list"),
            option("Dir::State::status", "status"),
            "Dir::Etc::SourceParts=-".to_owned(),
            "Acquire::Languages=none".to_owned(),
            // Nor the lists that desktop software has apt fetch along.
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            // The user `_apt` may not enter root's cache folder.
            "APT::Sandbox::User=root".to_owned(),
        ];
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.folder).env("LC_ALL", "C");
        for option in &options {
            command.args(["-o", option]);
        }
        proc::quiet_within(&mut command, LIMIT)
    }

    /// Fetches `packages` of `suite` and all that they depend on; the paths of the `.deb` files.
    ///
    /// # Errors
    /// As [`Apt::run`]; or a package or dependency does not exist.
    pub(crate) fn fetch(&self, suite: &str, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let archives = self.folder.join("cache/archives");
        self.run("apt-get", &["clean"])?;
        let mut arguments = vec!["install", "-q", "-y", "--download-only", "--no-install-recommends", "-t", suite];
        arguments.extend(packages);
        self.run("apt-get", &arguments).with_context(|| format!("fetch {}{}", packages.join(" "), self.without()))?;
        let mut files = fs::read_dir(&archives)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>())
            .with_context(|| format!("list {}", archives.display()))?;
        files.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
        files.sort();
        Ok(files)
    }
}

/// The mirror among lines of `SITE|LABEL`. Where no list was fetched yet, apt knows no label and leaves the placeholder.
fn debian_mirror(targets: &str) -> Option<&str> {
    let sites = || targets.lines().filter_map(|line| line.split_once('|'));
    let labelled = sites().find(|(_, label)| *label == "Debian");
    let named = || sites().find(|(site, _)| site.trim_end_matches('/').ends_with("/debian"));
    labelled.or_else(named).map(|(site, _)| site)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirror_by_label_else_by_path() {
        let fetched = "http://mirror/x-security|Debian-Security\nhttp://mirror/x|Debian\nhttp://other/debian|Other\n";
        assert_eq!(debian_mirror(fetched), Some("http://mirror/x"));
        let never_fetched = "http://m/debian-security|$(LABEL)\nhttp://m/debian|$(LABEL)\n";
        assert_eq!(debian_mirror(never_fetched), Some("http://m/debian"));
        assert_eq!(debian_mirror("http://m/ubuntu|Ubuntu\n"), None);
    }
}
