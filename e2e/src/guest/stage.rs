//! The disk that hands everything in: files under the paths that they have here, the job, and the guest's first
//! process.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::job::{FILE, FILES, Job};
use super::root::pack;
use super::selinux;

/// A directory that becomes the job's disk.
pub struct Stage {
    dir: PathBuf,
    places: Vec<PathBuf>,
}

impl Stage {
    /// An empty stage in the directory `dir`. Files can come from below `places` only.
    pub fn new(dir: PathBuf, places: &[PathBuf]) -> Result<Self> {
        std::fs::create_dir_all(dir.join(FILES))?;
        Ok(Self { dir, places: places.to_vec() })
    }

    /// Hands in a file or a whole directory.
    pub fn add(&self, path: &Path) -> Result<()> {
        let inside = self.places.iter().any(|place| path.starts_with(place));
        ensure!(inside, "{} is in none of the guest's places", path.display());
        let target = self.dir.join(FILES).join(path.strip_prefix("/")?);
        copy(path, &target).with_context(|| format!("stage {}", path.display()))
    }

    /// Writes the job and packs it all; `init` is the program that becomes the guest's first process.
    pub fn pack(&self, mut job: Job, init: &Path, image: &Path) -> Result<()> {
        job.places.clone_from(&self.places);
        if job.selinux {
            selinux::compile(&self.dir.join(selinux::FILE))?;
        }
        std::fs::write(self.dir.join(FILE), serde_json::to_vec_pretty(&job)?)?;
        copy(init, &self.dir.join("vminit"))?;
        pack(&self.dir, image, "4G")
    }
}

fn copy(path: &Path, target: &Path) -> Result<()> {
    if path.is_dir() {
        std::fs::create_dir_all(target)?;
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            copy(&entry.path(), &target.join(entry.file_name()))?;
        }
        return Ok(());
    }
    std::fs::create_dir_all(target.parent().context("no parent directory")?)?;
    // No links: a name that is staged twice would be copied onto itself.
    std::fs::copy(path, target)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_in_a_place_is_handed_in() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("place");
        std::fs::create_dir_all(place.join("a/b")).unwrap();
        std::fs::write(place.join("a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink("b", place.join("a/way")).unwrap();
        let stage = Stage::new(dir.path().join("stage"), std::slice::from_ref(&place)).unwrap();
        stage.add(&place.join("a")).unwrap();
        stage.add(&place.join("a")).unwrap();
        assert_eq!(std::fs::read_to_string(place.join("a/b/file")).unwrap(), "x");
        for name in ["b/file", "way/file"] {
            let staged = dir.path().join("stage/files").join(place.strip_prefix("/").unwrap());
            assert_eq!(std::fs::read_to_string(staged.join("a").join(name)).unwrap(), "x");
        }
        let error = stage.add(Path::new("/etc/hostname")).unwrap_err().to_string();
        assert_eq!(error, "/etc/hostname is in none of the guest's places");
    }
}
