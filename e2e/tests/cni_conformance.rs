//! Outside judges of our plugins: programs and tests of others, which know nothing of Berth. `make cni-conformance`.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::case::Case;
use e2e::cni::judges::{Podman, row, specs};
use e2e::cni::{Host, Maker, plugins};
use e2e::cri::container;
use e2e::daemon::{Endpoint, Setup};
use e2e::exec::Program;
use e2e::http::Origin;
use e2e::image::set::WEB;
use e2e::{ns, paths, wait};
use proto::cri as api;
use serde_json::{Value, json};

const ANSWER: Duration = Duration::from_secs(20);

/// Specs of others that ours differ from on purpose, with the reason.
const NO_31: &str = "setup does teardown on failure";
const CHAIN_NAMES: &str = "forwards a TCP port on ipv4";

fn local(range: &str) -> Value {
    json!({"type": "host-local", "ranges": [[{"subnet": range}]], "routes": [{"dst": "0.0.0.0/0"}]})
}

/// Lists by name.
fn lists() -> Vec<(&'static str, Value)> {
    let bridge = json!({"type": "bridge", "bridge": "judged0", "isGateway": true, "ipMasq": true,
                        "hairpinMode": true, "ipam": local("10.150.0.0/24")});
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    vec![
        ("bridge", json!([bridge, portmap])),
        (
            "chain",
            json!([bridge, portmap, {"type": "firewall"},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}}, {"type": "tuning", "mtu": 1400}]),
        ),
        ("ptp", json!([{"type": "ptp", "ipMasq": true, "ipam": local("10.151.0.0/24")}, portmap])),
        ("macvlan", json!([{"type": "macvlan", "master": "wire0", "ipam": local("10.152.0.0/24")}])),
        (
            "static",
            json!([{"type": "macvlan", "master": "wire0", "ipam":
            {"type": "static", "addresses": [{"address": "10.153.0.5/24", "gateway": "10.153.0.1"}]}}]),
        ),
        ("loopback", json!([{"type": "loopback"}])),
    ]
}

/// Every verb of cnitool on every list, in every version that has the verb.
#[test]
fn cnitool_has_every_verb() -> Result<()> {
    Host::run("cnitool_has_every_verb", |host| {
        let ours = Maker::Ours.plugins(host)?;
        let cnitool = plugins::peer("cnitool")?;
        for (name, plugins) in lists() {
            let mut settled = None;
            for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
                let list = json!({"cniVersion": version, "name": name, "plugins": plugins});
                std::fs::write(host.scratch().join("net.d/1.conflist"), list.to_string())?;
                let pod = host.pod(&format!("{name}-pod"))?;
                let run = |verb: &str| {
                    let program = Program::new(&cnitool).args([verb, name]).arg(&pod.netns);
                    let capabilities = json!({
                        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
                        "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000},
                    });
                    let program = program.env("CAP_ARGS", capabilities.to_string());
                    let program = program.env("NETCONFPATH", host.scratch().join("net.d"));
                    program
                        .env("CNI_PATH", &ours.dir)
                        .ok()
                        .with_context(|| format!("{verb} {name} {version}"))
                };
                let verbs: &[&str] = match version {
                    "0.3.1" => &["add", "del", "del"],
                    "0.4.0" | "1.0.0" => &["add", "check", "del", "del"],
                    _ => &["status", "add", "check", "del", "add", "gc", "status"],
                };
                for verb in verbs {
                    let said = run(verb)?;
                    if *verb == "add" {
                        let result: Value = serde_json::from_str(&said).context("the result of ADD")?;
                        ensure!(result["cniVersion"] == version, "{result}");
                    }
                }
                host.end_pod(&pod)?;
                match &settled {
                    None => settled = Some(host.snapshot()?),
                    Some(settled) => {
                        host.expect_no_leaks(settled).with_context(|| format!("{name} {version}"))?
                    }
                }
                row("cnitool 1.3", &format!("{name} {version}: {}", verbs.join(" ")), "ok");
            }
        }
        Ok(())
    })
}

