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
    /// Never handed out; a subnet of one address has none unless the configuration names one outside.
    pub gateway: Option<IpAddr>,
}

/// Ranges of one family, of which an attachment gets one address. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(pub Vec<Range>);

impl Range {
    /// Whether `address` lies in the range and may be handed out.
    pub fn offers(&self, address: IpAddr) -> bool {
        let ends =
            address == self.subnet.network() || (address.is_ipv4() && address == self.subnet.broadcast());
        // Subnets of one or two addresses have no ends that are set apart (RFC 3021, RFC 6164).
        let reserved = self.gateway == Some(address) || (ends && !is_tiny(&self.subnet));
        self.contains(address) && !reserved
    }

    fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.start.is_ipv4() && (self.start..=self.end).contains(&address)
    }

    fn size(&self) -> u128 {
        (number(self.end) - number(self.start)).saturating_add(1)
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

    /// Whether `address` may be handed out.
    pub fn offers(&self, address: IpAddr) -> bool {
        self.range_of(address).is_some()
    }

    /// How many addresses there are, those that are never handed out included.
    pub fn size(&self) -> u128 {
        self.0.iter().fold(0, |sum, range| sum.saturating_add(range.size()))
    }

    /// Where an address stands among those of all ranges.
    pub fn position(&self, address: IpAddr) -> Option<u128> {
        let mut before = 0;
        for range in &self.0 {
            if range.contains(address) {
                return Some(before + (number(address) - number(range.start)));
            }
            before += range.size();
        }
        None
    }

    /// The address at a position below [`RangeSet::size`]; the first one beyond.
    pub fn address(&self, position: u128) -> IpAddr {
        let mut left = position;
        for range in &self.0 {
            if left < range.size() {
                return offset(range.start, left);
            }
            left -= range.size();
        }
        self.0[0].start
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

/// Whether a subnet has one or two addresses only.
pub fn is_tiny(subnet: &IpNet) -> bool {
    subnet.prefix_len() + 1 >= subnet.max_prefix_len()
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(subnet: &str, start: &str, end: &str) -> Range {
        let subnet: IpNet = subnet.parse().unwrap();
        let gateway = Some(offset(subnet.network(), 1));
        Range { subnet, start: start.parse().unwrap(), end: end.parse().unwrap(), gateway }
    }

    #[test]
    fn positions_count_through_all_ranges() {
        let set = RangeSet(vec![
            range("10.1.0.0/29", "10.1.0.2", "10.1.0.3"),
            range("10.2.0.0/30", "10.2.0.0", "10.2.0.3"),
        ]);
        let check = |position: u128, expect: &str| {
            let expect: IpAddr = expect.parse().unwrap();
            assert_eq!((set.address(position), set.position(expect)), (expect, Some(position)));
        };
        assert_eq!(set.size(), 6);
        check(0, "10.1.0.2");
        check(1, "10.1.0.3");
        check(2, "10.2.0.0");
        check(5, "10.2.0.3");
        assert_eq!(set.position("10.1.0.4".parse().unwrap()), None);
        assert_eq!(set.position("fd00::1".parse().unwrap()), None);
        let all = RangeSet(vec![range("::/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")]);
        assert_eq!(all.size(), u128::MAX);
    }

    #[test]
    fn what_is_handed_out() {
        let check = |subnet: &str, gateway: Option<&str>, address: &str, expect: bool| {
            let subnet: IpNet = subnet.parse().unwrap();
            let gateway = gateway.map(|gateway| gateway.parse().unwrap());
            let range = Range { subnet, start: subnet.network(), end: subnet.broadcast(), gateway };
            assert_eq!(range.offers(address.parse().unwrap()), expect, "{address} of {subnet}");
        };
        check("10.0.0.0/29", Some("10.0.0.1"), "10.0.0.0", false);
        check("10.0.0.0/29", Some("10.0.0.1"), "10.0.0.1", false);
        check("10.0.0.0/29", Some("10.0.0.1"), "10.0.0.2", true);
        check("10.0.0.0/29", Some("10.0.0.1"), "10.0.0.7", false);
        check("10.0.0.0/29", Some("10.0.0.1"), "10.0.0.8", false);
        check("10.0.0.0/31", Some("10.0.0.0"), "10.0.0.0", false);
        check("10.0.0.0/31", Some("10.0.0.0"), "10.0.0.1", true);
        check("10.0.0.5/32", None, "10.0.0.5", true);
        check("fd00::/64", Some("fd00::1"), "fd00::", false);
        check("fd00::/64", Some("fd00::1"), "fd00::ffff:ffff:ffff:ffff", true);
        check("fd00::/127", Some("fd00::"), "fd00::1", true);
    }
}
