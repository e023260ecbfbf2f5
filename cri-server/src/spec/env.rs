//! The environment: defaults, then the image's, then the request's; a later value replaces an earlier one in place.

use std::collections::HashMap;

use super::SpecError;
use super::request::Request;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
pub(super) const TERM: &str = "TERM";
pub(super) const TERM_VALUE: &str = "xterm";

/// `NAME=value` for the container's process, each name once.
pub(super) fn environment(request: &Request<'_>) -> Result<Vec<String>, SpecError> {
    let inputs = request.inputs;
    let mut env = Environment::default();
    env.set("PATH", DEFAULT_PATH);
    if inputs.config.tty {
        env.set(TERM, TERM_VALUE);
    }
    env.set("HOSTNAME", inputs.hostname);
    for entry in &inputs.image.env {
        env.apply_image_entry(entry)?;
    }
    for pair in &inputs.config.envs {
        env.apply_request_pair(&pair.key, &pair.value)?;
    }
    if !inputs.user.home.is_empty() {
        env.set_default("HOME", inputs.user.home);
    }
    Ok(env.into_list())
}

#[derive(Default)]
struct Environment {
    entries: Vec<Option<(String, String)>>,
    index: HashMap<String, usize>,
}

impl Environment {
    fn set(&mut self, name: &str, value: &str) {
        let entry = Some((name.to_string(), value.to_string()));
        match self.index.get(name) {
            Some(&at) => self.entries[at] = entry,
            None => {
                self.index.insert(name.to_string(), self.entries.len());
                self.entries.push(entry);
            }
        }
    }

    fn set_default(&mut self, name: &str, value: &str) {
        if !self.index.contains_key(name) {
            self.set(name, value);
        }
    }

    fn remove(&mut self, name: &str) {
        if let Some(at) = self.index.remove(name) {
            self.entries[at] = None;
        }
    }

    /// An image's entry without a value takes the variable away, as in other engines.
    fn apply_image_entry(&mut self, entry: &str) -> Result<(), SpecError> {
        if entry.contains('\0') {
            return Err(SpecError::invalid("image environment", format!("NUL byte in {entry:?}")));
        }
        match entry.split_once('=') {
            Some(("", _)) => {}
            Some((name, value)) => self.set(name, value),
            None => self.remove(entry),
        }
        Ok(())
    }

    fn apply_request_pair(&mut self, name: &str, value: &[u8]) -> Result<(), SpecError> {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(SpecError::invalid("envs", format!("{name:?} cannot name a variable")));
        }
        // The bundle is JSON, and the kernel ends strings at NUL.
        let text = std::str::from_utf8(value).ok().filter(|text| !text.contains('\0'));
        let text = text.ok_or_else(|| {
            SpecError::invalid("envs", format!("the value of {name:?} is not UTF-8 without NUL bytes"))
        })?;
        self.set(name, text);
        Ok(())
    }

    fn into_list(self) -> Vec<String> {
        self.entries.into_iter().flatten().map(|(name, value)| format!("{name}={value}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Terminal::{self, Attached, None};
    use super::super::fixture::Case;
    use super::*;

    fn list(image: &[&str], request: &[(&str, &[u8])], terminal: Terminal) -> Result<Vec<String>, SpecError> {
        let mut case = Case::new();
        case.image.env = image.iter().map(|e| e.to_string()).collect();
        case.config.tty = terminal == Attached;
        case.config.envs = request
            .iter()
            .map(|(k, v)| proto::cri::KeyValue { key: k.to_string(), value: v.to_vec() })
            .collect();
        case.home = "/root".into();
        environment(&Request::new(&case.inputs())?)
    }

    #[test]
    fn later_values_replace_earlier_ones_in_place() {
        let path = format!("PATH={DEFAULT_PATH}");
        let check = |image: &[&str], request: &[(&str, &[u8])], terminal: Terminal, expect: &[&str]| {
            assert_eq!(list(image, request, terminal).unwrap(), expect, "{image:?} {request:?}");
        };
        check(&[], &[], None, &[&path, "HOSTNAME=web-0", "HOME=/root"]);
        check(&[], &[], Attached, &[&path, "TERM=xterm", "HOSTNAME=web-0", "HOME=/root"]);
        check(&["PATH=/bin", "A=1"], &[], None, &["PATH=/bin", "HOSTNAME=web-0", "A=1", "HOME=/root"]);
        check(
            &["A=1", "B=2"],
            &[("A", b"3"), ("C", b"")],
            None,
            &[&path, "HOSTNAME=web-0", "A=3", "B=2", "C=", "HOME=/root"],
        );
        check(&["TERM=dumb"], &[], Attached, &[&path, "TERM=dumb", "HOSTNAME=web-0", "HOME=/root"]);
        check(&[], &[("HOME", b"/srv")], None, &[&path, "HOSTNAME=web-0", "HOME=/srv"]);
        check(&["A=x=y", "=bad", "PATH"], &[], None, &["HOSTNAME=web-0", "A=x=y", "HOME=/root"]);
        check(&["A=1", "A=2"], &[], None, &[&path, "HOSTNAME=web-0", "A=2", "HOME=/root"]);
        check(&[], &[("N", b"a\nb")], None, &[&path, "HOSTNAME=web-0", "N=a\nb", "HOME=/root"]);
    }

    #[test]
    fn what_no_environment_can_hold_is_refused() {
        let check = |request: &[(&str, &[u8])]| {
            assert!(list(&[], request, None).is_err(), "{request:?}");
        };
        check(&[("", b"1")]);
        check(&[("A=B", b"1")]);
        check(&[("A\0", b"1")]);
        check(&[("A", b"1\0")]);
        check(&[("A", &[0xff, 0xfe])]);
        assert!(list(&["A=\0"], &[], None).is_err());
    }
}
