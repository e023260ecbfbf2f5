//! CRI configuration + image configuration → OCI runtime specification. Pure.
