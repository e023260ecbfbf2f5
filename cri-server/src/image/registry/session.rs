//! One pull's conversation with the places that serve its repository: requests, authentication, redirects, retries.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, LOCATION, RANGE};
use reqwest::{StatusCode, Url};

use super::auth::{
    Challenge, Trust, authority, basic, header, is_local_address, read_token, token_request, trust,
};
use super::client::Clients;
use super::failure::{Failure, cause};
use super::{Credentials, Endpoint, RegistryConfig, Role};
use crate::image::reference::Reference;

const MAX_REDIRECTS: usize = 5;

/// One pull's conversation with its registry.
pub struct Session {
    clients: Arc<Clients>,
    config: RegistryConfig,
    endpoints: Vec<Endpoint>,
    reference: Reference,
    credentials: Option<Credentials>,
    /// What each endpoint wants to see, once it has said so.
    authorizations: Mutex<HashMap<usize, HeaderValue>>,
}

/// What is asked for, relative to the repository.
#[derive(Debug, Clone, Default)]
pub(super) struct Ask {
    /// `manifests/…` or `blobs/…`.
    pub path: String,
    /// Media types.
    pub accept: Option<&'static str>,
    /// First byte.
    pub from: u64,
}

impl Session {
    pub(super) fn new(
        clients: Arc<Clients>,
        config: RegistryConfig,
        endpoints: Vec<Endpoint>,
        (reference, credentials): (Reference, Option<Credentials>),
    ) -> Self {
        let authorizations = Mutex::default();
        Self { clients, config, endpoints, reference, credentials, authorizations }
    }

