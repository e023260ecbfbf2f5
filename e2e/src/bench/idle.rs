//! CPU of a node on which nothing happens, asked as a kubelet asks: lists every second, the runtime's status every
//! five, statistics and the images' file system every ten.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use proto::cri as api;
use tokio::time::{MissedTickBehavior, interval};

use super::contestant::Contestant;
use super::options::Family::Idle;
use super::sheet::{Metric, Sheet, Unit};

/// The usual time between two rounds of lists.
const TICK: Duration = Duration::from_secs(1);

/// 110 pods.
pub const POLLED: Metric = share("110 pods");
const FEW: Metric = share("20 pods");

const fn share(name: &'static str) -> Metric {
    Metric { family: Idle, group: "idle, polled as by a kubelet, CPU", name, unit: Unit::Share }
}

/// Asks for `time`, and notes what daemon and supervision took of a processor.
pub async fn measure(contestant: &Contestant, pods: usize, time: Duration, sheet: &mut Sheet) -> Result<()> {
    poll(contestant, pods, 0).await?;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let (before, start) = (contestant.meter.cpu()?, Instant::now());
    for second in 1..=time.as_secs() {
        ticks.tick().await;
        poll(contestant, pods, second).await?;
    }
    let (used, wall) = (contestant.meter.cpu()?.since(before), start.elapsed().as_secs_f64() * 1e3);
    let metric = if pods == 110 { POLLED } else { FEW };
    sheet.add(metric, contestant.who, used.stack / wall * 100.0);
    Ok(())
}

async fn poll(contestant: &Contestant, pods: usize, second: u64) -> Result<()> {
    let (mut runtime, mut images) = (contestant.cri.runtime.clone(), contestant.cri.images.clone());
    let sandboxes = runtime.list_pod_sandbox(api::ListPodSandboxRequest::default()).await?.into_inner().items;
    let containers =
        runtime.list_containers(api::ListContainersRequest::default()).await?.into_inner().containers;
    ensure!((sandboxes.len(), containers.len()) == (pods, pods), "not everything is listed");
    if second.is_multiple_of(5) {
        runtime.status(api::StatusRequest::default()).await?;
    }
    if second.is_multiple_of(10) {
        runtime.list_pod_sandbox_stats(api::ListPodSandboxStatsRequest::default()).await?;
        runtime.list_container_stats(api::ListContainerStatsRequest::default()).await?;
        images.image_fs_info(api::ImageFsInfoRequest {}).await?;
    }
    Ok(())
}
