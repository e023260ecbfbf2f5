//! Devices that a vendor describes: specification files of the Container Device Interface, as the kubelet's device
//! plugins and drivers of resource claims have them injected.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::case::Case;
use e2e::cri::{container, refused};
use e2e::daemon::{Endpoint, Setup};
use e2e::image::set::BUSYBOX;
use proto::cri as api;
use serde_json::{Value, json};
use tonic::Code;

async fn open(test: &str) -> Result<Option<Case>> {
    // Codes and configuration are ours; the reference has others.
    Case::open(test, Setup::of(Endpoint::Berth)).await
}

/// A sleeping container that asks for devices by field.
fn asking(name: &str, devices: &[&str]) -> api::ContainerConfig {
    let devices = devices.iter().map(|&name| api::CdiDevice { name: name.to_owned() });
    api::ContainerConfig { cdi_devices: devices.collect(), ..container(name, BUSYBOX, &["sleep", "100000"]) }
}

/// A specification file with one device `berth.example/log=<name>`.
fn specification(name: &str, edits: &Value) -> String {
    let device = json!({"name": name, "containerEdits": edits});
    json!({"cdiVersion": "0.7.0", "kind": "berth.example/log", "devices": [device]}).to_string()
}

/// What a vendor of accelerators writes, with the node's /dev/kmsg as the accelerator.
fn vendor_file(top: &Path) -> String {
    let top = top.display();
    format!(
        "cdiVersion: 0.7.0\nkind: berth.example/log\n\
         containerEdits:\n  env: [VENDOR=berth]\n  \
         hooks:\n  - {{hookName: createRuntime, path: /usr/bin/touch, args: [touch, {top}/hooked]}}\n\
         devices:\n- name: \"0\"\n  containerEdits:\n    env: [LOG=zero]\n    \
         deviceNodes: [{{path: /dev/berth-log, hostPath: /dev/kmsg, permissions: w, fileMode: 0620}}]\n    \
         mounts: [{{hostPath: {top}/driver, containerPath: /driver, options: [ro]}}]\n    \
         additionalGids: [4242]\n\
         - name: \"1\"\n  containerEdits: {{env: [LOG=one]}}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_what_its_devices_specifications_say() -> Result<()> {
    let Some(case) = open("a_container_has_what_its_devices_specifications_say").await? else {
        return Ok(());
    };
    let (cri, top) = (&case.cri, case.node.dirs().top().to_owned());
    let [etc, _] = case.node.dirs().cdi();
    std::fs::create_dir_all(top.join("driver"))?;
    std::fs::write(top.join("driver/version"), "7\n")?;
    std::fs::create_dir_all(&etc)?;
    std::fs::write(etc.join("vendor.yaml"), vendor_file(&top))?;
    let pod = cri.pod("accelerated");
    let pod_id = cri.run_pod(&pod).await?;

    let id = cri.launch(&pod_id, &asking("field", &["berth.example/log=0"]), &pod).await?;
    ensure!(top.join("hooked").exists(), "the hook did not run");
    let look = "echo $VENDOR $LOG; stat -c '%t:%T %a' /dev/berth-log; cat /driver/version; id -G";
    let seen = cri.shell(&id, look).await?;
    ensure!(seen == "berth zero\n1:b 620\n7\n0 4242\n", "{seen}");
    // Opened, not written to: it is the node's own log.
    cri.shell(&id, ": > /dev/berth-log").await.context("open the device as it is permitted")?;
    let reading = cri.exec(&id, &["head", "-c1", "/dev/berth-log"], 10).await?;
    ensure!(reading.code != 0 && reading.stderr.contains("not permitted"), "{reading:?}");
    let writing = cri.exec(&id, &["touch", "/driver/version"], 10).await?;
    ensure!(writing.stderr.contains("Read-only"), "{writing:?}");
    let user = cri.status(&id).await?.user.and_then(|user| user.linux).context("no user")?;
    ensure!(user.supplemental_groups.contains(&4242), "{user:?}");

    let mut annotated = asking("annotated", &[]);
    annotated
        .annotations
        .insert("cdi.k8s.io/driver".into(), "berth.example/log=0,berth.example/log=1".into());
    let id = cri.launch(&pod_id, &annotated, &pod).await?;
    let seen = cri.shell(&id, "echo $VENDOR $LOG; ls /dev/berth-log").await?;
    ensure!(seen == "berth one\n/dev/berth-log\n", "{seen}");

    let id = cri.launch(&pod_id, &container("plain", BUSYBOX, &["sleep", "100000"]), &pod).await?;
    let seen = cri.shell(&id, "echo $VENDOR $LOG; ls /dev/berth-log /driver 2>&1 | wc -l").await?;
    ensure!(seen == "\n2\n", "{seen}");
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_count_as_they_are_when_a_container_asks() -> Result<()> {
    let Some(case) = open("files_count_as_they_are_when_a_container_asks").await? else { return Ok(()) };
    let cri = &case.cri;
    let [etc, run] = case.node.dirs().cdi();
    let pod = cri.pod("reloading");
    let pod_id = cri.run_pod(&pod).await?;
    let device = "berth.example/log=a";
    let create = |name: &str, device: &str| {
        let config = asking(name, &[device]);
        let pod = pod.clone();
        let pod_id = pod_id.clone();
        async move { cri.create(&pod_id, &config, &pod).await }
    };
    let value = |name: &'static str| async move {
        let id = create(name, device).await?;
        cri.start(&id).await?;
        cri.shell(&id, "echo $FROM").await
    };
    refused("no directory", create("c", device).await, Code::NotFound, device)?;
    refused("no name", create("c", "log0").await, Code::InvalidArgument, "log0")?;

    std::fs::create_dir_all(&etc)?;
    std::fs::create_dir_all(&run)?;
    let file = |value: &str| specification("a", &json!({"env": [format!("FROM={value}")]}));
    std::fs::write(etc.join("a.json"), file("etc"))?;
    ensure!(value("first").await? == "etc\n");
    std::fs::write(run.join("a.json"), file("run"))?;
    ensure!(value("second").await? == "run\n");

    std::fs::write(run.join("b.json"), file("other"))?;
    refused("two files", create("c", device).await, Code::FailedPrecondition, "b.json")?;
    std::fs::remove_file(run.join("b.json"))?;
    std::fs::write(run.join("a.json"), &file("run")[..30])?;
    ensure!(value("third").await? == "etc\n");
    std::fs::remove_file(etc.join("a.json"))?;
    refused("a torn file", create("c", device).await, Code::NotFound, "a.json")?;

    let absent = specification("a", &json!({"deviceNodes": [{"path": "/dev/berth-absent"}]}));
    std::fs::write(run.join("a.json"), absent)?;
    refused("no node", create("c", device).await, Code::FailedPrecondition, "/dev/berth-absent")?;
    cri.end_pod(&pod_id).await?;
    case.close()
}
