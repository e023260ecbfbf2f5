//! Putting the program and a link for each plugin into a directory of CNI plugins.
//!
//! Every name is replaced by renaming: a runtime that starts a plugin meanwhile finds the old one or the new one.

use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::plugin;

/// The program's own name in the directory.
const PROGRAM: &str = "cni-bridge";

/// Why the installation failed.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path}")]
pub struct InstallError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Copies the running program into `dir`, which is made if needed, and links the plugins' names to it.
///
/// # Errors
/// [`InstallError`].
pub fn install(dir: &Path) -> Result<(), InstallError> {
    std::fs::create_dir_all(dir).map_err(failed("creating", dir))?;
    let own = std::env::current_exe().map_err(failed("finding", Path::new("/proc/self/exe")))?;
    let program = dir.join(PROGRAM);
    replace(&program, |draft| {
        std::fs::copy(&own, draft)?;
        std::fs::set_permissions(draft, std::fs::Permissions::from_mode(0o755))
    })?;
    for plugin in plugin::ALL {
        replace(&dir.join(plugin.name()), |draft| symlink(PROGRAM, draft))?;
    }
    Ok(())
}

fn replace(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), InstallError> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("removing", &draft)(error));
        }
        _ => {}
    }
    make(&draft).map_err(failed("writing", &draft))?;
    std::fs::rename(&draft, path).map_err(failed("replacing", path))
}

fn failed(what: &'static str, path: &Path) -> impl Fn(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError { what, path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installing_twice_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("opt/cni/bin");
        install(&target).unwrap();
        install(&target).unwrap();
        let mut names: Vec<String> = std::fs::read_dir(&target)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let mut expect: Vec<&str> = plugin::ALL.iter().map(|plugin| plugin.name()).chain([PROGRAM]).collect();
        expect.sort_unstable();
        assert_eq!(names, expect);
        assert_eq!(std::fs::read_link(target.join("bridge")).unwrap(), Path::new(PROGRAM));
    }
}
