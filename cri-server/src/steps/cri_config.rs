//! What a CRI configuration says, parsed once: namespace modes, defaults, refusals.

use proto::cri::{NamespaceMode, NamespaceOption, PodSandboxConfig};

use crate::error::Error;
use crate::host::cni::{PortMapping, Protocol};
use crate::spec;

/// Longest host name that the kernel takes, bytes.
const HOSTNAME_MAX: usize = 64;

/// The namespace modes of a pod sandbox; absent options are CRI's zero values.
pub fn namespace_options(config: &PodSandboxConfig) -> NamespaceOption {
    config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.namespace_options.clone())
        .unwrap_or_default()
}

/// Whether the pod is asked to be privileged.
pub fn privileged(config: &PodSandboxConfig) -> bool {
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    context.is_some_and(|context| context.privileged)
}

/// Refuses what a sandbox cannot have.
pub fn check_sandbox(config: &PodSandboxConfig) -> Result<(), Error> {
    let metadata = config.metadata.as_ref().ok_or_else(|| missing("config.metadata"))?;
    for (field, value) in [
        ("config.metadata.name", &metadata.name),
        ("config.metadata.namespace", &metadata.namespace),
        ("config.metadata.uid", &metadata.uid),
    ] {
        if value.is_empty() {
            return Err(missing(field));
        }
        plain(field, value)?;
    }
    plain("config.hostname", &config.hostname)?;
    if config.hostname.len() > HOSTNAME_MAX {
        let reason = format!("expected at most {HOSTNAME_MAX} bytes, got {}", config.hostname.len());
        return Err(invalid("config.hostname", reason));
    }
    check_log_directory(&config.log_directory)?;
    check_dns(config)?;
    port_mappings(config)?;
    check_modes(&namespace_options(config))?;
    spec::user_namespace::ids(config)?;
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    if let Some(options) = context.and_then(|context| context.selinux_options.as_ref()) {
        spec::selinux::check("config.linux.security_context.selinux_options", options)?;
    }
    Ok(())
}

/// Refuses text with control characters: it ends up in files that are read line by line.
pub fn plain(field: &'static str, value: &str) -> Result<(), Error> {
    if value.chars().any(char::is_control) {
        return Err(invalid(field, format!("expected no control characters, got {value:?}")));
    }
    Ok(())
}

/// An invalid field.
pub fn invalid(field: &'static str, reason: impl Into<String>) -> Error {
    Error::InvalidArgument { field, reason: reason.into() }
}

/// A field that must be there.
pub fn missing(field: &'static str) -> Error {
    invalid(field, "expected a value, got none")
}

/// Ports of the node that lead to the pod.
pub fn port_mappings(config: &PodSandboxConfig) -> Result<Vec<PortMapping>, Error> {
    config.port_mappings.iter().map(port_mapping).collect()
}

fn port_mapping(mapping: &proto::cri::PortMapping) -> Result<PortMapping, Error> {
    let port = |field, port: i32| {
        u16::try_from(port).map_err(|_| invalid(field, format!("expected 0 to 65535, got {port}")))
    };
    let protocol = match proto::cri::Protocol::try_from(mapping.protocol) {
        Ok(proto::cri::Protocol::Tcp) => Protocol::Tcp,
        Ok(proto::cri::Protocol::Udp) => Protocol::Udp,
        Ok(proto::cri::Protocol::Sctp) => Protocol::Sctp,
        Err(_) => {
            let reason = format!("expected TCP, UDP or SCTP, got {}", mapping.protocol);
            return Err(invalid("config.port_mappings.protocol", reason));
        }
    };
    let host_ip = match mapping.host_ip.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            invalid("config.port_mappings.host_ip", format!("expected an IP address, got {text:?}"))
        })?),
    };
    Ok(PortMapping {
        protocol,
        container_port: port("config.port_mappings.container_port", mapping.container_port)?,
        host_port: port("config.port_mappings.host_port", mapping.host_port)?,
        host_ip,
    })
}

fn check_log_directory(path: &str) -> Result<(), Error> {
    let field = "config.log_directory";
    plain(field, path)?;
    if !path.is_empty() && !path.starts_with('/') {
        return Err(invalid(field, format!("expected an absolute path, got {path:?}")));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(invalid(field, format!("expected a path without `..`, got {path:?}")));
    }
    Ok(())
}

fn check_dns(config: &PodSandboxConfig) -> Result<(), Error> {
    let Some(dns) = &config.dns_config else { return Ok(()) };
    let lists = [
        ("config.dns_config.servers", &dns.servers),
        ("config.dns_config.searches", &dns.searches),
        ("config.dns_config.options", &dns.options),
    ];
    for (field, values) in lists {
        for value in values {
            plain(field, value)?;
            if value.is_empty() || value.contains(' ') {
                return Err(invalid(field, format!("expected a word, got {value:?}")));
            }
        }
    }
    Ok(())
}

fn check_modes(options: &NamespaceOption) -> Result<(), Error> {
    let pod_or_node = |field, mode| match NamespaceMode::try_from(mode) {
        Ok(NamespaceMode::Pod | NamespaceMode::Node) => Ok(()),
        Ok(other) => Err(invalid(field, format!("expected POD or NODE, got {}", other.as_str_name()))),
        Err(_) => Err(invalid(field, format!("expected POD or NODE, got {mode}"))),
    };
    pod_or_node("config.linux.security_context.namespace_options.network", options.network)?;
    pod_or_node("config.linux.security_context.namespace_options.ipc", options.ipc)?;
    let field = "config.linux.security_context.namespace_options.pid";
    if NamespaceMode::try_from(options.pid).is_err() || options.pid == NamespaceMode::Target as i32 {
        return Err(invalid(field, format!("expected POD, CONTAINER or NODE, got {}", options.pid)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proto::cri::{DnsConfig, PodSandboxMetadata};

    use super::*;

    fn good() -> PodSandboxConfig {
        let metadata =
            PodSandboxMetadata { name: "n".into(), namespace: "ns".into(), uid: "u".into(), attempt: 0 };
        PodSandboxConfig { metadata: Some(metadata), ..Default::default() }
    }

    #[test]
    fn the_field_is_named() {
        let check = |change: &dyn Fn(&mut PodSandboxConfig), field: Option<&str>| {
            let mut config = good();
            change(&mut config);
            let error = check_sandbox(&config).err().map(|error| error.to_string());
            match (field, error) {
                (None, None) => {}
                (Some(field), Some(error)) => assert!(error.starts_with(field), "{error}"),
                other => panic!("{other:?}"),
            }
        };
        check(&|_| {}, None);
        check(&|c| c.metadata = None, Some("config.metadata:"));
        check(&|c| c.metadata.as_mut().unwrap().uid.clear(), Some("config.metadata.uid"));
        check(&|c| c.log_directory = "var/log".into(), Some("config.log_directory"));
        check(&|c| c.log_directory = "/var/log/../../etc".into(), Some("config.log_directory"));
        check(&|c| c.hostname = "a\nb".into(), Some("config.hostname"));
        check(&|c| c.hostname = "h".repeat(65), Some("config.hostname"));
        check(&|c| c.hostname = "h".repeat(64), None);
        let dns = |server: &str| DnsConfig { servers: vec![server.into()], ..Default::default() };
        check(
            &|c| c.dns_config = Some(dns("1.1.1.1\nnameserver 6.6.6.6")),
            Some("config.dns_config.servers"),
        );
    }
}
