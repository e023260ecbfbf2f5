//! How many tasks of a container were killed for want of memory, also where its cgroup is gone by then: systemd removes
//! a scope as soon as it is empty, which may be before the end of its last process is seen here.
//!
//! On cgroup v2 the kernel counts a kill in all cgroups above, too. What the pod's cgroup counts beyond what is known of
//! its other containers is the share of the one whose own counter is gone. Where two of a pod have gone unread at once,
//! each is taken for killed as long as there are kills that nobody had.

use std::path::Path;

use super::cgroup;

/// Kills in the pod's cgroup, and whose they were.
#[derive(Debug, Default)]
pub struct PodKills {
    /// What the counter said before the pod's first container.
    before: Option<u64>,
    /// Kills in containers that have ended.
    told: u64,
}

/// What is known of the kills in one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kills {
    /// So many.
    Counted(u64),
    /// Its counter is gone.
    Gone,
}

impl Kills {
    /// Reads the counter of a container that had `baseline` when it was made.
    pub fn read(counter: Option<&Path>, baseline: u64) -> Self {
        match cgroup::read_oom_kills(counter) {
            Some(kills) => Self::Counted(kills.saturating_sub(baseline)),
            None => Self::Gone,
        }
    }
}

impl PodKills {
    /// Before a container is made: looks at the pod's counter when it is the first one.
    pub fn begin(&mut self, counter: Option<&Path>) {
        if self.before.is_none() && counter.is_some() {
            self.before = Some(cgroup::read_oom_kills(counter).unwrap_or(0));
        }
    }

    /// The kills in a container that has ended, given those in the pod's other containers that have not.
    pub fn settle(&mut self, own: Kills, counter: Option<&Path>, others: impl Iterator<Item = Kills>) -> u64 {
        let kills = match own {
            Kills::Counted(kills) => kills,
            Kills::Gone => self.unknown(counter, others),
        };
        self.told += kills;
        kills
    }

    fn unknown(&self, counter: Option<&Path>, others: impl Iterator<Item = Kills>) -> u64 {
        let (Some(before), Some(now)) = (self.before, cgroup::read_oom_kills(counter)) else { return 0 };
        let (mut known, mut rivals) = (before + self.told, false);
        for other in others {
            match other {
                Kills::Counted(kills) => known += kills,
                Kills::Gone => rivals = true,
            }
        }
        let left = now.saturating_sub(known);
        if rivals { left.min(1) } else { left }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_else_had_is_the_share_of_the_one_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory.events");
        let says = |kills: u64| std::fs::write(&file, format!("oom 9\noom_kill {kills}\n")).unwrap();
        let mut pod = PodKills::default();
        says(2);
        pod.begin(Some(&file));
        says(3);
        pod.begin(Some(&file));
        let mut settle = |own, others: &[Kills]| pod.settle(own, Some(&file), others.iter().copied());
        assert_eq!(settle(Kills::Counted(1), &[]), 1);
        assert_eq!(settle(Kills::Gone, &[]), 0);
        says(8);
        assert_eq!(settle(Kills::Gone, &[Kills::Counted(2)]), 3);
        assert_eq!(settle(Kills::Gone, &[Kills::Counted(2)]), 0);
        // Both have gone, with two kills.
        assert_eq!(settle(Kills::Gone, &[Kills::Gone]), 1);
        assert_eq!(settle(Kills::Gone, &[]), 1);
        assert_eq!(settle(Kills::Gone, &[]), 0);
    }

    #[test]
    fn without_a_counter_of_the_pod_nothing_is_known() {
        let mut pod = PodKills::default();
        pod.begin(None);
        assert_eq!(pod.settle(Kills::Gone, None, [].into_iter()), 0);
        assert_eq!(Kills::read(None, 0), Kills::Gone);
        // A pod whose slice is made with its first container has had no kills.
        let missing = Path::new("/nonexistent/memory.events");
        pod.begin(Some(missing));
        assert_eq!(pod.settle(Kills::read(Some(missing), 0), Some(missing), [].into_iter()), 0);
    }
}
