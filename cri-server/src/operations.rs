//! Named, resumable operations: a retry of the same create joins the one in flight and gets its result.
//!
//! No name stays reserved: a name is taken by a live object or by an operation in flight, and by nothing else.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::error::Error;
use crate::model::name::Name;

type Outcome<T> = Option<Result<T, Arc<Error>>>;

struct InFlight<T> {
    digest: String,
    outcome: watch::Receiver<Outcome<T>>,
}

/// Operations in flight, by the name of what they make.
pub struct Operations<T> {
    kind: &'static str,
    in_flight: Arc<Mutex<HashMap<Name, InFlight<T>>>>,
}

/// Takes the name out when the operation ends, however it ends.
struct Entry<T> {
    name: Name,
    in_flight: Arc<Mutex<HashMap<Name, InFlight<T>>>>,
}

impl<T> Drop for Entry<T> {
    fn drop(&mut self) {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

impl<T: Clone + Send + Sync + 'static> Operations<T> {
    /// Operations that make objects of this kind.
    pub fn new(kind: &'static str) -> Self {
        Self { kind, in_flight: Arc::default() }
    }

    /// Runs `work` under `name`, or waits for the operation of that name when its `digest` is the same.
    ///
    /// `work` goes on when the caller goes away. A different digest is [`Error::AlreadyExists`].
    pub async fn run<F>(&self, name: Name, digest: String, work: F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut outcome = self.join_or_spawn(name, digest, work)?;
        let result = match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None,
        };
        match result {
            Some(result) => result.map_err(Error::Shared),
            None => Err(Error::Internal(format!("the operation that makes this {} panicked", self.kind))),
        }
    }

    fn join_or_spawn<F>(
        &self,
        name: Name,
        digest: String,
        work: F,
    ) -> Result<watch::Receiver<Outcome<T>>, Error>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = in_flight.get(&name) {
            if other.digest == digest {
                return Ok(other.outcome.clone());
            }
            let reason = "is being made with a different configuration".to_string();
            return Err(Error::AlreadyExists { kind: self.kind, name: name.to_string(), reason });
        }
        let (sender, outcome) = watch::channel(None);
        in_flight.insert(name.clone(), InFlight { digest, outcome: outcome.clone() });
        let entry = Entry { name, in_flight: self.in_flight.clone() };
        tokio::spawn(async move {
            let result = work.await.map_err(Arc::new);
            drop(entry);
            sender.send_replace(Some(result));
        });
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn name() -> Name {
        Name::sandbox("a", "b", "c", 0)
    }

    #[tokio::test]
    async fn a_retry_joins_and_an_unequal_one_is_refused() {
        let operations = Arc::new(Operations::<u32>::new("pod sandbox"));
        let (go, gate) = oneshot::channel::<()>();
        let first = operations.join_or_spawn(name(), "x".into(), async {
            gate.await.ok();
            Ok(7)
        });
        let mut first = first.unwrap();
        let unequal = operations.run(name(), "y".into(), async { Ok(8) }).await;
        assert!(matches!(unequal, Err(Error::AlreadyExists { .. })));
        let joined = tokio::spawn({
            let operations = operations.clone();
            async move { operations.run(name(), "x".into(), async { Ok(9) }).await }
        });
        tokio::task::yield_now().await;
        go.send(()).unwrap();
        assert_eq!(joined.await.unwrap().unwrap(), 7);
        first.wait_for(Option::is_some).await.unwrap();
        assert_eq!(operations.run(name(), "z".into(), async { Ok(10) }).await.unwrap(), 10);
    }

    #[tokio::test]
    async fn a_panic_frees_the_name() {
        let operations = Operations::<u32>::new("container");
        let result = operations.run(name(), "x".into(), async { panic!("boom") }).await;
        assert!(matches!(result, Err(Error::Internal(_))));
        assert_eq!(operations.run(name(), "y".into(), async { Ok(1) }).await.unwrap(), 1);
    }
}
