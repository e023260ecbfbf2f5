//! What a checkpoint needs of the node, and the archive that one is.

mod layer;

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::oci;

/// What is missing for checkpoints with this OCI runtime, for people; `None` when nothing is.
pub fn missing(program: &Path) -> Option<String> {
    let version = oci::version(program).unwrap_or_default();
    if version.starts_with("youki") {
        return Some(format!("OCI runtime {} has no command that makes one with CRIU", program.display()));
    }
    // crun is built with the library of CRIU or without it; the others run the program.
    if version.starts_with("crun") && !version.contains("+CRIU") {
        return Some(format!("OCI runtime {} is built without CRIU", program.display()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .any(|dir| rustix::fs::access(dir.join("criu"), rustix::fs::Access::EXEC_OK).is_ok());
    (!found).then(|| "the program criu is not installed".into())
}

/// Parts of an archive, under the names that other tools know.
#[derive(Debug)]
pub struct Parts {
    /// `config.dump`: what the container was, as JSON.
    pub config: String,
    /// `spec.dump`: the OCI runtime specification.
    pub spec: PathBuf,
    /// `rootfs-diff.tar`: the writable layer.
    pub layer: PathBuf,
    /// `checkpoint/`: CRIU's images.
    pub images: PathBuf,
}

impl Parts {
    /// Writes the archive, readable by root alone; it appears whole or not at all.
    pub fn write(&self, location: &Path) -> io::Result<()> {
        let mut name = location.file_name().unwrap_or_default().to_os_string();
        name.push(".part");
        let part = location.with_file_name(name);
        let written = self.write_part(&part).and_then(|()| std::fs::rename(&part, location));
        if written.is_err() {
            match std::fs::remove_file(&part) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _removed => {}
            }
        }
        written
    }

    fn write_part(&self, part: &Path) -> io::Result<()> {
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(part)?;
        let mut archive = tar::Builder::new(file);
        archive.follow_symlinks(false);
        append(&mut archive, "config.dump", self.config.as_bytes())?;
        append(&mut archive, "spec.dump", &std::fs::read(&self.spec)?)?;
        archive.append_dir_all("checkpoint", &self.images)?;
        // The layer is the container's: it may grow while it is read, and goes to a file of its own first.
        let mut inner = tar::Builder::new(tempfile(part)?);
        layer::append(&mut inner, &self.layer)
            .map_err(|error| io::Error::new(error.kind(), format!("the writable layer: {error}")))?;
        let mut layer = inner.into_inner()?;
        io::Seek::rewind(&mut layer)?;
        archive.append_file("rootfs-diff.tar", &mut layer)?;
        archive.into_inner()?.sync_all()
    }
}

fn append(archive: &mut tar::Builder<File>, name: &str, content: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o600);
    archive.append_data(&mut header, name, content)
}

/// A file without a name on the file system of `beside`.
fn tempfile(beside: &Path) -> io::Result<File> {
    let dir = beside.parent().unwrap_or(Path::new("/"));
    let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(dir, flags, rustix::fs::Mode::from_raw_mode(0o600))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_its_parts_and_appears_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("upper/etc")).unwrap();
        std::os::unix::fs::symlink("/nonexistent", path("upper/etc/link")).unwrap();
        std::fs::create_dir(path("images")).unwrap();
        std::fs::write(path("images/core-1.img"), "x").unwrap();
        std::fs::write(path("config.json"), "{}").unwrap();
        let parts = Parts {
            config: "{}".into(),
            spec: path("config.json"),
            layer: path("upper"),
            images: path("images"),
        };
        parts.write(&path("a.tar")).unwrap();
        let mut archive = tar::Archive::new(File::open(path("a.tar")).unwrap());
        let names: Vec<_> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        for name in ["config.dump", "spec.dump", "checkpoint/core-1.img", "rootfs-diff.tar"] {
            assert!(names.iter().any(|found| found == name), "{name} in {names:?}");
        }
        let broken = Parts { spec: path("missing"), ..parts };
        assert!(broken.write(&path("b.tar")).is_err());
        assert!(!path("b.tar").exists() && !path("b.tar.part").exists());
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        assert!(missing(Path::new("/nonexistent/runtime")).is_none_or(|text| text.contains("criu")));
    }
}
