//! What a container gets from the node: directories and files, with the options that a request may name.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::case::Case;
use e2e::cri::{container, refused};
use e2e::daemon::{Endpoint, Setup};
use e2e::image::set::BUSYBOX;
use e2e::image::volumes::ASTRAY;
use e2e::mounts::{SLEEP, Scratch, bind, image_mount, with_mounts};
use proto::cri as api;
use tonic::Code;

async fn open(test: &str) -> Result<Option<Case>> {
    // Codes and words are ours, and some of this the reference does otherwise.
    Case::open(test, Setup::of(Endpoint::Berth)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_of_the_node_are_mounted() -> Result<()> {
    let Some(case) = open("paths_of_the_node_are_mounted").await? else { return Ok(()) };
    let cri = &case.cri;
    let scratch = Scratch::new()?;
    let (one, two) = (scratch.directory("one", "one\n")?, scratch.directory("two", "two\n")?);
    std::os::unix::fs::symlink(&one, scratch.path("link"))?;
    let missing = scratch.path("missing/deep");
    let mounts = vec![
        bind(&scratch.path("link"), "/linked"),
        bind(&two.join("file"), "/single"),
        bind(&missing, "/missing"),
        // Of two on one place the later is seen; the deeper one is seen although it comes first.
        bind(&two, "/twice"),
        bind(&one, "/twice"),
        bind(&two, "/outer/made/inner"),
        bind(&one, "/outer"),
        api::Mount { readonly: true, selinux_relabel: true, ..bind(&one, "/read-only") },
    ];
    let pod = cri.pod("paths");
    let pod_id = cri.run_pod(&pod).await?;
    let id = cri.launch(&pod_id, &with_mounts("c", mounts.clone()), &pod).await?;
    ensure!(cri.status(&id).await?.mounts == mounts);
    let line = "cat /linked/file /single /twice/file /outer/file /outer/made/inner/file /read-only/file";
    let seen = cri.shell(&id, line).await?;
    ensure!(seen == "one\ntwo\none\none\ntwo\none\n", "{seen}");
    cri.shell(&id, "echo new > /missing/file; echo changed > /single").await?;
    ensure!(std::fs::read_to_string(missing.join("file"))? == "new\n");
    ensure!(std::fs::read_to_string(two.join("file"))? == "changed\n");
    let wrote = cri.exec(&id, &["touch", "/read-only/x"], 10).await?;
    ensure!(wrote.code != 0 && wrote.stderr.contains("Read-only"), "{wrote:?}");

    std::os::unix::fs::symlink(scratch.path("nowhere"), scratch.path("dangling"))?;
    let wrong = [
        (bind(&scratch.path("dangling"), "/x"), "host_path"),
        (bind(Path::new("relative"), "/x"), "host_path"),
        (bind(Path::new(""), "/x"), "host_path"),
        (bind(&one, "/proc"), "container_path"),
        (bind(&one, "/proc/self"), "container_path"),
        (bind(&one, "/"), "container_path"),
        (bind(&one, "x"), "container_path"),
    ];
    for (mount, word) in wrong {
        let created = cri.create(&pod_id, &with_mounts("refused", [mount.clone()]), &pod).await;
        refused(&format!("{mount:?}"), created, Code::InvalidArgument, word)?;
    }
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn mount_options_deny_what_they_say() -> Result<()> {
    let Some(case) = open("mount_options_deny_what_they_say").await? else { return Ok(()) };
    let cri = &case.cri;
    let features = cri.runtime.clone().status(api::StatusRequest::default()).await?.into_inner().features;
    ensure!(features.as_ref().is_some_and(|features| features.mount_options), "{features:?}");
    let scratch = Scratch::new()?;
    let directory = scratch.directory("d", "")?;
    std::fs::write(directory.join("run"), "#!/bin/sh\necho it runs\n")?;
    std::fs::set_permissions(directory.join("run"), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let denying = |place: &str, options: &[&str]| api::Mount {
        mount_options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..bind(&directory, place)
    };
    let mounts = [
        bind(&directory, "/plain"),
        denying("/denied", &["noexec", "nosuid", "nodev"]),
        api::Mount { readonly: true, ..denying("/both", &["noexec"]) },
        api::Mount { mount_options: vec!["noexec".into()], ..image_mount(BUSYBOX, "bin", "/image") },
    ];
    let pod = cri.pod("options");
    let pod_id = cri.run_pod(&pod).await?;
    let id = cri.launch(&pod_id, &with_mounts("c", mounts), &pod).await?;
    ensure!(cri.shell(&id, "/plain/run").await? == "it runs\n");
    for program in ["/denied/run", "/both/run", "/image/busybox"] {
        let ran = cri.exec(&id, &["sh", "-c", program], 10).await?;
        ensure!(ran.code == 126, "{program}: {ran:?}");
    }
    let table = cri.shell(&id, "cat /proc/mounts").await?;
    let options_of = |place: &str| {
        let line = table.lines().find(|line| line.split(' ').nth(1) == Some(place))?;
        Some(line.split(' ').nth(3)?.split(',').map(str::to_owned).collect::<Vec<_>>())
    };
    let check_options = |place: &str, expect: &[&str]| -> Result<()> {
        let options = options_of(place).with_context(|| format!("{place} is not mounted"))?;
        ensure!(expect.iter().all(|option| options.iter().any(|o| o == option)), "{place}: {options:?}");
        Ok(())
    };
    check_options("/denied", &["rw", "noexec", "nosuid", "nodev"])?;
    check_options("/both", &["ro", "noexec"])?;
    check_options("/image", &["ro", "noexec"])?;
    for option in ["exec", "ro", "rbind", "size=1", ""] {
        let config = with_mounts("refused", [denying("/d", &[option])]);
        refused(option, cri.create(&pod_id, &config, &pod).await, Code::InvalidArgument, "mount_options")?;
    }
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn links_of_an_image_do_not_lead_mounts_astray() -> Result<()> {
    let Some(mut case) = open("links_of_an_image_do_not_lead_mounts_astray").await? else { return Ok(()) };
    case.cri.pull(ASTRAY).await?;
    case.accept_present_state()?;
    let cri = &case.cri;
    let scratch = Scratch::new()?;
    let directory = scratch.directory("d", "mine\n")?;
    let pod = cri.pod("astray");
    let pod_id = cri.run_pod(&pod).await?;
    for (at, place) in ["/way/berth-mount", "/up/berth-mount", "/way/../up/berth-mount"].iter().enumerate() {
        let mut config = container(&format!("c{at}"), ASTRAY, &SLEEP);
        config.mounts = vec![bind(&directory, place)];
        let id = cri.launch(&pod_id, &config, &pod).await.context(*place)?;
        ensure!(cri.shell(&id, "cat /tmp/berth-mount/file").await? == "mine\n", "{place}");
        ensure!(!Path::new("/tmp/berth-mount").exists(), "{place} was made on the node");
        cri.stop(&id, 0).await?;
        cri.remove(&id).await?;
    }
    cri.end_pod(&pod_id).await?;
    case.close()
}
