//! Calls plugins as a runtime does: a list in order for ADD and CHECK, in reverse for DEL, each with what it is due.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use proto::cni::runtime::{Additions, Environment, Output, plugin_input};
use proto::cni::{Attachment, CniError, CniResult, NetConfList, Verb};
use serde_json::{Map, Value};

use super::plugins::Plugins;
use crate::exec::{Program, Running};

/// Longest time of one plugin.
const DEADLINE: Duration = Duration::from_secs(60);

/// A pod: an id, and a namespace that may be gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// CNI_CONTAINERID.
    pub id: String,
    /// CNI_NETNS.
    pub netns: PathBuf,
}

/// A network: a configuration list.
#[derive(Clone, Debug)]
pub struct Network {
    /// The list.
    pub list: NetConfList,
}

/// What a plugin call is about.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The attachment.
    pub attachment: &'a Attachment,
    /// Its namespace, where the runtime still has one.
    pub netns: Option<&'a Path>,
    /// Capability values.
    pub capabilities: Option<&'a Map<String, Value>>,
    /// The result that the runtime keeps.
    pub result: Option<&'a Value>,
}

/// A pod on a network, with all that a runtime keeps of it.
#[derive(Clone, Debug)]
pub struct Attached {
    /// Container and interface.
    pub attachment: Attachment,
    /// The pod.
    pub pod: Pod,
    /// Capability values of the ADD.
    pub capabilities: Map<String, Value>,
    /// The final result, as it was handed on.
    pub json: Value,
    /// The same, read.
    pub result: CniResult,
}

impl Attached {
    /// All that DEL and CHECK can be given.
    #[must_use]
    pub fn target(&self) -> Target<'_> {
        Target {
            attachment: &self.attachment,
            netns: Some(&self.pod.netns),
            capabilities: Some(&self.capabilities),
            result: Some(&self.json),
        }
    }
}

/// An attachment by its names.
pub fn attachment(id: &str, ifname: &str) -> Result<Attachment> {
    let bad = |error| anyhow::anyhow!("{id} {ifname}: {error:?}");
    Ok(Attachment { container_id: id.parse().map_err(bad)?, ifname: ifname.parse().map_err(bad)? })
}

impl Network {
    /// A network from its list.
    pub fn new(list: &Value) -> Result<Self> {
        Ok(Self { list: NetConfList::parse(&serde_json::to_vec(list)?)? })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.list.name.as_str()
    }

    /// ADD of the whole list. A failure leaves whatever the plugins left: DEL is the caller's to call.
    pub fn add(
        &self,
        plugins: &Plugins,
        pod: &Pod,
        ifname: &str,
        capabilities: &Value,
    ) -> Result<Result<Attached, CniError>> {
        let attachment = attachment(&pod.id, ifname)?;
        let capabilities = capabilities.as_object().cloned().unwrap_or_default();
        let mut last: Option<(Value, CniResult)> = None;
        for index in 0..self.list.plugins.len() {
            let target = Target {
                attachment: &attachment,
                netns: Some(&pod.netns),
                capabilities: Some(&capabilities),
                result: last.as_ref().map(|(json, _)| json),
            };
            let ended = self.start(plugins, index, Verb::Add, target)?.end()?;
            match ended.output(self, index).result(self.list.version) {
                Ok(result) => last = Some(result),
                Err(error) => return Ok(Err(error)),
            }
        }
        let (json, result) = last.context("a list without plugins")?;
        Ok(Ok(Attached { attachment, pod: pod.clone(), capabilities, json, result }))
    }

    /// DEL of the whole list, the last plugin first; all are called, the first error is returned.
    pub fn del(&self, plugins: &Plugins, target: Target<'_>) -> Result<Result<(), CniError>> {
        let mut first = Ok(());
        for index in (0..self.list.plugins.len()).rev() {
            let ended = self.start(plugins, index, Verb::Del, target)?.end()?;
            first = first.and(ended.output(self, index).success());
        }
        Ok(first)
    }

    /// CHECK of the whole list.
    pub fn check(&self, plugins: &Plugins, target: Target<'_>) -> Result<Result<(), CniError>> {
        for index in 0..self.list.plugins.len() {
            let ended = self.start(plugins, index, Verb::Check, target)?.end()?;
            if let Err(error) = ended.output(self, index).success() {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    /// GC of the whole list: what is not `valid` goes.
    pub fn gc(&self, plugins: &Plugins, valid: &[Attachment]) -> Result<Result<(), CniError>> {
        self.whole(plugins, Verb::Gc, Some(valid))
    }

    /// STATUS of the whole list.
    pub fn status(&self, plugins: &Plugins) -> Result<Result<(), CniError>> {
        self.whole(plugins, Verb::Status, None)
    }

    fn whole(
        &self,
        plugins: &Plugins,
        verb: Verb,
        valid: Option<&[Attachment]>,
    ) -> Result<Result<(), CniError>> {
        for index in 0..self.list.plugins.len() {
            let additions = Additions { valid_attachments: valid, ..Additions::default() };
            let input = plugin_input(&self.list, index, additions)?;
            let call = self.launch(plugins, index, (verb, None), input)?;
            if let Err(error) = call.end()?.output(self, index).success() {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    /// Starts one plugin of the list.
    pub fn start(&self, plugins: &Plugins, index: usize, verb: Verb, target: Target<'_>) -> Result<Call> {
        let additions = Additions {
            capability_args: target.capabilities,
            prev_result: target.result,
            valid_attachments: None,
        };
        let input = plugin_input(&self.list, index, additions)?;
        self.launch(plugins, index, (verb, Some(target)), input)
    }

    fn launch(
        &self,
        plugins: &Plugins,
        index: usize,
        (verb, target): (Verb, Option<Target<'_>>),
        input: Vec<u8>,
    ) -> Result<Call> {
        let environment = Environment {
            verb,
            attachment: target.map(|target| target.attachment),
            netns: target.and_then(|target| target.netns),
            args: "IgnoreUnknown=1",
            path: &plugins.path,
        };
        let mut program = Program::new(plugins.dir.join(&self.list.plugins[index].plugin));
        for (name, value) in environment.variables() {
            program = program.env(name, value);
        }
        let mut running = program.start_with(Stdio::piped(), Stdio::piped(), Stdio::piped())?;
        if let Some(mut pipe) = running.child.stdin.take() {
            // A plugin that ends early does not read.
            let _ = pipe.write_all(&input);
        }
        Ok(Call { running })
    }
}

/// A plugin that runs.
#[derive(Debug)]
pub struct Call {
    running: Running,
}

/// What a plugin left.
#[derive(Debug)]
pub struct Finished {
    status: Option<i32>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Call {
    /// Waits for its end.
    pub fn end(mut self) -> Result<Finished> {
        // What plugins say fits into the pipes.
        let status = self.running.wait(DEADLINE)?.code();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        if let Some(mut pipe) = self.running.child.stdout.take() {
            pipe.read_to_end(&mut stdout)?;
        }
        if let Some(mut pipe) = self.running.child.stderr.take() {
            pipe.read_to_end(&mut stderr)?;
        }
        Ok(Finished { status, stdout, stderr })
    }

    /// Ends it by SIGKILL.
    pub fn kill(self) {
        drop(self.running);
    }
}

impl Finished {
    /// As the runtime's side reads it.
    #[must_use]
    pub fn output<'a>(&'a self, network: &'a Network, index: usize) -> Output<'a> {
        Output {
            plugin: &network.list.plugins[index].plugin,
            status: self.status,
            stdout: &self.stdout,
            stderr: &self.stderr,
        }
    }
}
