//! Which ids of the node the ids of a pod's user namespace stand for.

use serde::{Deserialize, Serialize};

/// Consecutive ids: 0 and up inside of the pod, `first` and up on the node. One range serves users and groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The id of the node that the pod's root has.
    pub first: u32,
    /// How many there are.
    pub length: u32,
}

impl IdRange {
    /// The range, if its ids exist and none of them is the node's root. The last 32-bit number is no id.
    pub fn new(first: u32, length: u32) -> Option<Self> {
        let end = first.checked_add(length)?;
        (first > 0 && length > 0 && end < u32::MAX).then_some(Self { first, length })
    }

    /// The node's id behind the pod's `id`.
    pub fn on_node(self, id: u32) -> Option<u32> {
        (id < self.length).then(|| self.first + id)
    }
}

impl std::fmt::Display for IdRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0 {} {}", self.first, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_before_the_last_number_and_spares_root() {
        let check = |first, length, expect| {
            assert_eq!(IdRange::new(first, length).is_some(), expect, "{first} {length}");
        };
        check(1000, 100_000, true);
        check(1, 1, true);
        check(0, 65536, false);
        check(1000, 0, false);
        check(u32::MAX - 2, 1, true);
        check(u32::MAX - 1, 1, false);
        check(u32::MAX, 1, false);
        check(1, u32::MAX, false);
    }

    #[test]
    fn ids_beyond_the_range_stand_for_nothing() {
        let range = IdRange::new(1000, 10).unwrap();
        assert_eq!([0, 9, 10].map(|id| range.on_node(id)), [Some(1000), Some(1009), None]);
    }
}
