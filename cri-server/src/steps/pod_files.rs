//! What a pod's containers see under `/etc` and at `/dev/shm`: files in the pod's state directory.
//!
//! The state directory and its parents are traversable (0711), so that containers of any user reach the files;
//! the files are small and written by the runtime only.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use proto::cri::{DnsConfig, NamespaceMode, PodSandboxConfig};

use super::cri_config::namespace_options;
use crate::error::Error;
use crate::host::fs::{Durability, write_atomic};
use crate::host::{mount, selinux};
use crate::model::id::PodId;
use crate::paths::Paths;
use crate::spec;
use crate::store::record::RecordError;

/// Size of a pod's `/dev/shm`, bytes.
const SHM_SIZE: u64 = 64 << 20;

/// Makes the pod's directory, files and `/dev/shm`; `hosts` waits for the addresses.
pub fn prepare(paths: &Paths, id: &PodId, config: &PodSandboxConfig) -> Result<(), Error> {
    let state = paths.pod_state(id);
    let at = |path: &Path| format!("prepare {}", path.display());
    make_directory(&state, 0o711).map_err(Error::host(at(&state)))?;
    let ns = state.join("ns");
    make_directory(&ns, 0o711).map_err(Error::host(at(&ns)))?;
    let owner = owner(config)?;
    let write = |name: &str, text: &str| {
        let path = paths.etc(id, name);
        write_owned(&path, text, owner).map_err(Error::host(at(&path)))
    };
    let hostname = hostname(config);
    write("hostname", &format!("{hostname}\n"))?;
    write("resolv.conf", &resolver(config.dns_config.as_ref()))?;
    if namespace_options(config).ipc == NamespaceMode::Pod as i32 {
        let shm = paths.shm(id);
        make_directory(&shm, 0o1777).map_err(Error::host(at(&shm)))?;
        mount::shm(&shm, SHM_SIZE, owner).map_err(Error::host(format!("mount {}", shm.display())))?;
    }
    Ok(())
}

/// Writes the pod's addresses into its `hosts`; the kubelet mounts a file of its own instead.
pub fn write_hosts(
    paths: &Paths,
    id: &PodId,
    config: &PodSandboxConfig,
    ips: &[String],
) -> Result<(), Error> {
    let path = paths.etc(id, "hosts");
    let text = hosts(&hostname(config), ips);
    write_owned(&path, &text, owner(config)?).map_err(Error::host(format!("write {}", path.display())))
}

/// Gives the pod's files and shared memory their SELinux label.
pub fn label(paths: &Paths, id: &PodId, label: &str) -> Result<(), Error> {
    let files = ["hostname", "hosts", "resolv.conf"].map(|name| paths.etc(id, name));
    for path in files.into_iter().chain([paths.shm(id)]) {
        selinux::relabel(&path, label).map_err(Error::host(format!("label {}", path.display())))?;
    }
    Ok(())
}

/// The node's id of the pod's root.
fn owner(config: &PodSandboxConfig) -> Result<u32, Error> {
    Ok(spec::user_namespace::ids(config)?.map_or(0, |ids| ids.first))
}

fn write_owned(path: &Path, text: &str, owner: u32) -> io::Result<()> {
    write_atomic(path, text.as_bytes(), 0o644, Durability::Cached)?;
    std::os::unix::fs::lchown(path, Some(owner), Some(owner))
}

/// Host name of the pod: its own, or the node's.
pub fn hostname(config: &PodSandboxConfig) -> String {
    let node = namespace_options(config).network == NamespaceMode::Node as i32;
    if config.hostname.is_empty() || node {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    } else {
        config.hostname.clone()
    }
}

/// Makes a directory, or gives an existing one this mode.
pub fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
}

/// Makes the directory of a record and has the first record written there: both, or nothing is left. Blocks.
pub fn make_recorded(
    directory: &Path,
    mode: u32,
    write: impl FnOnce() -> Result<(), RecordError>,
) -> Result<(), Error> {
    let made = make_directory(directory, mode).map_err(Error::host(format!("make {}", directory.display())));
    made.and_then(|()| Ok(write()?)).inspect_err(|_| {
        if let Err(error) = std::fs::remove_dir_all(directory)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %directory.display(), %error, "an empty directory stays until the next start");
        }
    })
}

fn hosts(hostname: &str, ips: &[String]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        text.push_str(&format!("{ip}\t{hostname}\n"));
    }
    text
}

fn resolver(dns: Option<&DnsConfig>) -> String {
    let dns = dns.cloned().unwrap_or_default();
    if dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty() {
        return std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_cannot_be_written_leaves_no_directory() {
        let top = tempfile::tempdir().unwrap();
        let directory = top.path().join("pod");
        let source = || io::Error::from_raw_os_error(libc::ENOSPC);
        let full = || {
            std::fs::write(directory.join("record.json.part"), "{").unwrap();
            Err(RecordError::Io { path: "record.json".into(), source: source() })
        };
        assert!(make_recorded(&directory, 0o700, full).is_err());
        assert!(!directory.exists());
        make_recorded(&directory, 0o700, || Ok(())).unwrap();
        assert!(directory.exists());
    }

    #[test]
    fn resolver_file() {
        let words = |text: &str| text.split(' ').filter(|w| !w.is_empty()).map(String::from).collect();
        let check = |servers: &str, searches: &str, options: &str, expect: &str| {
            let dns =
                DnsConfig { servers: words(servers), searches: words(searches), options: words(options) };
            assert_eq!(resolver(Some(&dns)), expect);
        };
        check("10.0.0.1 10.0.0.2", "", "", "nameserver 10.0.0.1\nnameserver 10.0.0.2\n");
        check("10.0.0.1", "a.b c", "ndots:8", "search a.b c\nnameserver 10.0.0.1\noptions ndots:8\n");
    }
}
