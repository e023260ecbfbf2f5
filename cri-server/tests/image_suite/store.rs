//! Which images there are, under which names, and what stays of them on disk.

use std::collections::HashSet;

use cri_server::image::{ImageStore, LayerKey, RegistryConfig};

use crate::fixture::{Layer, TestImage, TestStore, config, is_root, wait_for};

fn image(content: &str) -> TestImage {
    TestImage::new(vec![
        Layer::new().dir("./").file("base", "b"),
        Layer::new().dir("./").file("top", content),
    ])
}

/// Opens the store again, as after a restart.
async fn reopen(store: TestStore) -> TestStore {
    let TestStore { store, dir } = store;
    drop(store);
    let mut opened = None;
    // The collector may hold the old one for a moment.
    wait_for("the store is closed", || {
        opened = ImageStore::open(dir.path(), config(RegistryConfig::default())).ok();
        opened.is_some()
    })
    .await;
    TestStore { store: opened.unwrap(), dir }
}

#[tokio::test]
async fn removing_one_name_removes_all_and_twice_is_once() {
    if !is_root() {
        return;
    }
    let store = TestStore::new();
    let test = image("x");
    for name in ["h.io/a:1", "h.io/a:2", "other.io/b:3"] {
        store.import(&test, name).await;
    }
    let all = store.store.get("h.io/a:1").unwrap();
    assert_eq!(all.repo_tags, ["h.io/a:1", "h.io/a:2", "other.io/b:3"]);
    assert_eq!(all.repo_digests.len(), 2);
    assert_eq!(store.store.remove("other.io/b:3").await.unwrap(), Some(all.clone()));
    for name in all.repo_tags.iter().chain(&all.repo_digests).chain([&all.id.to_string()]) {
        assert_eq!(store.store.get(name), None);
        assert_eq!(store.store.remove(name).await.unwrap(), None);
    }
    assert_eq!(store.layer_dirs(), ["empty"]);
    assert_eq!(store.store.fs_usage().inodes, 0);
    for name in ["../../etc", "", "sha256:x", "UPPER", &"0".repeat(64)] {
        assert_eq!(store.store.remove(name).await.unwrap(), None, "{name}");
    }
}

#[tokio::test]
async fn five_removals_at_once_all_succeed() {
    if !is_root() {
        return;
    }
    let store = TestStore::new();
    let id = store.import(&image("x"), "h.io/a:1").await.id.to_string();
    let remove = || store.store.remove(&id);
    let results = tokio::join!(remove(), remove(), remove(), remove(), remove());
    let removed = [results.0, results.1, results.2, results.3, results.4]
        .into_iter()
        .filter_map(|r| r.unwrap())
        .count();
    assert_eq!(removed, 1);
    assert_eq!(store.layer_dirs(), ["empty"]);
}

#[tokio::test]
async fn a_tag_moves_and_the_old_image_stays_without_it() {
    if !is_root() {
        return;
    }
    let store = TestStore::new();
    let old = store.import(&image("old"), "h.io/a:1").await;
    let new = store.import(&image("new"), "h.io/a:1").await;
    assert_eq!(store.store.get("h.io/a:1").unwrap().id, new.id);
    let left = store.store.get(&old.id.to_string()).unwrap();
    assert!(left.repo_tags.is_empty());
    assert_eq!(left.repo_digests, old.repo_digests);
    // And back, without a download.
    store.import(&image("old"), "h.io/a:1").await;
    assert!(store.store.get(&new.id.to_string()).unwrap().repo_tags.is_empty());
    let store = reopen(store).await;
    assert_eq!(store.store.get("h.io/a:1").unwrap().id, old.id);
    assert_eq!(store.store.list().len(), 2);
}

#[tokio::test]
async fn images_survive_a_restart_and_leftovers_do_not() {
    if !is_root() {
        return;
    }
    let store = TestStore::new();
    let before = store.import(&image("x"), "h.io/a:1").await;
    let usage = store.store.fs_usage();
    let layers = store.dir.path().join("layers");
    // What a kill at any instant may leave: staged, renamed but not recorded, half removed.
    for name in ["tmp-0", "tmp-77", &format!("diff-{}", "a".repeat(64)), &format!("chain-{}", "b".repeat(64))]
    {
        std::fs::create_dir_all(layers.join(name).join("sub")).unwrap();
        std::fs::write(layers.join(name).join("sub/file"), "x").unwrap();
    }
    let store = reopen(store).await;
    assert_eq!(store.store.list(), [before]);
    assert_eq!(store.layer_dirs().len(), 3);
    assert_eq!(store.store.fs_usage(), usage);
}

