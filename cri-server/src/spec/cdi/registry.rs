//! All specification files of the node: which device is where, and which file has priority.

use std::collections::{BTreeMap, BTreeSet};

use super::error::CdiError;
use super::file::{ContainerEdits, Document};
use super::yaml;

/// Devices by qualified name.
#[derive(Debug, Default)]
pub struct Registry {
    files: Vec<Loaded>,
    /// Where a name is: index of the file, of its device.
    places: BTreeMap<String, Vec<(usize, usize)>>,
    unread: Vec<String>,
}

#[derive(Debug)]
struct Loaded {
    source: Source,
    document: Document,
}

/// Where a file is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its path, for messages.
    pub path: String,
    /// Of two files that have one device the one of higher priority is used.
    pub priority: usize,
    /// How it is written.
    pub format: Format,
}

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `*.json`
    Json,
    /// `*.yaml`
    Yaml,
}

impl Registry {
    /// Takes a file's text. One that cannot be used is kept in mind for the messages about devices that are missing.
    pub fn add(&mut self, source: Source, text: &[u8]) {
        match parse(source.format, text) {
            Err(reason) => self.skip(&source.path, &reason),
            Ok(document) => {
                let file = self.files.len();
                for (index, device) in document.devices.iter().enumerate() {
                    let name = format!("{}={}", document.kind, device.name);
                    self.places.entry(name).or_default().push((file, index));
                }
                self.files.push(Loaded { source, document });
            }
        }
    }

    /// Notes that what is at `path` is not used, and why.
    pub fn skip(&mut self, path: &str, reason: &str) {
        self.unread.push(format!("{path}: {reason}"));
    }

    /// What is not used, each with the reason.
    pub fn unread(&self) -> &[String] {
        &self.unread
    }

    /// What the devices change together: for each what its file changes for all, once, then its own.
    pub(super) fn edits(&self, names: &[String]) -> Result<ContainerEdits, CdiError> {
        let mut all = ContainerEdits::default();
        let mut used = BTreeSet::new();
        for name in names {
            let (file, device) = self.place(name)?;
            let document = &self.files[file].document;
            if used.insert(file) {
                all.append(&document.container_edits);
            }
            all.append(&document.devices[device].container_edits);
        }
        Ok(all)
    }

    fn place(&self, name: &str) -> Result<(usize, usize), CdiError> {
        let places = self.places.get(name).map(Vec::as_slice).unwrap_or_default();
        let priority = |place: &(usize, usize)| self.files[place.0].source.priority;
        let path = |place: &(usize, usize)| self.files[place.0].source.path.clone();
        let highest = places.iter().map(priority).max();
        let mut best = places.iter().filter(|place| Some(priority(place)) == highest);
        match (best.next(), best.next()) {
            (None, _) => Err(CdiError::Unknown { name: name.into(), unread: self.unread.clone() }),
            (Some(place), None) => Ok(*place),
            (Some(one), Some(other)) => {
                Err(CdiError::Conflict { name: name.into(), first: path(one), second: path(other) })
            }
        }
    }
}

impl ContainerEdits {
    fn append(&mut self, other: &Self) {
        self.env.extend_from_slice(&other.env);
        self.device_nodes.extend_from_slice(&other.device_nodes);
        self.mounts.extend_from_slice(&other.mounts);
        self.hooks.extend_from_slice(&other.hooks);
        self.intel_rdt = other.intel_rdt.clone().or(self.intel_rdt.take());
        self.additional_gids.extend_from_slice(&other.additional_gids);
    }
}

fn parse(format: Format, text: &[u8]) -> Result<Document, String> {
    let document: Document = match format {
        Format::Json => serde_json::from_slice(text).map_err(|error| error.to_string())?,
        Format::Yaml => {
            let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
            serde_json::from_value(yaml::parse(text)?).map_err(|error| error.to_string())?
        }
    };
    document.check()?;
    Ok(document)
}
