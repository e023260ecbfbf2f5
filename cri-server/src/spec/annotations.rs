//! Names of the CRI object as annotations under the keys that tools for containerd read.
//! Annotations and labels of the request never get here: OCI runtimes obey some of them.

use std::collections::BTreeMap;

use super::request::Request;

const PREFIX: &str = "io.kubernetes.cri.";

pub(super) fn list(request: &Request<'_>) -> BTreeMap<String, String> {
    let inputs = request.inputs;
    let mut list = BTreeMap::new();
    let mut add = |key: &str, value: &str| drop(list.insert(format!("{PREFIX}{key}"), value.to_string()));
    add("container-type", "container");
    add("sandbox-id", inputs.ids.pod.as_str());
    if let Some(pod) = &inputs.sandbox.metadata {
        add("sandbox-name", &pod.name);
        add("sandbox-namespace", &pod.namespace);
        add("sandbox-uid", &pod.uid);
    }
    if let Some(container) = &inputs.config.metadata {
        add("container-name", &container.name);
    }
    if let Some(image) = &inputs.config.image {
        let asked = &image.user_specified_image;
        add("image-name", if asked.is_empty() { &image.image } else { asked });
    }
    list
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Case;

    #[test]
    fn annotations_and_labels_of_the_request_change_nothing() {
        let plain = Case::new().generate().unwrap();
        let mut case = Case::new();
        for (key, value) in [
            ("run.oci.systemd.subgroup", "x"),
            ("run.oci.seccomp_fail_unknown_syscall", "1"),
            ("io.kubernetes.cri.container-type", "sandbox"),
            ("io.kubernetes.cri-o.Devices", "/dev/sda"),
            ("cpu-load-balancing.crio.io", "disable"),
        ] {
            case.config.annotations.insert(key.into(), value.into());
            case.config.labels.insert(key.into(), value.into());
            case.sandbox.annotations.insert(key.into(), value.into());
            case.sandbox.labels.insert(key.into(), value.into());
        }
        assert_eq!(case.generate().unwrap(), plain);
    }
}
