//! Reads tar archives entry by entry: ustar, PAX, GNU long names and all sparse formats, as Go's reader does, which is
//! what defines how a layer is read elsewhere. Touches no file. Header layout comes from the crate `tar`.

use std::io::BufRead;

use ::tar::{EntryType, GnuExtSparseHeader, Header};

use super::header::{is_regular, kind, numeric, owner, until_nul};
use super::limits::Limits;
use super::pax::{Pax, number};
use crate::image::error::ImageError;

const BLOCK: usize = 512;

/// One member of an archive; its data is read from the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name as written.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Size of a file with its holes, in bytes.
    pub size: u64,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Kinds of members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; its data goes to the listed offsets and lengths, or is the whole file.
    File(Option<Vec<(u64, u64)>>),
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// Another name of an earlier member.
    HardLink(Vec<u8>),
    /// A character device, major and minor.
    Character(u32, u32),
    /// A block device, major and minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// A tar archive being read.
pub struct TarStream<'l, R> {
    input: R,
    left: u64,
    padding: u64,
    position: u64,
    limits: &'l Limits,
}

impl<'l, R: BufRead> TarStream<'l, R> {
    /// Reads from `input`.
    pub fn new(input: R, limits: &'l Limits) -> Self {
        Self { input, left: 0, padding: 0, position: 0, limits }
    }