    /// The image that is pulled.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    pub(super) fn stall(&self) -> Duration {
        Duration::from_secs(self.config.stall_timeout_seconds)
    }

    pub(super) fn endpoint_count(&self) -> usize {
        self.endpoints.len()
    }

    pub(super) fn attempts(&self, endpoint: usize) -> u32 {
        match self.endpoints[endpoint].role {
            // There is somebody else to ask.
            Role::Mirror => 1,
            Role::Origin => self.config.attempts.max(1),
        }
    }

    /// How long to wait before the next try.
    pub(super) fn pause(&self, attempt: u32, failure: &Failure) -> Duration {
        let doubled = self.config.backoff_milliseconds.saturating_mul(1 << (attempt - 1).min(16));
        let longest = Duration::from_secs(self.config.longest_pause_seconds);
        failure.pause().unwrap_or(Duration::from_millis(doubled)).min(longest)
    }

    /// One request with what it takes to be let in; any successful answer.
    pub(super) async fn send(&self, endpoint: usize, ask: &Ask) -> Result<reqwest::Response, Failure> {
        let mut challenged = false;
        loop {
            let (response, from_endpoint) = self.follow(endpoint, ask).await?;
            if response.status() == StatusCode::UNAUTHORIZED && from_endpoint && !challenged {
                challenged = true;
                self.authenticate(endpoint, response).await?;
                continue;
            }
            if response.status().is_success() {
                return Ok(response);
            }
            return Err(Failure::from_response(response, self.stall()).await);
        }
    }

    /// Follows redirects; says whether the answer is the endpoint's own.
    async fn follow(&self, endpoint: usize, ask: &Ask) -> Result<(reqwest::Response, bool), Failure> {
        let own = &self.endpoints[endpoint].base;
        let mut url = self.url(endpoint, ask)?;
        for _ in 0..=MAX_REDIRECTS {
            let at_home = url.scheme() == own.scheme() && authority(&url) == authority(own);
            let mut request = self.client(&url)?.get(url.clone());
            if let Some(accept) = ask.accept {
                request = request.header(ACCEPT, accept);
            }
            if ask.from > 0 {
                request = request.header(RANGE, format!("bytes={}-", ask.from));
            }
            if at_home && let Some(authorization) = self.authorization(endpoint) {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = self.transfer(request.send()).await?;
            if !response.status().is_redirection() {
                return Ok((response, at_home));
            }
            url = redirect(own, &url, &response)?;
        }
        Err(Failure::Lasting(cause(format!("more than {MAX_REDIRECTS} redirects"))))
    }

    fn client(&self, url: &Url) -> Result<reqwest::Client, Failure> {
        self.clients.of(url, &self.config).map_err(Failure::Invalid)
    }

    fn url(&self, endpoint: usize, ask: &Ask) -> Result<Url, Failure> {
        let Endpoint { base, role } = &self.endpoints[endpoint];
        let path = format!("v2/{}/{}", self.reference.repository(), ask.path);
        let mut url =
            base.join(&path).map_err(|_| Failure::Lasting(cause("the request has no valid URL")))?;
        if *role == Role::Mirror {
            url.query_pairs_mut().append_pair("ns", self.reference.registry());
        }
        Ok(url)
    }

    fn authorization(&self, endpoint: usize) -> Option<HeaderValue> {
        self.authorizations.lock().unwrap_or_else(|e| e.into_inner()).get(&endpoint).cloned()
    }

    /// Answers a challenge of the endpoint.
    async fn authenticate(&self, endpoint: usize, response: reqwest::Response) -> Result<(), Failure> {
        let credentials = match self.endpoints[endpoint].role {
            Role::Origin => self.credentials.as_ref(),
            Role::Mirror => None,
        };
        let challenge = Challenge::from_headers(response.headers());
        let authorization = match (challenge, credentials) {
            (_, Some(Credentials::Registry(token))) => header("Bearer", token)?,
            (Some(Challenge::Basic), Some(Credentials::Basic { user, password })) => basic(user, password)?,
            (Some(Challenge::Bearer { realm, service, scope }), credentials) => {
                let scope =
                    scope.unwrap_or_else(|| format!("repository:{}:pull", self.reference.repository()));
                let mut parameters = vec![("scope", scope.as_str())];
                parameters.extend(service.as_deref().map(|service| ("service", service)));
                self.token(endpoint, &realm, &parameters, credentials).await?
            }
            _ => return Err(Failure::from_response(response, self.stall()).await),
        };
        let mut authorizations = self.authorizations.lock().unwrap_or_else(|e| e.into_inner());
        authorizations.insert(endpoint, authorization);
        Ok(())
    }

    async fn token(
        &self,
        endpoint: usize,
        realm: &str,
        parameters: &[(&str, &str)],
        credentials: Option<&Credentials>,
    ) -> Result<HeaderValue, Failure> {
        let denied = |text: String| Failure::Denied(Some(cause(text)));
        let realm: Url =
            realm.parse().map_err(|_| denied("the registry names no valid token server".into()))?;
        let credentials = match trust(&self.endpoints[endpoint].base, &realm) {
            Trust::Credentials => credentials,
            Trust::Anonymous => None,
            Trust::Refused => {
                let host = realm.host_str().unwrap_or_default().to_string();
                return Err(denied(format!(
                    "the registry sends to the token server {host}, which is not asked"
                )));
            }
        };
        let request = token_request(&self.client(&realm)?, realm, parameters, credentials)?;
        let response = self.transfer(request.send()).await?;
        match response.status() {
            status if status.is_success() => {
                let stall = self.stall();
                tokio::time::timeout(stall, read_token(response))
                    .await
                    .map_err(|_| Failure::stalled(stall))?
            }
            status if status.is_redirection() => Err(denied("the token server redirects".into())),
            StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => {
                Err(denied("the token server gives no token".into()))
            }
            _ => Err(Failure::from_response(response, self.stall()).await),
        }
    }

    /// Waits for something from the network, not for ever.
    pub(super) async fn transfer<T>(
        &self,
        work: impl Future<Output = Result<T, reqwest::Error>>,
    ) -> Result<T, Failure> {
        let stall = self.stall();
        tokio::time::timeout(stall, work)
            .await
            .map_err(|_| Failure::stalled(stall))?
            .map_err(Failure::transport)
    }
}

/// Where a redirect leads: never from encrypted to plain, never to this node or its link.
fn redirect(endpoint: &Url, from: &Url, response: &reqwest::Response) -> Result<Url, Failure> {
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let refused = |why: &str| Failure::Lasting(cause(format!("a redirect {why}")));
    let url =
        location.and_then(|location| from.join(location).ok()).ok_or_else(|| refused("has no target"))?;
    match url.scheme() {
        "https" => {}
        "http" if from.scheme() == "http" => {}
        _ => return Err(refused("leads to an unencrypted place")),
    }
    if is_local_address(&url) && url.host_str() != endpoint.host_str() {
        return Err(refused("leads to an address of this node"));
    }
    Ok(url)
}
