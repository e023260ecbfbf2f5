//! ImageFsInfo: what images take, on the file system that also holds the writable layers.

use std::sync::Arc;

use proto::cri::{FilesystemIdentifier, FilesystemUsage, ImageFsInfoResponse, UInt64Value};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::store;

/// Use of the image file system.
pub async fn image_fs_info(daemon: &Arc<Daemon>) -> Result<ImageFsInfoResponse, Error> {
    let usage = daemon.images.fs_usage();
    let filesystem = FilesystemUsage {
        timestamp: store::now(),
        fs_id: Some(FilesystemIdentifier { mountpoint: daemon.paths.root().display().to_string() }),
        used_bytes: Some(UInt64Value { value: usage.bytes }),
        inodes_used: Some(UInt64Value { value: usage.inodes }),
    };
    Ok(ImageFsInfoResponse {
        image_filesystems: vec![filesystem.clone()],
        container_filesystems: vec![filesystem],
    })
}
