//! What can go wrong with images. The variants are what callers tell apart; the text says what was being done.

use std::error::Error;
use std::io;
use std::sync::Arc;

/// Why something failed, shared by all that waited for the same work.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// A failure of the image layer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    /// The image, tag or blob does not exist, here or in the registry.
    #[error("{what} not found")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// The registry wants other credentials, or any.
    #[error("the registry refuses access to {what}")]
    Unauthorized {
        /// What was asked for.
        what: String,
        /// What the registry said.
        #[source]
        source: Option<Cause>,
    },
    /// A reference does not follow the grammar of image references.
    #[error("invalid image reference {reference:?}: {reason}")]
    InvalidReference {
        /// The reference as given.
        reference: String,
        /// The part that is wrong.
        reason: String,
    },
    /// What the registry or an archive delivered is corrupt, hostile or not an image.
    #[error("invalid image: {what}")]
    InvalidImage {
        /// What is wrong with it.
        what: String,
        /// The error of the decoder, if one noticed it.
        #[source]
        source: Option<Cause>,
    },
    /// The registry cannot be reached, or answers with errors of its own.
    #[error("cannot get {what} from the registry")]
    Unavailable {
        /// What was asked for.
        what: String,
        /// The last failure.
        #[source]
        source: Cause,
    },
    /// The caller's deadline passed.
    #[error("deadline exceeded while {stage}")]
    DeadlineExceeded {
        /// What the pull was doing then.
        stage: String,
    },
    /// The file system of the layers is full.
    #[error("no space left while {doing}")]
    Full {
        /// What was being done.
        doing: String,
        /// The error of the kernel.
        #[source]
        source: Cause,
    },
    /// The node's own storage failed.
    #[error("failed {doing}")]
    Io {
        /// What was being done.
        doing: String,
        /// The error of the kernel or of the database.
        #[source]
        source: Cause,
    },
    /// The node trusts no authority, so that no registry can prove who it is.
    #[error(
        "no TLS connection can be made: expected certificates of authorities on this node (ca-certificates)"
    )]
    NoCertificates {
        /// What the TLS library said.
        #[source]
        source: Cause,
    },
    /// The configuration of registries or of the store is wrong.
    #[error("invalid image configuration: {what}")]
    InvalidConfig {
        /// The key and what is wrong with it.
        what: String,
    },
}

impl ImageError {
    /// The content of an image is wrong, found by this code.
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::InvalidImage { what: what.into(), source: None }
    }

    /// The content of an image is wrong, found by a decoder.
    pub fn corrupt(what: impl Into<String>, source: impl Error + Send + Sync + 'static) -> Self {
        Self::InvalidImage { what: what.into(), source: Some(Arc::new(source)) }
    }

    /// The node's storage failed; a full disk is told apart.
    pub fn io(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let (doing, source) = (doing.into(), source.into());
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { doing, source: Arc::new(source) }
            }
            _ => Self::Io { doing, source: Arc::new(source) },
        }
    }

    /// The database of images failed.
    pub fn database(doing: impl Into<String>, source: impl Into<redb::Error>) -> Self {
        match source.into() {
            redb::Error::Io(source) => Self::io(doing, source),
            source => Self::Io { doing: doing.into(), source: Arc::new(source) },
        }
    }

    /// An error of a stream of image bytes: one of ours that passed through a reader, or corrupt content.
    pub(crate) fn stream(what: &str, error: io::Error) -> Self {
        match error.downcast::<ImageError>() {
            Ok(inner) => inner,
            Err(error) => Self::corrupt(what, error),
        }
    }
}

impl From<ImageError> for io::Error {
    fn from(error: ImageError) -> Self {
        io::Error::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart_and_the_source_is_not_displayed() {
        let error = ImageError::io("writing a layer", io::Error::from_raw_os_error(libc::ENOSPC));
        assert!(matches!(error, ImageError::Full { .. }));
        assert_eq!(error.to_string(), "no space left while writing a layer");
        let error = ImageError::io("writing a layer", io::Error::from_raw_os_error(libc::EIO));
        assert!(matches!(error, ImageError::Io { .. }));
        assert!(error.source().is_some());
    }

    #[test]
    fn our_errors_survive_a_reader() {
        let inner = io::Error::from(ImageError::invalid("too large"));
        assert_eq!(ImageError::stream("layer", inner).to_string(), "invalid image: too large");
    }
}
