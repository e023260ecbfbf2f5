//! Lists as both forms of an RPC need them: whole, and as a stream of messages.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use proto::cri;

use super::{convert, stats};
use crate::daemon::Daemon;
use crate::detached::blocking;
use crate::error::Error;
use crate::model::container::ContainerState;
use crate::model::sandbox::SandboxState;
use crate::store::container::{Container, ContainerRecord};
use crate::store::index::Index;
use crate::store::sandbox::Sandbox;

/// Most bytes of items in one message of a stream, unless one item alone is larger.
const CHUNK: usize = 256 << 10;

/// Containers that pass the filter, the newest first.
pub fn containers(daemon: &Daemon, filter: Option<cri::ContainerFilter>) -> Vec<cri::Container> {
    listed(daemon, filter).iter().map(|(_, record)| convert::container_item(record)).collect()
}

/// The same, each as a ListContainersResponse of its own: one after the other they are the whole list.
pub fn encoded_containers(daemon: &Daemon, filter: Option<cri::ContainerFilter>) -> Vec<Bytes> {
    let encode = |record: &ContainerRecord| {
        let containers = vec![convert::container_item(record)];
        cri::ListContainersResponse { containers }.encode_to_vec().into()
    };
    listed(daemon, filter).iter().map(|(container, record)| container.encoded(record, encode)).collect()
}

type Listed = (Arc<Container>, Arc<ContainerRecord>);

fn listed(daemon: &Daemon, filter: Option<cri::ContainerFilter>) -> Vec<Listed> {
    let filter = filter.unwrap_or_default();
    let found = select(daemon, &filter.id, &filter.pod_sandbox_id).unwrap_or_default();
    let with_record = |container: Arc<Container>| {
        let record = container.record();
        (container, record)
    };
    let mut listed: Vec<Listed> = found.into_iter().map(with_record).collect();
    listed.retain(|(_, record)| {
        record.state != ContainerState::Creating
            && filter.state.is_none_or(|state| state.state == convert::container_state(&record.state) as i32)
            && convert::selects(&filter.label_selector, &record.config.labels)
    });
    listed.sort_by_key(|(_, record)| std::cmp::Reverse(record.created_at));
    listed
}

/// Pod sandboxes that pass the filter, the newest first.
pub fn sandboxes(daemon: &Daemon, filter: Option<cri::PodSandboxFilter>) -> Vec<cri::PodSandbox> {
    listed_sandboxes(daemon, filter)
        .iter()
        .map(|(sandbox, state)| convert::sandbox_item(sandbox, *state))
        .collect()
}

/// The same, each as a ListPodSandboxResponse of its own: one after the other they are the whole list.
pub fn encoded_sandboxes(daemon: &Daemon, filter: Option<cri::PodSandboxFilter>) -> Vec<Bytes> {
    let encode = |(sandbox, state): &(Arc<Sandbox>, cri::PodSandboxState)| {
        sandbox.encoded(*state as i32, || {
            let items = vec![convert::sandbox_item(sandbox, *state)];
            cri::ListPodSandboxResponse { items }.encode_to_vec().into()
        })
    };
    listed_sandboxes(daemon, filter).iter().map(encode).collect()
}

fn listed_sandboxes(
    daemon: &Daemon,
    filter: Option<cri::PodSandboxFilter>,
) -> Vec<(Arc<Sandbox>, cri::PodSandboxState)> {
    let filter = filter.unwrap_or_default();
    let listed = by_id(&daemon.sandboxes, &filter.id).into_iter().filter_map(|sandbox| {
        let state = sandbox.state();
        let shown = convert::sandbox_state(&state);
        let wanted = state != SandboxState::Creating
            && filter.state.is_none_or(|state| state.state == shown as i32)
            && convert::selects(&filter.label_selector, &sandbox.fixed.config.labels);
        wanted.then_some((sandbox, shown))
    });
    let mut listed: Vec<_> = listed.collect();
    listed.sort_by_key(|(sandbox, _)| std::cmp::Reverse(sandbox.fixed.created_at));
    listed
}

