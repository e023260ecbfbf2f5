//! One pod's whole life as a kubelet leads it: each step may be asked again with the same request until it is
//! answered. What was answered is a promise that [`Life::check`] holds the daemon to. And an image that comes and goes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use proto::cri::{self as api, ContainerState, PodSandboxState};
use tokio::sync::watch;

use crate::cri::{Cri, container};
use crate::image::set::{BUSYBOX, FORMATS};
use crate::mounts::image_mount;
use crate::wait;

/// Exit code of the job.
const JOB_CODE: i32 = 7;
/// Exit code of what was killed.
const KILLED: i32 = 137;
const SOON: Duration = Duration::from_secs(30);

/// A step of the life, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// RunPodSandbox.
    RunPod,
    /// CreateContainer of one that ends by itself.
    CreateJob,
    /// StartContainer.
    StartJob,
    /// Its end is seen.
    JobEnd,
    /// CreateContainer of one that runs until it is stopped.
    CreateServer,
    /// StartContainer.
    StartServer,
    /// ExecSync.
    Exec,
    /// StopContainer.
    StopServer,
    /// RemoveContainer.
    RemoveJob,
    /// StopPodSandbox.
    StopPod,
    /// RemovePodSandbox.
    RemovePod,
    /// Nothing is left to do.
    Done,
}

/// All steps that ask something.
pub const STEPS: [Step; 11] = [
    Step::RunPod,
    Step::CreateJob,
    Step::StartJob,
    Step::JobEnd,
    Step::CreateServer,
    Step::StartServer,
    Step::Exec,
    Step::StopServer,
    Step::RemoveJob,
    Step::StopPod,
    Step::RemovePod,
];

/// A pod with two containers. Steps before [`Life::at`] were answered; that one may have been asked.
#[derive(Debug)]
pub struct Life {
    pod: api::PodSandboxConfig,
    at: Step,
    pod_id: String,
    job: String,
    server: String,
}

impl Life {
    /// The life of a pod that was not asked for yet.
    #[must_use]
    pub fn new(pod: api::PodSandboxConfig) -> Self {
        Self { pod, at: Step::RunPod, pod_id: String::new(), job: String::new(), server: String::new() }
    }

    /// The first step that was not answered.
    #[must_use]
    pub fn at(&self) -> Step {
        self.at
    }

    /// Goes on to the end, or to the first step that fails; tells `told` which step begins.
    pub async fn run(&mut self, cri: &Cri, told: &watch::Sender<Step>) -> Result<()> {
        while self.at != Step::Done {
            told.send_replace(self.at);
            let doing = format!("{:?} of pod {}", self.at, self.name());
            self.step(cri).await.context(doing)?;
            let next = STEPS.iter().copied().find(|step| *step > self.at);
            self.at = next.unwrap_or(Step::Done);
        }
        told.send_replace(Step::Done);
        Ok(())
    }

    async fn step(&mut self, cri: &Cri) -> Result<()> {
        match self.at {
            Step::RunPod => self.pod_id = cri.run_pod(&self.pod).await?,
            Step::CreateJob => self.job = cri.create(&self.pod_id, &job(), &self.pod).await?,
            Step::StartJob => start(cri, &self.job).await?,
            Step::JobEnd => job_end(cri, &self.job).await?,
            Step::CreateServer => self.server = cri.create(&self.pod_id, &server(), &self.pod).await?,
            Step::StartServer => start(cri, &self.server).await?,
            Step::Exec => ensure!(cri.shell(&self.server, "echo here").await? == "here\n"),
            Step::StopServer => cri.stop(&self.server, 0).await?,
            Step::RemoveJob => cri.remove(&self.job).await?,
            Step::StopPod => cri.stop_pod(&self.pod_id).await?,
            Step::RemovePod => cri.remove_pod(&self.pod_id).await?,
            Step::Done => {}
        }
        Ok(())
    }

    /// Fails unless the daemon shows everything that it has answered, and nothing twice.
    pub async fn check(&self, cri: &Cri) -> Result<()> {
        let doing = format!("pod {} at {:?}", self.name(), self.at);
        self.check_pod(cri).await.context(doing.clone())?;
        self.check_job(cri).await.context("the job").context(doing.clone())?;
        self.check_server(cri).await.context("the server").context(doing)
    }

    async fn check_pod(&self, cri: &Cri) -> Result<()> {
        let named = cri.pods_named(&self.name()).await?;
        ensure!(named.len() <= 1, "{} pods of one name: {named:?}", named.len());
        let state = named.first().map(|pod| (pod.id == self.pod_id, pod.state()));
        use PodSandboxState::{SandboxNotready as NotReady, SandboxReady as Ready};
        let expected = match self.at {
            Step::RunPod => state.is_none_or(|(_, state)| state == Ready),
            Step::StopPod => matches!(state, Some((true, _))),
            Step::RemovePod => matches!(state, Some((true, NotReady)) | None),
            Step::Done => state.is_none(),
            _between => state == Some((true, Ready)),
        };
        ensure!(expected, "listed as {named:?}");
        Ok(())
    }

