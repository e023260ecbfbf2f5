//! The cache of records: objects by id, found by id or by a unique prefix of it, as people type them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

/// Several ids begin so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ambiguous;

/// Objects by id.
#[derive(Debug)]
pub struct Index<T> {
    objects: RwLock<BTreeMap<String, Arc<T>>>,
}

impl<T> Default for Index<T> {
    fn default() -> Self {
        Self { objects: RwLock::default() }
    }
}

impl<T> Index<T> {
    /// The object whose id is `id`, or starts with it when only one does.
    pub fn find(&self, id: &str) -> Option<Arc<T>> {
        self.look_up(id).ok().flatten()
    }

    /// As [`Index::find`], but a beginning that several ids have is an error.
    pub fn look_up(&self, id: &str) -> Result<Option<Arc<T>>, Ambiguous> {
        if id.is_empty() {
            return Ok(None);
        }
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        let mut matches = objects
            .range::<str, _>((Bound::Included(id), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(id));
        let Some((key, object)) = matches.next() else { return Ok(None) };
        if key != id && matches.next().is_some() {
            return Err(Ambiguous);
        }
        Ok(Some(object.clone()))
    }

    /// All objects, by id.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The objects that `wanted` takes, by id.
    pub fn matching(&self, wanted: impl Fn(&T) -> bool) -> Vec<Arc<T>> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects.values().filter(|object| wanted(object)).cloned().collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds or replaces an object.
    pub fn insert(&self, id: &str, object: Arc<T>) {
        self.objects.write().unwrap_or_else(PoisonError::into_inner).insert(id.to_string(), object);
    }

    /// Forgets an object.
    pub fn remove(&self, id: &str) {
        self.objects.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_by_id_and_by_unique_prefix() {
        let index = Index::default();
        for id in ["abc1", "abc2", "abd", "ab"] {
            index.insert(id, Arc::new(id.to_string()));
        }
        let check = |id: &str, expect: Option<&str>| {
            assert_eq!(index.find(id).as_deref().map(String::as_str), expect, "{id}");
        };
        check("abc1", Some("abc1"));
        check("abd", Some("abd"));
        check("abc", None);
        check("ab", Some("ab"));
        check("", None);
        check("x", None);
        assert_eq!(index.look_up("abc"), Err(Ambiguous));
        assert_eq!(index.look_up("x"), Ok(None));
        let ones = index.matching(|id| id.ends_with('1'));
        assert_eq!(ones, [Arc::new("abc1".to_string())]);
    }
}
