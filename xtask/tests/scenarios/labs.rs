//! The labs that stand: one per profile, one scenario at a time in each.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Mutex;

use anyhow::{Result, bail};
use xtask::interrupt;
use xtask::lab::{self, LabInfo};

#[derive(Default)]
pub(crate) struct Labs(Mutex<Standing>);

#[derive(Default)]
struct Standing {
    by_profile: BTreeMap<String, LabInfo>,
    turn: Option<File>,
}

impl Labs {
    /// Do `work` in the lab of that profile; after a failure the next one gets a new lab.
    pub(crate) fn with<T>(&self, profile: &str, work: impl FnOnce(&LabInfo) -> Result<T>) -> Result<T> {
        // Poisoned by a panic in `work`: the lab is replaced below, so nothing is half done.
        let poisoned = self.0.is_poisoned();
        self.0.clear_poison();
        let mut standing = self.0.lock().unwrap_or_else(|poison| poison.into_inner());
        if interrupt::received().is_some() {
            bail!("interrupted");
        }
        if standing.turn.is_none() {
            standing.turn = Some(lab::turn()?);
        }
        let lab = match standing.by_profile.remove(profile) {
            Some(lab) if !poisoned => lab,
            _ => new(profile)?,
        };
        let result = work(&lab);
        match result.is_ok() {
            true => drop(standing.by_profile.insert(profile.to_owned(), lab)),
            false => lab::down(&lab.name)?,
        }
        result
    }

    /// Takes the lab of that profile down; the next scenario gets a new one.
    pub(crate) fn retire(&self, profile: &str) -> Result<()> {
        let mut standing = self.0.lock().unwrap_or_else(|poison| poison.into_inner());
        standing.by_profile.remove(profile).map_or(Ok(()), |lab| lab::down(&lab.name))
    }

    pub(crate) fn down(&self) -> Result<()> {
        let mut standing = self.0.lock().unwrap_or_else(|poison| poison.into_inner());
        let mut result = Ok(());
        while let Some((_, lab)) = standing.by_profile.pop_first() {
            result = result.and(lab::down(&lab.name));
        }
        result
    }
}

/// Never one that an earlier, killed run left: that may have faults planted.
fn new(profile: &str) -> Result<LabInfo> {
    let name = format!("sc-{profile}");
    lab::down(&name)?;
    lab::up(&name, profile)
}
