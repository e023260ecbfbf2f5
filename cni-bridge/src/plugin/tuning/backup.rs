//! The interface's settings of before, kept on disk from ADD to DEL in the reference plugin's form:
//! `<dataDir>/<container>_<interface>.json`. Only what ADD changes is in it.

use std::io;
use std::path::{Path, PathBuf};

use proto::cni::{Attachment, CniError, ErrorCode, NetworkName};
use serde::{Deserialize, Serialize};

use crate::net::device::{Change, Settings};

/// The settings, and what they belong to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(default, rename = "txQLen", skip_serializing_if = "Option::is_none")]
    queue: Option<u32>,
    /// The network; the reference plugin leaves it out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    network: String,
    /// Device and inode of the namespace; the reference plugin leaves them out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    netns: Option<(u64, u64)>,
}

impl Backup {
    /// What `change` is about to overwrite.
    pub fn of(settings: &Settings, change: &Change, network: &NetworkName, netns: (u64, u64)) -> Self {
        Self {
            mac: change.mac.map(|_| settings.mac.to_string()).unwrap_or_default(),
            promisc: change.promiscuous.map(|_| settings.promiscuous),
            mtu: change.mtu.map(|_| settings.mtu),
            allmulti: change.all_multicast.map(|_| settings.all_multicast),
            queue: change.queue.map(|_| settings.queue),
            network: network.to_string(),
            netns: Some(netns),
        }
    }

    /// The change that brings the settings back.
    pub fn change(&self) -> Change {
        Change {
            mac: self.mac.parse().ok(),
            mtu: self.mtu.filter(|mtu| *mtu != 0),
            promiscuous: self.promisc,
            all_multicast: self.allmulti,
            queue: self.queue,
        }
    }

    /// Whether it is of another namespace than `netns`.
    pub fn is_foreign_to(&self, netns: (u64, u64)) -> bool {
        self.netns.is_some_and(|own| own != netns)
    }

    /// Keeps it. One that is there already is of an ADD that was cut off, and nearer to the beginning.
    ///
    /// # Errors
    /// [`ErrorCode::IO_FAILURE`].
    pub fn write(&self, path: &Path) -> Result<(), CniError> {
        if path.exists() {
            return Ok(());
        }
        let draft = draft(path);
        let json = serde_json::to_vec(self).expect("texts and numbers always encode");
        let written = path
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&draft, json))
            .and_then(|()| std::fs::rename(&draft, path));
        written.map_err(failed("writing", path))
    }
}

/// Where an attachment's settings are kept.
pub fn path(data_dir: &Path, attachment: &Attachment) -> PathBuf {
    data_dir.join(format!("{}_{}.json", attachment.container_id, attachment.ifname))
}

/// Reads a backup; `None` where there is none, or one that tells nothing.
///
/// # Errors
/// [`ErrorCode::IO_FAILURE`].
pub fn read(path: &Path) -> Result<Option<Backup>, CniError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("reading", path)(error)),
    }
}

/// Removes a backup that may be gone.
///
/// # Errors
/// [`ErrorCode::IO_FAILURE`].
pub fn remove(path: &Path) -> Result<(), CniError> {
    for file in [draft(path), path.to_owned()] {
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("removing", &file)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes the backups of a network that belong to no valid attachment.
///
/// # Errors
/// [`ErrorCode::IO_FAILURE`].
pub fn gc(data_dir: &Path, network: &NetworkName, valid: &[Attachment]) -> Result<(), CniError> {
    let kept: Vec<PathBuf> = valid.iter().map(|attachment| path(data_dir, attachment)).collect();
    let entries = match std::fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("reading", data_dir)(error)),
    };
    for entry in entries.flatten() {
        let file = entry.path();
        if kept.contains(&file) || file.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        if read(&file)?.is_some_and(|backup| backup.network == network.as_str()) {
            remove(&file)?;
        }
    }
    Ok(())
}

fn draft(path: &Path) -> PathBuf {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    draft.into()
}

fn failed(what: &str, path: &Path) -> impl Fn(io::Error) -> CniError {
    let what = format!("{what} {}", path.display());
    move |error| CniError::caused(ErrorCode::IO_FAILURE, what.clone(), &error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_references_files_are_read() {
        let json = br#"{"mac":"c2:11:22:33:44:55","promisc":false,"mtu":1500,"allmulti":true,"txQLen":1000}"#;
        let backup: Backup = serde_json::from_slice(json).unwrap();
        let expect = Change {
            mac: "c2:11:22:33:44:55".parse().ok(),
            mtu: Some(1500),
            promiscuous: Some(false),
            all_multicast: Some(true),
            queue: Some(1000),
        };
        assert_eq!(backup.change(), expect);
        assert!(!backup.is_foreign_to((1, 2)));
    }

    #[test]
    fn the_first_one_stays_and_goes_with_its_network() {
        let dir = tempfile::tempdir().unwrap();
        let attachment = Attachment { container_id: "c".parse().unwrap(), ifname: "eth0".parse().unwrap() };
        let file = path(&dir.path().join("below"), &attachment);
        let change = Change { mtu: Some(1400), ..Change::default() };
        let network: NetworkName = "n".parse().unwrap();
        let of = |mtu| Backup::of(&Settings { mtu, ..Settings::default() }, &change, &network, (1, 2));
        of(1500).write(&file).unwrap();
        of(1400).write(&file).unwrap();
        assert_eq!(read(&file).unwrap(), Some(of(1500)));
        assert!(of(1).is_foreign_to((1, 3)));
        let parent = file.parent().unwrap();
        gc(parent, &"other".parse().unwrap(), &[]).unwrap();
        gc(parent, &network, std::slice::from_ref(&attachment)).unwrap();
        assert!(file.exists());
        gc(parent, &network, &[]).unwrap();
        assert!(!file.exists());
        remove(&file).unwrap();
        std::fs::write(&file, "").unwrap();
        assert_eq!(read(&file).unwrap(), None);
    }
}
