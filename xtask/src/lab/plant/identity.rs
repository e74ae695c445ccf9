//! What the identity file says of what is planted.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::lab::state;

/// Changes the file's objects; what it said before.
pub(super) fn edit(path: &Path, change: impl FnOnce(&mut Vec<Value>)) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let mut list: Value = serde_norway::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
    change(list["items"].as_array_mut().with_context(|| format!("{}: no list", path.display()))?);
    let changed = serde_norway::to_string(&list).with_context(|| format!("writing down {}", path.display()))?;
    state::write(path, &changed)?;
    Ok(text)
}
