//! Images in files, in and out.

use std::collections::BTreeMap;
use std::io::Cursor;

use cri_server::image::{Digest, ImageError, export, import};
use serde_json::json;

use crate::fixture::{
    Layer, OCI_INDEX, OCI_MANIFEST, TestImage, TestStore, archive, gzip, is_root, tree, with_rootfs,
};

fn image() -> TestImage {
    let base = Layer::new()
        .owned_dir("./", 0o711, 5)
        .owned_dir("etc/", 0o750, 7)
        .file("etc/passwd", "root")
        .symlink("bin", "usr/bin")
        .pax(&[("SCHILY.xattr.user.note", b"a\nb"), ("mtime", b"5.000000001")])
        .owned_file("cap", 0o4755, 3_000_000)
        .hard_link("cap2", "cap")
        .pax(&[("path", "long/".repeat(30).as_bytes())])
        .dir("x");
    let top = Layer::new().file("etc/.wh.passwd", "").file("bin/foo", "f").file(".wh.cap2", "").dir("cap2/");
    TestImage::new(vec![base, top])
}

#[tokio::test]
async fn an_exported_image_is_the_same_when_imported() {
    if !is_root() {
        return;
    }
    let (first, second, third) = (TestStore::new(), TestStore::new(), TestStore::new());
    let original = first.import(&image(), "h.io/a:1").await;
    let bytes = export(&first.store, vec![original.clone()], Vec::new()).await.unwrap();
    assert_eq!(export(&first.store, vec![original.clone()], Vec::new()).await.unwrap(), bytes);
    let copy = import(&second.store, Cursor::new(bytes.clone())).await.unwrap()[0].clone();
    assert_eq!(copy.repo_tags, original.repo_tags);
    assert_eq!(copy.config.config, original.config.config);
    assert_eq!(with_rootfs(&second, &copy, tree), with_rootfs(&first, &original, tree));
    // What was exported once keeps its id.
    let again = export(&second.store, vec![copy.clone()], Vec::new()).await.unwrap();
    let last = import(&third.store, Cursor::new(gzip(&again))).await.unwrap()[0].clone();
    assert_eq!(last.id, copy.id);
    assert_eq!(again, bytes);
}

fn docker(image: &TestImage, tags: serde_json::Value) -> BTreeMap<String, Vec<u8>> {
    let names: Vec<_> = (0..image.layers.len()).map(|n| format!("layer{n}/layer.tar")).collect();
    let list = json!([{ "Config": "c.json", "RepoTags": tags, "Layers": names }]);
    let mut files = BTreeMap::from([
        ("c.json".to_string(), image.config.clone()),
        ("manifest.json".to_string(), list.to_string().into_bytes()),
    ]);
    files.extend(names.into_iter().zip(image.layers.iter().cloned()));
    files
}

#[tokio::test]
async fn docker_archives_are_understood() {
    if !is_root() {
        return;
    }
    let store = TestStore::new();
    let test = image();
    let files = archive(&docker(&test, json!(["busybox:1", "h.io/b:2"])));
    for bytes in [files.clone(), gzip(&files), zstd::encode_all(&files[..], 1).unwrap()] {
        let images = import(&store.store, Cursor::new(bytes)).await.unwrap();
        assert_eq!(images[0].id, test.id());
        assert_eq!(images[0].repo_tags, ["docker.io/library/busybox:1", "h.io/b:2"]);
        assert!(images[0].repo_digests.is_empty());
    }
    let untagged = archive(&docker(&test, json!(null)));
    let store = TestStore::new();
    assert!(import(&store.store, Cursor::new(untagged)).await.unwrap()[0].repo_tags.is_empty());
    let base = Layer::new().dir("./").file("x", "x");
    let twice = TestImage::new(vec![base.clone(), base]);
    let mut files = docker(&twice, json!(["h.io/c:1"]));
    files.remove("layer1/layer.tar");
    let bytes = archive(&files);
    let linked = Layer::new().symlink("layer1/layer.tar", "../layer0/layer.tar").0;
    let image = import(&store.store, Cursor::new([linked, bytes].concat())).await.unwrap()[0].clone();
    assert_eq!(image.layers[0], image.layers[1]);
    assert_eq!(with_rootfs(&store, &image, tree)["/x"], "file \"x\" 644 0");
}

