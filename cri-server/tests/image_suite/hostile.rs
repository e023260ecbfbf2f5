//! Layers that were made to do harm, or came broken.

use std::path::Path;

use bytes::Bytes;
use cri_server::image::unpack::{ExpectedBlob, Limits, Unpacked, channel, unpack};
use cri_server::image::{Digest, ImageError};
use tar::{EntryType, Header};

use crate::fixture::{Layer, gzip, is_root, tree};

fn try_unpack(blob: Vec<u8>, directory: &Path, limits: &Limits) -> Result<Unpacked, ImageError> {
    let (sink, reader) = channel();
    let feeder = std::thread::spawn(move || {
        // Odd pieces, so that nothing depends on where they end.
        for piece in blob.chunks(70_001) {
            if sink.blocking_send(Bytes::copy_from_slice(piece)).is_err() {
                return;
            }
        }
    });
    let done = unpack(reader, &ExpectedBlob::default(), directory, limits);
    feeder.join().unwrap();
    done
}

/// Unpacks beside a canary that must not change.
fn check(layer: Layer, inspect: impl Fn(Result<&Path, ImageError>)) {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let canary = dir.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    std::fs::write(canary.join("file"), "alive").unwrap();
    let before = tree(&canary);
    let done = try_unpack(layer.finish(), &root, &Limits::default());
    inspect(done.map(|_| root.as_path()));
    assert_eq!(tree(&canary), before);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

fn check_inside(layer: Layer, path: &str, expect: &str) {
    check(layer, |done| {
        let found = tree(done.unwrap());
        assert_eq!(found.get(path).map(String::as_str), Some(expect), "{found:#?}");
    });
}

fn check_refused(layer: Layer, expect: &str) {
    check(layer, |done| {
        let error = done.unwrap_err();
        assert!(matches!(error, ImageError::InvalidImage { .. }), "{error}");
        assert!(error.to_string().contains(expect), "{error}");
    });
}

#[test]
fn names_stay_inside() {
    let file = |name: &str| Layer::new().file(name, "x");
    check_inside(file("../canary/file"), "/canary/file", "file \"x\" 644 0");
    check_inside(file("a/../../../canary/file"), "/canary/file", "file \"x\" 644 0");
    check_inside(file("/canary/file"), "/canary/file", "file \"x\" 644 0");
    check_inside(file("//./canary//file"), "/canary/file", "file \"x\" 644 0");
    check_inside(file("..a/b"), "/..a/b", "file \"x\" 644 0");
}

#[test]
fn links_stay_inside() {
    let through = |target: &str| Layer::new().symlink("link", target).file("link/file", "x");
    check_inside(through("../canary"), "/canary/file", "file \"x\" 644 0");
    check_inside(through("/canary"), "/canary/file", "file \"x\" 644 0");
    check_inside(through("/../../canary/."), "/canary/file", "file \"x\" 644 0");
    let twice = Layer::new().symlink("a", "../canary").symlink("b", "a/..").file("b/canary/file", "x");
    check_inside(twice, "/canary/file", "file \"x\" 644 0");
    let over = Layer::new().symlink("file", "../canary/file").file("file", "x");
    check_inside(over, "/file", "file \"x\" 644 0");
    let dir_over = Layer::new().symlink("d", "../canary").owned_dir("d/", 0o700, 1).file("d/file", "x");
    check_inside(dir_over, "/d/file", "file \"x\" 644 0");
    check_refused(Layer::new().symlink("a", "b").symlink("b", "a").file("a/file", "x"), "a/file");
}

#[test]
fn deletions_stay_inside() {
    let layer = Layer::new().symlink("link", "../canary").file("link/.wh.file", "");
    check_inside(layer, "/canary/file", "char 0 0 0");
    let opaque = Layer::new().symlink("link", "../canary").file("link/.wh..wh..opq", "");
    check_inside(opaque, "/canary", "dir 755 0");
    check_refused(Layer::new().file("a/.wh...", ""), ".wh...");
    check_refused(Layer::new().file("a/.wh..", ""), ".wh..");
    check_refused(Layer::new().file(".wh.", ""), ".wh.");
}

#[test]
fn hard_links_stay_inside_and_change_nothing() {
    check(Layer::new().hard_link("x", "../canary/file"), |done| {
        assert!(!done.unwrap().join("x").exists());
    });
    let through = Layer::new().symlink("l", "../canary").hard_link("x", "l/file");
    check(through, |done| assert!(!done.unwrap().join("x").exists()));
    let chmod = Layer::new().symlink("s", "../canary/file").entry(
        "h",
        EntryType::Link,
        |h| {
            h.set_mode(0o777);
            h.set_uid(42);
            h.as_old_mut().linkname[..1].copy_from_slice(b"s");
        },
        b"",
    );
    check_inside(chmod, "/h", "-> ../canary/file 777 0");
    check_refused(Layer::new().dir("d/").hard_link("x", "d"), "directory");
    check_refused(Layer::new().hard_link("x", "/"), "root directory");
    check_inside(Layer::new().file("a", "x").hard_link("a", "a"), "/a", "file \"x\" 644 0");
}

#[test]
fn odd_entries_are_refused() {
    check_refused(Layer::new().file("", "x"), "root directory");
    check_refused(Layer::new().symlink("/", "x"), "root directory");
    check_refused(Layer::new().file("f", "x").file("f/g", "x"), "f/g");
    check_refused(Layer::new().entry("x", EntryType::new(b'M'), |_| {}, b""), "unknown type");
    check_refused(Layer::new().pax(&[("uid", b"4294967295")]).file("x", "x"), "owner id");
    check_refused(Layer::new().pax(&[("gid", b"4294967296")]).file("x", "x"), "owner id");
    check_refused(Layer::new().pax(&[("path", "n".repeat(300).as_bytes())]).file("x", "x"), "nnn");
    check_refused(Layer::new().pax(&[("path", "n/".repeat(3000).as_bytes())]).file("x", "x"), "n/n");
    check_refused(Layer::new().pax(&[("path", "n/".repeat(300).as_bytes())]).dir("x"), "n/n");
    check_refused(Layer::new().pax(&[("path", b"x")]), "extended header");
    check_refused(Layer::new().entry("x", EntryType::Regular, |h| h.set_size(1 << 50), b""), "more than");
    check_refused(Layer::new().entry("x", EntryType::Regular, |h| h.set_size(u64::MAX), b""), "");
    check_refused(Layer::new().entry("x", EntryType::Regular, |h| h.set_size(5000), b"abc"), "truncated");
    check_refused(Layer::new().raw(&[b'x'; 512]), "");
    check_refused(Layer::new().file("x", "y").raw(&[1; 300]), "");
    let huge = vec![b'v'; 2 << 20];
    check_refused(Layer::new().pax(&[("SCHILY.xattr.user.x", &huge)]).file("x", "x"), "bytes of headers");
    let long = vec![b'v'; 60_000];
    check_refused(Layer::new().pax(&[("SCHILY.xattr.user.x", &long)]).file("x", "x"), "x");
    let many: Vec<_> = (0..200).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
    let many: Vec<_> = many.iter().map(|key| (key.as_str(), &b"v"[..])).collect();
    check_refused(Layer::new().pax(&many).file("x", "x"), "attributes");
}

#[test]
fn a_deep_tree_made_through_links_is_refused() {
    let mut layer = Layer::new().dir("d");
    for round in 0..40 {
        let below = if round == 0 { "d".to_string() } else { format!("l{round}") };
        let deep = format!("{below}{}", "/d".repeat(20));
        layer = layer.pax(&[("path", deep.as_bytes())]).dir("x");
        layer = layer.pax(&[("linkpath", deep.as_bytes())]).symlink(&format!("l{}", round + 1), "x");
    }
    check_refused(layer, "d/d");
}

fn sparse(offset: u64, length: u64, real: u64, data: &[u8]) -> Layer {
    let change = |h: &mut Header| {
        let gnu = h.as_gnu_mut().unwrap();
        gnu.sparse[0].set_offset(offset);
        gnu.sparse[0].set_length(length);
        gnu.set_real_size(real);
    };
    Layer::new().entry("s", EntryType::GNUSparse, change, data)
}

#[test]
fn sparse_files_are_read_in_all_formats() {
    let expect = format!("file {:?} 644 0", format!("{}abc\0", "\0".repeat(512)));
    check_inside(sparse(512, 3, 516, b"abc"), "/s", &expect);
    let records: [(&str, &[u8]); 3] =
        [("GNU.sparse.map", b"512,3"), ("GNU.sparse.size", b"516"), ("GNU.sparse.name", b"s")];
    check_inside(Layer::new().pax(&records).file("GNUSparse.0/s", "abc"), "/s", &expect);
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"516"),
        ("GNU.sparse.name", b"s"),
    ];
    let mut data = b"1\n512\n3\n".to_vec();
    data.resize(512, 0);
    data.extend(b"abc");
    let layer = Layer::new().pax(&records).entry("GNUSparse.0/s", EntryType::Regular, |_| {}, &data);
    check_inside(layer, "/s", &expect);
}

