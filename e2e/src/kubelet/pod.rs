//! Manifests of static pods, and how to read what the kubelet shows of them.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::image::set::BUSYBOX;

/// A pod of containers with the test image that are killed a second after they were asked to end.
#[must_use]
pub fn pod(name: &str, containers: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "e2e"},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": containers},
    })
}

/// A container that runs a line of shell.
#[must_use]
pub fn shell(name: &str, line: &str) -> Value {
    json!({"name": name, "image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", line]})
}

/// The kubelet's status of a container of either list.
pub fn container<'a>(pod: &'a Value, name: &str) -> Result<&'a Value> {
    let lists = ["initContainerStatuses", "containerStatuses"].map(|key| pod["status"][key].as_array());
    let mut all = lists.into_iter().flatten().flatten();
    all.find(|status| status["name"] == *name).with_context(|| format!("no status of container {name}"))
}

/// Fails while a container is not ready.
pub fn ready(pod: &Value, name: &str) -> Result<()> {
    ensure!(container(pod, name)?["ready"] == true, "{name} is not ready");
    Ok(())
}

/// The CRI id of a running container.
pub fn running(pod: &Value, name: &str) -> Result<String> {
    let status = container(pod, name)?;
    ensure!(status["state"]["running"].is_object(), "{name} does not run");
    Ok(status["containerID"].as_str().unwrap_or_default().trim_start_matches("berth://").to_owned())
}
