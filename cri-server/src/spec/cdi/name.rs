//! Names: `vendor/class=name`, and where a request has them.

use std::collections::BTreeMap;

use proto::cri;

use super::super::SpecError;

/// Annotations whose values are lists of devices begin with this.
const ANNOTATION: &str = "cdi.k8s.io/";

/// The devices that a request names, each once: those of its field, then those of its annotations by key.
pub fn requested(config: &cri::ContainerConfig) -> Result<Vec<String>, SpecError> {
    let of_field = config.cdi_devices.iter().map(|device| ("CDI_devices".to_string(), device.name.as_str()));
    let annotations: BTreeMap<&str, &str> =
        config.annotations.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let of_annotations = annotations
        .into_iter()
        .filter(|(key, _)| key.starts_with(ANNOTATION))
        .flat_map(|(key, value)| value.split(',').map(move |name| (format!("annotations[{key}]"), name)));
    let mut names: Vec<String> = Vec::new();
    for (field, name) in of_field.chain(of_annotations) {
        let reason = |reason| format!("expected a CDI device vendor/class=name, got {name:?}: {reason}");
        check_qualified(name).map_err(|why| SpecError::invalid(field, reason(why)))?;
        if !names.iter().any(|known| known == name) {
            names.push(name.to_string());
        }
    }
    Ok(names)
}

fn check_qualified(name: &str) -> Result<(), &'static str> {
    let (kind, device) = name.split_once('=').ok_or("there is no =")?;
    check_kind(kind)?;
    check_device(device)
}

/// Checks `vendor/class`.
pub(super) fn check_kind(kind: &str) -> Result<(), &'static str> {
    let (vendor, class) = kind.split_once('/').ok_or("there is no /")?;
    if !is_name(vendor, u8::is_ascii_alphabetic, b"_-.") {
        return Err("the vendor is not letters, digits, _, - and ., a letter first");
    }
    if !is_name(class, u8::is_ascii_alphabetic, b"_-.") {
        return Err("the class is not letters, digits, _, - and ., a letter first");
    }
    Ok(())
}

/// Checks the name of a device within its kind.
pub(super) fn check_device(name: &str) -> Result<(), &'static str> {
    match is_name(name, u8::is_ascii_alphanumeric, b"_-.:") {
        true => Ok(()),
        false => Err("the device is not letters, digits, _, -, . and :, a letter or digit first and last"),
    }
}

/// `first` is what it may begin with; it ends with a letter or digit, and between may be `marks` too.
fn is_name(text: &str, first: fn(&u8) -> bool, marks: &[u8]) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(first)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || marks.contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_qualified() {
        let check = |name: &str, valid: bool| assert_eq!(check_qualified(name).is_ok(), valid, "{name:?}");
        for name in ["nvidia.com/gpu=0", "a/b=c", "v-1_x.y/c.d=all", "vendor.com/net=eth0:1", "a/b=GPU-1.2"] {
            check(name, true);
        }
        for name in ["", "gpu0", "a=b", "a/b", "/b=c", "a/=c", "a/b=", "1a/b=c", "a/1b=c", "a/b=-c", "a/b=c-"]
        {
            check(name, false);
        }
        for name in ["a/b=c=d", "a/b/c=d", "a/b=../x", "a /b=c", "a/b=c\n", "a./b=c", "ä/b=c"] {
            check(name, false);
        }
    }

    fn config(devices: &[&str], annotations: &[(&str, &str)]) -> cri::ContainerConfig {
        cri::ContainerConfig {
            cdi_devices: devices.iter().map(|name| cri::CdiDevice { name: name.to_string() }).collect(),
            annotations: annotations.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn devices_of_field_and_annotations_come_once() {
        let check = |devices: &[&str], annotations: &[(&str, &str)], expect: &[&str]| {
            assert_eq!(requested(&config(devices, annotations)).unwrap(), expect);
        };
        check(&[], &[("x", "y"), ("cdi.k8s.io", "no")], &[]);
        check(&["v/c=b", "v/c=a", "v/c=b"], &[], &["v/c=b", "v/c=a"]);
        let annotations = [("cdi.k8s.io/z", "v/c=1"), ("cdi.k8s.io/a", "v/c=3,v/c=2"), ("other/a", "v/c=9")];
        check(&["v/c=2"], &annotations, &["v/c=2", "v/c=3", "v/c=1"]);
    }

    #[test]
    fn what_is_no_name_is_refused_where_it_stands() {
        let check = |config: cri::ContainerConfig, expect: &str| {
            assert!(requested(&config).unwrap_err().to_string().starts_with(expect));
        };
        check(
            config(&["gpu0"], &[]),
            "invalid CDI_devices: expected a CDI device vendor/class=name, got \"gpu0\"",
        );
        check(config(&[], &[("cdi.k8s.io/a", "v/c=1,")]), "invalid annotations[cdi.k8s.io/a]: ");
        check(config(&[], &[("cdi.k8s.io/a", "")]), "invalid annotations[cdi.k8s.io/a]: ");
    }
}
