//! Ring 1: specifications run by real OCI runtimes, on a root with busybox alone, inside mount, network, IPC and
//! UTS namespaces of the test. What a container sees of itself is compared with what was asked for.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use proto::cri;
use proto::cri::security_profile::ProfileType;

use super::fixture::{Case, bind};
use super::*;
use crate::spec::capabilities::CapSet;

/// What the container prints: `name: value`, one each line.
const FACTS: &str = r#"
say() { echo "$1: $2"; }
grep -E '^(Cap|Seccomp:|NoNewPrivs|Groups)' /proc/self/status | while read n v; do echo "$n $v"; done
say id "$(id -u):$(id -g)"
say umask "$(umask)"
say cwd "$(pwd)"
say home "$HOME"
say hostname "$(hostname)"
say links "$(ls /sys/class/net | tr '\n' ' ')"
ls -l /proc/1/fd # not in a substitution, whose pipe would be listed
say oom "$(cat /proc/self/oom_score_adj)"
say pids "$(ls /proc | grep -c '^[0-9]*$')"
say kcore "$(head -c 1 /proc/kcore 2>/dev/null | wc -c)"
say firmware "$(ls /sys/firmware | wc -l)"
say cgroup "$(cut -d: -f3 /proc/self/cgroup | sort -u | tr '\n' ' ')"
say shm "$(grep -c ' /dev/shm ' /proc/self/mounts)"
say hosts "$(cat /etc/hosts)"
try() { name=$1; shift; if "$@" >/dev/null 2>&1; then say "$name" yes; else say "$name" no; fi; }
try sysctl sh -c 'echo 1 > /proc/sys/kernel/shm_rmid_forced'
try sysfs sh -c 'echo 1 > /sys/kernel/mm/ksm/run || mkdir /sys/fs/cgroup/*/probe'
try mount mount -t tmpfs tmpfs /tmp
try unshare unshare -m true
try write touch /probe
try data touch /data/probe
try shmwrite touch /dev/shm/probe
mknod /dev/shm/fuse c 10 229 2>/dev/null
try device sh -c ': < /dev/shm/fuse'
try null sh -c 'echo > /dev/null'
"#;

/// Namespaces for containers to run in, held by a process that ends with this value.
struct Host {
    holder: Child,
    dir: tempfile::TempDir,
}

