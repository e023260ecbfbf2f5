//! Image references: `[host[:port]/]path[:tag][@digest]`, normalised as users of Docker, containerd and CRI-O expect.
//! Pure text: knows no registry and no store.

use std::fmt;
use std::str::FromStr;

use super::digest::{Digest, InvalidDigest};
use super::error::ImageError;

/// Registry of references that name none.
pub const DEFAULT_REGISTRY: &str = "docker.io";
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A normalised image reference: registry, repository, and a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    selector: Selector,
}

/// Which image of a repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// A name that the registry may move.
    Tag(String),
    /// The digest of a manifest or an index.
    Digest(Digest),
}

impl Reference {
    /// Host and port of the registry, `docker.io` for the Docker Hub.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path inside the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Registry and path, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The tag or digest.
    pub fn selector(&self) -> &Selector {
        &self.selector
    }

    /// The tag, if the reference is by tag.
    pub fn tag(&self) -> Option<&str> {
        match &self.selector {
            Selector::Tag(tag) => Some(tag),
            Selector::Digest(_) => None,
        }
    }

    /// The same repository by digest.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { selector: Selector::Digest(digest), ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.selector {
            Selector::Tag(tag) => write!(f, ":{tag}"),
            Selector::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

impl FromStr for Reference {
    type Err = ImageError;

    /// Parses and normalises. A tag beside a digest must be well formed and is dropped: the digest decides.
    fn from_str(text: &str) -> Result<Self, ImageError> {
        parse(text).map_err(|reason| ImageError::InvalidReference {
            reference: text.chars().take(300).collect(),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    if text.is_empty() {
        return Err("it is empty".into());
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(parse_digest(digest)?)),
        None => (text, None),
    };
    let (name, tag) = split_tag(rest);
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, repository) = split_registry(name);
    check_registry(registry)?;
    let repository = match registry {
        DEFAULT_REGISTRY if !repository.contains('/') => format!("library/{repository}"),
        _ => repository.to_string(),
    };
    check_repository(&repository, name)?;
    if registry.len() + 1 + repository.len() > MAX_NAME {
        return Err(format!("the name is longer than {MAX_NAME} characters"));
    }
    let selector = match digest {
        Some(digest) => Selector::Digest(digest),
        None => Selector::Tag(tag.unwrap_or("latest").to_string()),
    };
    Ok(Reference { registry: registry.to_string(), repository, selector })
}

fn parse_digest(text: &str) -> Result<Digest, String> {
    text.parse().map_err(|error: InvalidDigest| error.to_string())
}

/// A colon after the last slash begins a tag; one before it belongs to the port.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    let path_start = text.rfind('/').map_or(0, |slash| slash + 1);
    match text[path_start..].find(':') {
        Some(colon) => (&text[..path_start + colon], Some(&text[path_start + colon + 1..])),
        None => (text, None),
    }
}

/// The first component is a host when it looks like one: with a dot, a port, upper case, or `localhost`.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (if first == "index.docker.io" { DEFAULT_REGISTRY } else { first }, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn check_tag(tag: &str) -> Result<(), String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let first = tag.bytes().next().is_some_and(word);
    if !first || !tag.bytes().all(|b| word(b) || b == b'.' || b == b'-') {
        return Err(format!("{tag:?} is not a tag"));
    }
    if tag.len() > MAX_TAG {
        return Err(format!("the tag is longer than {MAX_TAG} characters"));
    }
    Ok(())
}

fn check_registry(registry: &str) -> Result<(), String> {
    let wrong = || format!("{registry:?} is not a registry host");
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(wrong)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
            ("", port.strip_prefix(':').or(if port.is_empty() { Some("") } else { None }).ok_or_else(wrong)?)
        }
        None => registry.split_once(':').unwrap_or((registry, "")),
    };
    let component = |c: &str| {
        !c.is_empty()
            && !c.starts_with('-')
            && !c.ends_with('-')
            && c.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if !registry.starts_with('[') && !host.split('.').all(component) {
        return Err(wrong());
    }
    let port_wrong = registry.ends_with(':') || (!port.is_empty() && port.parse::<u16>().is_err());
    if port_wrong { Err(format!("{registry:?} has no valid port")) } else { Ok(()) }
}

fn check_repository(repository: &str, name: &str) -> Result<(), String> {
    if name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err("64 hexadecimal digits are an image id, not a name".into());
    }
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(format!("the repository {repository:?} must be lower case"));
    }
    match repository.split('/').find(|component| !is_path_component(component)) {
        Some("") => Err("a component of the repository is empty".into()),
        Some(component) => Err(format!("{component:?} is not a component of a repository")),
        None => Ok(()),
    }
}

/// Alphanumeric runs, joined by `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends =
        bytes.first().is_some_and(|&b| alphanumeric(b)) && bytes.last().is_some_and(|&b| alphanumeric(b));
    ends && component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &str, expect: &str) {
        assert_eq!(input.parse::<Reference>().map(|r| r.to_string()).unwrap(), expect, "{input}");
    }

    #[test]
    fn references_are_normalised() {
        let hex = "a".repeat(64);
        check("busybox", "docker.io/library/busybox:latest");
        check("busybox:1.29-2", "docker.io/library/busybox:1.29-2");
        check("user/app", "docker.io/user/app:latest");
        check("docker.io/busybox", "docker.io/library/busybox:latest");
        check("index.docker.io/busybox", "docker.io/library/busybox:latest");
        check("localhost/app", "localhost/app:latest");
        check("localhost:5000/a/b:c", "localhost:5000/a/b:c");
        check("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest");
        check("[::1]:5000/app", "[::1]:5000/app:latest");
        check(
            "registry.k8s.io/e2e-test-images/busybox:1.29-2",
            "registry.k8s.io/e2e-test-images/busybox:1.29-2",
        );
        check("HOST/app", "HOST/app:latest");
        check("a__b/c---d.e", "docker.io/a__b/c---d.e:latest");
        check(&format!("app@sha256:{hex}"), &format!("docker.io/library/app@sha256:{hex}"));
        check(&format!("h.io/app:v1@sha256:{hex}"), &format!("h.io/app@sha256:{hex}"));
    }

    fn check_error(input: &str, expect: &str) {
        match input.parse::<Reference>() {
            Err(ImageError::InvalidReference { reason, .. }) => {
                assert!(reason.contains(expect), "{input}: {reason}")
            }
            other => panic!("{input}: {other:?}"),
        }
    }

    #[test]
    fn an_error_names_what_is_wrong() {
        check_error("", "empty");
        check_error("App", "lower case");
        check_error("h.io/", "empty");
        check_error("h.io//app", "empty");
        check_error("/app", "empty");
        check_error("a b", "\"a b\"");
        check_error("app:", "tag");
        check_error("app:.x", "\".x\"");
        check_error("app:é", "tag");
        check_error(&format!("app:{}", "t".repeat(129)), "longer than 128");
        check_error("app@sha256:../../x", "digest");
        check_error("app@md5:00", "\"md5\"");
        check_error("app@", "digest");
        check_error(&"a".repeat(64), "image id");
        check_error(&format!("h.io/{}", "a".repeat(300)), "longer than 255");
        check_error("h.io:x/app", "port");
        check_error("h.io:99999/app", "port");
        check_error("-h.io/app", "registry host");
        check_error("[::g]:1/app", "registry host");
        check_error("h.io/../etc", "\"..\"");
        check_error("h.io/a/___b", "component");
        check_error("https://h.io/app", "");
        check_error("app\n", "component");
    }
}
