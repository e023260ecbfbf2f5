//! The standard set: what critest names, and what our own tests need, in one registry store that is built once.
//!
//! The store lies in the cache under a digest of everything it is made from, so a change makes a new one.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::layer::{Archive, Compression, Layer, Owner, digest};
use super::push::{Format, Image, index, push_manifest};
use super::volumes;
use crate::exec::Program;
use crate::http::Origin;
use crate::paths;
use crate::registry::Registry;

/// The image of most tests: a shell and its tools.
pub const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
/// A web server on port 80.
pub const WEB: &str = "registry.k8s.io/e2e-test-images/nginx:1.14-2";
/// A process that sleeps.
pub const PAUSE: &str = "registry.k8s.io/pause:3.9";
/// [`BUSYBOX`] and `/writer`, which stamps numbered lines.
pub const WRITER: &str = "127.0.0.1:5000/berth/writer:1";
/// [`BUSYBOX`] and `/denials`, which tries what a default filter of system calls refuses.
pub const DENIALS: &str = "127.0.0.1:5000/berth/denials:1";
/// Docker media types; an index; a zstd layer.
pub const FORMATS: [&str; 3] =
    ["127.0.0.1:5000/berth/docker:1", "127.0.0.1:5000/berth/index:1", "127.0.0.1:5000/berth/zstd:1"];

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbin:x:2:2:bin:/bin:/bin/false\n\
    www-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUP: &str = "root:x:0:\nbin:x:2:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n";
/// The sources that the set is made from, for its digest.
const SOURCES: [&str; 12] = [
    include_str!("set.rs"),
    include_str!("volumes.rs"),
    include_str!("layer.rs"),
    include_str!("push.rs"),
    include_str!("../../images/web.c"),
    include_str!("../../images/pause.c"),
    include_str!("../../images/euid.c"),
    include_str!("../../images/ipcs.c"),
    include_str!("../../images/sh.c"),
    include_str!("../../images/writer.c"),
    include_str!("../../images/denials.c"),
    include_str!("../../images/pgrep.sh"),
];

/// The store that `E2E_IMAGES` names: made elsewhere, for a machine that cannot make it.
#[must_use]
pub fn handed_in() -> Option<PathBuf> {
    std::env::var_os("E2E_IMAGES").map(PathBuf::from)
}

/// Directory of a registry store that holds the set: handed in, from the cache, or else built. Copy it before writing
/// to it.
pub fn store() -> Result<PathBuf> {
    if let Some(store) = handed_in() {
        return Ok(store);
    }
    let mut sources = SOURCES.join("\n");
    sources.push_str(&digest(&busybox()?));
    let key = digest(sources.as_bytes());
    let cache = paths::cache().join("images");
    std::fs::create_dir_all(&cache)?;
    let lock = File::create(cache.join("lock"))?;
    lock.lock()?;
    let done = cache.join(&key["sha256:".len()..][..16]);
    if done.exists() {
        return Ok(done);
    }
    let scratch = tempfile::tempdir_in(&cache)?;
    let store = scratch.path().join("store");
    std::fs::create_dir(&store)?;
    let registry = Registry::start(&store, scratch.path())?;
    Set::new(registry.origin(), scratch.path())?.push_all()?;
    drop(registry);
    std::fs::rename(&store, &done)?;
    Ok(done)
}

/// Pushes the set over one base layer.
struct Set<'a> {
    registry: Origin,
    base: Layer,
    extras: Extras,
    scratch: &'a Path,
}

impl<'a> Set<'a> {
    fn new(registry: Origin, scratch: &'a Path) -> Result<Self> {
        let extras = Extras { sh: compile(scratch, "sh", &[])?, ipcs: compile(scratch, "ipcs", &[])? };
        Ok(Self { registry, base: base_layer(&extras, "", "")?, extras, scratch })
    }

    fn push_all(&self) -> Result<()> {
        self.push_servers()?;
        self.push_users()?;
        self.push_reference_forms()?;
        self.push_formats()?;
        self.push_volumes()?;
        self.push_hostile()
    }

    /// The images that run something.
    fn push_servers(&self) -> Result<()> {
        let e2e = |name: &str| format!("e2e-test-images/{name}");
        self.push(&e2e("busybox"), &["1.29-2"], None, json!({"Cmd": ["sh"]}))?;
        let nginx = json!({"Cmd": ["/usr/sbin/nginx", "-g", "daemon off;"], "ExposedPorts": {"80/tcp": {}}});
        self.push(&e2e("nginx"), &["1.14-2"], Some(self.web("nginx", 80)?), nginx.clone())?;
        let host = "k8s-staging-cri-tools/hostnet-nginx-amd64";
        self.push(host, &["latest"], Some(self.web("nginx", 12003)?), nginx)?;
        let httpd = json!({"Cmd": ["/usr/sbin/httpd"], "ExposedPorts": {"80/tcp": {}}});
        self.push(&e2e("httpd"), &["2.4.39-4"], Some(self.web("httpd", 80)?), httpd)?;
        let euid = self.program("euid", "nnp", 0o4755)?;
        self.push(&e2e("nonewprivs"), &["1.3"], Some(euid), json!({"Entrypoint": ["/nnp"]}))?;
        for tag in ["3.6", "3.9", "3.10"] {
            let config = json!({"Entrypoint": ["/pause"], "User": "65535:65535", "Labels": {"version": tag}});
            let layers = vec![self.program("pause", "pause", 0o755)?];
            Image { format: Format::Oci, layers, config }.push(&self.registry, "pause", &[tag])?;
        }
        for name in ["writer", "denials"] {
            let program = self.program(name, name, 0o755)?;
            self.push(&format!("berth/{name}"), &["1"], Some(program), json!({"Cmd": ["sh"]}))?;
        }
        Ok(())
    }

