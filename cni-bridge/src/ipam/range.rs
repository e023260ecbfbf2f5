//! Ranges of addresses and the choice of the next free one. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A contiguous range of addresses of one subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The subnet, without host bits.
    pub subnet: IpNet,
    /// First address.
    pub start: IpAddr,
    /// Last address.
    pub end: IpAddr,
    /// Never handed out.
    pub gateway: IpAddr,
}

/// Ranges of one family, of which an attachment gets one address. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(pub Vec<Range>);

impl Range {
    /// Whether `address` lies in the range and may be handed out.
    pub fn offers(&self, address: IpAddr) -> bool {
        let reserved = address == self.gateway
            || address == self.subnet.network()
            || (address.is_ipv4() && address == self.subnet.broadcast());
        self.contains(address) && !reserved
    }

    fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.start.is_ipv4() && (self.start..=self.end).contains(&address)
    }

    /// Whether the two have an address in common.
    pub fn overlaps(&self, other: &Range) -> bool {
        self.contains(other.start) || other.contains(self.start)
    }

    /// `address` with the subnet's prefix length.
    pub fn with_prefix(&self, address: IpAddr) -> IpNet {
        IpNet::new(address, self.subnet.prefix_len()).unwrap_or(IpNet::from(address))
    }
}

impl RangeSet {
    /// The range that offers `address`.
    pub fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.offers(address))
    }

    /// The first address after `last`, round and round, that is offered and not taken.
    pub fn pick(&self, last: Option<IpAddr>, taken: &dyn Fn(IpAddr) -> bool) -> Option<(IpAddr, &Range)> {
        let count = self.0.len();
        let (first, start) = self.resume(last);
        // The range that we start in comes again at the end, for what lies before the start.
        (0..=count).find_map(|turn| {
            let range = &self.0[(first + turn) % count];
            let from = if turn == 0 { start } else { range.start };
            let to = if turn == count { start } else { range.end };
            let free = addresses(from, to).find(|address| range.offers(*address) && !taken(*address));
            free.map(|address| (address, range))
        })
    }

    /// Index of the range and address to begin with.
    fn resume(&self, last: Option<IpAddr>) -> (usize, IpAddr) {
        let inside =
            last.and_then(|last| Some((self.0.iter().position(|range| range.contains(last))?, last)));
        match inside {
            None => (0, self.0[0].start),
            Some((index, last)) if last == self.0[index].end => {
                let next = (index + 1) % self.0.len();
                (next, self.0[next].start)
            }
            Some((index, last)) => (index, offset(last, 1)),
        }
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> =
            self.0.iter().map(|range| format!("{}-{}", range.start, range.end)).collect();
        f.write_str(&texts.join(","))
    }
}

/// `address` plus `by`, wrapping in its family.
pub fn offset(address: IpAddr, by: u128) -> IpAddr {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4).wrapping_add(by as u32)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6).wrapping_add(by)).into(),
    }
}

/// The addresses from `from` to `to`, both included.
fn addresses(from: IpAddr, to: IpAddr) -> impl Iterator<Item = IpAddr> {
    let mut next = (from <= to).then_some(from);
    std::iter::from_fn(move || {
        let current = next?;
        next = (current != to).then(|| offset(current, 1));
        Some(current)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range(subnet: &str, start: &str, end: &str) -> Range {
        let subnet: IpNet = subnet.parse().unwrap();
        let gateway = offset(subnet.network(), 1);
        Range { subnet, start: start.parse().unwrap(), end: end.parse().unwrap(), gateway }
    }

    #[test]
    fn the_next_free_address_is_taken() {
        let set = RangeSet(vec![
            range("10.1.0.0/29", "10.1.0.0", "10.1.0.3"),
            range("10.2.0.0/30", "10.2.0.0", "10.2.0.3"),
        ]);
        let check = |last: Option<&str>, taken: &[&str], expect: Option<&str>| {
            let last = last.map(|text| text.parse().unwrap());
            let taken = |address: IpAddr| taken.contains(&address.to_string().as_str());
            let found = set.pick(last, &taken).map(|(address, _)| address.to_string());
            assert_eq!(found.as_deref(), expect, "after {last:?}");
        };
        check(None, &[], Some("10.1.0.2"));
        check(Some("10.1.0.2"), &[], Some("10.1.0.3"));
        check(Some("10.1.0.3"), &[], Some("10.2.0.2"));
        check(Some("10.2.0.2"), &[], Some("10.1.0.2"));
        check(Some("10.2.0.3"), &[], Some("10.1.0.2"));
        check(Some("10.1.0.2"), &["10.1.0.3", "10.2.0.2"], Some("10.1.0.2"));
        check(Some("10.1.0.2"), &["10.1.0.2", "10.1.0.3", "10.2.0.2"], None);
        check(Some("192.168.0.1"), &[], Some("10.1.0.2"));
        check(Some("fd00::1"), &[], Some("10.1.0.2"));
    }

    #[test]
    fn the_ends_of_the_families_do_not_wrap() {
        let set = RangeSet(vec![range("255.255.255.252/30", "255.255.255.252", "255.255.255.255")]);
        let found = set.pick(Some("255.255.255.254".parse().unwrap()), &|_| false).unwrap().0;
        assert_eq!(found.to_string(), "255.255.255.254");
        let six = RangeSet(vec![range("fd00::/64", "fd00::1", "fd00::ffff:ffff:ffff:ffff")]);
        assert_eq!(six.pick(None, &|_| false).unwrap().0.to_string(), "fd00::2");
    }

    proptest! {
        /// Whatever is taken and wherever the last one was: the pick is offered, free, and there if any is.
        #[test]
        fn a_pick_is_free_and_found(
            start in 0u8..16, length in 0u8..16, last in 0u8..40, taken in proptest::collection::btree_set(0u8..40, 0..40),
        ) {
            let address = |low: u8| IpAddr::from([10, 0, 0, low]);
            let end = (start + length).min(31);
            let range = Range {
                subnet: "10.0.0.0/27".parse().unwrap(),
                start: address(start),
                end: address(end),
                gateway: address(1),
            };
            let set = RangeSet(vec![range]);
            let taken: BTreeSet<IpAddr> = taken.into_iter().map(address).collect();
            let free: Vec<IpAddr> = (start..=end)
                .filter(|low| !matches!(low, 0 | 1 | 31))
                .map(address)
                .filter(|address| !taken.contains(address))
                .collect();
            match set.pick(Some(address(last)), &|address| taken.contains(&address)) {
                Some((picked, _)) => prop_assert!(free.contains(&picked)),
                None => prop_assert!(free.is_empty()),
            }
        }

        /// Every address is handed out once before any is handed out again.
        #[test]
        fn allocation_goes_round(rounds in 1usize..40) {
            let set = RangeSet(vec![range("10.0.0.0/28", "10.0.0.1", "10.0.0.14")]);
            let mut last = None;
            let mut history = Vec::new();
            for _ in 0..rounds {
                let (address, _) = set.pick(last, &|_| false).unwrap();
                let since = history.iter().rev().take(12).filter(|seen| **seen == address).count();
                prop_assert_eq!(since, 0);
                history.push(address);
                last = Some(address);
            }
        }
    }
}
