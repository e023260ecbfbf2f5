//! The choice of the next free address of a range set, without looking at every reservation.
//!
//! Which addresses are taken or rest is kept as a [`Bitmap`] in the file `.taken.<set>` of the store. It is a hint: an
//! address that it shows as free is looked up before it is given, and where it shows none, it is made anew from the
//! reservations. So neither a kill at any instant nor another plugin's changes can make it give an address twice or
//! withhold one for ever.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use proto::cni::Attachment;

use super::bitmap::Bitmap;
use super::given::{Given, Past};
use super::range::RangeSet;
use super::store::{Store, StoreError};

/// Sets with more addresses than this are so large that the next one is almost always free.
const MAX_INDEXED: u128 = 1 << 24;

/// A range set of a locked store.
#[derive(Debug)]
pub struct Pool<'a> {
    store: &'a Store,
    set: &'a RangeSet,
    number: usize,
}

impl<'a> Pool<'a> {
    /// The set number `number` of the configuration.
    pub fn new(store: &'a Store, set: &'a RangeSet, number: usize) -> Self {
        Self { store, set, number }
    }

    /// The first address after the last one given, round and round, that is free, not in `spared`, and does not rest;
    /// where all rest, the one that has rested longest. `None` when the set is exhausted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn pick(&self, spared: &[IpAddr]) -> Result<Option<IpAddr>, StoreError> {
        let start = self.start()?;
        let Some(mut taken) = self.index()? else { return self.probe(start, spared) };
        if let Some(found) = self.search(&mut taken, start, spared)? {
            return Ok(Some(found));
        }
        for address in self.store.resting()? {
            if self.set.range_of(address).is_some()
                && !spared.contains(&address)
                && !self.store.is_held(address)?
            {
                return Ok(Some(address));
            }
        }
        let mut taken = self.rebuild()?;
        self.search(&mut taken, start, spared)
    }

    /// Reserves an address that is not held.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn take(&self, address: IpAddr, owner: &Attachment) -> Result<Past, StoreError> {
        let before = self.store.last(self.number)?;
        self.store.reserve(address, owner, self.number)?;
        let Some(position) = self.position(address) else { return Ok(Past::Unknown) };
        if let Some(mut taken) = self.index()? {
            self.io(taken.insert(position))?;
        }
        // What cannot be noted does not fit the next time.
        Ok(self.given()?.pass(before, address, position as u64).unwrap_or(Past::Unknown))
    }

    /// Begins the notes of which addresses nobody has had yet. To be done before any address of the store is reserved.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn begin_notes(&self) -> Result<(), StoreError> {
        let given = self.given()?;
        if given.has_begun().unwrap_or(true) {
            return Ok(());
        }
        let past = if self.store.is_untouched()? { Past::Unused } else { Past::Unknown };
        let _what_cannot_be_noted_is_unknown = given.begin(past);
        Ok(())
    }

    fn given(&self) -> Result<Given, StoreError> {
        let gateways = self.set.0.iter().map(|range| format!(" {:?}", range.gateway));
        let ranges = format!("{} {}{}", self.set, self.set.size(), gateways.collect::<String>());
        Ok(Given::new(self.store.state_file(&format!(".given.{}", self.number))?, &ranges))
    }

    /// Notes that an address has rested.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn rested(&self, address: IpAddr) -> Result<(), StoreError> {
        let Some(position) = self.position(address) else { return Ok(()) };
        if let (Some(mut taken), false) = (self.index()?, self.store.is_held(address)?) {
            self.io(taken.remove(position))?;
        }
        Ok(())
    }

    /// The position after the last address that was given.
    fn start(&self) -> Result<u128, StoreError> {
        let last = self.store.last(self.number)?.and_then(|last| self.set.position(last));
        Ok(last.map_or(0, |last| (last + 1) % self.set.size()))
    }

    fn position(&self, address: IpAddr) -> Option<usize> {
        self.set.position(address).and_then(|position| usize::try_from(position).ok())
    }

    fn search(
        &self,
        taken: &mut Bitmap<File>,
        start: u128,
        spared: &[IpAddr],
    ) -> Result<Option<IpAddr>, StoreError> {
        let start = usize::try_from(start).unwrap_or(0);
        for (mut at, end) in [(start, usize::MAX), (0, start)] {
            while let Some(position) = self.io(taken.next_absent(at))?.filter(|position| *position < end) {
                let address = self.set.address(position as u128);
                if !self.set.offers(address) || self.store.is_held(address)? {
                    self.io(taken.insert(position))?;
                } else if !spared.contains(&address) {
                    return Ok(Some(address));
                }
                at = position + 1;
            }
        }
        Ok(None)
    }

    /// In a set without index: one after the other. Every address that is passed is held, so there are few.
    fn probe(&self, start: u128, spared: &[IpAddr]) -> Result<Option<IpAddr>, StoreError> {
        let size = self.set.size();
        let mut passed = 0;
        while passed < size {
            let address = self.set.address((start + passed) % size);
            if self.set.offers(address) && !spared.contains(&address) && !self.store.is_held(address)? {
                return Ok(Some(address));
            }
            passed += 1;
        }
        Ok(None)
    }

    /// The index as it is; made if it is of other ranges. `None` for a set that is too large.
    fn index(&self) -> Result<Option<Bitmap<File>>, StoreError> {
        if self.set.size() > MAX_INDEXED {
            return Ok(None);
        }
        let file = self.store.state_file(&self.file_name())?;
        let mut header = [0; 8];
        let known =
            file.read_exact_at(&mut header, 0).is_ok() && u64::from_ne_bytes(header) == self.fingerprint();
        if known { Ok(Some(Bitmap::new(file, self.size()))) } else { self.rebuild().map(Some) }
    }

    fn rebuild(&self) -> Result<Bitmap<File>, StoreError> {
        let mut taken = Bitmap::new(Vec::new(), self.size());
        let resting: HashSet<IpAddr> = self.store.resting()?.into_iter().collect();
        for address in self.store.held()?.into_iter().chain(resting) {
            if let Some(position) = self.position(address) {
                self.io(taken.insert(position))?;
            }
        }
        let file = self.store.state_file(&self.file_name())?;
        // The header last: what was not finished is not believed.
        let words: Vec<u8> = taken.into_words().into_iter().flat_map(u64::to_ne_bytes).collect();
        self.io(file.set_len(0))?;
        self.io(file.write_all_at(&words, 8))?;
        self.io(file.write_all_at(&self.fingerprint().to_ne_bytes(), 0))?;
        Ok(Bitmap::new(file, self.size()))
    }

    fn size(&self) -> usize {
        usize::try_from(self.set.size().min(MAX_INDEXED)).expect("bounded by what is indexed")
    }

    /// Tells index files of other ranges apart; never 0.
    fn fingerprint(&self) -> u64 {
        let text = format!("{} {}", self.set, self.set.size());
        text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        }) | 1
    }

    fn file_name(&self) -> String {
        format!(".taken.{}", self.number)
    }

    fn io<T>(&self, outcome: io::Result<T>) -> Result<T, StoreError> {
        outcome.map_err(|error| self.store.failed("using", &self.file_name(), error))
    }
}

