//! Random images, compared with the plain reading of the specification: each layer is applied in turn to one
//! directory. What overlayfs shows of our layers must be the same tree.

use std::collections::{BTreeMap, BTreeSet};

use cri_server::image::ImageError;

use crate::fixture::{Layer, TestImage, TestStore, is_root, tree, with_rootfs};

/// A small random number generator, so that a failure can be repeated by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len() as u64) as usize]
    }
}

#[derive(Clone, Debug)]
enum Node {
    Dir(u32),
    File(String, u32),
    Link(String),
}

#[derive(Clone, Debug)]
enum Op {
    Put(String, Node),
    Same(String, String),
    Delete(String),
    Clear(String),
}

/// The tree that the specification describes.
#[derive(Default, Clone)]
struct Model(BTreeMap<String, Node>);

impl Model {
    /// Real path of a directory, made where it is missing.
    fn parent(&mut self, path: &str) -> Option<String> {
        let (parent, _) = path.rsplit_once('/').unwrap_or(("", path));
        let mut todo: Vec<String> =
            parent.split('/').rev().filter(|c| !c.is_empty()).map(String::from).collect();
        let mut here = String::new();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == ".." {
                here = here.rsplit_once('/').map(|(up, _)| up.to_string()).unwrap_or_default();
                continue;
            }
            let next = format!("{here}/{name}");
            match self.0.get(&next).cloned() {
                None => {
                    self.0.insert(next.clone(), Node::Dir(0o755));
                }
                Some(Node::Dir(_)) => {}
                Some(Node::File(..)) => return None,
                Some(Node::Link(target)) => {
                    links += 1;
                    if links > 40 {
                        return None;
                    }
                    if target.starts_with('/') {
                        here = String::new();
                    }
                    todo.extend(target.split('/').rev().filter(|c| !c.is_empty()).map(String::from));
                    continue;
                }
            }
            here = next;
        }
        Some(here)
    }

    fn real(&mut self, path: &str) -> Option<String> {
        let name = path.rsplit('/').next().unwrap_or_default();
        Some(format!("{}/{name}", self.parent(path)?))
    }

    fn remove(&mut self, real: &str) {
        let below = format!("{real}/");
        self.0.retain(|path, _| path != real && !path.starts_with(&below));
    }

    /// Removes what lower layers have at and below a path.
    fn remove_lower(&mut self, real: &str, own: &BTreeSet<String>) {
        let below = format!("{real}/");
        let holds_own = own.iter().any(|path| path.starts_with(&below));
        self.0.retain(|path, _| own.contains(path) || (path != real && !path.starts_with(&below)));
        if holds_own {
            self.0.entry(real.to_string()).or_insert(Node::Dir(0o755));
        }
    }

    /// Applies a layer in the order of its archive; none where one of its entries fits nowhere. Deletions mean the
    /// layers below only.
    fn apply(&mut self, ops: &[Op]) -> Option<()> {
        let mut own: BTreeSet<String> = BTreeSet::new();
        for op in ops {
            let before: BTreeSet<String> = self.0.keys().cloned().collect();
            match op {
                Op::Delete(path) => {
                    let real = self.real(path)?;
                    self.remove_lower(&real, &own);
                }
                Op::Clear(path) => {
                    let real = self.parent(&format!("{path}/x"))?;
                    let below = format!("{real}/");
                    self.0.retain(|path, _| own.contains(path) || !path.starts_with(&below));
                    // A directory of a lower layer that this layer has put a file in before: who owns it?
                    let parents =
                        own.iter().filter_map(|path| path.rsplit_once('/')).map(|(parent, _)| parent);
                    if parents.into_iter().any(|parent| !parent.is_empty() && !self.0.contains_key(parent)) {
                        return None;
                    }
                }
                Op::Put(path, node) => {
                    let real = self.real(path)?;
                    let both = matches!((self.0.get(&real), node), (Some(Node::Dir(_)), Node::Dir(_)));
                    if !both {
                        self.remove(&real);
                    }
                    self.0.insert(real.clone(), node.clone());
                    own.insert(real);
                }
                Op::Same(path, target) => {
                    let real = self.real(path)?;
                    let target = self.real(target)?;
                    let node = self.0.get(&target).filter(|node| !matches!(node, Node::Dir(_))).cloned()?;
                    if real != target {
                        self.remove(&real);
                        self.0.insert(real.clone(), node);
                    }
                    own.insert(real);
                }
            }
            own.extend(self.0.keys().filter(|path| !before.contains(*path)).cloned());
        }
        Some(())
    }

    fn text(&self) -> BTreeMap<String, String> {
        let line = |node: &Node| match node {
            Node::Dir(mode) => format!("dir {mode:o} 0"),
            Node::File(content, mode) => format!("file {content:?} {mode:o} 0"),
            Node::Link(target) => format!("-> {target} 777 0"),
        };
        let mut text: BTreeMap<_, _> = self.0.iter().map(|(path, node)| (path.clone(), line(node))).collect();
        text.insert("/".into(), "dir 755 0".into());
        text
    }
}