/// Images that pass the filter.
pub fn images(daemon: &Daemon, filter: Option<cri::ImageFilter>) -> Vec<cri::Image> {
    let wanted = filter.and_then(|filter| filter.image).map(|image| image.image).unwrap_or_default();
    let images = match wanted.as_str() {
        "" => daemon.images.list(),
        name => daemon.images.get(name).into_iter().collect(),
    };
    images.iter().map(|image| convert::image(image)).collect()
}

/// Statistics of the running containers that pass the filter.
pub async fn container_stats(
    daemon: &Arc<Daemon>,
    filter: Option<cri::ContainerStatsFilter>,
) -> Result<Vec<cri::ContainerStats>, Error> {
    let filter = filter.unwrap_or_default();
    let mut containers = select(daemon, &filter.id, &filter.pod_sandbox_id).unwrap_or_default();
    containers.retain(|container| {
        let record = container.record();
        record.state.pid().is_some() && convert::selects(&filter.label_selector, &record.config.labels)
    });
    let daemon = daemon.clone();
    blocking(move || stats::containers(&daemon, &containers)).await?
}

/// Statistics of the ready pods that pass the filter.
pub async fn sandbox_stats(
    daemon: &Arc<Daemon>,
    filter: Option<cri::PodSandboxStatsFilter>,
) -> Result<Vec<cri::PodSandboxStats>, Error> {
    let filter = filter.unwrap_or_default();
    let mut sandboxes = by_id(&daemon.sandboxes, &filter.id);
    sandboxes.retain(|sandbox| {
        sandbox.state().is_ready() && convert::selects(&filter.label_selector, &sandbox.fixed.config.labels)
    });
    let daemon = daemon.clone();
    blocking(move || stats::sandboxes(&daemon, &sandboxes)).await?
}

/// Items as the messages of a stream: in order, each once, at least one a message.
pub fn chunks<T: Message>(items: Vec<T>) -> Vec<Vec<T>> {
    let mut chunks: Vec<Vec<T>> = Vec::new();
    let mut size = usize::MAX;
    for item in items {
        let length = item.encoded_len();
        match chunks.last_mut() {
            Some(chunk) if size + length <= CHUNK => {
                size += length;
                chunk.push(item);
            }
            _full => {
                size = length;
                chunks.push(vec![item]);
            }
        }
    }
    chunks
}

/// Containers by id and by pod, each a unique beginning where it is not empty; `None` where a pod is not there.
fn select(daemon: &Daemon, id: &str, pod: &str) -> Option<Vec<Arc<Container>>> {
    let pod = match pod {
        "" => None,
        pod => Some(daemon.sandboxes.find(pod)?),
    };
    let mut containers = by_id(&daemon.containers, id);
    containers
        .retain(|container| pod.as_ref().is_none_or(|pod: &Arc<Sandbox>| *pod.id() == container.pod_id));
    Some(containers)
}

/// All objects, or the one whose id is `id` or starts with it as no other does.
fn by_id<T>(index: &Index<T>, id: &str) -> Vec<Arc<T>> {
    if id.is_empty() { index.all() } else { index.find(id).into_iter().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_keep_order_and_stay_small() {
        let item = |length: usize| cri::Container { id: "x".repeat(length), ..Default::default() };
        let check = |lengths: &[usize], expect: &[usize]| {
            let chunks = chunks(lengths.iter().map(|length| item(*length)).collect());
            assert_eq!(chunks.iter().map(Vec::len).collect::<Vec<_>>(), expect, "{lengths:?}");
            let seen: Vec<usize> = chunks.iter().flatten().map(|item| item.id.len()).collect();
            assert_eq!(seen, lengths);
        };
        check(&[], &[]);
        check(&[1], &[1]);
        check(&[CHUNK * 3], &[1]);
        check(&[1, CHUNK * 3, 1, 1], &[1, 1, 2]);
        check(&[CHUNK / 2; 4], &[1; 4]);
        check(&[CHUNK / 4; 7], &[3, 3, 1]);
    }
}
