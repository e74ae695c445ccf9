//! Raw data of benches: kept in `target/bench`, one file per run.
//!
//! What measures may run in a VM, from which only its output comes back: its last line is the raw data, as one JSON object.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{kube::clock, proc, workspace_root};

const FOLDER: &str = "target/bench";

/// What a bench wrote to its standard output, taken apart: what is for people, and its raw data.
///
/// # Errors
/// Its last line is no JSON object.
pub(super) fn split(output: &str) -> Result<(&str, Value)> {
    let text = output.trim_end();
    let (shown, last) = text.rsplit_once('\n').unwrap_or(("", text));
    let data: Value =
        serde_json::from_str(last).with_context(|| format!("the bench's last line is no JSON: {last}"))?;
    Ok((shown, data))
}

/// Keeps the raw data of a run: with the commit of this clone, the date, and where it was measured. Says where it lies.
///
/// # Errors
/// The file cannot be written, or this is no git clone.
pub(super) fn keep(bench: &str, place: &str, kernel: &str, data: &Value) -> Result<()> {
    let git = |words: &[&str]| proc::quiet(Command::new("git").current_dir(workspace_root()).args(words));
    let date = clock::now();
    let whole = json!({
        "bench": bench,
        "commit": git(&["rev-parse", "HEAD"])?.trim(),
        // What was measured is then not quite that commit.
        "changed": !git(&["status", "--porcelain"])?.is_empty(),
        "date": date,
        "place": place,
        "kernel": kernel,
        "data": data,
    });
    let plain: String = date.chars().filter(char::is_ascii_alphanumeric).collect();
    let path: PathBuf = workspace_root().join(FOLDER).join(format!("{bench}-{kernel}-{plain}.json"));
    let folder = workspace_root().join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let text = serde_json::to_string_pretty(&whole).context("write down raw data")?;
    fs::write(&path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    proc::say(&format!("bench {bench}: raw data in {}", path.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_data() {
        let (shown, data) = split("a table\nof two lines\n{\"rounds\":[1,2]}\n").unwrap();
        assert_eq!((shown, &data["rounds"][1]), ("a table\nof two lines", &json!(2)));
        assert_eq!(split("{}").unwrap().0, "");
        assert!(split("a table\n").unwrap_err().to_string().contains("is no JSON: a table"));
    }
}