#[tokio::test]
async fn an_image_that_lost_a_layer_is_forgotten() {
    if !is_root() {
        return;
    }
    let store = TestStore::new();
    let lost = store.import(&image("x"), "h.io/a:1").await;
    std::fs::remove_dir_all(store.store.layer_path(&lost.layers[1])).unwrap();
    let store = reopen(store).await;
    assert!(store.store.list().is_empty());
    store.import(&image("x"), "h.io/b:1").await;
    assert_eq!(store.store.list()[0].repo_tags, ["h.io/b:1"]);
}

#[tokio::test]
async fn a_layer_stays_while_anybody_needs_it() {
    if !is_root() {
        return;
    }
    let store = TestStore::new();
    let image = store.import(&image("x"), "h.io/a:1").await;
    let lease = store.store.lease(&image).unwrap();
    store.store.remove("h.io/a:1").await.unwrap();
    assert_eq!(store.layer_dirs().len(), 3);
    assert!(store.store.lease(&image).is_some());
    drop(lease);
    store.wait_empty().await;
    assert!(store.store.lease(&image).is_none());
}

#[tokio::test]
async fn layers_of_containers_survive_restarts_without_their_image() {
    if !is_root() {
        return;
    }
    let store = TestStore::new();
    let image = store.import(&image("x"), "h.io/a:1").await;
    let in_use: HashSet<LayerKey> = image.layers.iter().copied().collect();
    store.store.retain(in_use.clone()).await;
    store.store.remove("h.io/a:1").await.unwrap();
    assert_eq!(store.layer_dirs().len(), 3);
    let store = reopen(store).await;
    assert_eq!(store.layer_dirs().len(), 3, "nothing goes before containers were looked at");
    let lease = store.store.lease_layers(&image.layers).unwrap();
    store.store.retain(HashSet::new()).await;
    assert_eq!(store.layer_dirs().len(), 3);
    drop(lease);
    store.wait_empty().await;
    let store = reopen(store).await;
    assert_eq!(store.store.fs_usage().inodes, 0);
}

#[tokio::test]
async fn imports_and_removals_at_once_end_well() {
    if !is_root() {
        return;
    }
    let store = TestStore::new();
    let tests: Vec<_> = (0..4).map(|n| image(&n.to_string())).collect();
    let work = tests.iter().enumerate().map(|(n, test)| {
        let store = &store;
        async move {
            let name = format!("h.io/a:{n}");
            for _ in 0..5 {
                let image = store.import(test, &name).await;
                if let Some(lease) = store.store.lease(&image) {
                    assert!(image.layers.iter().all(|key| store.store.layer_path(key).is_dir()));
                    drop(lease);
                }
                store.store.remove(&name).await.unwrap();
            }
        }
    });
    futures_util::future::join_all(work).await;
    store.wait_empty().await;
}

#[tokio::test]
async fn nobody_else_looks_into_layers() {
    use std::os::unix::fs::PermissionsExt;
    let store = TestStore::new();
    let mode = std::fs::metadata(store.dir.path().join("layers")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn pinned_images_say_so() {
    if !is_root() {
        return;
    }
    let mut config = config(RegistryConfig::default());
    config.pinned = vec!["h.io/a:1".into()];
    let store = TestStore::with(config);
    assert!(store.import(&image("x"), "h.io/a:1").await.pinned);
    assert!(!store.import(&image("y"), "h.io/b:1").await.pinned);
}

#[tokio::test]
async fn an_unreadable_record_stops_all_removal_of_layers() {
    if !is_root() {
        return;
    }
    let store = TestStore::new();
    store.import(&image("x"), "h.io/a:1").await;
    let TestStore { store, dir } = store;
    drop(store);
    let table: redb::TableDefinition<&str, &[u8]> = redb::TableDefinition::new("images");
    let mut database = None;
    wait_for("the store is closed", || {
        database = redb::Database::create(dir.path().join("images.redb")).ok();
        database.is_some()
    })
    .await;
    let transaction = database.as_ref().unwrap().begin_write().unwrap();
    transaction.open_table(table).unwrap().insert("sha256:torn", &b"{"[..]).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let stranger = dir.path().join("layers").join(format!("diff-{}", "a".repeat(64)));
    std::fs::create_dir(&stranger).unwrap();
    let store = ImageStore::open(dir.path(), config(RegistryConfig::default())).unwrap();
    let store = TestStore { store, dir };
    assert!(store.store.remove("h.io/a:1").await.unwrap().is_some());
    store.store.retain(HashSet::new()).await;
    assert_eq!(store.layer_dirs().len(), 4);
    assert!(store.store.list().is_empty());
}
