//! Runs one verb over the plugins of a network (CNI specification 1.1, sections 3 and 4): order, `prevResult`,
//! `runtimeConfig`, and what each answer means. Knows no records.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::conf::{Network, Plugin};
use super::error::{Cause, PluginFailure, Verb, excerpt};
use super::exec::{self, Answer, Call};

/// How plugins are run.
#[derive(Debug, Clone)]
pub(super) struct Runner {
    pub bin_dirs: Vec<PathBuf>,
    /// For each run of a plugin.
    pub deadline: Duration,
}

/// What the plugins are told about the container.
#[derive(Debug, Default, Clone)]
pub(super) struct Target {
    pub container_id: String,
    /// Empty when the namespace is gone.
    pub netns: String,
    pub ifname: String,
    pub args: Vec<[String; 2]>,
    pub capability_args: Map<String, Value>,
}

/// ADD stopped at a plugin.
pub(super) struct Stopped {
    pub failure: PluginFailure,
    /// How many plugins may have done something.
    pub ran: usize,
}

impl Runner {
    /// Whether each plugin has an executable.
    pub fn look_up(&self, network: &Network, verb: Verb) -> Result<(), PluginFailure> {
        network.plugins.iter().try_for_each(|plugin| {
            let found = exec::find(&plugin.kind, &self.bin_dirs);
            found.map(drop).map_err(|cause| failure(plugin, verb, cause))
        })
    }

    /// ADD in order; each plugin gets the result of the one before. Returns the last result.
    pub async fn add(
        &self,
        network: &Network,
        target: &Target,
        abort: &CancellationToken,
    ) -> Result<Value, Stopped> {
        let mut result = None;
        for (index, plugin) in network.plugins.iter().enumerate() {
            let mut conf = configuration(network, plugin, target);
            conf.extend(result.take().map(|result| ("prevResult".to_string(), result)));
            let answer = self.run(plugin, (Verb::Add, target), conf, abort).await;
            let parsed = answer.and_then(|answer| {
                result_of(&answer.stdout, network).map_err(|cause| failure(plugin, Verb::Add, cause))
            });
            result = Some(parsed.map_err(|failure| Stopped { failure, ran: index + 1 })?);
        }
        Ok(result.unwrap_or_default())
    }

    /// DEL in reverse, of which the first `ran` plugins of the list count.
    ///
    /// A failure does not stop the others, but the first plugin of the list, which owns interface and address, waits
    /// until all others succeeded: an address that is still forwarded to must not be given to another pod.
    pub async fn del(
        &self,
        network: &Network,
        target: &Target,
        previous: Option<&Value>,
        ran: usize,
    ) -> Vec<PluginFailure> {
        let mut failures = Vec::new();
        for (index, plugin) in network.plugins.iter().enumerate().rev() {
            if index == 0 && !failures.is_empty() {
                break;
            }
            let mut conf = configuration(network, plugin, target);
            conf.extend(previous.map(|result| ("prevResult".to_string(), result.clone())));
            let answer = self.run(plugin, (Verb::Del, target), conf, &CancellationToken::new()).await;
            failures.extend(answer.err().filter(|_| index < ran));
        }
        failures
    }

    /// CHECK in order with the final result; stops at the first failure.
    pub async fn check(
        &self,
        network: &Network,
        target: &Target,
        result: &Value,
    ) -> Result<(), PluginFailure> {
        for plugin in &network.plugins {
            let mut conf = configuration(network, plugin, target);
            conf.insert("prevResult".into(), result.clone());
            self.run(plugin, (Verb::Check, target), conf, &CancellationToken::new()).await?;
        }
        Ok(())
    }

    /// GC of all plugins; `valid` are pairs of container id and interface.
    pub async fn gc(&self, network: &Network, valid: &[(String, String)]) -> Vec<PluginFailure> {
        let attachments: Vec<Value> =
            valid.iter().map(|(id, ifname)| json!({"containerID": id, "ifname": ifname})).collect();
        let mut failures = Vec::new();
        for plugin in &network.plugins {
            let mut conf = configuration(network, plugin, &Target::default());
            // The second key is what libcni 1.2 sent, and what plugins of its time read.
            for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
                conf.insert(key.into(), Value::Array(attachments.clone()));
            }
            let call = (Verb::Gc, &Target::default());
            failures.extend(self.run(plugin, call, conf, &CancellationToken::new()).await.err());
        }
        failures
    }

    /// STATUS in order; stops at the first plugin that is not ready.
    pub async fn status(&self, network: &Network) -> Result<(), PluginFailure> {
        let target = Target::default();
        for plugin in &network.plugins {
            let conf = configuration(network, plugin, &target);
            self.run(plugin, (Verb::Status, &target), conf, &CancellationToken::new()).await?;
        }
        Ok(())
    }

    async fn run(
        &self,
        plugin: &Plugin,
        (verb, target): (Verb, &Target),
        conf: Map<String, Value>,
        abort: &CancellationToken,
    ) -> Result<Answer, PluginFailure> {
        let outcome = async {
            let program = exec::find(&plugin.kind, &self.bin_dirs)?;
            let stdin = Value::Object(conf).to_string().into_bytes();
            let call = Call { program, args: Vec::new(), env: self.environment(verb, target), stdin };
            let answer = exec::run(call, self.deadline, abort).await?;
            if !answer.stderr.is_empty() {
                tracing::debug!(plugin = plugin.kind, %verb, stderr = %excerpt(&answer.stderr), "CNI plugin log");
            }
            successful(answer)
        };
        outcome.await.map_err(|cause| failure(plugin, verb, cause))
    }

    fn environment(&self, verb: Verb, target: &Target) -> Vec<(&'static str, OsString)> {
        let path: Vec<_> = self.bin_dirs.iter().map(|dir| dir.as_os_str()).collect();
        let mut env = vec![("CNI_COMMAND", verb.to_string().into()), ("CNI_PATH", path.join(":".as_ref()))];
        if !matches!(verb, Verb::Gc | Verb::Status) {
            let args: Vec<_> = target.args.iter().map(|[key, value]| format!("{key}={value}")).collect();
            env.push(("CNI_CONTAINERID", target.container_id.as_str().into()));
            env.push(("CNI_NETNS", target.netns.as_str().into()));
            env.push(("CNI_IFNAME", target.ifname.as_str().into()));
            env.push(("CNI_ARGS", args.join(";").into()));
        }
        env
    }
}