/// podman with the CNI back-end: networks, ports, fixed addresses, two networks, macvlan.
#[test]
fn podman_runs_on_our_plugins() -> Result<()> {
    Host::run("podman_runs_on_our_plugins", |host| {
        let podman = Podman::new(host, &Maker::Ours.plugins(host)?)?;
        podman.ok(&["network", "create", "-d", "bridge", "--subnet", "10.99.0.0/24", "n1"])?;
        podman.ok(&[
            "network",
            "create",
            "-d",
            "bridge",
            "--subnet",
            "10.98.0.0/24",
            "--ipv6",
            "--subnet",
            "fd00:98::/64",
            "n2",
        ])?;
        podman.ok(&[
            "network",
            "create",
            "-d",
            "macvlan",
            "-o",
            "parent=wire0",
            "--subnet",
            "10.97.0.0/24",
            "m1",
        ])?;
        let mut settled = None;
        for round in 0..2 {
            podman.serve("ports", &["--network", "n1", "-p", "8080:80"])?;
            podman.answers("127.0.0.1:8080")?;
            podman.serve(
                "fixed",
                &["--network", "n1", "--ip", "10.99.0.77", "--mac-address", "02:00:00:00:00:99"],
            )?;
            podman.answers("10.99.0.77:80")?;
            let link = podman.ok(&["exec", "fixed", "ip", "addr", "show", "dev", "eth0"])?;
            ensure!(link.contains("02:00:00:00:00:99") && link.contains("10.99.0.77/24"), "{link}");
            // It tells both networks of the port.
            podman.serve("both", &["--network", "n1,n2", "-p", "18091:80"])?;
            podman.answers("127.0.0.1:18091")?;
            let links = podman.ok(&["exec", "both", "ip", "addr"])?;
            ensure!(
                links.contains("10.99.0.") && links.contains("10.98.0.") && links.contains("fd00:98::"),
                "{links}"
            );
            podman.serve("outside", &["--network", "m1"])?;
            let links = podman.ok(&["exec", "outside", "ip", "addr"])?;
            ensure!(links.contains("10.97.0."), "{links}");
            for name in ["ports", "fixed", "both", "outside"] {
                podman.ok(&["rm", "-f", "-t", "0", name])?;
            }
            match &settled {
                None => settled = Some(host.snapshot()?),
                Some(settled) => host.expect_no_leaks(settled).with_context(|| format!("round {round}"))?,
            }
        }
        for what in [
            "create bridge, dual-stack and macvlan networks",
            "published port",
            "fixed IP and MAC address",
            "two networks, with a published port",
            "macvlan",
            "remove; nothing left",
        ] {
            row("podman 4.3", what, "ok");
        }
        Ok(())
    })
}

/// One list, two runtimes: the same pod with a published port comes and goes.
#[tokio::test(flavor = "multi_thread")]
async fn two_runtimes_use_the_same_list() -> Result<()> {
    for endpoint in [Endpoint::Berth, Endpoint::Containerd] {
        let handler = if endpoint == Endpoint::Containerd { "runc" } else { "crun" };
        let setup = Setup { endpoint, plugins: Maker::Ours, ..Setup::with_handler(handler) };
        let Some(mut case) = Case::open("two_runtimes_use_the_same_list", setup).await? else {
            return Ok(());
        };
        case.cri.pull(WEB).await?;
        case.accept_present_state()?;
        let mut pod = case.cri.pod("ports");
        pod.port_mappings =
            vec![api::PortMapping { container_port: 80, host_port: 18081, ..Default::default() }];
        let pod_id = case.cri.run_pod(&pod).await?;
        let mut config = container("web", WEB, &[]);
        config.command.clear();
        case.cri.launch(&pod_id, &config, &pod).await?;
        let ip = case.cri.pod_status(&pod_id).await?.network.context("no network status")?.ip;
        for address in [format!("{ip}:80"), "127.0.0.1:18081".to_owned()] {
            let origin = Origin { address: address.parse()?, holder: Some(case.node.holder_pid()) };
            let page =
                wait::until("an answer", ANSWER, || origin.request("GET", "/", None)).context(address)?;
            ensure!(page.status == 200, "{page:?}");
        }
        case.cri.end_pod(&pod_id).await?;
        case.close()?;
        let name = if endpoint == Endpoint::Berth { "cri-server" } else { "containerd (Debian)" };
        row(name, "pod with a published port; remove; nothing left", "ok");
    }
    Ok(())
}

