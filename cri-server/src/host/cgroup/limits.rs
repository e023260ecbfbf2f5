//! Changes the limits of a cgroup that exists: all that are asked for, or none.
//!
//! The files are written here, without the OCI runtime: no program is started, and what was written can be taken
//! back. What the order of writing must be (the kernel refuses some states in between) is decided by pure code.

use std::io;

use super::plan::{Present, Step, Wanted};
use super::{Cgroup, CgroupError, Layout, plan, stats, write};
use crate::host::kept::KeptFiles;

/// Why limits were not changed.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// The kernel takes no such value (invalid argument).
    #[error("{field}: the kernel refuses {value:?}")]
    Refused {
        /// Field of the CRI's LinuxContainerResources.
        field: &'static str,
        /// What was written.
        value: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The container uses more (failed precondition).
    #[error("memory_limit_in_bytes: {limit} is less than the {usage} bytes in use")]
    InUse {
        /// The limit asked for, bytes.
        limit: i64,
        /// Memory in use that cannot simply be had back, bytes.
        usage: u64,
    },
    /// The node has no such controller or file (failed precondition).
    #[error("{field}: this node's cgroups have no {file}")]
    Missing {
        /// Field of the CRI's LinuxContainerResources.
        field: &'static str,
        /// The kernel's file.
        file: String,
    },
    /// What had been written before could not be taken back.
    #[error("{source}, and {} cannot be taken back", left.join(", "), source = source)]
    Half {
        /// Files with the new value.
        left: Vec<String>,
        /// Why the change failed.
        #[source]
        source: Box<LimitError>,
    },
    /// The cgroup cannot be read.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl Cgroup {
    /// Sets the limits that are named; the others stay. On failure all are as they were.
    pub fn limit(&self, wanted: &Wanted<'_>) -> Result<(), LimitError> {
        if !self.exists() {
            return Err(CgroupError::Gone(self.path().clone()).into());
        }
        self.refuse_root()?;
        self.refuse_limit_in_use(wanted)?;
        let present = |controller: &str, file: &str| self.value(controller, file).unwrap_or_default();
        let steps = match self.layout() {
            Layout::V2 { .. } => plan::v2(wanted, &present),
            Layout::V1 { .. } => plan::v1(wanted, &present),
        };
        let mut done = Vec::new();
        for step in &steps {
            match self.take(step) {
                Ok(Some(old)) => done.push((step, old)),
                Ok(None) => {}
                Err(error) => return Err(self.take_back(done, error)),
            }
        }
        Ok(())
    }

    /// Memory in use above a limit would be killed for (v2), or refused after a long search (v1).
    fn refuse_limit_in_use(&self, wanted: &Wanted<'_>) -> Result<(), LimitError> {
        let Some(limit) = wanted.memory.and_then(|memory| memory.limit).filter(|limit| *limit > 0) else {
            return Ok(());
        };
        let usage = self.stats(&KeptFiles::default())?.memory.unwrap_or_default().working_set;
        match usage > limit.unsigned_abs() {
            true => Err(LimitError::InUse { limit, usage }),
            false => Ok(()),
        }
    }

    /// Writes one file; gives what it said before, or nothing where it said the same.
    fn take(&self, step: &Step) -> Result<Option<String>, LimitError> {
        let missing = || LimitError::Missing { field: step.field, file: step.file.clone() };
        let old = match self.value(step.controller, &step.file) {
            Some(old) => old,
            None if step.present == Present::Maybe => return Ok(None),
            None => return Err(missing()),
        };
        if old == step.value {
            return Ok(None);
        }
        let path = self.dir(step.controller).ok_or_else(missing)?.join(&step.file);
        match write(&path, &step.value) {
            Ok(()) => Ok(Some(old)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && step.controller == "memory" => {
                let usage = self.stats(&KeptFiles::default())?.memory.unwrap_or_default().usage;
                Err(LimitError::InUse { limit: step.value.parse().unwrap_or(0), usage })
            }
            Err(source) => Err(LimitError::Refused { field: step.field, value: step.value.clone(), source }),
        }
    }

    fn take_back(&self, done: Vec<(&Step, String)>, error: LimitError) -> LimitError {
        let mut left = Vec::new();
        for (step, old) in done.into_iter().rev() {
            let path = self.dir(step.controller).map(|dir| dir.join(&step.file));
            // An empty list cannot be written where a process is, and was not there where one is.
            let undone = path.is_some_and(|path| old.is_empty() || write(&path, &old).is_ok());
            if !undone {
                left.push(step.file.clone());
            }
        }
        if left.is_empty() { error } else { LimitError::Half { left, source: Box::new(error) } }
    }

    /// What a file says; `None` where it is not there.
    fn value(&self, controller: &str, file: &str) -> Option<String> {
        let text = stats::read(&self.dir(controller)?, file).ok()??;
        Some(text.trim().to_string())
    }
}
