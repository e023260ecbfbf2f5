//! What can go wrong in an RPC, and its gRPC code: one mapping, without a catch-all arm.

use std::error::Error as StdError;
use std::sync::Arc;

use tonic::{Code, Status};

use crate::host::cgroup::{CgroupError, LimitError};
use crate::host::cni::{Cause, CniError};
use crate::host::monitor::MonitorError;
use crate::host::user::UserError;
use crate::image::ImageError;
use crate::model::container::Denied;
use crate::monitor::protocol::FailureKind;
use crate::spec::SpecError;
use crate::spec::cdi::CdiError;
use crate::store::record::RecordError;

/// What can go wrong in an RPC.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such object.
    #[error("{kind} {id:?} is not found")]
    NotFound {
        /// Kind of the object.
        kind: &'static str,
        /// What the caller named.
        id: String,
    },
    /// A field of the request cannot be used.
    #[error("{field}: {reason}")]
    InvalidArgument {
        /// Path of the field.
        field: &'static str,
        /// What was expected.
        reason: String,
    },
    /// The name is taken by an object that is not the one asked for.
    #[error("{kind} {name} {reason}")]
    AlreadyExists {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Who has it.
        reason: String,
    },
    /// The object is in a state that does not allow this.
    #[error("{kind} {id}: {reason}")]
    FailedPrecondition {
        /// Kind of the object.
        kind: &'static str,
        /// Its id.
        id: String,
        /// What is in the way.
        reason: String,
    },
    /// A wait took too long.
    #[error("{stage} took longer than {seconds} s")]
    DeadlineExceeded {
        /// What was being done.
        stage: String,
        /// The limit.
        seconds: u64,
    },
    /// An urgent operation took the object away.
    #[error("{0} was aborted by a stop")]
    Aborted(String),
    /// A reader of events does not keep up. It lists anew and subscribes again.
    #[error(
        "the reader is more than {events} events or {mebibytes} MiB behind: list again and subscribe again"
    )]
    Behind {
        /// How many it may be behind.
        events: usize,
        /// How much it may be behind.
        mebibytes: usize,
    },
    /// Something bounded is used up.
    #[error("there are {limit} {what}, the most that there may be")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// An attached client does not read.
    #[error("the client attached to container {id} fell more than {mebibytes} MiB behind its output")]
    FellBehind {
        /// The container.
        id: String,
        /// How far it may be behind.
        mebibytes: usize,
    },
    /// Nothing of ours.
    #[error("{0} is not implemented")]
    Unimplemented(&'static str),
    /// The node refused.
    #[error("{doing}")]
    Host {
        /// What was being done, and to what.
        doing: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A defect of ours.
    #[error("{0}")]
    Internal(String),
    /// Failed, and what had been done could not be taken back: it is retried by stop and remove, and at start.
    #[error("{doing}; and left behind: {}", left.join("; "))]
    Undone {
        /// What was being done.
        doing: String,
        /// Undo steps that failed.
        left: Vec<String>,
        /// Why it failed.
        #[source]
        source: Box<Error>,
    },
    /// A pull. The kubelet knows an unreachable registry by the beginning of the message.
    #[error("{}pull image {name}", if matches!(source, ImageError::Unavailable { .. }) { "RegistryUnavailable: " } else { "" })]
    Pull {
        /// The image as it was asked for.
        name: String,
        /// Why.
        #[source]
        source: ImageError,
    },
    /// An image cannot be mounted as a volume. The kubelet knows that by the beginning of the message.
    #[error("ImageVolumeMountFailed: mount image {image} as a volume")]
    ImageVolume {
        /// The image as it was asked for.
        image: String,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// Images.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// cgroups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Limits.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// Network plugins.
    #[error(transparent)]
    Cni(#[from] CniError),
    /// The pod's monitor and the OCI runtime that it runs.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The OCI runtime specification.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The container's user.
    #[error(transparent)]
    User(#[from] UserError),
    /// Records.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The result of an operation that several callers waited for.
    #[error(transparent)]
    Shared(Arc<Error>),
}

impl Error {
    /// A host error with what was being done.
    pub fn host(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Host { doing, source }
    }

    /// A refused transition of the container `id`.
    pub fn denied(id: impl ToString) -> impl FnOnce(Denied) -> Self {
        let id = id.to_string();
        move |denied| Self::FailedPrecondition { kind: "container", id, reason: denied.to_string() }
    }

    /// The gRPC code that the CRI's users expect.
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::InvalidArgument { .. } => Code::InvalidArgument,
            Self::AlreadyExists { .. } => Code::AlreadyExists,
            Self::FailedPrecondition { .. } => Code::FailedPrecondition,
            Self::DeadlineExceeded { .. } => Code::DeadlineExceeded,
            Self::Aborted(_) => Code::Aborted,
            Self::TooMany { .. } | Self::FellBehind { .. } | Self::Behind { .. } => Code::ResourceExhausted,
            Self::Unimplemented(_) => Code::Unimplemented,
            Self::Host { source, .. } => io_code(source),
            Self::Internal(_) => Code::Internal,
            Self::Undone { source, .. } | Self::ImageVolume { source, .. } => source.code(),
            Self::Pull { source: error, .. } | Self::Image(error) => image_code(error),
            Self::Cgroup(error) => cgroup_code(error),
            Self::Limit(error) => limit_code(error),
            Self::Cni(error) => cni_code(error),
            Self::Monitor(error) => monitor_code(error),
            Self::Spec(error) => spec_code(error),
            Self::User(error) => user_code(error),
            Self::Record(RecordError::Io { source, .. }) => io_code(source),
            Self::Record(RecordError::Damaged { .. } | RecordError::Newer { .. }) => Code::Internal,
            Self::Shared(error) => error.code(),
        }
    }
}

/// An error and everything that caused it, in one line.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

fn cgroup_code(error: &CgroupError) -> Code {
    match error {
        CgroupError::NoHierarchy => Code::FailedPrecondition,
        CgroupError::Gone(_) => Code::NotFound,
        CgroupError::Root => Code::InvalidArgument,
        CgroupError::Busy { .. } => Code::DeadlineExceeded,
        CgroupError::Io { source, .. } => io_code(source),
    }
}

fn limit_code(error: &LimitError) -> Code {
    match error {
        LimitError::Refused { .. } => Code::InvalidArgument,
        LimitError::InUse { .. } | LimitError::Missing { .. } => Code::FailedPrecondition,
        LimitError::Half { .. } => Code::Internal,
        LimitError::Cgroup(error) => cgroup_code(error),
    }
}

fn cni_code(error: &CniError) -> Code {
    match error {
        CniError::NoNetwork(_) => Code::FailedPrecondition,
        CniError::InvalidAttachment { .. } => Code::InvalidArgument,
        CniError::AlreadyAttached { .. } => Code::AlreadyExists,
        CniError::NotAttached(_) => Code::NotFound,
        CniError::GcBusy | CniError::RepairBusy => Code::Unavailable,
        CniError::Record { source, .. } => io_code(source),
        CniError::Add { failures, .. }
        | CniError::Del { failures, .. }
        | CniError::Check { failures, .. }
        | CniError::Gc { failures, .. }
        | CniError::Repair(failures) => {
            failures.0.first().map_or(Code::Unknown, |first| plugin_code(&first.cause))
        }
    }
}

/// What the first plugin that failed says; code 11 of the CNI specification asks to try again later.
fn plugin_code(cause: &Cause) -> Code {
    match cause {
        Cause::TimedOut { .. } => Code::DeadlineExceeded,
        Cause::Aborted => Code::Aborted,
        Cause::Reported { code: 11, .. } => Code::Unavailable,
        Cause::Missing { .. } => Code::FailedPrecondition,
        Cause::Reported { .. }
        | Cause::Start { .. }
        | Cause::Pipe { .. }
        | Cause::Flood { .. }
        | Cause::Died { .. }
        | Cause::Rubbish { .. } => Code::Unknown,
    }
}

fn image_code(error: &ImageError) -> Code {
    match error {
        ImageError::NotFound { .. } => Code::NotFound,
        ImageError::Unauthorized { .. } => Code::PermissionDenied,
        ImageError::InvalidReference { .. } | ImageError::InvalidConfig { .. } => Code::InvalidArgument,
        ImageError::InvalidImage { .. } | ImageError::NoCertificates { .. } => Code::FailedPrecondition,
        ImageError::Unavailable { .. } => Code::Unavailable,
        ImageError::DeadlineExceeded { .. } => Code::DeadlineExceeded,
        ImageError::Full { .. } => Code::ResourceExhausted,
        ImageError::Io { .. } => Code::Internal,
    }
}

fn monitor_code(error: &MonitorError) -> Code {
    match error {
        MonitorError::Setup(failure) | MonitorError::Refused { failure, .. } => failure_code(failure.kind),
        MonitorError::Deadline { .. } => Code::DeadlineExceeded,
        MonitorError::NoMonitor { .. } | MonitorError::Lost { .. } => Code::Unavailable,
        MonitorError::Spawn { .. }
        | MonitorError::Attach { .. }
        | MonitorError::Version { .. }
        | MonitorError::Unexpected { .. }
        | MonitorError::Encode { .. } => Code::Internal,
    }
}

fn failure_code(kind: FailureKind) -> Code {
    match kind {
        FailureKind::NotFound => Code::NotFound,
        FailureKind::AlreadyExists => Code::AlreadyExists,
        FailureKind::InvalidArgument => Code::InvalidArgument,
        FailureKind::FailedPrecondition | FailureKind::RuntimeMissing => Code::FailedPrecondition,
        FailureKind::Aborted => Code::Aborted,
        FailureKind::Runtime => Code::Unknown,
        FailureKind::Unsupported | FailureKind::Internal => Code::Internal,
    }
}

fn user_code(error: &UserError) -> Code {
    match error {
        UserError::Invalid { .. }
        | UserError::GroupWithoutUser
        | UserError::TwoUsers
        | UserError::TooManyGroups => Code::InvalidArgument,
        UserError::UnknownUser(_) | UserError::UnknownGroup(_) => Code::NotFound,
        UserError::Read { .. } => Code::FailedPrecondition,
    }
}

fn spec_code(error: &SpecError) -> Code {
    match error {
        SpecError::InvalidArgument { .. } | SpecError::SeccompSyntax { .. } => Code::InvalidArgument,
        SpecError::Unsupported { .. } | SpecError::RroUnsupported { .. } => Code::FailedPrecondition,
        SpecError::NotFound { .. } | SpecError::Cdi(CdiError::Unknown { .. }) => Code::NotFound,
        SpecError::Cdi(CdiError::Conflict { .. } | CdiError::Node { .. } | CdiError::OtherKind { .. }) => {
            Code::FailedPrecondition
        }
        SpecError::MissingFact { .. } => Code::Internal,
    }
}

fn io_code(error: &std::io::Error) -> Code {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Code::ResourceExhausted,
        std::io::ErrorKind::TimedOut => Code::DeadlineExceeded,
        _other => Code::Internal,
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Status::new(error.code(), chain(&error))
    }
}