    /// The images that differ in whom they run as.
    fn push_users(&self) -> Result<()> {
        let staging = |name: &str| format!("k8s-staging-cri-tools/test-image-{name}");
        let users = [
            ("user-uid", "1002"),
            ("user-username", "www-data"),
            ("user-uid-group", "1003:users"),
            ("user-username-group", "www-data:100"),
        ];
        for (name, user) in users {
            let config = json!({"Cmd": ["sh"], "User": user});
            self.push(&staging(name), &["latest"], None, config)?;
        }
        let layers = vec![base_layer(
            &self.extras,
            "default-user:x:1000:1000:Linux User,,,:/home/default-user:/bin/sh\n",
            "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n",
        )?];
        let config = json!({"Cmd": ["sh"], "User": "1000"});
        let image = Image { format: Format::Oci, layers, config };
        image.push(&self.registry, &staging("predefined-group"), &["latest"])?;
        Ok(())
    }

    /// The images that differ in how they are named.
    fn push_reference_forms(&self) -> Result<()> {
        let forms: [(&str, &[&str]); 8] = [
            ("latest", &["latest"]),
            ("tag", &["test"]),
            ("tag", &["all"]),
            ("digest", &["test"]),
            ("1", &["latest"]),
            ("2", &["latest"]),
            ("3", &["latest"]),
            ("tags", &["1", "2", "3"]),
        ];
        for (name, tags) in forms {
            let mark = Archive::default().file(&format!("{name}-{}", tags[0]), Owner::root(0o644), b"");
            let repository = format!("k8s-staging-cri-tools/test-image-{name}");
            let layer = mark.finish(Compression::Gzip)?;
            self.push(&repository, tags, Some(layer), json!({"Cmd": ["sh"]}))?;
        }
        Ok(())
    }

    /// The images that differ in their media types.
    fn push_formats(&self) -> Result<()> {
        let config =
            |name: &str| json!({"Cmd": ["sh"], "Env": [path_variable()], "Labels": {"dev.berth.form": name}});
        let layers = vec![self.base.clone()];
        let docker = Image { format: Format::Docker, layers: layers.clone(), config: config("docker") };
        docker.push(&self.registry, "berth/docker", &["1"])?;
        let mark = |name: &str| Archive::default().file(name, Owner::root(0o644), b"zstd\n");
        let two = vec![self.base.clone(), mark("mark").finish(Compression::Zstd)?];
        let zstd = Image { format: Format::Oci, layers: two, config: config("zstd") };
        zstd.push(&self.registry, "berth/zstd", &["1"])?;
        let fitting = Image { format: Format::Oci, layers, config: config("fitting") };
        let foreign_layer = mark("foreign").finish(Compression::Gzip)?;
        let foreign = Image { format: Format::Oci, layers: vec![foreign_layer], config: config("foreign") };
        fitting.push(&self.registry, "berth/index", &["amd64"])?;
        foreign.push(&self.registry, "berth/index", &["s390x"])?;
        let (fitting, foreign) = (fitting.manifest()?, foreign.manifest()?);
        let both = index(Format::Oci, &[("linux/s390x", &foreign), ("linux/amd64", &fitting)])?;
        push_manifest(&self.registry, "berth/index", "1", &both)
    }

    /// The images that are volumes, or have some.
    fn push_volumes(&self) -> Result<()> {
        let model = Image { format: Format::Oci, layers: volumes::model()?, config: json!({}) };
        model.push(&self.registry, "berth/model", &["1"])?;
        let (layer, config) = volumes::volumes()?;
        self.push("berth/volumes", &["1"], Some(layer), config)?;
        self.push("berth/astray", &["1"], Some(volumes::astray()?), json!({"Cmd": ["sh"]}))?;
        for (name, volume) in volumes::HOSTILE_VOLUMES {
            let config = json!({"Cmd": ["sh"], "Volumes": {volume: {}}});
            let repository = format!("berth/hostile-volume-{name}");
            self.push(&repository, &["1"], Some(volumes::astray()?), config)?;
        }
        Ok(())
    }

