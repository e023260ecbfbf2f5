//! Records → CRI messages.

use proto::cri;

use crate::model::container::ContainerState;
use crate::model::sandbox::SandboxState;
use crate::store::container::ContainerRecord;
use crate::store::sandbox::Sandbox;

/// The sandbox as lists show it in that state.
pub fn sandbox_item(sandbox: &Sandbox, state: cri::PodSandboxState) -> cri::PodSandbox {
    let fixed = &sandbox.fixed;
    cri::PodSandbox {
        id: fixed.id.to_string(),
        metadata: fixed.config.metadata.clone(),
        state: state as i32,
        created_at: fixed.created_at,
        labels: fixed.config.labels.clone(),
        annotations: fixed.config.annotations.clone(),
        runtime_handler: fixed.runtime_handler.clone(),
    }
}

/// The sandbox's status.
pub fn sandbox_status(sandbox: &Sandbox) -> cri::PodSandboxStatus {
    let fixed = &sandbox.fixed;
    let mut ips = sandbox.state().ips().to_vec().into_iter();
    let network = cri::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| cri::PodIp { ip }).collect(),
    };
    let options = super::cri_config::namespace_options(&fixed.config);
    cri::PodSandboxStatus {
        id: fixed.id.to_string(),
        metadata: fixed.config.metadata.clone(),
        state: sandbox_state(&sandbox.state()) as i32,
        created_at: fixed.created_at,
        network: Some(network),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace { options: Some(options) }),
        }),
        labels: fixed.config.labels.clone(),
        annotations: fixed.config.annotations.clone(),
        runtime_handler: fixed.runtime_handler.clone(),
    }
}

/// A sandbox's state as the CRI knows it.
pub fn sandbox_state(state: &SandboxState) -> cri::PodSandboxState {
    if state.is_ready() { cri::PodSandboxState::SandboxReady } else { cri::PodSandboxState::SandboxNotready }
}

/// The container as lists show it.
pub fn container_item(record: &ContainerRecord) -> cri::Container {
    cri::Container {
        id: record.id.to_string(),
        pod_sandbox_id: record.pod_id.to_string(),
        metadata: record.config.metadata.clone(),
        image: shown_image(&record.config),
        image_ref: record.image_ref.clone(),
        state: container_state(&record.state) as i32,
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        image_id: record.image_id.clone(),
    }
}

/// The container's status.
pub fn container_status(record: &ContainerRecord) -> cri::ContainerStatus {
    let config = &record.config;
    let mut status = cri::ContainerStatus {
        id: record.id.to_string(),
        metadata: config.metadata.clone(),
        state: container_state(&record.state) as i32,
        created_at: record.created_at,
        started_at: record.state.started_at(),
        image: shown_image(config),
        image_ref: record.image_ref.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: mounts(record),
        log_path: record.log_path.clone(),
        image_id: record.image_id.clone(),
        stop_signal: super::signal::of_number(record.stop_signal) as i32,
        ..Default::default()
    };
    status.resources = Some(cri::ContainerResources { linux: Some(record.resources()), windows: None });
    status.user = record.user.as_ref().map(|user| cri::ContainerUser {
        linux: Some(cri::LinuxContainerUser {
            uid: user.uid.into(),
            gid: user.gid.into(),
            supplemental_groups: user.groups.iter().map(|group| i64::from(*group)).collect(),
        }),
    });
    if let ContainerState::Exited(exit) = &record.state {
        status.finished_at = exit.finished_at;
        status.exit_code = exit.exit_code;
        status.reason = exit.reason.clone();
        status.message = exit.message.clone();
    }
    status
}

/// The image as the user named it: a kubelet asks by id and tells that name beside.
fn shown_image(config: &cri::ContainerConfig) -> Option<cri::ImageSpec> {
    let mut image = config.image.clone()?;
    if !image.user_specified_image.is_empty() {
        image.image.clone_from(&image.user_specified_image);
    }
    Some(image)
}

/// The mounts as they were requested, images with what their names meant then.
fn mounts(record: &ContainerRecord) -> Vec<cri::Mount> {
    let mut mounts = record.config.mounts.clone();
    for image in &record.images {
        if let Some(spec) = mounts.get_mut(image.mount).and_then(|mount| mount.image.as_mut()) {
            spec.image_ref = image.image_id.clone();
        }
    }
    mounts
}

/// The container's state as the CRI knows it.
pub fn container_state(state: &ContainerState) -> cri::ContainerState {
    match state {
        ContainerState::Creating | ContainerState::Created { .. } => cri::ContainerState::ContainerCreated,
        ContainerState::Running { .. } => cri::ContainerState::ContainerRunning,
        ContainerState::Exited(_) => cri::ContainerState::ContainerExited,
    }
}

/// Whether `labels` has every pair of `selector`.
pub fn selects(
    selector: &std::collections::BTreeMap<String, String>,
    labels: &std::collections::BTreeMap<String, String>,
) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The image as lists show it.
pub fn image(image: &crate::image::Image) -> cri::Image {
    let (uid, username) = image_user(&image.config.config.user);
    cri::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid,
        username,
        spec: Some(cri::ImageSpec { image: image.id.to_string(), ..Default::default() }),
        pinned: image.pinned,
    }
}

/// The image's user as the kubelet wants it: a number, or a name that only the container's files resolve.
fn image_user(user: &str) -> (Option<cri::Int64Value>, String) {
    let user = user.split(':').next().unwrap_or_default();
    match user.parse::<i64>() {
        Ok(value) => (Some(cri::Int64Value { value }), String::new()),
        Err(_) if user.is_empty() => (Some(cri::Int64Value { value: 0 }), String::new()),
        Err(_) => (None, user.to_string()),
    }
}