/// The tests of podman's network library.
#[test]
fn tests_of_podmans_library_pass() -> Result<()> {
    Host::run("tests_of_podmans_library_pass", |host| {
        let ours = Maker::Ours.plugins(host)?;
        // The first of the directories that they look into which this machine has.
        ns::bind(&ours.dir, Path::new("/usr/lib/cni"))?;
        let test = Program::new(plugins::peer("libnetwork.test")?).dir(&paths::cache().join("cni/tests"));
        let passed = specs(&test, "run CNI", NO_31)?;
        ensure!(passed >= 24, "only {passed} specs ran");
        row("containers/common 0.50.1", &format!("libnetwork/cni, run CNI: {passed} specs"), "ok");
        row(
            "containers/common 0.50.1",
            &format!("not {NO_31:?}: wants /31 refused, ours gives both addresses"),
            "-",
        );
        Ok(())
    })
}

/// The tests of the reference plugins that run plugins as programs.
#[test]
fn tests_of_the_reference_plugins_pass() -> Result<()> {
    Host::run("tests_of_the_reference_plugins_pass", |host| {
        let ours = Maker::Ours.plugins(host)?;
        // They look for plugins in PATH or in ../bin, for lists in ./testdata, and build a server of their module's.
        let dir = host.scratch().join("judge/integration");
        std::fs::create_dir_all(&dir)?;
        symlink(&ours.dir, host.scratch().join("judge/bin"))?;
        symlink(paths::cache().join("cni/tests/testdata"), dir.join("testdata"))?;
        for file in ["go.mod", "go.sum"] {
            std::fs::copy(
                paths::workspace().join("e2e/go/cni").join(file),
                host.scratch().join("judge").join(file),
            )?;
        }
        let path = std::env::var("PATH")?;
        let tools = paths::cache().join("cni/bin");
        // A directory with cnitool alone: the others there are the reference plugins.
        let only = host.scratch().join("judge/tools");
        std::fs::create_dir_all(&only)?;
        symlink(tools.join("cnitool"), only.join("cnitool"))?;
        let path = format!("{}:{}:{path}", ours.dir.display(), only.display());
        let cases = [
            ("integration", ".", "^$", 3),
            ("firewall", "firewall integration", "^$", 4),
            ("portmap", "portmap integration", CHAIN_NAMES, 4),
        ];
        for (name, focus, skip, least) in cases {
            let test = Program::new(plugins::peer(&format!("{name}.test"))?);
            let test = test.dir(&dir).env("PATH", &path).deadline(Duration::from_secs(300));
            let passed = specs(&test, focus, skip)?;
            ensure!(passed >= least, "{name}: only {passed} specs ran");
            row("plugins 1.9.1", &format!("{name}: {passed} specs"), "ok");
        }
        row("plugins 1.9.1", &format!("portmap, not {CHAIN_NAMES:?}: wants a chain of iptables"), "-");
        Ok(())
    })
}

/// What nerdctl asks: without any variable a plugin says who it is, in the form that it parses.
#[test]
fn plugins_say_who_they_are() -> Result<()> {
    Host::run("plugins_say_who_they_are", |host| {
        let ours = Maker::Ours.plugins(host)?;
        for entry in std::fs::read_dir(&ours.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            ensure!(entry.metadata()?.permissions().mode() & 0o111 != 0 || entry.file_type()?.is_symlink());
            if name == "cni-bridge" {
                continue;
            }
            let said = Program::new(entry.path()).run()?;
            let banner = format!("CNI {name} plugin v");
            if !said.status.success() || !said.stderr.starts_with(&banner) {
                bail!("{name}: {said:?}");
            }
        }
        row("nerdctl's question", "banner of every plugin", "ok");
        Ok(())
    })
}