async fn check_refused(files: BTreeMap<String, Vec<u8>>, expect: &str) {
    check_bytes_refused(archive(&files), expect).await;
}

async fn check_bytes_refused(bytes: Vec<u8>, expect: &str) {
    if !is_root() {
        return;
    }
    let store = TestStore::new();
    let error = import(&store.store, Cursor::new(bytes)).await.unwrap_err();
    assert!(
        matches!(error, ImageError::InvalidImage { .. } | ImageError::InvalidReference { .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains(expect), "{error}");
    assert!(store.store.list().is_empty());
    store.wait_empty().await;
}

fn layout(manifests: serde_json::Value) -> BTreeMap<String, Vec<u8>> {
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    BTreeMap::from([
        ("oci-layout".to_string(), b"{}".to_vec()),
        ("index.json".to_string(), index.to_string().into_bytes()),
    ])
}

#[tokio::test]
async fn hostile_archives_are_refused() {
    check_bytes_refused(Vec::new(), "neither").await;
    check_bytes_refused(b"not an archive".repeat(100), "").await;
    check_bytes_refused(vec![0x1f, 0x8b, 8, 0, 1, 2], "").await;
    check_refused(BTreeMap::new(), "neither").await;
    check_refused(
        layout(json!([{ "mediaType": OCI_MANIFEST, "digest": Digest::of(b"x"), "size": 1 }])),
        "no blob",
    )
    .await;
    check_refused(
        layout(json!([{ "mediaType": OCI_MANIFEST, "digest": "sha256:../../x", "size": 1 }])),
        "malformed",
    )
    .await;
    let descriptor = json!({ "mediaType": OCI_MANIFEST, "digest": Digest::of(b"x"), "size": 1 });
    check_refused(layout(json!(vec![descriptor.clone(); 2000])), "more than 1000 images").await;
    check_refused(layout(json!(vec![descriptor; 100_000])), "larger than").await;
    let mut files = layout(json!([]));
    files.insert("index.json".into(), vec![b' '; 5 << 20]);
    check_refused(files, "larger than").await;
    let mut files = layout(json!([]));
    files.insert("index.json".into(), "[".repeat(1 << 20).into_bytes());
    check_refused(files, "malformed").await;
    let mut files = docker(&image(), json!(["h.io/a:1"]));
    files.remove("layer1/layer.tar");
    check_refused(files, "layer1/layer.tar").await;
    check_refused(docker(&image(), json!(["UPPER CASE"])), "lower case").await;
    let mut files = docker(&image(), json!(["h.io/a:1"]));
    files.insert("layer1/layer.tar".into(), b"garbage".repeat(100));
    check_refused(files, "").await;
    let whole = archive(&docker(&image(), json!(["h.io/a:1"])));
    check_bytes_refused(whole[..whole.len() / 2].to_vec(), "").await;
    let many = (0..100_001).fold(Layer::new(), |layer, n| layer.file(&format!("f{n}"), ""));
    check_bytes_refused(many.finish(), "members").await;
}

#[tokio::test]
async fn an_index_that_contains_itself_ends() {
    // A digest cannot contain itself; a name that lies about it can.
    let digest = Digest::of(b"cycle");
    let index =
        json!({ "schemaVersion": 2, "manifests": [{ "mediaType": OCI_INDEX, "digest": digest, "size": 1 }] });
    let mut files = layout(json!([{ "mediaType": OCI_INDEX, "digest": digest, "size": 1 }]));
    files.insert(format!("blobs/sha256/{}", digest.hex()), index.to_string().into_bytes());
    check_refused(files, "another digest").await;
}

#[tokio::test]
async fn an_archive_for_another_platform_is_not_found() {
    if !is_root() {
        return;
    }
    let store = TestStore::new();
    let mut test = image();
    test.config = String::from_utf8(test.config).unwrap().replace("amd64", "arm64").into_bytes();
    let error = store.try_import(&test, "h.io/a:1").await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error:?}");
}
