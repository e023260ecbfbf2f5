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
    let credentials = request.auth.map(credentials).transpose()?.flatten();
    let pulled = daemon.images.pull(PullRequest { credentials, ..PullRequest::new(reference) }).await;
    let image = pulled.map_err(|source| Error::Pull { name, source })?;
    Ok(PullImageResponse { image_ref: image.id.to_string() })
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
