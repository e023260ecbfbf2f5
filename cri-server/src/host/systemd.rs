//! Units of systemd that no OCI runtime takes care of: slices of pods, and scopes that one has left. Asked by systemd's
//! own program, seldom: a container's start and end need none of this.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// The program's exit code where a unit is not loaded.
const NOT_LOADED: i32 = 5;
/// Where systemd keeps properties that were set until the next boot, a directory for each unit.
const PROPERTIES: &str = "/run/systemd/system.control";
/// Longest time for one request; units of containers have nothing left to wait for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Starts a slice, which makes its cgroup. One that is active is fine.
pub async fn start(unit: &str) -> Result<(), String> {
    ask(&["start", "--", unit]).await
}

/// Stops a unit with all that is in it, and forgets what was set for it. One that is not there is fine.
pub async fn stop(unit: &str) -> Result<(), String> {
    ask(&["stop", "--", unit]).await?;
    let set = Path::new(PROPERTIES).join(format!("{unit}.d"));
    match tokio::fs::remove_dir_all(&set).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("remove {}: {error}", set.display()))
        }
        _removed => Ok(()),
    }
}

/// Has systemd keep these limits, each `Property=value`: it would else set its own when it reads its files anew.
pub async fn set_properties(unit: &str, properties: &[String]) -> Result<(), String> {
    let mut arguments = vec!["set-property", "--runtime", "--", unit];
    arguments.extend(properties.iter().map(String::as_str));
    ask(&arguments).await
}

#[allow(clippy::disallowed_methods, reason = "host/ starts programs")]
async fn ask(arguments: &[&str]) -> Result<(), String> {
    let mut command = tokio::process::Command::new("systemctl");
    command.args(["--quiet", "--no-ask-password"]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let said = format!("systemctl {}", arguments.join(" "));
    match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) if output.status.code() == Some(NOT_LOADED) => Ok(()),
        Ok(Ok(output)) => {
            Err(format!("{said}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
        }
        Ok(Err(error)) => Err(format!("{said}: {error}")),
        Err(_) => Err(format!("{said}: took longer than {} s", PATIENCE.as_secs())),
    }
}