    /// The next member, after what is left of the current one; `None` at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ImageError> {
        let mut extended = Extended::default();
        loop {
            self.skip_data()?;
            let Some(header) = self.header()? else {
                return if extended.seen {
                    Err(ImageError::invalid("an archive ends after an extended header"))
                } else {
                    Ok(None)
                };
            };
            let size = numeric(&header.as_old().size)?;
            match header.entry_type() {
                EntryType::XHeader => {
                    extended.seen = true;
                    let records = self.payload(size, &mut extended.bytes)?;
                    extended.pax.parse(&records, self.limits.xattrs)?;
                }
                EntryType::GNULongName => {
                    extended.seen = true;
                    extended.name = Some(until_nul(self.payload(size, &mut extended.bytes)?));
                }
                EntryType::GNULongLink => {
                    extended.seen = true;
                    extended.link = Some(until_nul(self.payload(size, &mut extended.bytes)?));
                }
                EntryType::XGlobalHeader => drop(self.payload(size, &mut extended.bytes)?),
                _ => return self.member(&header, extended, size).map(Some),
            }
        }
    }

    /// The next bytes of the member's data, empty at its end.
    pub fn data(&mut self) -> Result<&[u8], ImageError> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let left = self.left;
        let available =
            self.input.fill_buf().map_err(|e| ImageError::stream("an archive cannot be read", e))?;
        if available.is_empty() {
            return Err(ImageError::invalid("an archive is truncated"));
        }
        let length = available.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        Ok(&available[..length])
    }

    /// Marks data as used.
    pub fn consume(&mut self, amount: usize) {
        self.input.consume(amount);
        self.left -= amount as u64;
        self.position += amount as u64;
    }

    /// Bytes of data of the current member that are still in the archive.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Bytes of the archive read so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Tells that the caller moved the input behind the current member's data.
    pub fn skipped_data(&mut self) {
        self.position += self.left;
        self.left = 0;
    }

    /// The input.
    pub fn input_mut(&mut self) -> &mut R {
        &mut self.input
    }

    /// Reads what follows the archive and gives the input back.
    pub fn finish(mut self) -> Result<R, ImageError> {
        loop {
            let length =
                self.input.fill_buf().map_err(|e| ImageError::stream("an archive cannot be read", e))?.len();
            if length == 0 {
                return Ok(self.input);
            }
            self.input.consume(length);
        }
    }

    fn skip_data(&mut self) -> Result<(), ImageError> {
        self.left += std::mem::take(&mut self.padding);
        loop {
            let length = self.data()?.len();
            if length == 0 {
                return Ok(());
            }
            self.consume(length);
        }
    }

    /// The next header; `None` at the end of input or at the block of zeros that ends an archive.
    fn header(&mut self) -> Result<Option<Header>, ImageError> {
        let mut header = Header::new_old();
        if !self.block(header.as_mut_bytes())? || header.as_bytes().iter().all(|&b| b == 0) {
            return Ok(None);
        }
        let sum = |as_number: fn(u8) -> i64| -> i64 {
            let bytes = header.as_bytes();
            let around = bytes[..148].iter().chain(&bytes[156..]);
            around.map(|&b| as_number(b)).sum::<i64>() + 8 * i64::from(b' ')
        };
        let stored = numeric(&header.as_old().cksum)?;
        let stored = i64::try_from(stored).unwrap_or(-1);
        if stored != sum(i64::from) && stored != sum(|b| i64::from(b as i8)) {
            return Err(ImageError::invalid("an archive has a header with a wrong checksum"));
        }
        Ok(Some(header))
    }

    fn block(&mut self, into: &mut [u8; BLOCK]) -> Result<bool, ImageError> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut into[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(ImageError::invalid("an archive is truncated")),
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ImageError::stream("an archive cannot be read", error)),
            }
        }
        self.position += BLOCK as u64;
        Ok(true)
    }

    /// The data of an extended header; `total` counts those of one member against the limit.
    fn payload(&mut self, size: u64, total: &mut u64) -> Result<Vec<u8>, ImageError> {
        *total = total.saturating_add(size);
        if *total > self.limits.header_bytes {
            let what = format!("an entry has more than {} bytes of headers", self.limits.header_bytes);
            return Err(ImageError::invalid(what));
        }
        self.begin_data(size);
        let mut bytes = Vec::new();
        while self.left > 0 {
            let piece = self.data()?;
            let length = piece.len();
            bytes.extend_from_slice(piece);
            self.consume(length);
        }
        Ok(bytes)
    }

    fn begin_data(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn member(&mut self, header: &Header, extended: Extended, size: u64) -> Result<Entry, ImageError> {
        let Extended { mut pax, name, link, .. } = extended;
        let mut size = pax.size.unwrap_or(size);
        let mut path = name.or(pax.path.take()).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = link.or(pax.link.take());
        let link = link.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        let regular = is_regular(header.entry_type());
        // Members without data may still claim a size.
        self.begin_data(if regular { size } else { 0 });
        let mut map = None;
        if header.entry_type().is_gnu_sparse() {
            (map, size) = self.gnu_sparse(header)?;
        } else if regular && let Some(sparse) = self.pax_sparse(&mut pax)? {
            (map, size) = sparse;
            path = pax.sparse.name.take().unwrap_or(path);
        }
        if regular && size > self.limits.bytes {
            return Err(ImageError::invalid(format!("a file has more than {} bytes", self.limits.bytes)));
        }
        Ok(Entry {
            kind: kind(header, &path, link, map)?,
            mode: (numeric(&header.as_old().mode)? & 0o7777) as u32,
            uid: owner(pax.uid.map_or_else(|| numeric(&header.as_old().uid), Ok)?)?,
            gid: owner(pax.gid.map_or_else(|| numeric(&header.as_old().gid), Ok)?)?,
            mtime: pax.mtime.map_or_else(|| numeric(&header.as_old().mtime).map(|s| (s as i64, 0)), Ok)?,
            size: if regular { size } else { 0 },
            xattrs: pax.xattrs,
            path,
        })
    }

    /// The map of a GNU sparse member, with the blocks of it that follow the header.
    fn gnu_sparse(&mut self, header: &Header) -> Result<SparseFile, ImageError> {
        let gnu = header.as_gnu().ok_or_else(|| ImageError::invalid("a sparse entry has no GNU header"))?;
        let mut map = Vec::new();
        let mut add = |offset: &[u8], length: &[u8]| -> Result<(), ImageError> {
            if offset[0] != 0 && length[0] != 0 {
                map.push((numeric(offset)?, numeric(length)?));
            }
            Ok(())
        };
        gnu.sparse.iter().try_for_each(|part| add(&part.offset, &part.numbytes))?;
        let mut more = gnu.is_extended();
        let mut blocks = 0;
        while more {
            let mut block = GnuExtSparseHeader::new();
            blocks += 1;
            if blocks > self.limits.fragments / block.sparse.len() || !self.block(block.as_mut_bytes())? {
                return Err(ImageError::invalid("a sparse file has a malformed map"));
            }
            block.sparse.iter().try_for_each(|part| add(&part.offset, &part.numbytes))?;
            more = block.is_extended();
        }
        let size = numeric(&gnu.realsize)?;
        check_map(&map, size, self.left)?;
        Ok((Some(map), size))
    }

    /// The map of a sparse member of the PAX formats, none if it is not sparse.
    fn pax_sparse(&mut self, pax: &mut Pax) -> Result<Option<SparseFile>, ImageError> {
        let numbers = match pax.sparse.major {
            Some(1) => self.map_before_data()?,
            _ if !pax.sparse.map.is_empty() => std::mem::take(&mut pax.sparse.map),
            _ => return Ok(None),
        };
        let wrong = || ImageError::invalid("a sparse file has a malformed map");
        if numbers.len() % 2 != 0 || numbers.len() / 2 > self.limits.fragments {
            return Err(wrong());
        }
        let map: Vec<_> = numbers.chunks(2).map(|pair| (pair[0], pair[1])).filter(|(_, l)| *l > 0).collect();
        let size = pax.sparse.real_size.ok_or_else(wrong)?;
        check_map(&map, size, self.left)?;
        Ok(Some((Some(map), size)))
    }

    /// Format 1.0: decimal lines in front of the data, count first, padded to a block.
    fn map_before_data(&mut self) -> Result<Vec<u64>, ImageError> {
        let wrong = || ImageError::invalid("a sparse file has a malformed map");
        let (mut text, mut numbers, mut wanted) = (Vec::new(), Vec::new(), 1);
        while numbers.len() < wanted {
            let mut block = [0; BLOCK];
            if self.left < BLOCK as u64 || !self.block(&mut block)? {
                return Err(wrong());
            }
            self.left -= BLOCK as u64;
            text.extend_from_slice(&block);
            while numbers.len() < wanted
                && let Some(end) = text.iter().position(|&b| b == b'\n')
            {
                numbers.push(number(&text[..end]).ok_or_else(wrong)?);
                text.drain(..=end);
                wanted =
                    1 + 2 * usize::try_from(numbers[0]).map_err(|_| wrong())?.min(self.limits.fragments + 1);
            }
            if text.len() > 2 * BLOCK || wanted > 2 * self.limits.fragments + 1 {
                return Err(wrong());
            }
        }
        numbers.remove(0);
        Ok(numbers)
    }
}

type SparseFile = (Option<Vec<(u64, u64)>>, u64);

/// Extended headers in front of a member.
#[derive(Default)]
struct Extended {
    pax: Pax,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    bytes: u64,
    seen: bool,
}

fn check_map(map: &[(u64, u64)], size: u64, data: u64) -> Result<(), ImageError> {
    let (mut end, mut sum) = (0u64, 0u64);
    for &(offset, length) in map {
        let next = offset.checked_add(length).filter(|&next| offset >= end && next <= size);
        end = next.ok_or_else(|| ImageError::invalid("a sparse file has a malformed map"))?;
        sum += length;
    }
    if sum == data { Ok(()) } else { Err(ImageError::invalid("a sparse file has a malformed map")) }
}
