//! Files of the kernel that are looked at again and again, kept open: a look is then one read, where opening each time
//! takes a walk of its path and three calls more. Knows nothing of what they say.
//!
//! How many the process keeps is bounded; those beyond are opened for each look. What a kept file is about may be held
//! by it (a network namespace is), so its owner closes them as soon as that is to go.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most files that the process keeps open: each costs the kernel a buffer of a page.
const MOST: usize = 4096;
/// Enough for any file of a cgroup.
const PAGE: usize = 4096;

static KEPT: AtomicUsize = AtomicUsize::new(0);

/// How the kernel shows a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// As one record: a read that fills no buffer has all of it.
    Whole,
    /// Record by record: only a read of nothing is the end.
    ByRecord,
}

/// Directory and name of a file, unique among the files of one owner.
pub type Key = (&'static str, &'static str);

/// The files of one owner.
#[derive(Debug, Default)]
pub struct KeptFiles {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    files: Vec<(Key, Arc<Kept>)>,
    closed: bool,
}

/// A kept file; counted while it lives.
#[derive(Debug)]
struct Kept(File);

impl Drop for Kept {
    fn drop(&mut self) {
        KEPT.fetch_sub(1, Ordering::Relaxed);
    }
}

impl KeptFiles {
    /// What the file says now, at most `limit` bytes; `open` opens it where it is not kept.
    pub fn read(
        &self,
        key: Key,
        (shown, limit): (Shown, usize),
        open: impl FnOnce() -> io::Result<File>,
    ) -> io::Result<Vec<u8>> {
        if let Some(kept) = self.kept(key) {
            return read(&kept.0, shown, limit).inspect_err(|_| self.forget(key));
        }
        let file = open()?;
        let bytes = read(&file, shown, limit)?;
        self.keep(key, file);
        Ok(bytes)
    }

    /// Whether the file is kept.
    pub fn has(&self, key: Key) -> bool {
        self.kept(key).is_some()
    }

    /// Closes all, and keeps none from now on.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.files = Vec::new();
    }

    fn kept(&self, key: Key) -> Option<Arc<Kept>> {
        self.state().files.iter().find(|(name, _)| *name == key).map(|(_, kept)| kept.clone())
    }

    fn keep(&self, key: Key, file: File) {
        let mut state = self.state();
        if state.closed || state.files.iter().any(|(name, _)| *name == key) {
            return;
        }
        if KEPT.fetch_add(1, Ordering::Relaxed) < MOST {
            state.files.push((key, Arc::new(Kept(file))));
        } else {
            KEPT.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn forget(&self, key: Key) {
        self.state().files.retain(|(name, _)| *name != key);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a file says now, at most `limit` bytes.
pub fn read(file: &File, shown: Shown, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; PAGE.min(limit)];
    let mut length = 0;
    while length < limit {
        if length == bytes.len() {
            bytes.resize((2 * length).min(limit), 0);
        }
        let count = file.read_at(&mut bytes[length..], length as u64)?;
        length += count;
        if count == 0 || shown == Shown::Whole && length < bytes.len() {
            break;
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const ONE: Key = ("", "one");

    #[test]
    fn a_file_is_opened_once_and_read_anew_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let (files, opened) = (KeptFiles::default(), Cell::new(0));
        let look = |limit| {
            let open = || {
                opened.set(opened.get() + 1);
                File::open(&path)
            };
            files.read(ONE, (Shown::ByRecord, limit), open).map(|bytes| bytes.len())
        };
        assert!(look(10).is_err() && !files.has(ONE));
        for length in [0, 5, PAGE, 3 * PAGE + 1, 1] {
            std::fs::write(&path, vec![b'x'; length]).unwrap();
            assert_eq!((look(1 << 20).unwrap(), look(7).unwrap()), (length, length.min(7)));
        }
        assert_eq!(opened.get(), 2);
        files.close();
        assert!(!files.has(ONE));
        assert_eq!((look(7).unwrap(), files.has(ONE)), (1, false));
    }

    #[test]
    fn a_file_that_can_no_longer_be_read_is_forgotten() {
        let files = KeptFiles::default();
        let directory = || File::open("/");
        files.keep(ONE, directory().unwrap());
        assert!(files.read(ONE, (Shown::Whole, 10), directory).is_err());
        assert!(!files.has(ONE));
    }
}
