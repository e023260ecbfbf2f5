//! Limits of huge pages, against the kernel's own pool.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::case::Case;
use e2e::cgroup::{Cgroup, is_v2};
use e2e::cri::container;
use e2e::daemon::Setup;
use e2e::image::set::BUSYBOX;
use proto::cri::{self as api, HugepageLimit, LinuxContainerResources as Resources};

/// How many huge pages of 2 MiB the kernel keeps; there are as many more in the test.
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const PAGES: u64 = 4;
const PAGE: u64 = 2 << 20;

/// Pages added to the pool until this is dropped.
struct Pages {
    before: String,
}

impl Pages {
    fn add() -> Result<Self> {
        let before = std::fs::read_to_string(POOL).context("read the pool")?.trim().to_owned();
        let pages = Self { before };
        let wanted = pages.before.parse::<u64>()? + PAGES;
        std::fs::write(POOL, wanted.to_string()).context("grow the pool")?;
        let found = std::fs::read_to_string(POOL)?;
        ensure!(found.trim() == wanted.to_string(), "{} of {wanted} huge pages", found.trim());
        Ok(pages)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(POOL, &self.before) {
            eprintln!("shrink {POOL}: {error}");
        }
    }
}

fn limit(pages: u64) -> Resources {
    let limit = HugepageLimit { page_size: "2MB".into(), limit: pages * PAGE };
    Resources { hugepage_limits: vec![limit], ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_pages_are_had_up_to_the_limit() -> Result<()> {
    let test = "huge_pages_are_had_up_to_the_limit";
    if !is_v2() && !Path::new("/sys/fs/cgroup/hugetlb").exists() {
        eprintln!(
            "SKIPPED {test}: the cgroup controller hugetlb is not mounted here (`make test-guest` has it)"
        );
        return Ok(());
    }
    let Some(case) = Case::open(test, Setup::default()).await? else { return Ok(()) };
    let pages = Pages::add()?;
    let dir = case.node.dirs().top().join("huge");
    std::fs::create_dir(&dir)?;
    let mount = case.node.program("mount").args(["-t", "hugetlbfs", "-o", "pagesize=2M", "none"]);
    mount.arg(&dir).ok()?;
    let (cri, pod) = (&case.cri, case.cri.pod("huge"));
    let pod_id = cri.run_pod(&pod).await?;
    let mut config = container("user", BUSYBOX, &["sleep", "100000"]);
    config.linux.get_or_insert_default().resources = Some(limit(1));
    let host_path = dir.display().to_string();
    config.mounts.push(api::Mount { host_path, container_path: "/huge".into(), ..Default::default() });
    let id = cri.launch(&pod_id, &config, &pod).await?;
    let take =
        async |name: &str| cri.exec(&id, &["fallocate", "-l", "2097152", &format!("/huge/{name}")], 30).await;
    let says = async |expect: u64| -> Result<()> {
        let cgroup = Cgroup::of(cri, &id).await?;
        let found = cgroup.read(("hugetlb", "hugetlb.2MB.limit_in_bytes"), "hugetlb.2MB.max")?;
        ensure!(found == expect.to_string(), "the limit is {found}, expected {expect}");
        Ok(())
    };
    says(PAGE).await?;
    ensure!(take("first").await?.code == 0, "the first page");
    let refused = take("second").await?;
    ensure!(refused.code != 0, "a page beyond the limit: {refused:?}");
    let more = api::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(limit(2)),
        ..Default::default()
    };
    cri.runtime.clone().update_container_resources(more).await?;
    says(2 * PAGE).await?;
    ensure!(take("second").await?.code == 0, "the second page, under the limit that was raised");
    cri.shell(&id, "rm /huge/*").await?;
    cri.end_pod(&pod_id).await?;
    case.node.program("umount").arg(&dir).ok()?;
    std::fs::remove_dir(&dir)?;
    drop(pages);
    case.close()
}
