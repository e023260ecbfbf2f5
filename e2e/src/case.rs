//! One case: a node in its settled state, a client of it, and the leak diff that must be empty at the end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proto::cri as api;

use crate::cri::{Cri, container};
use crate::daemon::{Endpoint, Setup};
use crate::gate;
use crate::image::set::BUSYBOX;
use crate::leaks::Snapshot;
use crate::node::Node;
use crate::wait;

/// How long the end of a pod may take to be told.
const DEAD: Duration = Duration::from_secs(30);

/// A node on which one case runs.
pub struct Case {
    /// The node.
    pub node: Node,
    /// A client of its daemon.
    pub cri: Cri,
    before: Snapshot,
}

impl Case {
    /// Starts a node and lets it settle: the test image is pulled, and one pod came and went, so that what the first
    /// pod makes for all (bridge, tables, parent cgroup) is there. None where this machine cannot; that is said.
    pub async fn open(test: &str, setup: Setup) -> Result<Option<Self>> {
        if !gate::open(test) {
            return Ok(None);
        }
        let node = Node::start(setup)?;
        let cri = node.cri().await?;
        cri.pull(BUSYBOX).await.context("pull the test image")?;
        warm_up(&cri).await.context("the first pod")?;
        let before = node.settled_snapshot()?;
        Ok(Some(Self { node, cri, before }))
    }

    /// Starts a daemon in place of the one that is gone.
    pub async fn restart_daemon(&mut self) -> Result<()> {
        self.node.start_daemon()?;
        self.cri = self.node.cri().await?;
        Ok(())
    }

    /// Expects that the pod is reported as dead, its container with an end that nobody saw, and that it is so.
    pub async fn expect_dead(&self, pod_id: &str, container: &str) -> Result<()> {
        let status = self.cri.exited(container, DEAD).await?;
        ensure!((status.exit_code, status.reason.as_str()) == (255, "Unknown"), "{status:?}");
        wait::until_async("the pod's end", DEAD, || async {
            ensure!(self.cri.pod_status(pod_id).await?.state() == api::PodSandboxState::SandboxNotready);
            Ok(())
        })
        .await?;
        let alive = self.node.ancestry().of_pod(pod_id)?;
        ensure!(alive.is_empty(), "{alive:?} live on");
        Ok(())
    }

    /// Ends the case: fails with what is left.
    pub fn close(self) -> Result<()> {
        self.settle()?;
        self.node.end();
        Ok(())
    }

    /// Checks in between that nothing is left.
    pub fn settle(&self) -> Result<()> {
        self.node.expect_no_leaks(&self.before)
    }

    /// Takes the present state, whatever it is, as the one to come back to.
    pub fn accept_present_state(&mut self) -> Result<()> {
        self.before = self.node.settled_snapshot()?;
        Ok(())
    }

    /// Whether the daemon is ours. The reference is held only to what it does too.
    #[must_use]
    pub fn is_berth(&self) -> bool {
        self.node.setup().endpoint == Endpoint::Berth
    }

    /// Runs a pod with one container of the test image that sleeps; gives both ids.
    pub async fn sleeper(&self, pod: &api::PodSandboxConfig) -> Result<(String, String)> {
        let pod_id = self.cri.run_pod(pod).await?;
        let config = container("sleeper", BUSYBOX, &["sleep", "100000"]);
        let id = self.cri.launch(&pod_id, &config, pod).await?;
        Ok((pod_id, id))
    }
}

async fn warm_up(cri: &Cri) -> Result<()> {
    let mut pod = cri.pod("warm-up");
    pod.port_mappings = vec![api::PortMapping { container_port: 80, host_port: 18080, ..Default::default() }];
    let pod_id = cri.run_pod(&pod).await?;
    let id = cri.launch(&pod_id, &container("warm-up", BUSYBOX, &["sleep", "1000"]), &pod).await?;
    let output = cri.exec(&id, &["true"], 60).await?;
    ensure!(output.code == 0, "true ended with {output:?}");
    cri.end_pod(&pod_id).await?;
    Ok(())
}
