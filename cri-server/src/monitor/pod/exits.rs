//! Reaping, and what the end of each kind of child means. The exit of a container's main process is made safe on
//! disk first (by a forked child: a slow disk must not hold up the other containers' output) and told then.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::WaitOptions;

use super::{Child, Pod};
use crate::host::fs::{Durability, write_atomic};
use crate::monitor::clock::now_ns;
use crate::monitor::container::{Container, Phase, Process};
use crate::monitor::invocation::{ExitStatus, InvocationId, Purpose};
use crate::monitor::output::Pump;
use crate::monitor::protocol::Event;
use crate::monitor::record::{ExitRecord, RECORD_VERSION};
use crate::monitor::{cgroup, sys};

/// How long streams are read on when something keeps them open after the main process.
const LINGER: Duration = Duration::from_secs(2);
/// Ends of unknown children that are remembered while the OCI runtime runs.
const MAX_UNCLAIMED: usize = 4096;

impl Pod {
    pub(super) fn reap(&mut self) {
        let mut drained = [0; 1024];
        while let Ok(1..) = rustix::io::read(&self.signals, &mut drained) {}
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some(status) = ExitStatus::of(status) {
                self.child_ended(pid.as_raw_nonzero().get(), status);
            }
        }
        if self.invocations.is_empty() {
            self.unclaimed.clear();
        }
    }

    fn child_ended(&mut self, pid: i32, status: ExitStatus) {
        match self.children.remove(&pid) {
            Some(Child::Invocation(number)) => self.invocation_ended(number, status),
            Some(Child::Main(id)) => self.main_ended(&id, status),
            Some(Child::Exec(id)) => self.exec_exited(&id, status),
            Some(Child::Saver(id)) => self.saver_ended(&id, status),
            Some(Child::Init) => {
                self.init = None;
                self.announce(Event::PodInitExited);
            }
            None => {
                self.unclaimed.insert(pid, status);
                if self.unclaimed.len() > MAX_UNCLAIMED {
                    self.unclaimed.pop_first();
                }
            }
        }
    }

    fn invocation_ended(&mut self, number: InvocationId, status: ExitStatus) {
        let Some(invocation) = self.invocations.remove(&number) else { return };
        match invocation.purpose.clone() {
            Purpose::Create(id) => self.create_finished(&id, invocation, status),
            Purpose::Start(id) => self.start_finished(&id, invocation, status),
            Purpose::Delete(id) => self.delete_finished(&id, invocation, status),
            Purpose::Exec(id) => self.exec_finished(&id, invocation, status),
        }
    }

    fn main_ended(&mut self, id: &str, status: ExitStatus) {
        if let Some(container) = self.containers.get_mut(id)
            && let Phase::Alive(Process { pid, created_at_ns, start, .. }) = container.phase
        {
            self.record_exit(id, (pid, created_at_ns, start.at()), status);
        }
    }

    /// Reads what the main process has written, judges its end, and has the record saved.
    pub(super) fn record_exit(
        &mut self,
        id: &str,
        (pid, created_at_ns, started_at_ns): (i32, i64, Option<i64>),
        status: ExitStatus,
    ) {
        // First of all: the cgroup may go at any moment.
        let oom_kills = self.settle_oom_kills(id);
        self.drain_outputs(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        let spec = &container.spec;
        let record = ExitRecord {
            version: RECORD_VERSION,
            container_id: spec.id.clone(),
            pod_id: self.id.clone(),
            identity: spec.identity.clone(),
            created_at_ns,
            started_at_ns,
            finished_at_ns: now_ns().max(started_at_ns.unwrap_or(created_at_ns)),
            exit_code: status.code(),
            signal: status.signal(),
            oom_killed: oom_kills > 0 && status != ExitStatus::Code(0),
            oom_kills,
            boot_id: self.boot_id.clone(),
        };
        let (bytes, path) = (record.encode(), spec.exit_file.clone());
        container.phase = Phase::Ending { pid, record };
        let saver = sys::fork_into(0);
        if saver.as_ref().is_ok_and(|side| *side == sys::Fork::Child) {
            save_and_exit(&path, &bytes);
        }
        // What only follows from the end is done while the record is being saved.
        (container.stdin, container.terminal) = (None, None);
        if container.spec.kill_cgroup {
            cgroup::kill_all(&container.spec.cgroup.directories);
        }
        match saver {
            Ok(sys::Fork::Parent(saver)) => drop(self.children.insert(saver, Child::Saver(id.to_owned()))),
            _not_forked => self.saver_ended(id, ExitStatus::Code(i32::from(!save(&path, &bytes)))),
        }
    }

    pub(super) fn settle_oom_kills(&mut self, id: &str) -> u64 {
        let Some(container) = self.containers.get(id) else { return 0 };
        let alive = |container: &&Container| matches!(container.phase, Phase::Alive(_));
        let others = self.containers.values().filter(alive).filter(|other| other.spec.id.as_str() != id);
        let counter = container.spec.cgroup.pod_oom_counter.as_deref();
        self.kills.settle(container.oom_kills(), counter, others.map(Container::oom_kills))
    }

    fn drain_outputs(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let mut ended = Vec::new();
        let mut open = Vec::new();
        for mut output in std::mem::take(&mut container.outputs) {
            match output.drain(&mut self.scratch, &mut container.log, &mut container.attachments) {
                Pump::End => ended.push(output),
                _ => open.push(output),
            }
        }
        container.log.flush();
        container.linger_until = (!open.is_empty()).then(|| Instant::now() + LINGER);
        container.outputs = open;
        self.detach_lagging(id);
        for output in ended {
            self.close_output(id, output);
        }
    }

    fn saver_ended(&mut self, id: &str, status: ExitStatus) {
        let saved = status == ExitStatus::Code(0);
        let Some(container) = self.containers.get_mut(id) else { return };
        let Phase::Ending { record, .. } = &container.phase else { return };
        let record = record.clone();
        container.phase = Phase::Ended { record: record.clone(), saved };
        if !saved {
            eprintln!("the exit record of container {id} could not be written");
        }
        self.announce(Event::ContainerExited(record));
        self.settle_deletion(id);
    }
}

fn save(path: &Path, bytes: &[u8]) -> bool {
    match write_atomic(path, bytes, 0o600, Durability::Synced) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("writing the exit record {}: {error}", path.display());
            false
        }
    }
}

/// The whole life of the forked child that saves a record.
fn save_and_exit(path: &Path, bytes: &[u8]) -> ! {
    let _keeps_a_little_longer = sys::close_from(3);
    sys::exit_now(i32::from(!save(path, bytes)))
}
