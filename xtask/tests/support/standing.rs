//! A lab that stands for a test.

use xtask::lab::{self, LabInfo};

/// A lab that goes away with the test, however it ends.
pub(crate) struct Lab(pub(crate) LabInfo);

impl Lab {
    pub(crate) fn up(name: &str, profile: &str) -> Lab {
        Lab(lab::up(name, profile).unwrap())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        lab::down(&self.0.name).unwrap();
    }
}

impl std::ops::Deref for Lab {
    type Target = LabInfo;
    fn deref(&self) -> &LabInfo {
        &self.0
    }
}

pub(crate) fn address(lab: &LabInfo, pod: &str) -> String {
    lab.pod(pod).unwrap().address.to_string()
}
