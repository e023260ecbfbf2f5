//! The guest's system: a kernel and a root image of Debian packages, made once and kept in the cache under a digest of
//! this recipe.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::exec::Program;
use crate::image::layer::digest;
use crate::paths;

/// What the guest's system is made from.
const SUITE: &str = "bookworm";
const PACKAGES: [&str; 33] = [
    "apparmor",
    "base-passwd",
    "bash",
    "busybox-static",
    "coreutils",
    "criu",
    "crun",
    "dash",
    "dbus",
    "docker-registry",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "iproute2",
    "iptables",
    "iputils-ping",
    "kmod",
    "libgcc-s1",
    "libseccomp2",
    "linux-image-cloud-amd64",
    "mawk",
    "mount",
    "netbase",
    "nftables",
    "procps",
    "runc",
    "sed",
    "systemd",
    "systemd-sysv",
    "tar",
    "util-linux",
    "zlib1g",
];
/// What systemd starts, where it is the first process: the job of the disk, as a service like any other.
const JOB_SERVICE: &str = "[Unit]
Description=The job
Requires=dbus.socket
After=dbus.socket

[Service]
ExecStart=/job/vminit serve
KillMode=process
TasksMax=infinity
LimitNOFILE=1048576
";
/// The user of the message bus, made by a package's script elsewhere.
const BUS: (&str, &str) = ("messagebus:x:101:101::/nonexistent:/usr/sbin/nologin\n", "messagebus:x:101:\n");
/// Room for what the tests write; the image is sparse.
const SIZE: &str = "8G";
/// Authorities that a client of registries wants to see, made by a package's script elsewhere.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Time for downloads on a slow line.
const PATIENCE: Duration = Duration::from_secs(900);

/// A system to boot.
#[derive(Clone, Debug)]
pub struct Root {
    /// The kernel.
    pub kernel: PathBuf,
    /// An ext4 image, never written to.
    pub image: PathBuf,
}

/// The system from the cache, made when it is not there.
pub fn system() -> Result<Root> {
    let key = digest(include_str!("root.rs").as_bytes());
    let cache = paths::cache().join("guest");
    std::fs::create_dir_all(&cache)?;
    let lock = File::create(cache.join("lock"))?;
    lock.lock()?;
    let done = cache.join(&key["sha256:".len()..][..16]);
    if !done.exists() {
        eprintln!("guest: making the root image (a minute, once)");
        let scratch = tempfile::tempdir_in(&cache)?;
        let made = scratch.path().join("made");
        std::fs::create_dir(&made)?;
        make(&scratch.path().join("root"), &made).context("make the guest's root image")?;
        std::fs::rename(&made, &done)?;
    }
    Ok(Root { kernel: done.join("vmlinuz"), image: done.join("root.img") })
}

/// Unpacks the packages without running their scripts, does the few things that those would have done, and packs.
fn make(root: &Path, made: &Path) -> Result<()> {
    let bootstrap = Program::new("mmdebstrap")
        .args(["--quiet", "--mode=root", "--variant=extract"])
        .arg("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr")
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg(SUITE)
        .arg(root);
    bootstrap.deadline(PATIENCE).ok()?;
    let kernel = only_entry(&root.join("boot"), "vmlinuz-")?;
    let version = kernel["vmlinuz-".len()..].to_owned();
    std::fs::rename(root.join("boot").join(&kernel), made.join("vmlinuz"))?;
    std::fs::remove_dir_all(root.join("boot"))?;
    for (name, bus) in [("passwd", BUS.0), ("group", BUS.1)] {
        let master = root.join("usr/share/base-passwd").join(format!("{name}.master"));
        std::fs::write(root.join("etc").join(name), std::fs::read_to_string(master)? + bus)?;
    }
    std::fs::create_dir_all(root.join("etc/systemd/system"))?;
    std::fs::write(root.join("etc/systemd/system/job.service"), JOB_SERVICE)?;
    std::fs::write(root.join("etc/machine-id"), format!("{:032x}\n", 0xbe47))?;
    std::fs::write(root.join("etc/hosts"), "127.0.0.1 localhost\n")?;
    std::fs::write(root.join("etc/resolv.conf"), "nameserver 127.0.0.1\n")?;
    std::fs::create_dir_all(root.join("etc/ssl/certs"))?;
    std::fs::copy(CERTIFICATES, root.join(&CERTIFICATES[1..]))?;
    std::fs::create_dir(root.join("job"))?;
    // youki looks for the message bus below /var/run; of systemd's own socket it may await an answer in vain.
    for (name, target) in [("var/run", "../run"), ("var/lock", "../run/lock")] {
        let path = root.join(name);
        std::fs::remove_dir_all(&path)?;
        std::os::unix::fs::symlink(target, path)?;
    }
    // Everybody is root here, so that `sudo` has only to run what it is given.
    std::os::unix::fs::symlink("../bin/env", root.join("usr/sbin/sudo"))?;
    // The last two are what CRIU runs.
    for name in ["iptables", "ip6tables", "iptables-restore", "ip6tables-restore"] {
        std::os::unix::fs::symlink("xtables-nft-multi", root.join("usr/sbin").join(name))?;
    }
    Program::new("chroot").arg(root).args(["/sbin/depmod", &version]).ok()?;
    Program::new("ldconfig").arg("-r").arg(root).ok()?;
    pack(root, &made.join("root.img"), SIZE)
}

/// Makes an ext4 image of a directory. Nothing of it has to survive a crash: no journal.
pub fn pack(dir: &Path, image: &Path, size: &str) -> Result<()> {
    let make = Program::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-O", "^has_journal"]);
    let make = make.args(["-E", "lazy_itable_init=1,nodiscard", "-d"]).arg(dir).arg(image).arg(size);
    make.deadline(PATIENCE).ok().map(drop)
}

fn only_entry(dir: &Path, prefix: &str) -> Result<String> {
    let names = std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names = names.collect::<Result<Vec<String>>>()?;
    let found = names.into_iter().find(|name| name.starts_with(prefix));
    found.with_context(|| format!("no {prefix}* in {}", dir.display()))
}