    async fn check_job(&self, cri: &Cri) -> Result<()> {
        let Some(status) = self.find(cri, &self.job, (Step::CreateJob, Step::RemoveJob)).await? else {
            return Ok(());
        };
        use ContainerState::{ContainerCreated as Created, ContainerExited as Exited};
        let expected = match (self.at, status.state()) {
            (Step::StartJob, Created) => true,
            (at, Created) => at < Step::StartJob,
            (at, Exited) => at >= Step::StartJob && status.exit_code == JOB_CODE,
            (at, _running) => (Step::StartJob..=Step::JobEnd).contains(&at),
        };
        ensure!(expected, "{status:?}");
        Ok(())
    }

    async fn check_server(&self, cri: &Cri) -> Result<()> {
        let Some(status) = self.find(cri, &self.server, (Step::CreateServer, Step::RemovePod)).await? else {
            return Ok(());
        };
        use ContainerState::{ContainerCreated as Created, ContainerExited as Exited};
        let expected = match (self.at, status.state()) {
            (Step::StartServer, Created) => true,
            (at, Created) => at < Step::StartServer,
            (at, Exited) => at >= Step::StopServer && status.exit_code == KILLED,
            (at, _running) => (Step::StartServer..=Step::StopServer).contains(&at),
        };
        ensure!(expected, "{status:?}");
        Ok(())
    }

    /// The status of a container whose making was answered, if its removal was not asked for or not done.
    async fn find(
        &self,
        cri: &Cri,
        id: &str,
        (made, removed): (Step, Step),
    ) -> Result<Option<api::ContainerStatus>> {
        if self.at <= made {
            return Ok(None);
        }
        match cri.status(id).await {
            Ok(_) if self.at > removed => bail!("it is back"),
            Ok(status) => Ok(Some(status)),
            Err(status) if status.code() == tonic::Code::NotFound && self.at >= removed => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    fn name(&self) -> String {
        self.pod.metadata.clone().unwrap_or_default().name
    }
}

/// An image that is pulled and removed again and again.
#[derive(Debug, Default)]
pub struct Puller {
    pulls: u64,
    removals: u64,
}

impl Puller {
    /// Goes on until a call fails or `enough` says so.
    pub async fn run(&mut self, cri: &Cri, enough: &AtomicBool) -> Result<()> {
        while !enough.load(Ordering::Relaxed) || self.pulls > self.removals {
            if self.pulls == self.removals {
                cri.pull(FORMATS[0]).await.context("pull")?;
                self.pulls += 1;
            }
            cri.remove_image(FORMATS[0]).await.context("remove the image")?;
            self.removals += 1;
        }
        Ok(())
    }

    /// A pull that was answered and not asked to be undone is shown, and the other way round, at rest.
    pub async fn finish(&mut self, cri: &Cri) -> Result<()> {
        cri.pull(FORMATS[0]).await.context("pull again")?;
        ensure!(cri.image(FORMATS[0]).await?.is_some(), "a pulled image is not shown");
        cri.remove_image(FORMATS[0]).await?;
        ensure!(cri.image(FORMATS[0]).await?.is_none(), "a removed image is shown");
        Ok(())
    }
}

fn job() -> api::ContainerConfig {
    container("job", BUSYBOX, &["sh", "-c", &format!("exit {JOB_CODE}")])
}

fn server() -> api::ContainerConfig {
    let mut config = container("server", BUSYBOX, &["sleep", "100000"]);
    config.mounts = vec![image_mount(BUSYBOX, "bin", "/tools")];
    config
}

/// Waits for the job's end; a call that fails ends the wait, unlike in [`Cri::exited`].
async fn job_end(cri: &Cri, id: &str) -> Result<()> {
    let seen = wait::until_async("the job's end", SOON, || async {
        match cri.status(id).await {
            Ok(status) if status.state() != ContainerState::ContainerExited => bail!("{status:?}"),
            answer => Ok(answer),
        }
    });
    ensure!(seen.await??.exit_code == JOB_CODE);
    Ok(())
}

/// As a kubelet that does not know whether its start was heard: looks first.
async fn start(cri: &Cri, id: &str) -> Result<()> {
    if cri.status(id).await?.state() == ContainerState::ContainerCreated {
        cri.start(id).await?;
    }
    Ok(())
}
