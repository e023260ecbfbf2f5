//! Making the packet filter's rules of living attachments again, when somebody removed them.
//!
//! The specification has no verb for it. Berth's own plugins are one program, which reads the records of attachments
//! for that; a network without such a plugin is passed over, and nobody's plugins are called.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Cni;
use super::cache::Record;
use super::chain::successful;
use super::conf::{self, Network};
use super::error::{CniError, Failures, PluginFailure, Verb};
use super::exec::{self, Call};
use crate::model::id::PodId;

/// File name of the program that all of Berth's plugins are links to.
const PROGRAM: &str = "cni-bridge";
/// How long running operations are waited for; new ones wait behind them meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long one run may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How many records are given to one run.
const RECORDS: usize = 256;

impl Cni {
    /// Has lost rules of the pods in `live` made again. Returns how many attachments were looked after.
    ///
    /// Runs alone, so that no rule is made for a pod that is just being detached: while an operation takes long it
    /// answers [`CniError::RepairBusy`].
    pub async fn repair(&self, live: &BTreeSet<PodId>) -> Result<usize, CniError> {
        let alone = tokio::time::timeout(PATIENCE, self.gate.write()).await;
        let _alone = alone.map_err(|_elapsed| CniError::RepairBusy)?;
        let mut records: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
        for entry in self.cache.entries(None)? {
            // Each is read and looked for: other work of this thread goes between.
            tokio::task::yield_now().await;
            let program = entry.record.ok().and_then(|record| self.program_of(&record, live));
            if let Some(program) = program {
                records.entry(program).or_default().push(entry.path);
            }
        }
        let (mut count, mut failures) = (0, Vec::new());
        for (program, records) in records {
            for some in records.chunks(RECORDS) {
                count += some.len();
                failures.extend(self.run_repair(&program, some).await.err());
            }
        }
        if failures.is_empty() { Ok(count) } else { Err(CniError::Repair(Failures(failures))) }
    }

    /// The program that can repair an attachment; `None` where none can, or where it has no living pod of Berth's.
    fn program_of(&self, record: &Record, live: &BTreeSet<PodId>) -> Option<PathBuf> {
        let pod = PodId::try_from(record.container_id.clone()).ok()?;
        let alive = record.berth.is_some()
            && record.result.is_some()
            && live.contains(&pod)
            && self.has_its_namespace(record);
        let network = conf::from_bytes(&record.config).ok().filter(|_| alive)?;
        self.own_program(&network)
    }

    /// What a plugin of the network is a link to, where that is Berth's program.
    fn own_program(&self, network: &Network) -> Option<PathBuf> {
        network.plugins.iter().find_map(|plugin| {
            let found = exec::find(&plugin.kind, &self.runner.bin_dirs).ok()?;
            let program = found.canonicalize().ok()?;
            (program.file_name()? == PROGRAM).then_some(program)
        })
    }

    async fn run_repair(&self, program: &std::path::Path, records: &[PathBuf]) -> Result<(), PluginFailure> {
        let args = std::iter::once("repair".into()).chain(records.iter().map(|path| path.into())).collect();
        let dirs: Vec<_> = self.runner.bin_dirs.iter().map(|dir| dir.as_os_str()).collect();
        let env = vec![("CNI_PATH", dirs.join(":".as_ref()))];
        let call = Call { program: program.to_owned(), args, env, stdin: Vec::new() };
        let deadline = self.runner.deadline.min(DEADLINE);
        let answer = exec::run(call, deadline, &CancellationToken::new()).await;
        answer.and_then(successful).map(drop).map_err(|cause| PluginFailure {
            plugin: PROGRAM.into(),
            verb: Verb::Repair,
            cause,
        })
    }
}
