//! What can go wrong between here and the kernel.

use std::fmt;
use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

/// A failed operation on the network's state.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The kernel said no.
    #[error("{what}")]
    Refused {
        /// What was asked for.
        what: String,
        /// Position of the request in its batch.
        position: usize,
        /// The kernel's answer.
        #[source]
        refusal: Refusal,
    },
    /// A netlink socket failed.
    #[error("talking netlink while {what}")]
    Socket {
        /// What was going on.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel's answer cannot be read.
    #[error("reading the kernel's answer while {what}: {problem}")]
    Answer {
        /// What was asked for.
        what: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// A file of `/proc/sys` or a namespace failed.
    #[error("{what} {path}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The kernel's refusal: a number, and often a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The error number.
    pub errno: Errno,
    /// The extended acknowledgement's text; may be empty.
    pub text: String,
}

impl NetError {
    /// The kernel's error number, where it is a refusal.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal.errno),
            _ => None,
        }
    }

    /// Whether the thing exists already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(Errno::EXIST)
    }

    /// Whether the kernel lacks what was asked for.
    pub fn is_unsupported(&self) -> bool {
        self.errno() == Some(Errno::OPNOTSUPP)
    }

    /// Whether the kernel has no nf_tables, which shows when a socket is opened or with the first question to them.
    pub fn is_without_nf_tables(&self) -> bool {
        match self {
            Self::Socket { source, .. } => {
                source.raw_os_error() == Some(Errno::PROTONOSUPPORT.raw_os_error())
            }
            Self::Refused { what, refusal, .. } => {
                [super::nft::GENERATION, super::nft::TABLES].contains(&what.as_str())
                    && refusal.errno == Errno::INVAL
            }
            _ => false,
        }
    }

    /// Whether the thing is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self.errno(), Some(Errno::NOENT | Errno::NODEV | Errno::SRCH | Errno::ADDRNOTAVAIL))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = io::Error::from(self.errno);
        if self.text.is_empty() { write!(f, "{number}") } else { write!(f, "{number}: {}", self.text) }
    }
}

impl std::error::Error for Refusal {}
