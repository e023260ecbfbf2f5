//! PullImage.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proto::cri::{AuthConfig, PullImageRequest, PullImageResponse};

use crate::daemon::Daemon;
use crate::error::Error;
use crate::image::{Credentials, PullRequest, Reference};
use crate::steps::cri_config::{invalid, missing};

/// Pulls an image; returns its id. Dropped when the client goes away: the last one to wait cancels the pull.
pub async fn pull_image(daemon: &Arc<Daemon>, request: PullImageRequest) -> Result<PullImageResponse, Error> {
    let name = request.image.map(|image| image.image).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| missing("image.image"))?;
    let reference = name.parse::<Reference>()?;
    let auth = request.auth.filter(|auth| is_for(auth, reference.registry()));
    let credentials = auth.map(credentials).transpose()?.flatten();
    let pulled = daemon.images.pull(PullRequest { credentials, ..PullRequest::new(reference) }).await;
    let image = pulled.map_err(|source| Error::Pull { name, source })?;
    Ok(PullImageResponse { image_ref: image.id.to_string() })
}

/// Whether credentials may go to a registry: those that name a server are for that one alone.
fn is_for(auth: &AuthConfig, registry: &str) -> bool {
    let named = auth.server_address.trim();
    let address = named.strip_prefix("https://").or_else(|| named.strip_prefix("http://")).unwrap_or(named);
    let host = address.split('/').next().unwrap_or_default();
    let matches = named.is_empty() || canonical(host) == canonical(registry);
    if !matches {
        tracing::debug!(registry, server_address = host, "the credentials are another registry's");
    }
    matches
}

/// A registry's host as it is compared: without the default port, and with one name for the Docker Hub.
fn canonical(host: &str) -> String {
    let host = host.strip_suffix(":443").unwrap_or(host).to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io".into(),
        _ => host,
    }
}

/// What the kubelet sends, in the order in which the fields count.
fn credentials(auth: AuthConfig) -> Result<Option<Credentials>, Error> {
    if !auth.registry_token.is_empty() {
        return Ok(Some(Credentials::Registry(auth.registry_token)));
    }
    if !auth.identity_token.is_empty() {
        return Ok(Some(Credentials::Identity(auth.identity_token)));
    }
    if !auth.username.is_empty() || !auth.password.is_empty() {
        return Ok(Some(Credentials::Basic { user: auth.username, password: auth.password }));
    }
    if auth.auth.is_empty() {
        return Ok(None);
    }
    let malformed = || invalid("auth.auth", "expected base64 of `user:password`");
    let bytes = STANDARD.decode(auth.auth.trim()).map_err(|_| malformed())?;
    let text = String::from_utf8(bytes).map_err(|_| malformed())?;
    let (user, password) = text.split_once(':').ok_or_else(malformed)?;
    let password = password.trim_end_matches('\0').to_string();
    Ok(Some(Credentials::Basic { user: user.into(), password }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_that_name_a_server_are_for_that_one() {
        let check = |server: &str, registry: &str, expect: bool| {
            let auth = AuthConfig { server_address: server.into(), ..AuthConfig::default() };
            assert_eq!(is_for(&auth, registry), expect, "{server} for {registry}");
        };
        check("", "a.io", true);
        check("a.io", "a.io", true);
        check("https://A.io/v2/", "a.io", true);
        check("https://a.io:443", "a.io", true);
        check("http://a.io:5000", "a.io:5000", true);
        check("https://index.docker.io/v1/", "docker.io", true);
        check("b.io", "a.io", false);
        check("a.io", "a.io:5000", false);
        check("https://a.io.evil.io", "a.io", false);
        check("https://evil.io/a.io", "a.io", false);
    }
}
