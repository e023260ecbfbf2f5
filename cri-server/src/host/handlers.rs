//! What each handler's OCI runtime can do. Asked at the start, and again where the program is another one by now; a
//! question that failed is asked again when its answer is needed, because a guess would be wrong for the filter of
//! system calls.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::oci;
use super::program::{FileIdentity, ProgramCopies};
use crate::spec::HandlerFacts;

/// The handlers of a configuration.
#[derive(Debug, Default)]
pub struct Handlers {
    programs: BTreeMap<String, PathBuf>,
    known: Mutex<HashMap<String, (FileIdentity, HandlerFacts)>>,
}

impl Handlers {
    /// Asks all OCI runtimes at once, each question being a program's start. Blocks.
    pub fn ask(programs: BTreeMap<String, PathBuf>, copies: &ProgramCopies) -> Self {
        let handlers = Self { programs, known: Mutex::default() };
        std::thread::scope(|scope| {
            for name in handlers.programs.keys() {
                let handlers = &handlers;
                scope.spawn(move || {
                    if let Err(error) = handlers.facts(name, copies) {
                        tracing::warn!(handler = name, %error, "the OCI runtime is asked again when it is needed");
                    }
                });
            }
        });
        handlers
    }

    /// What the OCI runtime of a handler can do: nothing special where it is not there. Fails when it does not answer.
    /// Blocks where it has to be asked.
    pub fn facts(&self, name: &str, copies: &ProgramCopies) -> io::Result<HandlerFacts> {
        let Some(path) = self.programs.get(name) else { return Ok(HandlerFacts::default()) };
        let identity = match FileIdentity::of(path) {
            Ok(identity) => identity,
            // Whoever runs it finds out.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HandlerFacts::default()),
            Err(error) => return Err(error),
        };
        let known = self.known().get(name).filter(|(of, _)| *of == identity).map(|(_, facts)| facts.clone());
        if let Some(facts) = known {
            return Ok(facts);
        }
        let copy = copies.get(path).filter(|copy| *copy.original() == identity);
        let facts = oci::probe(path, copy.as_deref())
            .ok_or_else(|| io::Error::other(format!("{} does not tell its version", path.display())))?;
        self.known().insert(name.to_owned(), (identity, facts.clone()));
        Ok(facts)
    }

    /// Every handler with what was last known of its OCI runtime.
    pub fn last_known(&self) -> BTreeMap<String, HandlerFacts> {
        let known = self.known();
        let facts = |name: &String| known.get(name).map(|(_, facts)| facts.clone()).unwrap_or_default();
        self.programs.keys().map(|name| (name.clone(), facts(name))).collect()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, (FileIdentity, HandlerFacts)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;
    use crate::spec::MaskedEqual;

    fn install(path: &Path, body: &str) {
        let new = path.with_extension("new");
        std::fs::write(&new, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    #[test]
    fn a_failed_question_is_asked_again_and_a_new_program_too() {
        let dir = tempfile::tempdir().unwrap();
        let (path, flag) = (dir.path().join("runtime"), dir.path().join("works"));
        let copies = ProgramCopies::default();
        let programs = BTreeMap::from([("h".to_owned(), path.clone())]);
        let masks = |facts: HandlerFacts| facts.masked_equal == MaskedEqual::ValueTwoIsMask;

        let handlers = Handlers::ask(programs.clone(), &copies);
        assert!(!masks(handlers.facts("h", &copies).unwrap()), "nothing is there");
        install(&path, &format!("test -e {} && test $1 = --version && echo youki version 1", flag.display()));
        let handlers = Handlers::ask(programs, &copies);
        let error = handlers.facts("h", &copies).unwrap_err().to_string();
        assert!(error.contains("runtime does not tell its version"), "{error}");
        std::fs::write(&flag, "").unwrap();
        assert!(masks(handlers.facts("h", &copies).unwrap()));
        std::fs::remove_file(&flag).unwrap();
        assert!(masks(handlers.facts("h", &copies).unwrap()), "what was answered is kept");
        assert!(masks(handlers.last_known()["h"].clone()));
        install(&path, "echo another runtime");
        assert!(!masks(handlers.facts("h", &copies).unwrap()));
    }
}
