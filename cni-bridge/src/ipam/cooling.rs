//! Addresses that were given back a moment ago: others may still send to their last holder, so they rest until it is
//! their turn. A queue in the file `.cooling` of the store: the number of records that are over, then records of time
//! and address.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

const HEADER: u64 = 8;
const RECORD: u64 = 24;
/// So many records that are over may stand before the others.
const SLACK: u64 = 1024;

/// The queue.
#[derive(Debug)]
pub struct Cooling {
    file: File,
}

impl Cooling {
    /// The queue in `file`, which is open for reading and writing.
    pub fn new(file: File) -> Self {
        Self { file }
    }

    /// Puts an address at the end.
    ///
    /// # Errors
    /// Of the file; so for all here.
    pub fn push(&self, address: IpAddr) -> io::Result<()> {
        let (_, end) = self.bounds()?;
        let mut record = [0; RECORD as usize];
        record[..8].copy_from_slice(&seconds().to_ne_bytes());
        let wide = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        record[8..].copy_from_slice(&wide.octets());
        if end == 0 {
            self.file.write_all_at(&0u64.to_ne_bytes(), 0)?;
        }
        self.file.write_all_at(&record, HEADER + end * RECORD)
    }

    /// Takes out the addresses that have rested for `rest`.
    pub fn rested(&self, rest: Duration) -> io::Result<Vec<IpAddr>> {
        let ((mut head, end), now) = (self.bounds()?, seconds());
        let before = head;
        let mut rested = Vec::new();
        while head < end {
            let (time, address) = self.record(head)?;
            // A clock that was set back keeps nobody waiting.
            if time <= now && now - time < rest.as_secs() {
                break;
            }
            rested.push(address);
            head += 1;
        }
        if head == end && end > 0 {
            self.file.set_len(0)?;
        } else if head > SLACK && head > end / 2 {
            self.compact(head, end)?;
        } else if head != before {
            self.file.write_all_at(&head.to_ne_bytes(), 0)?;
        }
        Ok(rested)
    }

    /// The addresses that rest, the longest first.
    pub fn resting(&self) -> io::Result<Vec<IpAddr>> {
        let (head, end) = self.bounds()?;
        (head..end).map(|index| self.record(index).map(|(_, address)| address)).collect()
    }

    fn compact(&self, head: u64, end: u64) -> io::Result<()> {
        let mut bytes = vec![0; ((end - head) * RECORD) as usize];
        self.file.read_exact_at(&mut bytes, HEADER + head * RECORD)?;
        // Killed in between, some rest twice or not at all: nobody depends on it.
        self.file.write_all_at(&0u64.to_ne_bytes(), 0)?;
        self.file.write_all_at(&bytes, HEADER)?;
        self.file.set_len(HEADER + bytes.len() as u64)
    }

    /// First record that is not over, and number of records.
    fn bounds(&self) -> io::Result<(u64, u64)> {
        let end = self.file.metadata()?.len().saturating_sub(HEADER) / RECORD;
        let mut head = [0; HEADER as usize];
        match self.file.read_exact_at(&mut head, 0) {
            Ok(()) => Ok((u64::from_ne_bytes(head).min(end), end)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok((0, 0)),
            Err(error) => Err(error),
        }
    }

    fn record(&self, index: u64) -> io::Result<(u64, IpAddr)> {
        let (mut time, mut address) = ([0; 8], [0; 16]);
        self.file.read_exact_at(&mut time, HEADER + index * RECORD)?;
        self.file.read_exact_at(&mut address, HEADER + index * RECORD + 8)?;
        Ok((u64::from_ne_bytes(time), IpAddr::from(Ipv6Addr::from(address)).to_canonical()))
    }
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_rest_ends_first() {
        let cooling = Cooling::new(tempfile::tempfile().unwrap());
        let address = |low: u8| IpAddr::from([10, 0, 0, low]);
        assert_eq!(cooling.rested(Duration::ZERO).unwrap(), Vec::<IpAddr>::new());
        cooling.push(address(2)).unwrap();
        cooling.push("fd00::1".parse().unwrap()).unwrap();
        assert_eq!(cooling.rested(Duration::from_secs(60)).unwrap(), Vec::<IpAddr>::new());
        assert_eq!(cooling.resting().unwrap(), [address(2), "fd00::1".parse().unwrap()]);
        assert_eq!(cooling.rested(Duration::ZERO).unwrap().len(), 2);
        assert_eq!(cooling.resting().unwrap(), Vec::<IpAddr>::new());
        cooling.push(address(3)).unwrap();
        assert_eq!(cooling.resting().unwrap(), [address(3)]);
    }

    #[test]
    fn what_is_over_does_not_pile_up() {
        let cooling = Cooling::new(tempfile::tempfile().unwrap());
        let address = |number: u64| IpAddr::from(Ipv6Addr::from(0xfd00_u128 << 112 | u128::from(number)));
        (0..2000).for_each(|number| cooling.push(address(number)).unwrap());
        // As if the first 1500 had come long ago.
        (0..1500)
            .for_each(|at| cooling.file.write_all_at(&1u64.to_ne_bytes(), HEADER + at * RECORD).unwrap());
        assert_eq!(cooling.rested(Duration::from_secs(600)).unwrap().len(), 1500);
        assert_eq!(cooling.file.metadata().unwrap().len(), HEADER + 500 * RECORD);
        assert_eq!(cooling.resting().unwrap()[0], address(1500));
    }
}
