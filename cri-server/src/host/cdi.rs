//! Reads the node's specification files of CDI devices.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::fs::read_bounded;
use crate::spec::cdi::{Format, Registry, Source};

/// Largest file, bytes.
const FILE_LIMIT: u64 = 1 << 20;
/// Most files of one directory.
const FILES: usize = 1024;

/// All files of `directories`, a later one with the higher priority. A directory need not be there, and a file that
/// cannot be used takes nothing from the others.
pub fn registry(directories: &[PathBuf]) -> Registry {
    let mut registry = Registry::default();
    for (priority, directory) in directories.iter().enumerate() {
        if let Err(error) = scan(directory, priority, &mut registry)
            && error.kind() != io::ErrorKind::NotFound
        {
            registry.skip(&directory.display().to_string(), &error.to_string());
        }
    }
    registry
}

fn scan(directory: &Path, priority: usize, registry: &mut Registry) -> io::Result<()> {
    let mut files: Vec<(PathBuf, Format)> = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let format = match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => Format::Json,
            Some("yaml") => Format::Yaml,
            _ => continue,
        };
        if files.len() == FILES {
            return Err(io::Error::other(format!("more than {FILES} files")));
        }
        files.push((path, format));
    }
    // Messages are the same every time.
    files.sort_by(|one, other| one.0.cmp(&other.0));
    for (path, format) in files {
        let source = Source { path: path.display().to_string(), priority, format };
        match read(&path) {
            Ok(text) => registry.add(source, &text),
            Err(error) => registry.skip(&source.path, &error.to_string()),
        }
    }
    Ok(())
}

/// A FIFO of that name must not hold up a request.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    read_bounded(file, FILE_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::cdi::Edits;

    const SPEC: &str = r#"{"cdiVersion": "0.6.0", "kind": "v/c", "devices": [
        {"name": "a", "containerEdits": {"env": ["FROM=DIRECTORY"]}}]}"#;

    fn env(directories: &[PathBuf]) -> Result<Vec<String>, String> {
        let look = crate::host::source::device_node;
        let edits = Edits::of(&registry(directories), &["v/c=a".to_string()], look);
        edits.map(|edits| edits.env).map_err(|error| error.to_string())
    }

    #[test]
    fn later_directories_have_priority_and_changes_count_at_once() {
        let top = tempfile::tempdir().unwrap();
        let dirs = ["etc", "run", "absent"].map(|name| top.path().join(name));
        for (dir, name) in [(&dirs[0], "etc"), (&dirs[1], "run")] {
            std::fs::create_dir(dir).unwrap();
            std::fs::write(dir.join("a.json"), SPEC.replace("DIRECTORY", name)).unwrap();
        }
        assert_eq!(env(&dirs).unwrap(), ["FROM=run"]);
        std::fs::remove_file(dirs[1].join("a.json")).unwrap();
        assert_eq!(env(&dirs).unwrap(), ["FROM=etc"]);
        std::fs::rename(dirs[0].join("a.json"), dirs[0].join("a.txt")).unwrap();
        assert!(env(&dirs).unwrap_err().contains("no specification file"));
        // JSON is YAML.
        std::fs::rename(dirs[0].join("a.txt"), dirs[0].join("a.yaml")).unwrap();
        assert_eq!(env(&dirs).unwrap(), ["FROM=etc"]);
        std::fs::write(dirs[0].join("b.json"), SPEC).unwrap();
        let error = env(&dirs).unwrap_err();
        assert!(error.contains("a.yaml") && error.contains("b.json"), "{error}");
    }

    #[test]
    fn files_that_cannot_be_used_are_named_and_take_nothing_from_others() {
        use rustix::fs::{FileType, Mode};
        let top = tempfile::tempdir().unwrap();
        let dirs = [top.path().to_owned()];
        let fifo = top.path().join("fifo.json");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        std::fs::create_dir(top.path().join("directory.yaml")).unwrap();
        std::fs::write(top.path().join("long.yaml"), vec![b' '; 1 + FILE_LIMIT as usize]).unwrap();
        std::fs::write(top.path().join("torn.json"), &SPEC[..40]).unwrap();
        let error = env(&dirs).unwrap_err();
        for name in ["fifo.json", "directory.yaml", "long.yaml", "torn.json"] {
            assert!(error.contains(name), "{name}: {error}");
        }
        std::fs::write(top.path().join("good.json"), SPEC).unwrap();
        assert_eq!(env(&dirs).unwrap(), ["FROM=DIRECTORY"]);
    }
}