impl Host {
    /// `None`, after saying so, where the test cannot run.
    fn new(runtime: &str) -> Option<Self> {
        let missing =
            [runtime, "busybox", "unshare", "nsenter"].into_iter().find(|tool| find(tool).is_none());
        let lacking = match missing {
            _ if !rustix::process::geteuid().is_root() => Some("root".to_string()),
            missing => missing.map(|tool| format!("the program {tool}")),
        };
        if let Some(lacking) = lacking {
            assert!(std::env::var_os("E2E_REQUIRE").is_none(), "ring 1 needs {lacking}");
            eprintln!("SKIPPED: running {runtime} needs {lacking}");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let setup = "
            umount /sys/fs/cgroup/unified 2>/dev/null
            mount -t tmpfs -o mode=1777 shm \"$0/shm\" && hostname web-0 && echo ready && read -r line";
        std::fs::create_dir(dir.path().join("shm")).unwrap();
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--net", "--ipc", "--uts", "sh", "-c", setup])
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Some(Self { holder, dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A root with busybox, and files of the pod, in `case`.
    fn prepare(&self, case: &mut Case) {
        let root = self.path("rootfs");
        for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "data"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        let busybox = find("busybox").unwrap();
        // A copy would be open for writing in whatever another test forks meanwhile, and so could not be executed.
        std::fs::hard_link(&busybox, root.join("bin/busybox"))
            .or_else(|_| std::fs::copy(&busybox, root.join("bin/busybox")).map(drop))
            .unwrap();
        let applets = Command::new(&busybox).arg("--list").output().unwrap().stdout;
        for applet in String::from_utf8(applets).unwrap().lines().filter(|name| *name != "busybox") {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        for (name, text) in [("hosts", "127.0.0.1 localhost"), ("resolv.conf", ""), ("hostname", "web-0\n")] {
            std::fs::write(self.path(name), text).unwrap();
        }
        std::fs::create_dir(self.path("data")).unwrap();
        let namespace = |name: &str| Some(PathBuf::from(format!("/proc/{}/ns/{name}", self.holder.id())));
        case.namespace_paths = NamespacePaths {
            network: namespace("net"),
            ipc: namespace("ipc"),
            uts: namespace("uts"),
            ..Default::default()
        };
        case.pod_files = PodFiles {
            resolv_conf: Some(self.path("resolv.conf")),
            hosts: Some(self.path("hosts")),
            hostname: Some(self.path("hostname")),
            shm: Some(self.path("shm")),
        };
        case.rootfs = root;
        case.node = node();
        let mount = bind(self.path("data").to_str().unwrap(), "/data");
        case.mount(mount);
    }

    /// Runs the container to its end.
    fn run(&self, runtime: &str, case: &Case) -> String {
        let bundle = self.path("bundle");
        std::fs::create_dir_all(&bundle).unwrap();
        let spec = serde_json::to_vec(&case.generate().unwrap()).unwrap();
        std::fs::write(bundle.join("config.json"), spec).unwrap();
        let output = Command::new("nsenter")
            .args([&format!("--target={}", self.holder.id()), "--mount", "--", runtime])
            .args(if runtime == "crun" { &["--cgroup-manager=cgroupfs"][..] } else { &[] })
            .arg("--root")
            .arg(self.path("state"))
            .args(["run", "--bundle"])
            .arg(&bundle)
            .arg(case.cgroups_path.trim_start_matches('/'))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        // youki keeps the state of a container that has ended.
        if runtime == "youki" {
            let mut delete = Command::new(runtime);
            delete.arg("--root").arg(self.path("state")).args(["delete", "--force"]);
            delete.arg(case.cgroups_path.trim_start_matches('/')).status().unwrap();
        }
        let text = |bytes| String::from_utf8(bytes).unwrap();
        assert!(output.status.success(), "{runtime}: {}", text(output.stderr) + &text(output.stdout));
        text(output.stdout)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

fn node() -> NodeFacts {
    let mut status = String::new();
    std::fs::File::open("/proc/self/status").unwrap().read_to_string(&mut status).unwrap();
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
    let bounding = u64::from_str_radix(bounding.trim(), 16).unwrap();
    NodeFacts {
        cgroups: CgroupVersion::Hybrid,
        cgroup_namespaces: Availability::Present,
        swap_accounting: Availability::Missing,
        hugetlb: Availability::Missing,
        oom_score: OomScore::AtLeast(0),
        capabilities: CapSet::from_bits(bounding),
        machine: Machine::HERE,
        ..Case::new().node
    }
}

/// Runs `case` and returns the facts that the container printed.
fn facts(runtime: &str, name: &str, change: impl FnOnce(&mut Case)) -> Option<BTreeMap<String, String>> {
    let host = Host::new(runtime)?;
    let mut case = Case::new();
    host.prepare(&mut case);
    case.config.command = ["/bin/sh", "-c", FACTS].map(String::from).into();
    case.cgroups_path = format!("/berth-spec-{}-{runtime}-{name}", std::process::id());
    change(&mut case);
    let text = host.run(runtime, &case);
    println!("{text}");
    let facts = text.lines().filter_map(|line| line.split_once(": "));
    let mut facts: BTreeMap<String, String> =
        facts.map(|(name, value)| (name.into(), value.trim().into())).collect();
    let links = text.lines().filter_map(|line| line.split_once(" -> "));
    let fds: Vec<&str> = links.filter_map(|(left, _)| left.rsplit(' ').next()).collect();
    facts.insert("fds".into(), fds.join(" "));
    Some(facts)
}

#[track_caller]
fn expect(facts: &BTreeMap<String, String>, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        assert_eq!(facts.get(*name).map(String::as_str), Some(*value), "{name}");
    }
}

fn mask(names: &[&str]) -> String {
    let all = CapSet::ALL.names();
    let bit = |name: &&str| 1u64 << all.iter().position(|known| known == &format!("CAP_{name}")).unwrap();
    format!("{:016x}", names.iter().map(bit).sum::<u64>())
}

const DEFAULT_MASK: &str = "00000000a80425fb";
const NONE: &str = "0000000000000000";

/// "By default mount, module load, raw … devices and the clock are refused"; "siblings [see] nothing. Names, IPC
/// objects, mounts and routes likewise."
fn root_by_default(runtime: &str) {
    let Some(facts) = facts(runtime, "root", |case| {
        case.security().seccomp = Some(cri::SecurityProfile::default());
        case.resources().oom_score_adj = 500;
        case.config.working_dir = "/tmp".into();
        case.home = "/root".into();
    }) else {
        return;
    };
    // On version 2 device rules are a program in the kernel, which youki 0.7 loads only if built to.
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let device = if unified && runtime == "youki" { "yes" } else { "no" };
    expect(
        &facts,
        &[
            ("id", "0:0"),
            ("Groups", "0"),
            ("CapInh", NONE),
            ("CapPrm", DEFAULT_MASK),
            ("CapEff", DEFAULT_MASK),
            ("CapBnd", DEFAULT_MASK),
            ("CapAmb", NONE),
            ("Seccomp", "2"),
            ("NoNewPrivs", "0"),
            ("umask", "0022"),
            ("cwd", "/tmp"),
            ("home", "/root"),
            ("hostname", "web-0"),
            ("links", "lo"),
            ("fds", "0 1 2"),
            ("oom", "500"),
            ("kcore", "0"),
            ("firmware", "0"),
            ("cgroup", "/"),
            ("shm", "1"),
            ("hosts", "127.0.0.1 localhost"),
            ("sysctl", "no"),
            ("sysfs", "no"),
            ("mount", "no"),
            ("unshare", "no"),
            ("write", "yes"),
            ("data", "yes"),
            ("shmwrite", "yes"),
            ("null", "yes"),
            ("device", device),
        ],
    );
}

/// An unprivileged user keeps no capability and cannot gain one; its root is read-only and its volumes are not.
fn user_with_nothing(runtime: &str) {
    let Some(facts) = facts(runtime, "user", |case| {
        (case.uid, case.gid, case.additional_gids) = (1000, 2000, vec![2000, 3000]);
        case.security().seccomp = Some(cri::SecurityProfile::default());
        case.security().no_new_privs = true;
        case.security().readonly_rootfs = true;
        case.security().capabilities =
            Some(cri::Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
        std::os::unix::fs::chown(&case.mount_sources[0].path, Some(1000), None).unwrap();
    }) else {
        return;
    };
    expect(
        &facts,
        &[
            ("id", "1000:2000"),
            ("Groups", "2000 3000"),
            ("CapInh", NONE),
            ("CapPrm", NONE),
            ("CapEff", NONE),
            ("CapBnd", NONE),
            ("CapAmb", NONE),
            ("Seccomp", "2"),
            ("NoNewPrivs", "1"),
            ("fds", "0 1 2"),
            ("write", "no"),
            ("data", "yes"),
            ("mount", "no"),
            ("shmwrite", "yes"),
        ],
    );
}

/// Ambient capabilities reach an unprivileged user's programs.
fn user_with_ambient(runtime: &str) {
    let Some(facts) = facts(runtime, "ambient", |case| {
        (case.uid, case.gid, case.additional_gids) = (1000, 1000, vec![1000]);
        case.security().capabilities = Some(cri::Capability {
            drop_capabilities: vec!["ALL".into()],
            add_capabilities: vec!["NET_BIND_SERVICE".into()],
            add_ambient_capabilities: vec!["NET_BIND_SERVICE".into()],
        });
    }) else {
        return;
    };
    let one = mask(&["NET_BIND_SERVICE"]);
    expect(&facts, &[("CapEff", &one), ("CapAmb", &one), ("CapBnd", &one), ("Seccomp", "0")]);
}

/// A privileged container has all that the daemon has.
fn privileged(runtime: &str) {
    let Some(facts) = facts(runtime, "privileged", |case| {
        case.security().privileged = true;
        case.sandbox_security().privileged = true;
        case.security().seccomp = Some(cri::SecurityProfile {
            profile_type: ProfileType::RuntimeDefault as i32,
            ..Default::default()
        });
    }) else {
        return;
    };
    let all = node().capabilities.names();
    let all: Vec<&str> = all.iter().filter_map(|name| name.strip_prefix("CAP_")).collect();
    let all = mask(&all);
    expect(
        &facts,
        &[
            ("CapEff", &all),
            ("CapBnd", &all),
            ("CapInh", NONE),
            ("Seccomp", "0"),
            ("mount", "yes"),
            ("unshare", "yes"),
            ("sysctl", "yes"),
            ("device", "yes"),
        ],
    );
}

macro_rules! each_runtime {
    ($($check:ident)*) => { $(
        mod $check {
            #[test]
            fn crun() {
                super::$check("crun");
            }

            #[test]
            fn runc() {
                super::$check("runc");
            }

            #[test]
            fn youki() {
                super::$check("youki");
            }
        }
    )* };
}

each_runtime!(root_by_default user_with_nothing user_with_ambient privileged);

#[test]
fn the_mask_of_the_default_set() {
    let names = Case::new().generate().unwrap().process.capabilities.bounding;
    let names: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix("CAP_")).collect();
    assert_eq!(mask(&names), DEFAULT_MASK);
    assert!(Path::new("/proc").exists());
}
