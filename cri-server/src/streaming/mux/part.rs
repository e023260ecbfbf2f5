//! A word that frames and streams share.

/// Which part of a stream, or of a message, something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// More follows.
    Middle,
    /// Nothing follows.
    Last,
}