/// The configuration of one plugin for execution, without the keys that belong to one verb.
fn configuration(network: &Network, plugin: &Plugin, target: &Target) -> Map<String, Value> {
    let mut conf = plugin.conf.clone();
    conf.insert("name".into(), network.name.as_str().into());
    conf.insert("cniVersion".into(), network.version.to_string().into());
    let wanted = plugin.capabilities.iter();
    let given = wanted.filter_map(|name| Some((name.clone(), target.capability_args.get(name)?.clone())));
    let runtime_config: Map<String, Value> = given.collect();
    if !runtime_config.is_empty() {
        conf.insert("runtimeConfig".into(), Value::Object(runtime_config));
    }
    conf
}

fn failure(plugin: &Plugin, verb: Verb, cause: Cause) -> PluginFailure {
    PluginFailure { plugin: plugin.kind.clone(), verb, cause }
}

/// Turns an unsuccessful end, or an error object at a successful one, into its cause.
pub(super) fn successful(answer: Answer) -> Result<Answer, Cause> {
    let object: Option<Map<String, Value>> = serde_json::from_slice(&answer.stdout).ok();
    let text = |key: &str| {
        let value = object.as_ref().and_then(|object| object.get(key)).and_then(Value::as_str);
        value.map(|text| excerpt(text.as_bytes()))
    };
    let code = object.as_ref().and_then(|object| object.get("code")).and_then(Value::as_u64).unwrap_or(0);
    let ended_well = answer.status.success();
    match text("msg") {
        Some(msg) if !ended_well || code > 0 => {
            Err(Cause::Reported { code, msg, details: text("details").unwrap_or_default() })
        }
        _ if ended_well => Ok(answer),
        _ => {
            let said = if answer.stdout.trim_ascii().is_empty() { &answer.stderr } else { &answer.stdout };
            Err(Cause::Died { status: answer.status, said: excerpt(said) })
        }
    }
}

/// The result of ADD. Only a missing version is put in, as later plugins need it.
fn result_of(stdout: &[u8], network: &Network) -> Result<Value, Cause> {
    match serde_json::from_slice::<Map<String, Value>>(stdout) {
        Ok(mut result) => {
            result.entry("cniVersion").or_insert_with(|| network.version.to_string().into());
            Ok(Value::Object(result))
        }
        Err(error) if stdout.trim_ascii().is_empty() => {
            Err(Cause::Rubbish { reason: "no result".into(), said: error.to_string() })
        }
        Err(error) => Err(Cause::Rubbish {
            reason: format!("the result is no JSON object: {error}"),
            said: excerpt(stdout),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn every_answer_means_something() {
        fn check(code: i32, (stdout, stderr): (&str, &str), expect: Result<&str, &str>) {
            let answer =
                Answer { status: ExitStatus::from_raw(code), stdout: stdout.into(), stderr: stderr.into() };
            let network =
                super::super::conf::from_bytes(br#"{"name":"n","plugins":[{"type":"t"}]}"#).unwrap();
            let result = successful(answer).and_then(|answer| result_of(&answer.stdout, &network));
            let shown = result.map(|value| value.to_string()).map_err(|cause| cause.to_string());
            assert_eq!(shown.as_deref().map_err(String::as_str), expect, "{code} {stdout}");
        }
        check(0, (r#"{"cniVersion":"1.0.0","x":1}"#, ""), Ok(r#"{"cniVersion":"1.0.0","x":1}"#));
        check(0, ("{}", "chatter"), Ok(r#"{"cniVersion":"0.1.0"}"#));
        check(0, (r#"{"code":7,"msg":"no"}"#, ""), Err("no (code 7)"));
        check(0, ("", ""), Err("no result: \"EOF while parsing a value at line 1 column 0\""));
        let rubbish = "the result is no JSON object: expected value at line 1 column 1: \"hello\"";
        check(0, ("hello", ""), Err(rubbish));
        check(256, (r#"{"code":11,"msg":"busy","details":"later"}"#, ""), Err("busy (code 11): later"));
        check(256, (r#"{"code":0,"msg":"odd"}"#, ""), Err("odd (code 0)"));
        check(256, (r#"{"msg":"bare"}"#, ""), Err("bare (code 0)"));
        check(
            256,
            ("", "panic: x\n"),
            Err("it ended with exit status: 1 and without a CNI error: \"panic: x\""),
        );
        check(256, ("hello", "log"), Err("it ended with exit status: 1 and without a CNI error: \"hello\""));
        check(9, ("{}", ""), Err("it ended with signal: 9 (SIGKILL) and without a CNI error: \"{}\""));
    }
}
