//! How much one layer may cost. Everything that a layer makes this node store or remember has a bound here.

/// Bounds of one layer.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most bytes of the uncompressed archive, and of one file with its holes.
    pub bytes: u64,
    /// Most entries.
    pub entries: u64,
    /// Most uncompressed bytes per compressed byte, once [`Limits::ratio_floor`] is passed.
    pub ratio: u64,
    /// Uncompressed bytes that may have any ratio.
    pub ratio_floor: u64,
    /// Largest zstd window, as a power of two of bytes.
    pub window_log: u32,
    /// Most bytes of extended headers of one entry.
    pub header_bytes: u64,
    /// Most extended attributes of one entry.
    pub xattrs: usize,
    /// Most directories that a layer puts files in without listing them, and links into lower layers.
    pub pending: usize,
    /// Most data fragments of one sparse file.
    pub fragments: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            entries: 2_000_000,
            ratio: 512,
            ratio_floor: 256 << 20,
            window_log: 27,
            header_bytes: 1 << 20,
            xattrs: 128,
            pending: 100_000,
            fragments: 65_536,
        }
    }
}