    /// The images that try to get out of their root; tag `1` of `berth/hostile-<name>`.
    fn push_hostile(&self) -> Result<()> {
        let file = Owner::root(0o644);
        let hostile = [
            ("dotdot", Archive::default().file("../../../../../../../tmp/berth-escaped", file, b"out")),
            ("absolute", Archive::default().file("/tmp/berth-escaped", file, b"in")),
            ("symlink", Archive::default().symlink("way", "/tmp").file("way/berth-escaped", file, b"in")),
            ("hardlink", Archive::default().hard_link("stolen", "../../../../../../../etc/passwd")),
            ("device", Archive::default().device("dev-null", 1, 3)),
            ("setuid", Archive::default().file("su", Owner::root(0o4755), b"#!/bin/sh\n")),
        ];
        for (name, archive) in hostile {
            let layer = archive.finish(Compression::Gzip)?;
            self.push(&format!("berth/hostile-{name}"), &["1"], Some(layer), json!({"Cmd": ["sh"]}))?;
        }
        Ok(())
    }

    fn push(&self, repository: &str, tags: &[&str], top: Option<Layer>, mut config: Value) -> Result<()> {
        config["Env"] = json!([path_variable()]);
        let layers = std::iter::once(self.base.clone()).chain(top).collect();
        Image { format: Format::Oci, layers, config }.push(&self.registry, repository, tags)?;
        Ok(())
    }

    /// A layer with the web server as `/usr/sbin/<name>`.
    fn web(&self, name: &str, port: u16) -> Result<Layer> {
        let exe = format!("/usr/sbin/{name}");
        let title =
            if name == "nginx" { "nginx: master process nginx -g daemon off;" } else { "httpd -DFOREGROUND" };
        let mut flags = vec![
            format!("-DPORT={port}"),
            format!("-DNAME=\"{name}\""),
            format!("-DEXE=\"{exe}\""),
            format!("-DTITLE=\"{title}\""),
        ];
        if name == "httpd" {
            flags.push("-DBANNER=\"AH00094: Command line: 'httpd -D FOREGROUND'\"".to_owned());
        }
        let content = compile(self.scratch, "web", &flags)?;
        Archive::default().file(&exe[1..], Owner::root(0o755), &content).finish(Compression::Gzip)
    }

    /// A layer with a program of `e2e/images` at the root.
    fn program(&self, source: &str, name: &str, mode: u32) -> Result<Layer> {
        let content = compile(self.scratch, source, &[])?;
        Archive::default().file(name, Owner::root(mode), &content).finish(Compression::Gzip)
    }
}

/// A program of `e2e/images`, linked statically.
fn compile(scratch: &Path, source: &str, flags: &[String]) -> Result<Vec<u8>> {
    let output = scratch.join(source);
    let source = paths::workspace().join("e2e/images").join(source).with_extension("c");
    let compiler = Program::new("gcc").args(["-static", "-O2", "-s", "-Wall", "-Werror", "-o"]);
    compiler.arg(&output).args(flags).arg(source).ok()?;
    Ok(std::fs::read(output)?)
}

/// Debian's static busybox.
fn busybox() -> Result<Vec<u8>> {
    Ok(std::fs::read(paths::in_path("busybox").context("busybox is not installed")?)?)
}

/// What busybox lacks or does differently.
struct Extras {
    sh: Vec<u8>,
    ipcs: Vec<u8>,
}

/// A small root file system around a static busybox: its applets are hard links in `/bin`. `sh`, `ipcs`
/// and `pgrep` are ours.
fn base_layer(extras: &Extras, users: &str, groups: &str) -> Result<Layer> {
    let mut archive = Archive::default();
    let dirs = "bin dev etc home lib proc root sbin sys usr usr/bin usr/sbin var var/run var/www";
    for dir in dirs.split(' ') {
        let (uid, gid) = if dir == "var/www" { (33, 33) } else { (0, 0) };
        archive = archive.dir(dir, Owner { mode: 0o755, uid, gid });
    }
    archive = archive.dir("tmp", Owner::root(0o1777)).file("bin/busybox", Owner::root(0o755), &busybox()?);
    archive = archive.file("bin/sh", Owner::root(0o755), &extras.sh);
    archive = archive.file("bin/ipcs", Owner::root(0o755), &extras.ipcs);
    let applets = Program::new("busybox").arg("--list").ok()?;
    ensure!(applets.lines().any(|applet| applet == "sh"), "this busybox has no shell");
    for applet in applets.lines().filter(|applet| !["busybox", "sh"].contains(applet)) {
        archive = archive.hard_link(&format!("bin/{applet}"), "bin/busybox");
    }
    let text = Owner::root(0o644);
    archive
        .file("bin/pgrep", Owner::root(0o755), include_bytes!("../../images/pgrep.sh"))
        .file("etc/passwd", text, format!("{PASSWD}{users}").as_bytes())
        .file("etc/group", text, format!("{GROUP}{groups}").as_bytes())
        .finish(Compression::Gzip)
}

fn path_variable() -> &'static str {
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}
