//! The per-pod process: no tokio, one thread.