/// Lets addresses that have rested long enough go back into their sets.
///
/// # Errors
/// [`StoreError`].
pub fn wake(store: &Store, sets: &[RangeSet], rest: Duration) -> Result<(), StoreError> {
    for address in store.rested(rest)? {
        let found = sets.iter().enumerate().find(|(_, set)| set.range_of(address).is_some());
        if let Some((number, set)) = found {
            Pool::new(store, set, number).rested(address)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use proto::cni::Attachment;

    use super::super::range::Range;
    use super::*;

    fn range(subnet: &str, start: &str, end: &str, gateway: &str) -> Range {
        let gateway = Some(gateway.parse().unwrap());
        Range {
            subnet: subnet.parse().unwrap(),
            start: start.parse().unwrap(),
            end: end.parse().unwrap(),
            gateway,
        }
    }

    fn owner() -> Attachment {
        Attachment { container_id: "c".parse().unwrap(), ifname: "eth0".parse().unwrap() }
    }

    #[test]
    fn the_next_free_address_is_taken() {
        let set = RangeSet(vec![
            range("10.1.0.0/29", "10.1.0.0", "10.1.0.3", "10.1.0.1"),
            range("10.2.0.0/30", "10.2.0.0", "10.2.0.3", "10.2.0.1"),
        ]);
        let check = |last: &str, taken: &[&str], expect: Option<&str>| {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path(), "n").unwrap();
            taken.iter().for_each(|address| store.reserve(address.parse().unwrap(), &owner(), 0).unwrap());
            std::fs::write(dir.path().join("n/last_reserved_ip.0"), last).unwrap();
            let found = Pool::new(&store, &set, 0).pick(&[]).unwrap().map(|address| address.to_string());
            assert_eq!(found.as_deref(), expect, "after {last:?}");
        };
        check("", &[], Some("10.1.0.2"));
        check("10.1.0.2", &[], Some("10.1.0.3"));
        check("10.1.0.3", &[], Some("10.2.0.2"));
        check("10.2.0.2", &[], Some("10.1.0.2"));
        check("10.2.0.3", &[], Some("10.1.0.2"));
        check("10.1.0.2", &["10.1.0.3", "10.2.0.2"], Some("10.1.0.2"));
        check("10.1.0.2", &["10.1.0.2", "10.1.0.3", "10.2.0.2"], None);
        check("192.168.0.1", &[], Some("10.1.0.2"));
        check("fd00::1", &[], Some("10.1.0.2"));
    }

    #[test]
    fn large_sets_and_the_ends_of_the_families() {
        let check = |range: Range, last: &str, expect: &str| {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path(), "n").unwrap();
            std::fs::write(dir.path().join("n/last_reserved_ip.0"), last).unwrap();
            let found = Pool::new(&store, &RangeSet(vec![range]), 0).pick(&[]).unwrap().unwrap();
            assert_eq!(found.to_string(), expect);
        };
        let last = range("255.255.255.252/30", "255.255.255.252", "255.255.255.255", "255.255.255.253");
        check(last, "255.255.255.254", "255.255.255.254");
        check(range("10.0.0.0/8", "10.0.0.1", "10.255.255.255", "10.0.0.1"), "10.255.255.254", "10.0.0.2");
        let six = range("fd00::/64", "fd00::1", "fd00::ffff:ffff:ffff:ffff", "fd00::1");
        check(six.clone(), "", "fd00::2");
        check(six, "fd00::ffff:ffff:ffff:ffff", "fd00::2");
    }

    #[test]
    fn what_nobody_had_yet_is_known() {
        let set = RangeSet(vec![range("10.1.0.0/28", "10.1.0.2", "10.1.0.9", "10.1.0.1")]);
        let dir = tempfile::tempdir().unwrap();
        let network = dir.path().join("n");
        let take = |low: u8| {
            let (store, address) = (Store::open(dir.path(), "n").unwrap(), IpAddr::from([10, 1, 0, low]));
            let past = Pool::new(&store, &set, 0).take(address, &owner()).unwrap();
            store.retire(address).unwrap();
            past
        };
        Pool::new(&Store::open(dir.path(), "n").unwrap(), &set, 0).begin_notes().unwrap();
        assert_eq!([2, 3, 5].map(take), [Past::Unused; 3]);
        assert_eq!([3, 4, 5, 2].map(take), [Past::Unknown; 4]);
        assert_eq!([6, 6].map(take), [Past::Unused, Past::Unknown]);
        // Another plugin gave one.
        std::fs::write(network.join("last_reserved_ip.0"), "10.1.0.8").unwrap();
        assert_eq!([9, 7].map(take), [Past::Unknown; 2]);
        // A round that was begun in another boot goes on; other ranges are unknown.
        let new = || {
            std::fs::remove_dir_all(&network).unwrap();
            let store = Store::open(dir.path(), "n").unwrap();
            Pool::new(&store, &set, 0).begin_notes().unwrap();
        };
        new();
        assert_eq!([2, 4].map(take), [Past::Unused; 2]);
        std::fs::write(network.join(".boot"), "another").unwrap();
        assert_eq!([5, 3].map(take), [Past::Unused, Past::Unknown]);
        let other = RangeSet(vec![range("10.1.0.0/28", "10.1.0.2", "10.1.0.10", "10.1.0.1")]);
        let store = Store::open(dir.path(), "n").unwrap();
        let past = Pool::new(&store, &other, 0).take(IpAddr::from([10, 1, 0, 9]), &owner()).unwrap();
        assert_eq!(past, Past::Unknown);
        drop(store);
        // Notes that are not there, or that begin in a store that others have used, tell nothing.
        new();
        std::fs::remove_file(network.join(".given.0")).unwrap();
        assert_eq!([2, 3].map(take), [Past::Unknown; 2]);
        std::fs::remove_file(network.join(".given.0")).unwrap();
        Pool::new(&Store::open(dir.path(), "n").unwrap(), &set, 0).begin_notes().unwrap();
        assert_eq!([4, 5].map(take), [Past::Unknown; 2]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever the index has seen and others have done since: the pick is offered, free, and there if any is.
        #[test]
        fn a_pick_is_free_and_found(
            start in 0u8..16,
            length in 0u8..16,
            last in 0u8..40,
            before in proptest::collection::btree_set(0u8..40, 0..40),
            since in proptest::collection::btree_set(0u8..40, 0..40),
        ) {
            let address = |low: u8| IpAddr::from([10, 0, 0, low]);
            let end = (start + length).min(31);
            let range = Range {
                subnet: "10.0.0.0/27".parse().unwrap(),
                start: address(start),
                end: address(end),
                gateway: Some(address(1)),
            };
            let set = RangeSet(vec![range]);
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path(), "n").unwrap();
            let pool = Pool::new(&store, &set, 0);
            before.iter().for_each(|low| store.reserve(address(*low), &owner(), 0).unwrap());
            pool.pick(&[]).unwrap();
            before.iter().for_each(|low| store.release(address(*low)).unwrap());
            since.iter().for_each(|low| store.reserve(address(*low), &owner(), 0).unwrap());
            std::fs::write(dir.path().join("n/last_reserved_ip.0"), address(last).to_string()).unwrap();
            let taken: BTreeSet<IpAddr> = since.into_iter().map(address).collect();
            let free: Vec<IpAddr> = (start..=end)
                .filter(|low| !matches!(low, 0 | 1 | 31))
                .map(address)
                .filter(|address| !taken.contains(address))
                .collect();
            match pool.pick(&[]).unwrap() {
                Some(picked) => prop_assert!(free.contains(&picked)),
                None => prop_assert!(free.is_empty()),
            }
        }
    }
}
