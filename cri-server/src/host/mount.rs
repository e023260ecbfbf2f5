//! Mounts: overlay roots, per-pod files, pins.
