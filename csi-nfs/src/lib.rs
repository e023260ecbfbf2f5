//! The CSI driver will live here: identity, controller and node services for the backends `nfs`, `local`
//! and `shared-dir`. Nothing is served yet.
#![deny(unsafe_code)]
