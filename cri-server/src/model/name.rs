//! Names that the kubelet gives, unique among live objects: the same name and attempt is the same object.

use std::fmt;

/// Name of a pod sandbox or of a container within its pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name(String);

impl Name {
    /// Name of a pod sandbox.
    pub fn sandbox(name: &str, namespace: &str, uid: &str, attempt: u32) -> Self {
        Self(format!("{name}_{namespace}_{uid}_{attempt}"))
    }

    /// Name of a container of the pod `pod`.
    pub fn container(name: &str, pod: &str, attempt: u32) -> Self {
        Self(format!("{name}_{pod}_{attempt}"))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
