//! Large files whose every word differs from the others, so that a copy with a hole or a repeat is noticed.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use anyhow::Result;

/// Bytes compared at once.
const CHUNK: usize = 1 << 20;

/// Writes `length` bytes, a multiple of 8.
pub fn write(path: &Path, length: u64) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for number in 0..length / 8 {
        file.write_all(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())?;
    }
    Ok(file.flush()?)
}

/// Whether two files, of a multiple of a MiB, hold the same.
pub fn same(one: &Path, other: &Path) -> Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let length = one.metadata()?.len();
    if other.metadata()?.len() != length {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
    for _ in 0..length / CHUNK as u64 {
        one.read_exact(&mut left)?;
        other.read_exact(&mut right)?;
        if left != right {
            return Ok(false);
        }
    }
    Ok(true)
}
