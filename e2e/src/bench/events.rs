//! From the end of a container's process to its event on a GetContainerEvents stream: on a node where nothing else goes
//! on, and where the next container ends as soon as the last one's event is there, while the OCI runtime still tidies
//! up after it.
//!
//! The clock starts when SIGKILL is sent: what the kernel takes to end the process counts too.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use proto::cri::{self as api, ContainerEventType};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tonic::{Code, Streaming};

use super::contestant::Contestant;
use super::options::Family::Events;
use super::sheet::{Metric, Sheet, Unit};
use crate::cri::container;
use crate::image::set::BUSYBOX;

/// Longest time that an event may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Containers that are made at the same time.
const AT_ONCE: usize = 5;

/// From SIGKILL to the event, by itself.
pub const LAG: Metric = metric("end of a process to its event");
/// The same, one right after another.
pub const LAG_IN_A_ROW: Metric = metric("the same, one right after another");

const fn metric(name: &'static str) -> Metric {
    Metric { family: Events, group: "GetContainerEvents", name, unit: Unit::Wall }
}

/// One round: so many containers of one pod for each metric. A daemon without events is left out.
pub async fn round(contestant: &Contestant, containers: usize, sheet: &mut Sheet) -> Result<()> {
    let request = api::GetEventsRequest::default();
    let mut events = match contestant.cri.runtime.clone().get_container_events(request).await {
        Err(status) if status.code() == Code::Unimplemented => return Ok(()),
        events => events?.into_inner(),
    };
    let config = contestant.pod("events");
    let pod = contestant.cri.run_pod(&config).await?;
    let sleepers = (0..2 * containers).map(|number| {
        let config = &config;
        let pod = &pod;
        let sleeper = container(&format!("sleeper-{number}"), BUSYBOX, &["/bin/sleep", "100000"]);
        async move { contestant.cri.launch(pod, &sleeper, config).await }
    });
    let ids: Vec<String> = stream::iter(sleepers).buffer_unordered(AT_ONCE).try_collect().await?;
    let (single, in_a_row) = ids.split_at(containers);
    for id in single {
        let lag = lag(contestant, &mut events, id).await?;
        sheet.add(LAG, contestant.who, lag);
        // Answered when the OCI runtime has tidied up.
        contestant.insist(|| contestant.cri.remove(id)).await?;
    }
    for id in in_a_row {
        let lag = lag(contestant, &mut events, id).await?;
        sheet.add(LAG_IN_A_ROW, contestant.who, lag);
    }
    contestant.insist(|| contestant.cri.end_pod(&pod)).await?;
    contestant.settle()
}

/// Ends a container; milliseconds until its event.
async fn lag(
    contestant: &Contestant,
    events: &mut Streaming<api::ContainerEventResponse>,
    id: &str,
) -> Result<f64> {
    let process = pidfd_open(contestant.pid(id).await?, PidfdFlags::empty())?;
    let start = Instant::now();
    pidfd_send_signal(&process, Signal::KILL)?;
    stopped(events, id).await?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

async fn stopped(events: &mut Streaming<api::ContainerEventResponse>, id: &str) -> Result<()> {
    let heard = async {
        loop {
            let event = events.message().await?.context("the stream of events ended")?;
            if event.container_id == id
                && event.container_event_type() == ContainerEventType::ContainerStoppedEvent
            {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(PATIENCE, heard).await.context("no event came")?
}

impl Contestant {
    /// The first process of a running container.
    async fn pid(&self, container: &str) -> Result<Pid> {
        let request = api::ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
        let answer = self.cri.runtime.clone().container_status(request).await?.into_inner();
        let shown: serde_json::Value =
            serde_json::from_str(answer.info.get("info").context("the status shows no process")?)?;
        let pid = shown["pid"].as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        pid.context("the status shows no process id")
    }
}
