//! How far an object has come, as those hear of it who listen to events.

use super::container::ContainerState;
use super::sandbox::SandboxState;

/// Stages in the order in which they are reached; each has an event, but the first. None is reached twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Being made: may still be undone without anybody having heard of it.
    #[default]
    New,
    /// Made.
    Created,
    /// Its process runs; for a sandbox, that it is ready.
    Started,
    /// Its process has ended; for a sandbox, that it is not ready any more.
    Stopped,
    /// Gone.
    Deleted,
}

/// Every stage with an event.
const TOLD: [Stage; 4] = [Stage::Created, Stage::Started, Stage::Stopped, Stage::Deleted];

impl Stage {
    /// Where a container in `state` is.
    pub fn of_container(state: &ContainerState) -> Self {
        match state {
            ContainerState::Creating => Self::New,
            ContainerState::Created { .. } => Self::Created,
            ContainerState::Running { .. } => Self::Started,
            ContainerState::Exited(_) => Self::Stopped,
        }
    }

    /// Where a sandbox in `state` is.
    pub fn of_sandbox(state: &SandboxState) -> Self {
        match state {
            SandboxState::Creating => Self::New,
            SandboxState::Ready { .. } => Self::Started,
            SandboxState::NotReady { .. } => Self::Stopped,
        }
    }

    /// Stages passed on the way to `reached`, this one excluded. Nothing is told of what was undone in its making.
    pub fn passed(self, reached: Self) -> impl Iterator<Item = Self> {
        let undone = self == Self::New && reached == Self::Deleted;
        TOLD.into_iter().filter(move |stage| !undone && self < *stage && *stage <= reached)
    }
}

#[cfg(test)]
mod tests {
    use super::Stage::*;
    use super::*;

    #[test]
    fn every_stage_is_passed_once_and_in_order() {
        let check = |from: Stage, to: Stage, expect: &[Stage]| {
            assert_eq!(from.passed(to).collect::<Vec<_>>(), expect, "{from:?} to {to:?}");
        };
        check(New, Created, &[Created]);
        check(Created, Started, &[Started]);
        // An end that is known before the answer to the start.
        check(Created, Stopped, &[Started, Stopped]);
        check(Stopped, Started, &[]);
        check(Started, Started, &[]);
        check(Started, Deleted, &[Stopped, Deleted]);
        check(New, Deleted, &[]);
        check(New, New, &[]);
    }
}
