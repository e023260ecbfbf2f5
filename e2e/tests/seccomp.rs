//! What the default filter of system calls refuses, seen from inside a container, and who is not under it.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::case::Case;
use e2e::cri::{container, security};
use e2e::daemon::{Endpoint, Setup};
use e2e::image::set::DENIALS;
use proto::cri as api;
use proto::cri::security_profile::ProfileType;

/// What the default profile refuses: kernel state that containers share.
const REFUSED: [&str; 7] =
    ["af_alg", "af_vsock", "io_uring_setup", "userfaultfd", "keyctl", "add_key", "request_key"];

/// What the container's first process says of each call: its name, and `denied`, `reached` or `absent`.
async fn try_all(
    case: &Case,
    pod_id: &str,
    pod: &api::PodSandboxConfig,
    config: &api::ContainerConfig,
) -> Result<Vec<(String, String)>> {
    let name = config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
    let pod_name = pod.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
    let id = case.cri.launch(pod_id, config, pod).await?;
    let status = case.cri.exited(&id, Duration::from_secs(20)).await?;
    ensure!(status.exit_code == 0, "{name}: {status:?}");
    let log = std::fs::read_to_string(case.cri.log_path(&pod_name, &name))?;
    let said = log.lines().filter_map(|line| line.splitn(4, ' ').nth(3)?.split_once(' '));
    Ok(said.map(|(call, verdict)| (call.to_owned(), verdict.to_owned())).collect())
}

fn profile(kind: ProfileType) -> Option<api::SecurityProfile> {
    Some(api::SecurityProfile { profile_type: kind.into(), localhost_ref: String::new() })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_filter_refuses_what_containers_share() -> Result<()> {
    let test = "the_default_filter_refuses_what_containers_share";
    let Some(mut case) = Case::open(test, Setup::of(Endpoint::Berth)).await? else { return Ok(()) };
    case.cri.pull(DENIALS).await?;
    case.accept_present_state()?;
    let mut pod = case.cri.pod("filtered");
    pod.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    let pod_id = case.cri.run_pod(&pod).await?;

    let mut filtered = container("default", DENIALS, &["/denials"]);
    security(&mut filtered).seccomp = profile(ProfileType::RuntimeDefault);
    // No capability opens them.
    let mut capable = container("capable", DENIALS, &["/denials"]);
    security(&mut capable).seccomp = profile(ProfileType::RuntimeDefault);
    security(&mut capable).capabilities =
        Some(api::Capability { add_capabilities: vec!["ALL".into()], ..Default::default() });
    for config in [filtered, capable] {
        let said = try_all(&case, &pod_id, &pod, &config).await?;
        ensure!(said.first() == Some(&("inet".to_owned(), "reached".to_owned())), "{said:?}");
        let denied = said.iter().filter(|(_, verdict)| verdict == "denied").map(|(call, _)| call.as_str());
        ensure!(denied.eq(REFUSED), "{config:?}: {said:?}");
    }

    let mut unconfined = container("unconfined", DENIALS, &["/denials"]);
    security(&mut unconfined).seccomp = profile(ProfileType::Unconfined);
    let unasked = container("unasked", DENIALS, &["/denials"]);
    let mut privileged = container("privileged", DENIALS, &["/denials"]);
    security(&mut privileged).seccomp = profile(ProfileType::RuntimeDefault);
    security(&mut privileged).privileged = true;
    for config in [unconfined, unasked, privileged] {
        let said = try_all(&case, &pod_id, &pod, &config).await?;
        ensure!(said.len() == 1 + REFUSED.len(), "{said:?}");
        ensure!(said.iter().all(|(_, verdict)| verdict != "denied"), "{config:?}: {said:?}");
    }
    case.cri.end_pod(&pod_id).await?;
    case.close()
}
