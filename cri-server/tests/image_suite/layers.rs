//! Layers that depend on each other, as overlayfs shows them in the end.

use std::os::unix::fs::MetadataExt;

use tar::EntryType;

use crate::fixture::{Layer, TestImage, TestStore, is_root, tree, with_rootfs};

/// Imports the layers and compares the paths below with what is mounted; an empty text means absent.
async fn check(layers: Vec<Layer>, expect: &[(&str, &str)]) {
    if !is_root() {
        return;
    }
    let store = TestStore::new();
    let image = store.import(&TestImage::new(layers), "h.io/test:1").await;
    let found = with_rootfs(&store, &image, tree);
    for (path, text) in expect {
        assert_eq!(found.get(*path).map(String::as_str).unwrap_or_default(), *text, "{path} in {found:#?}");
    }
}

fn base() -> Layer {
    Layer::new()
        .owned_dir("./", 0o711, 5)
        .owned_dir("etc/", 0o750, 7)
        .file("etc/passwd", "root")
        .owned_dir("tmp/", 0o1777, 0)
        .dir("usr/")
        .dir("usr/bin/")
        .owned_file("usr/bin/sh", 0o755, 3)
        .symlink("bin", "usr/bin")
        .symlink("sbin", "/usr/sbin")
}

#[tokio::test]
async fn an_unlisted_directory_is_that_of_the_nearest_lower_layer() {
    let top = Layer::new().file("etc/hosts", "h").file("tmp/x", "x").file("new/deep/y", "y");
    check(
        vec![base(), top],
        &[
            ("/", "dir 711 5"),
            ("/etc", "dir 750 7"),
            ("/etc/hosts", "file \"h\" 644 0"),
            ("/etc/passwd", "file \"root\" 644 0"),
            ("/tmp", "dir 1777 0"),
            ("/new", "dir 755 0"),
            ("/new/deep", "dir 755 0"),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_file_below_a_lower_link_goes_behind_the_link() {
    let top = Layer::new().file("bin/foo", "f").file("sbin/init", "i").file("bin/.wh.sh", "");
    check(
        vec![base(), top],
        &[
            ("/bin", "-> usr/bin 777 0"),
            ("/usr/bin/foo", "file \"f\" 644 0"),
            ("/usr/bin/sh", ""),
            ("/sbin", "-> /usr/sbin 777 0"),
            ("/usr/sbin", "dir 755 0"),
            ("/usr/sbin/init", "file \"i\" 644 0"),
        ],
    )
    .await;
}

#[tokio::test]
async fn links_of_links_and_links_upwards_stay_inside() {
    let base = Layer::new()
        .dir("a/")
        .owned_dir("a/real/", 0o700, 9)
        .symlink("a/one", "../../../../a/two")
        .symlink("a/two", "real");
    let top = Layer::new().file("a/one/f", "f");
    check(
        vec![base, top],
        &[
            ("/a/real", "dir 700 9"),
            ("/a/real/f", "file \"f\" 644 0"),
            ("/a/one", "-> ../../../../a/two 777 0"),
        ],
    )
    .await;
}

#[tokio::test]
async fn moving_behind_a_link_merges_with_what_the_layer_has_there() {
    let top = Layer::new()
        .dir("usr/")
        .dir("usr/bin/")
        .file("usr/bin/kept", "k")
        .file("bin/new", "n")
        .file("bin/sub/deep", "d")
        .owned_dir("usr/bin/sub/", 0o700, 4);
    check(
        vec![base(), top],
        &[
            ("/usr/bin/kept", "file \"k\" 644 0"),
            ("/usr/bin/new", "file \"n\" 644 0"),
            ("/usr/bin/sub/deep", "file \"d\" 644 0"),
            ("/usr/bin/sub", "dir 700 4"),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_hard_link_reaches_into_lower_layers() {
    if !is_root() {
        return;
    }
    let top = Layer::new().hard_link("usr/bin/ash", "bin/sh").hard_link("etc/ash2", "usr/bin/ash");
    let store = TestStore::new();
    let image = store.import(&TestImage::new(vec![base(), top]), "h.io/test:1").await;
    with_rootfs(&store, &image, |root| {
        let inode = |path: &str| std::fs::metadata(root.join(path)).unwrap();
        assert_eq!(inode("usr/bin/ash").ino(), inode("usr/bin/sh").ino());
        assert_eq!(inode("etc/ash2").ino(), inode("usr/bin/sh").ino());
        assert_eq!((inode("usr/bin/sh").mode() & 0o7777, inode("usr/bin/sh").uid()), (0o755, 3));
        assert_eq!(inode("etc").mode() & 0o7777, 0o750);
    });
}

#[tokio::test]
async fn a_hard_link_to_nothing_is_refused() {
    if !is_root() {
        return;
    }
    for target in ["nothing", "etc", "usr/bin/sh/x", "/"] {
        let store = TestStore::new();
        let top = Layer::new().hard_link("x", target);
        let error = store.try_import(&TestImage::new(vec![base(), top]), "h.io/test:1").await.unwrap_err();
        assert!(matches!(error, cri_server::image::ImageError::InvalidImage { .. }), "{target}: {error}");
        store.wait_empty().await;
    }
}

#[tokio::test]
async fn deletions_hide_lower_files_only() {
    let top = Layer::new()
        .dir("etc/")
        .file("etc/.wh.passwd", "")
        .file("usr/bin/new", "n")
        .file("usr/bin/.wh.new", "");
    check(
        vec![base(), top],
        &[
            ("/etc/passwd", ""),
            ("/etc", "dir 755 0"),
            ("/usr/bin/new", "file \"n\" 644 0"),
            ("/usr/bin/sh", "file \"x\" 755 3"),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_directory_beside_its_own_deletion_is_opaque() {
    let after = Layer::new().file(".wh.etc", "").dir("etc/").file("etc/new", "n");
    check(
        vec![base(), after],
        &[("/etc/new", "file \"n\" 644 0"), ("/etc/passwd", ""), ("/etc", "dir 755 0")],
    )
    .await;
    let before = Layer::new().dir("etc/").file("etc/new", "n").file(".wh.etc", "");
    check(vec![base(), before], &[("/etc/new", "file \"n\" 644 0"), ("/etc/passwd", "")]).await;
    let implied = Layer::new().file(".wh.etc", "").file("etc/new", "n");
    check(
        vec![base(), implied],
        &[("/etc/new", "file \"n\" 644 0"), ("/etc/passwd", ""), ("/etc", "dir 755 0")],
    )
    .await;
}

#[tokio::test]
async fn an_opaque_marker_hides_all_of_a_directory() {
    let top = Layer::new().file("etc/.wh..wh..opq", "").file("etc/new", "n").file("bin/.wh..wh..opq", "");
    check(
        vec![base(), top],
        &[
            ("/etc/passwd", ""),
            ("/etc/new", "file \"n\" 644 0"),
            ("/etc", "dir 750 7"),
            ("/usr/bin/sh", ""),
            ("/bin", "-> usr/bin 777 0"),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_file_may_follow_its_own_deletion() {
    let top = Layer::new().dir("etc/").file("etc/.wh.passwd", "").file("etc/passwd", "new");
    check(vec![base(), top], &[("/etc/passwd", "file \"new\" 644 0")]).await;
}

#[tokio::test]
async fn what_was_a_directory_may_become_a_file_and_back() {
    let file = Layer::new().file("etc", "no directory");
    let back = Layer::new().dir("etc/").file("etc/x", "x");
    check(vec![base(), file.clone()], &[("/etc", "file \"no directory\" 644 0"), ("/etc/passwd", "")]).await;
    check(
        vec![base(), file, back],
        &[("/etc", "dir 755 0"), ("/etc/passwd", ""), ("/etc/x", "file \"x\" 644 0")],
    )
    .await;
}

#[tokio::test]
async fn the_same_layer_twice_counts_where_it_is_on_top() {
    let again = Layer::new().dir("d/").file("d/f", "f");
    let deletes = Layer::new().dir("d/").file("d/.wh.f", "").file("d/g", "g");
    check(vec![again.clone(), deletes, again], &[("/d/f", "file \"f\" 644 0"), ("/d/g", "file \"g\" 644 0")])
        .await;
}

#[tokio::test]
async fn a_layer_that_fits_is_shared_and_one_that_does_not_is_not() {
    if !is_root() {
        return;
    }
    let store = TestStore::new();
    let plain = Layer::new().file("etc/x", "x");
    let over_default = TestImage::new(vec![Layer::new().dir("./").dir("etc/"), plain.clone()]);
    let over_other = TestImage::new(vec![base(), plain.clone()]);
    let first = store.import(&over_default, "h.io/a:1").await;
    let second = store.import(&over_other, "h.io/b:1").await;
    let alone = cri_server::image::LayerKey::Diff(over_default.diff_ids[1]);
    assert_eq!(first.layers[1], alone);
    assert!(matches!(second.layers[1], cri_server::image::LayerKey::Chain(_)), "{:?}", second.layers);
    let found = with_rootfs(&store, &second, tree);
    assert_eq!(found["/etc"], "dir 750 7");
    // The shared one goes with the last image that has it as it was.
    store.store.remove("h.io/a:1").await.unwrap();
    assert!(!store.store.layer_path(&alone).exists());
    assert_eq!(with_rootfs(&store, &second, tree)["/etc/x"], "file \"x\" 644 0");
    store.store.remove("h.io/b:1").await.unwrap();
    store.wait_empty().await;
}

#[tokio::test]
async fn metadata_is_kept() {
    if !is_root() {
        return;
    }
    let capability = b"\x01\0\0\x02\0\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let layer = Layer::new()
        .owned_file("suid", 0o4755, 0)
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.note", b"a\nb"),
            ("mtime", b"1.25"),
        ])
        .owned_file("cap", 0o755, 70_000)
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.security.selinux", b"x"),
        ])
        .dir("plain/")
        .entry(
            "null",
            EntryType::Char,
            |h| {
                h.set_device_major(1).unwrap();
                h.set_device_minor(3).unwrap();
            },
            b"",
        )
        .entry("pipe", EntryType::Fifo, |_| {}, b"");
    let store = TestStore::new();
    let image = store.import(&TestImage::new(vec![layer]), "h.io/test:1").await;
    with_rootfs(&store, &image, |root| {
        let meta = |name: &str| std::fs::symlink_metadata(root.join(name)).unwrap();
        assert_eq!(meta("suid").mode() & 0o7777, 0o4755);
        assert_eq!(
            (meta("cap").uid(), meta("cap").mtime(), meta("cap").mtime_nsec()),
            (70_000, 1, 250_000_000)
        );
        assert_eq!(meta("suid").mtime(), 1_000_000_000);
        assert_eq!(meta("plain").mtime(), 1_000_000_000);
        assert_eq!(meta("null").rdev(), rustix::fs::makedev(1, 3));
        let xattr = |name: &str, key: &str| {
            let mut value = [0; 64];
            rustix::fs::lgetxattr(root.join(name), key, &mut value[..]).map(|length| value[..length].to_vec())
        };
        assert_eq!(xattr("cap", "security.capability").unwrap(), capability);
        assert_eq!(xattr("cap", "user.note").unwrap(), b"a\nb");
        assert!(xattr("plain", "user.overlay.redirect").is_err());
        assert!(xattr("plain", "security.selinux").is_err());
    });
    let directory = store.store.layer_path(&image.layers[0]).join("plain");
    let mut value = [0; 8];
    assert!(rustix::fs::lgetxattr(directory, "trusted.overlay.opaque", &mut value[..]).is_err());
}

#[tokio::test]
async fn a_read_only_root_of_one_layer_and_of_many() {
    if !is_root() {
        return;
    }
    let store = TestStore::new();
    let one = store.import(&TestImage::new(vec![base()]), "h.io/one:1").await;
    let two =
        store.import(&TestImage::new(vec![base(), Layer::new().file("etc/x", "x")]), "h.io/two:1").await;
    for image in [one, two] {
        let (layers, empty) = (store.store.layer_paths(&image), store.store.empty_layer());
        let target = tempfile::tempdir().unwrap();
        crate::fixture::in_mount_namespace(|| {
            let overlay = cri_server::image::overlay::Overlay {
                layers: &layers,
                empty: &empty,
                writable: None,
                owners: None,
                label: None,
            };
            overlay.mount(target.path()).unwrap();
            assert_eq!(std::fs::read(target.path().join("etc/passwd")).unwrap(), b"root");
            let error = std::fs::write(target.path().join("etc/new"), "").unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
            cri_server::image::overlay::unmount(target.path()).unwrap();
            cri_server::image::overlay::unmount(target.path()).unwrap();
            assert!(!target.path().join("etc").exists());
        });
    }
}

#[tokio::test]
async fn many_layers_and_long_paths_are_mounted() {
    if !is_root() {
        return;
    }
    let layers = (0..150).map(|n| Layer::new().dir("./").file(&format!("f{n}"), "x")).collect();
    let deep = tempfile::tempdir().unwrap();
    let long = deep.path().join("d".repeat(200)).join("e".repeat(200));
    std::fs::create_dir_all(&long).unwrap();
    let store =
        cri_server::image::ImageStore::open(&long, crate::fixture::config(Default::default())).unwrap();
    let store = TestStore { store, dir: tempfile::tempdir_in(&long).unwrap() };
    let image = store.import(&TestImage::new(layers), "h.io/test:1").await;
    let found = with_rootfs(&store, &image, tree);
    assert!(found.contains_key("/f0") && found.contains_key("/f149"));
}
