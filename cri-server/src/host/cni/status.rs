//! Whether pods can be attached now: the CRI's condition NetworkReady.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Cni;
use super::chain::Runner;
use super::conf::{self, Network, NoNetwork, Rejected, SpecVersion};
use super::error::{PluginFailure, Verb};

/// How long plugins' word for being ready, or not, is taken.
const READY_FOR: Duration = Duration::from_secs(15);
const NOT_READY_FOR: Duration = Duration::from_secs(3);
/// STATUS must not keep the caller waiting as ADD may.
const DEADLINE: Duration = Duration::from_secs(5);

/// A plugin's word for pods that are cut off, error code of the CNI specification.
const LIMITED_CONNECTIVITY: u64 = 51;

/// Why pods cannot be attached now.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotReady {
    /// There is no usable configuration.
    #[error("no CNI network to use")]
    NoNetwork(#[source] NoNetwork),
    /// A plugin is missing or says that it is not ready.
    #[error("the CNI network {network} is not ready")]
    Plugin {
        /// Name of the network.
        network: String,
        /// What the plugin said.
        #[source]
        failure: Arc<PluginFailure>,
    },
}

/// What was last seen of configuration and plugins.
#[derive(Debug, Default)]
pub(super) struct Seen {
    rejected: Vec<Rejected>,
    answer: Option<Answer>,
}

/// The answer of a network's plugins to STATUS.
#[derive(Debug)]
struct Answer {
    network: Network,
    at: Instant,
    outcome: Result<(), Arc<PluginFailure>>,
}

impl Cni {
    /// Reads the configuration, looks for its plugins and, from version 1.1.0 on, asks them (STATUS; their answer is
    /// reused for some seconds). Cheap enough for one call a second.
    pub async fn status(&self) -> Result<(), NotReady> {
        let (network, rejected) = conf::load(&self.conf_dir).map_err(NotReady::NoNetwork)?;
        let found = self.runner.look_up(&network, Verb::Status).map_err(Arc::new);
        let mut seen = self.status.lock().await;
        if seen.rejected != rejected {
            for file in &rejected {
                tracing::warn!("ignoring the CNI configuration {file}");
            }
            seen.rejected = rejected;
        }
        let outcome = match found {
            Ok(()) if network.version >= SpecVersion::V1_1_0 => self.ask(&network, &mut seen.answer).await,
            other => other,
        };
        outcome.map_err(|failure| NotReady::Plugin { network: network.name, failure })
    }

    /// Waits until plugins say that pods are cut off, which `repair` may mend.
    pub async fn limited(&self) {
        self.limited.notified().await;
    }

    async fn ask(&self, network: &Network, last: &mut Option<Answer>) -> Result<(), Arc<PluginFailure>> {
        if let Some(Answer { network: of, at, outcome }) = last {
            let fresh = if outcome.is_ok() { READY_FOR } else { NOT_READY_FOR };
            if of == network && at.elapsed() < fresh {
                return outcome.clone();
            }
        }
        let runner = Runner { deadline: self.runner.deadline.min(DEADLINE), ..self.runner.clone() };
        let outcome = runner.status(network).await.map_err(Arc::new);
        if outcome.as_ref().is_err_and(|failure| failure.code() == Some(LIMITED_CONNECTIVITY)) {
            self.limited.notify_one();
        }
        *last = Some(Answer { network: network.clone(), at: Instant::now(), outcome: outcome.clone() });
        outcome
    }
}
