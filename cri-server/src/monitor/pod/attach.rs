//! Clients that join a container's streams: how they come, and how they go.

use std::os::fd::OwnedFd;

use super::calls::Outcome;
use super::{Pod, Source};
use crate::monitor::attachment::{Attachment, Keeping, Sink};
use crate::monitor::connection::ReplyTo;
use crate::monitor::container::{Container, Phase};
use crate::monitor::log::StreamName;
use crate::monitor::output::Output;
use crate::monitor::poll::Token;
use crate::monitor::protocol::{Answer, AttachContainer, Event, Failure, FailureKind};

/// Clients of one container at once.
const MAX_ATTACHMENTS: usize = 16;

impl Pod {
    pub(super) fn attach(&mut self, reply: ReplyTo, attach: AttachContainer, fds: Vec<OwnedFd>) -> Outcome {
        let wanted = [(attach.stdout, StreamName::Stdout), (attach.stderr, StreamName::Stderr)];
        let wanted: Vec<_> =
            wanted.into_iter().filter_map(|(wants, stream)| wants.then_some(stream)).collect();
        if fds.len() != wanted.len() {
            let message = format!("{} descriptors came for {} outputs", fds.len(), wanted.len());
            return Err(Failure::new(FailureKind::InvalidArgument, message));
        }
        check(self.container(&attach.container_id)?)?;
        let mut sinks = Vec::new();
        let opened = self.open_sinks(&attach.container_id, wanted.into_iter().zip(fds), &mut sinks);
        match opened.and_then(|()| self.input(&attach)) {
            Ok((stdin, input)) => {
                let container = self.container(&attach.container_id)?;
                if !sinks.is_empty() {
                    let keeping = Keeping::Up;
                    container.attachments.push(Attachment { id: attach.attach_id, sinks, keeping });
                }
                let input = input.into_iter().collect();
                self.reply_with(Some(reply), Ok(Answer::Attached { stdin }), input);
                Ok(None)
            }
            Err(failure) => {
                sinks.iter().for_each(|sink| self.poll.remove(sink.token, sink.as_fd()));
                Err(failure)
            }
        }
    }

    /// Watches the sockets. A stream that has ended, or that a terminal does not have, ends for the client at once.
    fn open_sinks(
        &mut self,
        id: &str,
        sockets: impl Iterator<Item = (StreamName, OwnedFd)>,
        into: &mut Vec<Sink>,
    ) -> Result<(), Failure> {
        let open: Vec<_> = self.container(id)?.outputs.iter().map(Output::stream).collect();
        for (stream, socket) in sockets.filter(|(stream, _)| open.contains(stream)) {
            let token = self.poll.add(&socket, Source::Attachment(id.to_owned()));
            let token = token.map_err(|error| Failure::io("watching an attached client", error))?;
            into.push(Sink::new(stream, token, socket));
        }
        Ok(())
    }

    /// Whether the client may write to the container, and the descriptor that it gets: a terminal's master in any
    /// case, for its size.
    fn input(&mut self, attach: &AttachContainer) -> Result<(bool, Option<OwnedFd>), Failure> {
        let copy = |fd: &OwnedFd| {
            let copied = rustix::io::fcntl_dupfd_cloexec(fd, 3);
            copied.map_err(|error| Failure::io("copying the container's input", error))
        };
        let container = self.container(&attach.container_id)?;
        let master = container.terminal.as_ref().map(copy).transpose()?;
        let stdin = match (attach.stdin, container.spec.stdin_once) {
            (false, _) => None,
            (true, true) => container.stdin.take(),
            (true, false) => container.stdin.as_ref().map(copy).transpose()?,
        };
        Ok((stdin.is_some(), master.or(stdin)))
    }

    /// The client behind a socket has closed it; it never sends anything.
    pub(super) fn attachment_gone(&mut self, token: Token, id: &str) {
        self.close_sinks(id, |_, sink| sink.token == token);
    }

    /// A stream has ended.
    pub(super) fn end_stream(&mut self, id: &str, stream: StreamName) {
        self.close_sinks(id, |_, sink| sink.stream == stream);
    }

    /// Detaches the clients that did not keep up.
    pub(super) fn detach_lagging(&mut self, id: &str) {
        let Some(container) = self.containers.get(id) else { return };
        let lagging = container.attachments.iter().filter(|attachment| attachment.keeping == Keeping::Lags);
        let lagging: Vec<String> = lagging.map(|attachment| attachment.id.clone()).collect();
        if lagging.is_empty() {
            return;
        }
        for attach_id in lagging {
            self.announce(Event::Detached { attach_id });
        }
        self.close_sinks(id, |keeping, _| keeping == Keeping::Lags);
    }

    fn close_sinks(&mut self, id: &str, closes: impl Fn(Keeping, &Sink) -> bool) {
        let Some(container) = self.containers.get_mut(id) else { return };
        for attachment in &mut container.attachments {
            let keeping = attachment.keeping;
            for sink in attachment.sinks.extract_if(.., |sink| closes(keeping, sink)) {
                self.poll.remove(sink.token, sink.as_fd());
            }
        }
        container.attachments.retain(|attachment| !attachment.sinks.is_empty());
    }
}

fn check(container: &Container) -> Result<(), Failure> {
    let id = &container.spec.id;
    if !matches!(container.phase, Phase::Alive(_)) || container.deletion.is_some() {
        return Err(Failure::new(FailureKind::FailedPrecondition, format!("container {id} is not running")));
    }
    if container.attachments.len() >= MAX_ATTACHMENTS {
        let message = format!("{MAX_ATTACHMENTS} clients are attached to container {id} already");
        return Err(Failure::new(FailureKind::FailedPrecondition, message));
    }
    Ok(())
}
