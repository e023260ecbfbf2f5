//! Images whose content or `VOLUME`s tests mount.

use anyhow::Result;
use serde_json::{Value, json};

use super::layer::{Archive, Compression, Layer, Owner};

/// An image in two layers without programs: files, links that lead everywhere, a deleted file.
pub const MODEL: &str = "127.0.0.1:5000/berth/model:1";
/// [`super::set::BUSYBOX`] with `VOLUME`s: filled, empty, behind a link, relative.
pub const VOLUMES: &str = "127.0.0.1:5000/berth/volumes:1";
/// [`super::set::BUSYBOX`] and links that lead mounts astray: `/way` to `/tmp`, `/up` far above the root.
pub const ASTRAY: &str = "127.0.0.1:5000/berth/astray:1";
/// Images whose only `VOLUME` is hostile: last part of the repository's name, and the `VOLUME`.
pub const HOSTILE_VOLUMES: [(&str, &str); 9] = [
    ("root", "/"),
    ("none", ""),
    ("up", "/.."),
    ("proc", "/proc/1"),
    ("file", "/etc/passwd"),
    ("loop", "/loop"),
    ("climb", "../../../../../../tmp/berth-volume"),
    ("link", "/up/berth-volume"),
    ("dangling", "/dangling"),
];

/// Layers of [`MODEL`].
pub(super) fn model() -> Result<Vec<Layer>> {
    let file = Owner::root(0o644);
    let directory = Owner::root(0o755);
    let lower = Archive::default()
        .dir("models", directory)
        .dir("models/small", directory)
        .file("models/small/weights", file, b"one\n")
        .file("models/small/gone", file, b"gone\n")
        .symlink("absolute", "/models/small")
        .symlink("climbing", "../../../../../../models")
        .symlink("outside", "../../../../../../etc/passwd")
        .symlink("circle", "circle");
    let upper = Archive::default()
        .file("models/small/.wh.gone", file, b"")
        .dir("models/large", directory)
        .file("models/large/weights", file, b"two\n")
        .device("device", 1, 3);
    Ok(vec![lower.finish(Compression::Gzip)?, upper.finish(Compression::Gzip)?])
}

/// Top layer and configuration of [`VOLUMES`].
pub(super) fn volumes() -> Result<(Layer, Value)> {
    let layer = Archive::default()
        .dir("data", Owner { mode: 0o1770, uid: 33, gid: 100 })
        .file("data/first", Owner { mode: 0o640, uid: 33, gid: 33 }, b"from the image\n")
        .hard_link("data/second", "data/first")
        .symlink("data/link", "/data/first")
        .dir("data/sub", Owner::root(0o750))
        .file("data/sub/tool", Owner::root(0o4755), b"tool\n")
        .dir("real", Owner::root(0o755))
        .file("real/inside", Owner::root(0o644), b"behind a link\n")
        .symlink("alias", "/real")
        .finish(Compression::Gzip)?;
    let volumes = json!({"/data": {}, "/data/": {}, "/alias": {}, "/new/empty": {}, "relative": {}});
    Ok((layer, json!({"Cmd": ["sh"], "Volumes": volumes})))
}

/// Top layer of [`ASTRAY`] and of the images of [`HOSTILE_VOLUMES`].
pub(super) fn astray() -> Result<Layer> {
    let archive = Archive::default().symlink("way", "/tmp").symlink("up", "../../../../../../tmp");
    archive.symlink("loop", "loop").symlink("dangling", "/nowhere/at/all").finish(Compression::Gzip)
}
