//! Deletion: whatever the container does, at the end the OCI runtime has forgotten it, its process is gone, and its
//! exit is recorded. Also cleans up after a create that failed.

use super::Pod;
use super::calls::{Outcome, send_signal};
use crate::monitor::cgroup;
use crate::monitor::connection::ReplyTo;
use crate::monitor::container::{Container, Deletion, Phase};
use crate::monitor::invocation::{ExitStatus, Invocation, Purpose};
use crate::monitor::protocol::{Answer, Failure};

impl Pod {
    pub(super) fn delete(&mut self, reply: ReplyTo, id: &str) -> Outcome {
        if !self.containers.contains_key(id) {
            return Ok(Some(Answer::Done));
        }
        self.begin_deletion(id, Some(reply));
        Ok(None)
    }

    /// Joins the deletion under way, or begins one. A create or start that hangs is killed first.
    pub(super) fn begin_deletion(&mut self, id: &str, reply: Option<ReplyTo>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let joined = container.deletion.is_some();
        container.deletion.get_or_insert_default().waiters.extend(reply);
        let running = container.invocation.and_then(|number| self.invocations.get_mut(&number));
        match running {
            Some(invocation) if !matches!(invocation.purpose, Purpose::Delete(_)) => invocation.abort(),
            Some(_) => {}
            None if joined => {}
            None => self.run_deletion(id),
        }
        self.abort_execs(id);
    }

    /// Kills what is there and runs the OCI runtime's delete.
    pub(super) fn run_deletion(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Phase::Alive(process) = &container.phase {
            let _ended_already = send_signal(&process.pidfd, libc::SIGKILL);
        }
        cgroup::kill_all(&container.spec.cgroup.directories);
        let runtime = container.spec.runtime.clone();
        let launched =
            self.invoke(&runtime, Purpose::Delete(id.to_owned()), (id, &["delete", "--force"]), None);
        if let Err(failure) = launched {
            self.deletion_ran(id, Err(failure));
        }
    }

    pub(super) fn delete_finished(&mut self, id: &str, mut invocation: Invocation, status: ExitStatus) {
        let outcome = match status {
            ExitStatus::Code(0) => Ok(()),
            _ => Err(invocation.failure(status, "")),
        };
        self.deletion_ran(id, outcome);
    }

    fn deletion_ran(&mut self, id: &str, outcome: Result<(), Failure>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.invocation = None;
        let Some(deletion) = &mut container.deletion else { return };
        let forgotten = !container.spec.runtime.root.join(id).exists();
        match outcome {
            Err(failure) if !forgotten && deletion.failed_create.is_none() => {
                self.deletion_failed(id, failure)
            }
            _ => {
                deletion.runtime_done = true;
                self.settle_deletion(id);
            }
        }
    }

    fn deletion_failed(&mut self, id: &str, failure: Failure) {
        let Some(deletion) = self.containers.get_mut(id).and_then(|container| container.deletion.take())
        else {
            return;
        };
        for waiter in deletion.waiters {
            self.reply(Some(waiter), Err(failure.clone()));
        }
        if let Some(ending) = &mut self.ending {
            ending.failures.push(format!("deleting container {id}: {failure}"));
            self.close_outputs(id);
            self.containers.remove(id);
            self.end_if_empty();
        }
    }

    /// Finishes a deletion once the OCI runtime is done and the main process is gone and recorded.
    pub(super) fn settle_deletion(&mut self, id: &str) {
        let settled = |container: &Container| {
            container.deletion.as_ref().is_some_and(|deletion| deletion.runtime_done)
                && matches!(container.phase, Phase::Creating | Phase::Ended { .. })
        };
        if !self.containers.get(id).is_some_and(settled) {
            return;
        }
        self.close_outputs(id);
        let deletion = self.containers.remove(id).and_then(|container| container.deletion);
        let Deletion { waiters, failed_create, .. } = deletion.unwrap_or_default();
        if let Some((reply, failure)) = failed_create {
            self.reply(reply, Err(failure));
        }
        for waiter in waiters {
            self.reply(Some(waiter), Ok(Answer::Done));
        }
        self.end_if_empty();
    }
}
