//! The OCI runtime, as a program. The monitor runs it; the daemon does only where the monitor is gone.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

/// How to call an OCI runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OciRuntime {
    /// Name of the runtime handler.
    pub name: String,
    /// The program.
    pub path: PathBuf,
    /// Its global arguments.
    pub args: Vec<String>,
    /// Its state directory.
    pub root: PathBuf,
}

impl OciRuntime {
    /// Deletes what the runtime still knows of the container `id`; nothing known is success.
    #[allow(clippy::disallowed_methods, reason = "host/ starts programs")]
    pub async fn delete(&self, id: &str, deadline: Duration) -> Result<(), String> {
        if !self.root.join(id).exists() {
            return Ok(());
        }
        let mut command = tokio::process::Command::new(&self.path);
        command.arg("--root").arg(&self.root).args(&self.args).args(["delete", "--force", id]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        match tokio::time::timeout(deadline, command.output()).await {
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(_)) if !self.root.join(id).exists() => Ok(()),
            Ok(Ok(output)) => Err(format!(
                "{} delete {id}: {}: {}",
                self.path.display(),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            )),
            Ok(Err(error)) => Err(format!("{} delete {id}: {error}", self.path.display())),
            Err(_) => Err(format!("{} delete {id}: took longer than {} s", self.path.display(), deadline.as_secs())),
        }
    }
}
