//! CPU of the calls that give statistics of many pods: that of the daemon and of whomever it asks.

use anyhow::{Result, ensure};
use proto::cri as api;
use tonic::Code;

use super::contestant::Contestant;
use super::options::Family::Statistics;
use super::sheet::{Metric, Sheet, Unit};

/// Calls of each kind; the first is not counted.
const CALLS: usize = 21;

/// ListPodSandboxStats of 100 pods.
pub const SANDBOXES: Metric = cpu("ListPodSandboxStats of 100");
/// ListContainerStats of 100 containers.
pub const CONTAINERS: Metric = cpu("ListContainerStats of 100");

/// What is measured with the pods of `--quick`, and with those of a whole run.
const FEW: [Metric; 3] =
    [cpu("ListPodSandboxStats of 20"), cpu("ListContainerStats of 20"), cpu("ListPodSandboxMetrics of 20")];
const MANY: [Metric; 3] = [SANDBOXES, CONTAINERS, cpu("ListPodSandboxMetrics of 100")];

const fn cpu(name: &'static str) -> Metric {
    Metric { family: Statistics, group: "statistics, CPU of a call", name, unit: Unit::Cpu }
}

/// Asks a node of `pods` pods for their statistics, and for their metrics where it has them.
pub async fn measure(contestant: &Contestant, pods: usize, sheet: &mut Sheet) -> Result<()> {
    let [sandboxes, containers, metrics] = if pods == 100 { MANY } else { FEW };
    let (who, runtime) = (contestant.who, &contestant.cri.runtime);
    for call in 0..CALLS {
        let asked = async {
            runtime.clone().list_pod_sandbox_stats(api::ListPodSandboxStatsRequest::default()).await
        };
        let (answer, lap) = contestant.timed(asked).await?;
        ensure!(answer.into_inner().stats.len() == pods, "not every pod has statistics");
        if call > 0 {
            sheet.add(sandboxes, who, lap.cpu.stack);
        }
    }
    for call in 0..CALLS {
        let asked =
            async { runtime.clone().list_container_stats(api::ListContainerStatsRequest::default()).await };
        let (answer, lap) = contestant.timed(asked).await?;
        ensure!(answer.into_inner().stats.len() == pods, "not every container has statistics");
        if call > 0 {
            sheet.add(containers, who, lap.cpu.stack);
        }
    }
    for call in 0..CALLS {
        let asked = async {
            answered(runtime.clone().list_pod_sandbox_metrics(api::ListPodSandboxMetricsRequest {}).await)
        };
        let (answer, lap) = contestant.timed(asked).await?;
        let Some(answer) = answer else { break };
        ensure!(answer.into_inner().pod_metrics.len() == pods, "not every pod has metrics");
        if call > 0 {
            sheet.add(metrics, who, lap.cpu.stack);
        }
    }
    Ok(())
}

/// None where the daemon does not know the call.
fn answered<T>(answer: Result<T, tonic::Status>) -> Result<Option<T>, tonic::Status> {
    match answer {
        Err(status) if status.code() == Code::Unimplemented => Ok(None),
        answer => answer.map(Some),
    }
}
