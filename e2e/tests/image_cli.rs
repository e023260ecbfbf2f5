//! `cri-server image`: pull, ls, export, rm, import, as an administrator types them.

use anyhow::{Context, Result, ensure};
use e2e::case::Case;
use e2e::cri::{container, refused};
use e2e::daemon::{Endpoint, Setup};
use e2e::image::set::{BUSYBOX, PAUSE};
use e2e::node::Node;
use e2e::{gate, paths};
use serde_json::Value;
use tonic::Code;

/// Runs `cri-server image …` on the node; what it prints.
fn image(case: &Case, line: &[&str]) -> Result<String> {
    let config = case.node.dirs().config();
    let program = case.node.program(paths::binary("cri-server")?).arg("--config").arg(config).arg("image");
    program.args(line).ok()
}

/// The listed image that has this tag.
fn listed(case: &Case, tag: &str) -> Result<Option<Value>> {
    let images: Value = serde_json::from_str(&image(case, &["ls", "--json"])?)?;
    let images = images.as_array().context("a list of images")?;
    let has = |image: &&Value| image["tags"].as_array().is_some_and(|tags| tags.iter().any(|t| t == tag));
    Ok(images.iter().find(has).cloned())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_exported_removed_and_imported() -> Result<()> {
    let test = "an_image_is_pulled_exported_removed_and_imported";
    let Some(case) = Case::open(test, Setup::of(Endpoint::Berth)).await? else { return Ok(()) };
    let archive = case.node.dirs().top().join("pause.tar");
    let archive = archive.to_str().context("a path in UTF-8")?;

    let id = image(&case, &["pull", PAUSE])?.trim().to_owned();
    ensure!(id.starts_with("sha256:"), "pull printed {id:?}");
    let pulled = listed(&case, PAUSE)?.context("the pulled image is not listed")?;
    ensure!(pulled["id"] == id.as_str(), "{pulled}");
    let table = image(&case, &["ls"])?;
    ensure!(table.lines().any(|line| line.starts_with(PAUSE)), "{table}");

    image(&case, &["export", PAUSE, archive])?;
    image(&case, &["rm", PAUSE])?;
    ensure!(listed(&case, PAUSE)?.is_none(), "the removed image is listed");
    ensure!(image(&case, &["export", PAUSE, archive]).is_err(), "an image that is not there was exported");

    let imported = image(&case, &["import", archive])?;
    ensure!(imported.contains(PAUSE), "import printed {imported:?}");
    let back = listed(&case, PAUSE)?.context("the imported image is not listed")?;
    // Layers are made anew from their files, so the first export may change the id; from then on it stays.
    let first = back["id"].clone();
    image(&case, &["export", PAUSE, archive])?;
    image(&case, &["rm", PAUSE])?;
    image(&case, &["import", archive])?;
    let again = listed(&case, PAUSE)?.context("the image imported again is not listed")?;
    ensure!(again["id"] == first, "{first} came back as {again}");

    let pod = case.cri.pod("imported");
    let pod_id = case.cri.run_pod(&pod).await?;
    let container_id = case.cri.create(&pod_id, &container("pause", PAUSE, &[]), &pod).await?;
    case.cri.start(&container_id).await?;
    case.cri.end_pod(&pod_id).await?;
    image(&case, &["rm", PAUSE])?;
    std::fs::remove_file(archive)?;
    case.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_archive_is_refused() -> Result<()> {
    let Some(case) = Case::open("what_is_no_archive_is_refused", Setup::of(Endpoint::Berth)).await? else {
        return Ok(());
    };
    let file = case.node.dirs().top().join("rubbish");
    std::fs::write(&file, vec![7u8; 100_000])?;
    let path = file.to_str().context("a path in UTF-8")?;
    let error = image(&case, &["import", path]).err().context("rubbish was imported")?;
    ensure!(format!("{error:#}").contains("image"), "{error:#}");
    std::fs::remove_file(file)?;
    case.close()
}

/// A node without certificates of authorities pulls where none are needed, and says what it lacks elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn only_encrypted_registries_need_certificates() -> Result<()> {
    if !gate::open("only_encrypted_registries_need_certificates") {
        return Ok(());
    }
    let mut node = Node::bare(Setup::of(Endpoint::Berth))?;
    node.write_config()?;
    for directory in ["/etc/ssl", "/usr/lib/ssl"] {
        node.program("mount").args(["-t", "tmpfs", "none", directory]).silent()?;
    }
    node.start_daemon()?;
    let cri = node.cri().await?;
    cri.pull(BUSYBOX).await?;
    refused(
        "an encrypted registry",
        cri.pull("127.0.0.1:443/x:1").await,
        Code::FailedPrecondition,
        "certificates",
    )?;
    node.end();
    Ok(())
}
