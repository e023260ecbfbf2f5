//! What a container gets from images: other images as volumes, and its own image's `VOLUME`s.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::case::Case;
use e2e::cri::{container, refused, security};
use e2e::daemon::{Endpoint, Setup};
use e2e::image::set::BUSYBOX;
use e2e::image::volumes::{HOSTILE_VOLUMES, MODEL, VOLUMES};
use e2e::mounts::{SLEEP, Scratch, bind, image_mount, with_mounts};
use proto::cri as api;
use tonic::Code;

async fn open(test: &str) -> Result<Option<Case>> {
    // Codes and words are ours, and some of this the reference does otherwise.
    Case::open(test, Setup::of(Endpoint::Berth)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_mounted_as_they_are() -> Result<()> {
    let Some(mut case) = open("images_are_mounted_as_they_are").await? else { return Ok(()) };
    let model = case.cri.pull(MODEL).await?;
    let busybox = case.cri.image(BUSYBOX).await?.context("no test image")?.id;
    let cri = case.cri.clone();
    let pod = cri.pod("images");
    let pod_id = cri.run_pod(&pod).await?;
    let config = with_mounts(
        "user",
        [
            image_mount(MODEL, "", "/model"),
            image_mount(&model, "models/large", "/large"),
            image_mount(BUSYBOX, "", "/tools"),
        ],
    );
    let id = cri.launch(&pod_id, &config, &pod).await?;
    let other = cri.launch(&pod_id, &with_mounts("other", [image_mount(MODEL, "", "/m")]), &pod).await?;

    let mounts = cri.status(&id).await?.mounts;
    let refs: Vec<&str> =
        mounts.iter().filter_map(|mount| Some(mount.image.as_ref()?.image_ref.as_str())).collect();
    ensure!(refs == [model.as_str(), &model, &busybox], "{refs:?}");
    let asked: Vec<api::Mount> = mounts.into_iter().map(without_reference).collect();
    ensure!(asked == config.mounts, "{asked:?}");

    let content = "cat /model/models/small/weights /large/weights; ls /model/models/small";
    ensure!(cri.shell(&id, content).await? == "one\ntwo\nweights\n");
    ensure!(cri.shell(&id, "/tools/bin/busybox echo it runs").await? == "it runs\n");
    for place in ["/model", "/large", "/tools"] {
        let wrote = cri.exec(&id, &["touch", &format!("{place}/x")], 10).await?;
        ensure!(wrote.code != 0 && wrote.stderr.contains("Read-only"), "{place}: {wrote:?}");
    }
    ensure!(cri.shell(&other, "cat /m/models/large/weights").await? == "two\n");

    // Neither the removal of the image nor a new daemon takes anything away.
    cri.remove_image(MODEL).await?;
    ensure!(cri.image(MODEL).await?.is_none());
    ensure!(cri.shell(&id, content).await? == "one\ntwo\nweights\n");
    case.node.kill_daemon()?;
    case.node.start_daemon()?;
    case.cri = case.node.cri().await?;
    let cri = &case.cri;
    ensure!(cri.shell(&id, content).await? == "one\ntwo\nweights\n");
    cri.stop(&other, 0).await?;
    cri.remove(&other).await?;
    ensure!(cri.shell(&id, content).await? == "one\ntwo\nweights\n");
    cri.end_pod(&pod_id).await?;
    case.close()
}

/// The mount as it was asked for.
fn without_reference(mut mount: api::Mount) -> api::Mount {
    if let Some(image) = &mut mount.image {
        image.image_ref.clear();
    }
    mount
}

#[tokio::test(flavor = "multi_thread")]
async fn a_privileged_container_cannot_write_into_an_image() -> Result<()> {
    let Some(case) = open("a_privileged_container_cannot_write_into_an_image").await? else { return Ok(()) };
    let cri = &case.cri;
    let mut pod = cri.pod("privileged");
    pod.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    let pod_id = cri.run_pod(&pod).await?;
    let mut config = with_mounts("privileged", [image_mount(BUSYBOX, "", "/image")]);
    security(&mut config).privileged = true;
    let id = cri.launch(&pod_id, &config, &pod).await?;
    let line = "mount -o remount,rw,bind /image; mount -o remount,rw /image; \
                umount /image; touch /image/escaped; ls -d /image/escaped";
    let tried = cri.exec(&id, &["sh", "-c", line], 10).await?;
    let again = with_mounts("again", [image_mount(BUSYBOX, "", "/image")]);
    let again = cri.launch(&pod_id, &again, &pod).await?;
    let seen = cri.shell(&again, "ls /image").await?;
    ensure!(!seen.contains("escaped"), "{tried:?}: {seen}");
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn sub_paths_lead_inside_the_image_or_fail() -> Result<()> {
    let Some(case) = open("sub_paths_lead_inside_the_image_or_fail").await? else { return Ok(()) };
    let cri = &case.cri;
    cri.pull(MODEL).await?;
    let pod = cri.pod("sub-paths");
    let pod_id = cri.run_pod(&pod).await?;
    let good = [
        ("models", "/d/small/weights"),
        ("/models/small", "/d/weights"),
        ("models/small/weights", "/d"),
        ("absolute", "/d/weights"),
        ("climbing/small", "/d/weights"),
    ];
    for (at, (sub_path, file)) in good.iter().enumerate() {
        let config = with_mounts(&format!("good-{at}"), [image_mount(MODEL, sub_path, "/d")]);
        let id = cri.launch(&pod_id, &config, &pod).await.context(*sub_path)?;
        let read = cri.shell(&id, &format!("cat {file}")).await.context(*sub_path)?;
        ensure!(read == "one\n", "{sub_path}: {read:?}");
        cri.stop(&id, 0).await?;
        cri.remove(&id).await?;
    }
    let bad = [
        ("models/none", Code::NotFound, "models/none"),
        ("models/small/gone", Code::NotFound, "models/small/gone"),
        ("models/small/weights/x", Code::NotFound, "weights/x"),
        ("outside", Code::NotFound, "outside"),
        ("../etc", Code::InvalidArgument, "image_sub_path"),
        ("models/../../etc", Code::InvalidArgument, "image_sub_path"),
        ("circle", Code::Internal, "circle"),
        ("device", Code::FailedPrecondition, "neither a directory nor a file"),
    ];
    for (sub_path, code, word) in bad {
        let config = with_mounts("bad", [image_mount(MODEL, sub_path, "/d")]);
        let created = cri.create(&pod_id, &config, &pod).await;
        let message = created.as_ref().err().map(|status| status.message().to_owned()).unwrap_or_default();
        refused(sub_path, created, code, word)?;
        ensure!(message.starts_with("ImageVolumeMountFailed: "), "{sub_path}: {message}");
        ensure!(message.contains(MODEL), "{sub_path}: {message}");
    }
    cri.end_pod(&pod_id).await?;
    cri.remove_image(MODEL).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn image_mounts_that_mean_nothing_are_refused() -> Result<()> {
    let Some(case) = open("image_mounts_that_mean_nothing_are_refused").await? else { return Ok(()) };
    let cri = &case.cri;
    let pod = cri.pod("refused");
    let pod_id = cri.run_pod(&pod).await?;
    let changed = |change: fn(&mut api::Mount)| {
        let mut mount = image_mount(BUSYBOX, "", "/d");
        change(&mut mount);
        mount
    };
    let absent = "127.0.0.1:5000/not/pulled:1";
    let cases = [
        ("absent", image_mount(absent, "", "/d"), Code::NotFound, absent),
        ("writable", changed(|m| m.readonly = false), Code::InvalidArgument, "readonly"),
        ("two sources", changed(|m| m.host_path = "/tmp".into()), Code::InvalidArgument, "host_path"),
        ("nameless", image_mount("", "", "/d"), Code::InvalidArgument, "image"),
        ("shared", changed(|m| m.propagation = 2), Code::InvalidArgument, "propagation"),
        ("over /proc", changed(|m| m.container_path = "/proc/x".into()), Code::InvalidArgument, "/proc"),
    ];
    for (what, mount, code, word) in cases {
        refused(what, cri.create(&pod_id, &with_mounts("c", [mount]), &pod).await, code, word)?;
    }
    cri.end_pod(&pod_id).await?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_begin_as_the_image_has_them() -> Result<()> {
    let Some(mut case) = open("volumes_begin_as_the_image_has_them").await? else { return Ok(()) };
    case.cri.pull(VOLUMES).await?;
    case.accept_present_state()?;
    let cri = case.cri.clone();
    let pod = cri.pod("volumes");
    let pod_id = cri.run_pod(&pod).await?;
    let config = |name| container(name, VOLUMES, &SLEEP);
    let (one, two) = (config("one"), config("two"));
    let id = cri.launch(&pod_id, &one, &pod).await?;
    let facts = "stat -c '%a %u:%g' /data /data/first /data/sub /data/sub/tool; cat /data/second; \
                 stat -c %h /data/first; readlink /data/link; cat /real/inside";
    let expect = "1770 33:100\n640 33:33\n750 0:0\n4755 0:0\nfrom the image\n2\n/data/first\nbehind a link\n";
    let seen = cri.shell(&id, facts).await?;
    ensure!(seen == expect, "{seen}");
    // Each is a mount of its own; the link is one to the place that it leads to.
    let mounted = cri.shell(&id, "cut -d' ' -f2 /proc/mounts").await?;
    for place in ["/data", "/real", "/new/empty", "/relative"] {
        ensure!(mounted.lines().filter(|line| *line == place).count() == 1, "{place}: {mounted}");
    }
    ensure!(cri.shell(&id, "ls -A /new/empty /relative | grep -v :").await?.trim().is_empty());
    cri.shell(&id, "echo changed > /data/first; rm /data/link; echo x > /relative/x; echo y > /real/y")
        .await?;

    // What one container writes is its own, the image stays what it was, and a new daemon changes nothing.
    case.node.kill_daemon()?;
    case.node.start_daemon()?;
    case.cri = case.node.cri().await?;
    let cri = &case.cri;
    let other = cri.launch(&pod_id, &two, &pod).await?;
    ensure!(cri.shell(&other, facts).await? == expect);
    ensure!(cri.shell(&id, "cat /data/second /relative/x /real/y").await? == "changed\nx\ny\n");
    let kept = case.node.dirs().root().join("containers").join(&id).join("volumes");
    cri.stop(&id, 0).await?;
    ensure!(kept.is_dir(), "the volumes of a stopped container are gone");
    cri.remove(&id).await?;
    ensure!(!kept.exists(), "the volumes of a removed container stay");
    cri.end_pod(&pod_id).await?;
    case.close()
}

/// Killed at any instant of a create, the daemon leaves no mount, no half volume and no container behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_is_cut_off_leaves_no_volume() -> Result<()> {
    let Some(mut case) = open("a_create_that_is_cut_off_leaves_no_volume").await? else { return Ok(()) };
    case.cri.pull(VOLUMES).await?;
    case.accept_present_state()?;
    let mut config = container("cut", VOLUMES, &SLEEP);
    config.mounts = vec![image_mount(BUSYBOX, "", "/image"), image_mount(VOLUMES, "data", "/d")];
    for delay in [0, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128] {
        let pod = case.cri.pod("cut");
        let pod_id = case.cri.run_pod(&pod).await?;
        let (cri, id, asked, of) = (case.cri.clone(), pod_id.clone(), config.clone(), pod.clone());
        let creating = tokio::spawn(async move { cri.create(&id, &asked, &of).await });
        tokio::time::sleep(std::time::Duration::from_millis(delay)).await;
        case.node.kill_daemon()?;
        // Whatever it was told.
        let _ended = creating.await?;
        case.node.start_daemon()?;
        case.cri = case.node.cri().await?;
        let again = case.cri.launch(&pod_id, &config, &pod).await;
        let id = again.with_context(|| format!("killed after {delay} ms"))?;
        let seen = case.cri.shell(&id, "cat /data/second /d/first; ls /image/bin/sh").await?;
        ensure!(seen == "from the image\nfrom the image\n/image/bin/sh\n", "{delay}: {seen}");
        case.cri.end_pod(&pod_id).await?;
        case.settle().with_context(|| format!("killed after {delay} ms"))?;
    }
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_of_the_request_cover_volumes() -> Result<()> {
    let Some(mut case) = open("mounts_of_the_request_cover_volumes").await? else { return Ok(()) };
    case.cri.pull(VOLUMES).await?;
    case.accept_present_state()?;
    let cri = &case.cri;
    let scratch = Scratch::new()?;
    let (data, new) = (scratch.directory("data", "mine\n")?, scratch.directory("new", "mine\n")?);
    let pod = cri.pod("covered");
    let pod_id = cri.run_pod(&pod).await?;
    let mut config = container("c", VOLUMES, &SLEEP);
    // The second is above a VOLUME, the third what a VOLUME's link leads to.
    config.mounts = vec![bind(&data, "/data"), bind(&new, "/new"), bind(&new, "/real")];
    let id = cri.launch(&pod_id, &config, &pod).await?;
    let seen = cri.shell(&id, "ls -A /data; ls -A /new; cat /real/file").await?;
    ensure!(seen == "file\nfile\nmine\n", "{seen}");
    cri.end_pod(&pod_id).await?;
    for directory in [&data, &new] {
        let left: Vec<_> = std::fs::read_dir(directory)?.flatten().map(|entry| entry.file_name()).collect();
        ensure!(left == ["file"], "{}: {left:?}", directory.display());
    }
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_volumes_harm_nobody() -> Result<()> {
    let Some(mut case) = open("hostile_volumes_harm_nobody").await? else { return Ok(()) };
    let image = |name: &str| format!("127.0.0.1:5000/berth/hostile-volume-{name}:1");
    for (name, _) in HOSTILE_VOLUMES {
        case.cri.pull(&image(name)).await.context(name)?;
    }
    case.accept_present_state()?;
    let cri = &case.cri;
    let pod = cri.pod("hostile");
    let pod_id = cri.run_pod(&pod).await?;
    let wrong = [
        ("root", Code::InvalidArgument, "root directory"),
        ("none", Code::InvalidArgument, "root directory"),
        ("up", Code::InvalidArgument, "root directory"),
        ("proc", Code::InvalidArgument, "/proc"),
        ("file", Code::FailedPrecondition, "/etc/passwd"),
        ("loop", Code::Internal, "/loop"),
    ];
    for (name, code, word) in wrong {
        refused(name, cri.create(&pod_id, &container("c", &image(name), &SLEEP), &pod).await, code, word)?;
    }
    for name in ["climb", "link", "dangling"] {
        let config = container(name, &image(name), &SLEEP);
        // A runtime may refuse what leads nowhere; what it makes is inside.
        if let Ok(id) = cri.create(&pod_id, &config, &pod).await {
            cri.start(&id).await?;
            cri.shell(&id, "mount | grep -c -e /tmp/berth-volume -e /nowhere").await.context(name)?;
            cri.stop(&id, 0).await?;
            cri.remove(&id).await?;
        }
        for outside in ["/tmp/berth-volume", "/nowhere"] {
            ensure!(!Path::new(outside).exists(), "{name} made {outside} on the node");
        }
    }
    cri.end_pod(&pod_id).await?;
    case.close()
}
