//! Builds layers and images by hand, and looks at what became of them.

use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cri_server::image::overlay::{Overlay, Writable};
use cri_server::image::{Config, Digest, Image, ImageStore, RegistryConfig};
use serde_json::json;
use tar::{EntryType, Header};

/// Says loudly why a test does nothing; with `E2E_REQUIRE=1` that is a failure.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("E2E_REQUIRE").is_none_or(|v| v != "1"), "this test needs root");
        eprintln!("SKIPPED: this test needs root");
    }
    root
}

/// An archive in the making.
#[derive(Clone, Default)]
pub struct Layer(pub Vec<u8>);

impl Layer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn entry(mut self, name: &str, kind: EntryType, change: impl Fn(&mut Header), data: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        change(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, data: &str) -> Self {
        self.entry(name, EntryType::Regular, |_| {}, data.as_bytes())
    }

    pub fn owned_file(self, name: &str, mode: u32, owner: u64) -> Self {
        self.entry(name, EntryType::Regular, |h| own(h, mode, owner), b"x")
    }

    pub fn dir(self, name: &str) -> Self {
        self.owned_dir(name, 0o755, 0)
    }

    pub fn owned_dir(self, name: &str, mode: u32, owner: u64) -> Self {
        self.entry(name, EntryType::Directory, |h| own(h, mode, owner), b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(name, EntryType::Symlink, |h| link(h, target), b"")
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(name, EntryType::Link, |h| link(h, target), b"")
    }

    /// Extended records for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions(records.iter().copied()).unwrap();
        let bytes = builder.into_inner().unwrap();
        self.raw(&bytes[..bytes.len() - 1024])
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn own(header: &mut Header, mode: u32, owner: u64) {
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
}

fn link(header: &mut Header, target: &str) {
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image in parts.
#[derive(Clone)]
pub struct TestImage {
    pub layers: Vec<Vec<u8>>,
    pub diff_ids: Vec<Digest>,
    pub config: Vec<u8>,
    pub layer_type: &'static str,
}

pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl TestImage {
    /// Uncompressed layers.
    pub fn new(layers: Vec<Layer>) -> Self {
        Self::of(layers.into_iter().map(Layer::finish).collect())
    }

    /// Layers as they are.
    pub fn of(layers: Vec<Vec<u8>>) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": { "Cmd": ["sh"], "User": "1000", "Env": ["A=b"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        Self { layers, diff_ids, config: config.to_string().into_bytes(), layer_type: OCI_LAYER }
    }

    pub fn gzipped(mut self) -> Self {
        self.layers = self.layers.iter().map(|layer| gzip(layer)).collect();
        self.layer_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        self
    }

    pub fn id(&self) -> Digest {
        Digest::of(&self.config)
    }

    pub fn manifest(&self) -> Vec<u8> {
        let blob = |kind: &str, bytes: &[u8]| json!({ "mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len() });
        let layers: Vec<_> = self.layers.iter().map(|layer| blob(self.layer_type, layer)).collect();
        json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": layers,
            "config": blob("application/vnd.oci.image.config.v1+json", &self.config),
        })
        .to_string()
        .into_bytes()
    }

    /// An OCI layout with this image under a name.
    pub fn layout(&self, name: &str) -> Vec<u8> {
        let manifest = self.manifest();
        let index = json!({ "schemaVersion": 2, "manifests": [{
            "mediaType": OCI_MANIFEST, "digest": Digest::of(&manifest), "size": manifest.len(),
            "annotations": { "io.containerd.image.name": name },
        }]});
        let mut files = BTreeMap::from([
            ("oci-layout".to_string(), b"{}".to_vec()),
            ("index.json".to_string(), index.to_string().into_bytes()),
        ]);
        for blob in self.layers.iter().chain([&self.config, &manifest]) {
            files.insert(format!("blobs/sha256/{}", Digest::of(blob).hex()), blob.clone());
        }
        archive(&files)
    }
}

pub fn archive(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let layer = files
        .iter()
        .fold(Layer::new(), |layer, (name, bytes)| layer.entry(name, EntryType::Regular, |_| {}, bytes));
    layer.finish()
}

/// A store in a directory of its own.
pub struct TestStore {
    pub store: ImageStore,
    pub dir: tempfile::TempDir,
}

pub fn config(registries: RegistryConfig) -> Config {
    let platform = serde_json::from_value(json!({ "os": "linux", "architecture": "amd64" })).unwrap();
    Config { registries, platform, ..Config::default() }
}

impl TestStore {
    pub fn new() -> Self {
        Self::with(config(RegistryConfig::default()))
    }

    pub fn with(config: Config) -> Self {
        // Registries may be asked over TLS; a second call finds the provider installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path(), config).unwrap();
        Self { store, dir }
    }

    pub async fn import(&self, image: &TestImage, name: &str) -> Arc<Image> {
        let images = self.try_import(image, name).await.unwrap();
        images[0].clone()
    }

    pub async fn try_import(
        &self,
        image: &TestImage,
        name: &str,
    ) -> Result<Vec<Arc<Image>>, cri_server::image::ImageError> {
        cri_server::image::import(&self.store, Cursor::new(image.layout(name))).await
    }

    /// Names in the directory of layers.
    pub fn layer_dirs(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.dir.path().join("layers")).unwrap();
        let mut names: Vec<_> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Waits until no layer is left.
    pub async fn wait_empty(&self) {
        wait_for("no layer is left", || self.layer_dirs() == ["empty"]).await;
    }
}

pub async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Mounts the image in a mount namespace of its own and lets `check` look at it.
pub fn with_rootfs<T: Send>(store: &TestStore, image: &Image, check: impl FnOnce(&Path) -> T + Send) -> T {
    let (layers, empty) = (store.store.layer_paths(image), store.store.empty_layer());
    let scratch = tempfile::tempdir_in(store.dir.path()).unwrap();
    let [upper, work, target] =
        ["upper", "work", "target"].map(|name| -> PathBuf { scratch.path().join(name) });
    std::fs::create_dir(&target).unwrap();
    let overlay = Overlay {
        layers: &layers,
        empty: &empty,
        writable: Some(Writable { upper: &upper, work: &work }),
        owners: None,
        label: None,
    };
    overlay.create_writable().unwrap();
    in_mount_namespace(|| {
        overlay.mount(&target).unwrap();
        check(&target)
    })
}

/// Runs on a thread whose mounts vanish with it.
pub fn in_mount_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: only this thread's view of mounts and its own working directory change.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "{}", std::io::Error::last_os_error());
            let private =
                rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// A tree as text: path, kind, mode, owner, content or target.
pub fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

fn walk(root: &Path, at: &Path, found: &mut BTreeMap<String, String>) {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let meta = std::fs::symlink_metadata(at).unwrap();
    let kind = meta.file_type();
    let what = if kind.is_dir() {
        "dir".to_string()
    } else if kind.is_symlink() {
        format!("-> {}", std::fs::read_link(at).unwrap().display())
    } else if kind.is_file() {
        format!("file {:?}", String::from_utf8_lossy(&std::fs::read(at).unwrap()))
    } else if kind.is_char_device() {
        format!("char {:x}", meta.rdev())
    } else {
        "other".to_string()
    };
    let name = at.strip_prefix(root).unwrap().display().to_string();
    found.insert(format!("/{name}"), format!("{what} {:o} {}", meta.mode() & 0o7777, meta.uid()));
    if kind.is_dir() {
        let mut children: Vec<_> = std::fs::read_dir(at).unwrap().map(|e| e.unwrap().path()).collect();
        children.sort();
        children.iter().for_each(|child| walk(root, child, found));
    }
}
