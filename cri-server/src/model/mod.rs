//! Pure types and states: no I/O, no async.

pub mod id;
