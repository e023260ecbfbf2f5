//! Pure types and states: no I/O, no async.

pub mod container;
pub mod id;
pub mod id_range;
pub mod name;
pub mod sandbox;
pub mod stage;

/// What a state says to a wanted transition: idempotency is a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<T> {
    /// Do the work, then enter this state.
    Do(T),
    /// The object is already where the caller wants it.
    AlreadyDone,
}
