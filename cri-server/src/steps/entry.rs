//! Who starts commands in a container, and what the monitor has to know for it.

use crate::daemon::Daemon;
use crate::error::Error;
use crate::host::oci::OciRuntime;
use crate::monitor::protocol::Entry;
use crate::spec::seccomp::{Requested, requested};
use crate::spec::{Commands, ExecBy, HandlerFacts};
use crate::store::container::ContainerRecord;

/// How the monitor starts commands in the container, unless the OCI runtime does.
pub fn into(
    daemon: &Daemon,
    record: &ContainerRecord,
    (oci, facts): (&OciRuntime, &HandlerFacts),
) -> Result<Option<Entry>, Error> {
    let by = facts.commands.choose(oci.exec).ok_or_else(|| Error::FailedPrecondition {
        kind: "runtime handler",
        id: oci.name.clone(),
        reason:
            "exec = \"runtime\": its OCI runtime would start commands outside of the container's confinement"
                .into(),
    })?;
    // runc adds to such a filter what the file does not say, for calls that are newer than all that it names.
    let is_own_filter = matches!(requested(&record.config)?, Requested::Localhost(_));
    match by {
        ExecBy::Runtime => Ok(None),
        ExecBy::Monitor if is_own_filter && oci.exec.is_none() && facts.commands == Commands::ByBoth => {
            Ok(None)
        }
        ExecBy::Monitor => {
            let cgroups = daemon.cgroup(&record.cgroups_path)?.dirs();
            Ok(Some(Entry { cgroups, masks: facts.masked_equal }))
        }
    }
}