#[test]
fn lying_sparse_files_are_refused() {
    check_refused(sparse(0, 3, 1 << 50, b"abc"), "more than");
    check_refused(sparse(512, 3, 10, b"abc"), "map");
    check_refused(sparse(0, 4, 10, b"abc"), "map");
    check_refused(sparse(u64::MAX / 4, 3, u64::MAX / 4, b"abc"), "");
    let records: [(&str, &[u8]); 2] = [("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"516")];
    for map in ["", "9999999999999\n", "1\nx\n3\n", "-1\n", &"1".repeat(511)] {
        let mut data = map.as_bytes().to_vec();
        data.resize(512, 0);
        let layer = Layer::new().pax(&records).entry("s", EntryType::Regular, |_| {}, &data);
        check_refused(layer, "");
    }
}

fn check_blob(blob: Vec<u8>, limits: &Limits, expect: &str) {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let error = try_unpack(blob, dir.path(), limits).unwrap_err();
    assert!(matches!(error, ImageError::InvalidImage { .. }), "{error}");
    assert!(error.to_string().contains(expect), "{error}");
}

#[test]
fn bombs_are_refused() {
    let zeros = Layer::new().entry("zeros", EntryType::Regular, |_| {}, &vec![0; 64 << 20]).finish();
    let limits = Limits { ratio: 100, ratio_floor: 1 << 20, ..Limits::default() };
    check_blob(zstd::encode_all(&zeros[..], 1).unwrap(), &limits, "100 times");
    check_blob(gzip(&zeros), &limits, "100 times");
    check_blob(gzip(&zeros), &Limits { bytes: 1 << 20, ..Limits::default() }, "more than");
    let many = (0..50).fold(Layer::new(), |layer, n| layer.file(&format!("f{n}"), ""));
    check_blob(many.finish(), &Limits { entries: 49, ..Limits::default() }, "49 entries");
    let implied = (0..50).fold(Layer::new(), |layer, n| layer.file(&format!("d{n}/f"), ""));
    check_blob(implied.finish(), &Limits { pending: 20, ..Limits::default() }, "does not list");
}

#[test]
fn a_zstd_window_beyond_the_limit_is_refused() {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(28).unwrap();
    std::io::Write::write_all(&mut encoder, &Layer::new().file("x", "x").finish()).unwrap();
    check_blob(encoder.finish().unwrap(), &Limits::default(), "decompressed");
}

#[test]
fn broken_blobs_are_refused() {
    let good = Layer::new().file("x", &"data".repeat(100_000)).finish();
    let limits = Limits::default();
    let packed = gzip(&good);
    check_blob(packed[..packed.len() - 4].to_vec(), &limits, "decompressed");
    check_blob(packed[..packed.len() / 2].to_vec(), &limits, "");
    check_blob([&packed[..], b"garbage"].concat(), &limits, "decompressed");
    let packed = zstd::encode_all(&good[..], 1).unwrap();
    check_blob(packed[..packed.len() / 2].to_vec(), &limits, "");
    check_blob(good[..1000].to_vec(), &limits, "truncated");
    check_blob(b"garbage".repeat(200), &limits, "");
    check_blob(vec![0x1f, 0x8b], &limits, "decompressed");
}

#[test]
fn every_compression_gives_the_same_layer() {
    if !is_root() {
        return;
    }
    let plain = Layer::new().file("x", &"data".repeat(100_000)).finish();
    let (first, second) = plain.split_at(123_456);
    let members = [gzip(first), gzip(second)].concat();
    let frames = [zstd::encode_all(first, 1).unwrap(), zstd::encode_all(second, 3).unwrap()].concat();
    for blob in [plain.clone(), gzip(&plain), members, frames, zstd::encode_all(&plain[..], 19).unwrap()] {
        let dir = tempfile::tempdir().unwrap();
        let unpacked = try_unpack(blob, dir.path(), &Limits::default()).unwrap();
        assert_eq!(unpacked.diff_id, Digest::of(&plain));
        assert_eq!(std::fs::read(dir.path().join("x")).unwrap().len(), 400_000);
        assert_eq!(unpacked.needs.implied, [std::path::PathBuf::new()]);
    }
}

#[test]
fn an_empty_layer_is_a_layer() {
    if !is_root() {
        return;
    }
    for blob in [Vec::new(), vec![0; 1024], gzip(&[0; 1024])] {
        let dir = tempfile::tempdir().unwrap();
        try_unpack(blob, dir.path(), &Limits::default()).unwrap();
    }
}

#[test]
fn a_full_disk_is_not_the_images_fault() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    crate::fixture::in_mount_namespace(|| {
        let none = rustix::mount::MountFlags::empty();
        #[allow(clippy::disallowed_methods, reason = "a small file system for this test")]
        rustix::mount::mount("tmpfs", dir.path(), "tmpfs", none, c"size=64k").unwrap();
        let layer = Layer::new().file("x", &"x".repeat(1 << 20)).finish();
        let error = try_unpack(layer, dir.path(), &Limits::default()).unwrap_err();
        assert!(matches!(error, ImageError::Full { .. }), "{error:?}");
    });
}