/// A path whose last name is one of `names`; what comes before is mostly a directory, or a link to one.
fn path(random: &mut Random, names: &[&str]) -> String {
    let mut path = String::new();
    for _ in 0..random.below(3) {
        path += random.pick(&["a/", "b/", "l/", "m/"]);
    }
    path + random.pick(names)
}

/// One entry per path, and none that another one reaches through, so that the order within a layer means nothing.
fn layer(random: &mut Random, number: usize) -> Vec<Op> {
    let mut ops: BTreeMap<String, Op> = BTreeMap::new();
    for n in 0..1 + random.below(8) {
        // Now and then anything is called anything.
        let name = |random: &mut Random, usual: &[&'static str]| match random.below(8) {
            0 => path(random, &["a", "b", "l", "m", "f", "g"]),
            _ => path(random, usual),
        };
        let (at, op) = match random.below(12) {
            0..=3 => (
                name(random, &["f", "g"]),
                Op::Put(String::new(), Node::File(format!("{number}.{n}"), 0o640)),
            ),
            4..=5 => {
                (name(random, &["a", "b"]), Op::Put(String::new(), Node::Dir(0o700 + random.below(2) as u32)))
            }
            6 => {
                let target = random.pick(&["a", "../b", "/a", "/a/b", "b/c", "../../../b", "m", "/"]);
                (name(random, &["l", "m"]), Op::Put(String::new(), Node::Link(target.into())))
            }
            7 => (name(random, &["f", "g"]), Op::Same(String::new(), path(random, &["f", "g"]))),
            8..=10 => (name(random, &["a", "b", "l", "f", "g"]), Op::Delete(String::new())),
            _ => (name(random, &["a", "b", "l"]), Op::Clear(String::new())),
        };
        let op = match op {
            Op::Put(_, node) => Op::Put(at.clone(), node),
            Op::Same(_, target) => Op::Same(at.clone(), target),
            Op::Delete(_) => Op::Delete(at.clone()),
            Op::Clear(_) => Op::Clear(at.clone()),
        };
        let replaced = ops.insert(at.clone(), op);
        if is_ordered(&ops.values().cloned().collect::<Vec<_>>()) {
            match replaced {
                Some(before) => ops.insert(at, before),
                None => ops.remove(&at),
            };
        }
    }
    ops.into_values().collect()
}

fn archive(ops: &[Op]) -> Layer {
    let hidden = |path: &str| match path.rsplit_once('/') {
        Some((parent, name)) => format!("{parent}/.wh.{name}"),
        None => format!(".wh.{path}"),
    };
    ops.iter().fold(Layer::new(), |layer, op| match op {
        Op::Put(path, Node::Dir(mode)) => layer.owned_dir(path, *mode, 0),
        Op::Put(path, Node::File(content, mode)) => {
            layer.entry(path, tar::EntryType::Regular, |h| h.set_mode(*mode), content.as_bytes())
        }
        Op::Put(path, Node::Link(target)) => layer.symlink(path, target),
        Op::Same(path, target) => layer.hard_link(path, target),
        Op::Delete(path) => layer.file(&hidden(path), ""),
        Op::Clear(path) => layer.file(&format!("{path}/.wh..wh..opq"), ""),
    })
}

/// Whether an entry of a layer is reached through a link that another entry of the same layer makes, removes or
/// hides: there the order within the layer decides, and the model has none.
fn is_ordered(ops: &[Op]) -> bool {
    let paths: Vec<(&str, bool)> = ops
        .iter()
        .flat_map(|op| match op {
            Op::Put(path, Node::Dir(_)) => vec![(path.as_str(), false)],
            Op::Put(path, _) | Op::Delete(path) | Op::Clear(path) => vec![(path.as_str(), true)],
            Op::Same(path, target) => vec![(path.as_str(), true), (target.as_str(), true)],
        })
        .collect();
    paths
        .iter()
        .any(|(one, solid)| *solid && paths.iter().any(|(other, _)| other.starts_with(&format!("{one}/"))))
}

#[tokio::test]
async fn random_images_look_as_the_specification_says() {
    if !is_root() {
        return;
    }
    let rounds: u64 = std::env::var("IMAGE_MODEL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(150);
    let store = TestStore::new();
    let mut compared = 0;
    for seed in 1..=rounds {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let layers: Vec<Vec<Op>> = (0..2 + random.below(3) as usize).map(|n| layer(&mut random, n)).collect();
        let mut model = Model::default();
        let fits = layers.iter().try_for_each(|ops| model.apply(ops));
        let image = TestImage::new(layers.iter().map(|ops| archive(ops)).collect());
        match (store.try_import(&image, "h.io/model:1").await, fits) {
            (Ok(images), Some(())) => {
                let found = with_rootfs(&store, &images[0], tree);
                assert_eq!(found, model.text(), "seed {seed}: {layers:#?}");
                compared += 1;
            }
            // What fits nowhere may be refused; it may also be shown where a lower file is in the way.
            (Err(ImageError::InvalidImage { .. }) | Ok(_), None) => {}
            (result, _) => panic!("seed {seed}: {result:?} for {layers:#?}"),
        }
    }
    assert!(compared > rounds / 5, "only {compared} of {rounds} images could be compared");
}
