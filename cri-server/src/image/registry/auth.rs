//! Authentication: challenges and token servers (distribution specification, "Token Authentication"; RFC 7235).

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;

use super::Credentials;
use super::failure::{Failure, cause};

/// Largest answer of a token server.
const MAX_TOKEN: usize = 1 << 20;

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// User and password in each request.
    Basic,
    /// A token from a token server.
    Bearer {
        /// URL of the token server.
        realm: String,
        /// Name of the registry there.
        service: Option<String>,
        /// What access is needed.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The best of the challenges of an answer: tokens before passwords.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let mut found: Vec<_> = values.filter_map(Self::parse).collect();
        found.sort_by_key(|challenge| *challenge == Challenge::Basic);
        found.into_iter().next()
    }

    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let parameters = parameters(rest);
        let get = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        Some(Challenge::Bearer { realm: get("realm")?, service: get("service"), scope: get("scope") })
    }
}

/// `key="value"` pairs between commas; a quoted value may hold commas.
fn parameters(mut text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    while let Some((key, rest)) = text.split_once('=') {
        let key = key.trim_matches([' ', ',', '\t']).to_ascii_lowercase();
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(',').unwrap_or((rest, "")),
        };
        found.push((key, value.trim().to_string()));
        text = rest;
    }
    found
}

/// How far a token server is trusted that an endpoint named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// It gets the credentials.
    Credentials,
    /// It is asked for an anonymous token.
    Anonymous,
    /// It is not asked.
    Refused,
}

/// An encrypted registry may name any encrypted server; a plain-text one, which anybody on the way can imitate, only
/// itself. Addresses that mean this node or its link are never asked on another's word.
pub fn trust(endpoint: &Url, realm: &Url) -> Trust {
    let same = endpoint.scheme() == realm.scheme() && authority(endpoint) == authority(realm);
    match (endpoint.scheme(), realm.scheme()) {
        _ if same => Trust::Credentials,
        _ if is_local_address(realm) && endpoint.host_str() != realm.host_str() => Trust::Refused,
        ("https", "https") => Trust::Credentials,
        ("http", "https" | "http") => Trust::Anonymous,
        _ => Trust::Refused,
    }
}

/// Host and port.
pub fn authority(url: &Url) -> (Option<&str>, Option<u16>) {
    (url.host_str(), url.port_or_known_default())
}

/// Whether the host is written as an address of this node or its link, where cloud metadata services listen.
pub fn is_local_address(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    if host.eq_ignore_ascii_case("localhost") {
        return true;
    }
    match host.trim_matches(['[', ']']).parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(v4)) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified(),
        Ok(IpAddr::V6(v6)) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified(),
        Err(_) => false,
    }
}

/// The value of an Authorization header; never shown in debug output.
pub fn header(scheme: &str, secret: &str) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::from_str(&format!("{scheme} {secret}")).map_err(|_| {
        Failure::Denied(Some(cause("the credentials contain characters that HTTP does not allow")))
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Basic authentication.
pub fn basic(user: &str, password: &str) -> Result<HeaderValue, Failure> {
    header("Basic", &STANDARD.encode(format!("{user}:{password}")))
}

/// The request for a token.
pub fn token_request(
    client: &reqwest::Client,
    realm: Url,
    parameters: &[(&str, &str)],
    credentials: Option<&Credentials>,
) -> Result<reqwest::RequestBuilder, Failure> {
    let with_query = |mut realm: Url| {
        realm.query_pairs_mut().extend_pairs(parameters);
        client.get(realm)
    };
    Ok(match credentials {
        Some(Credentials::Basic { user, password }) => {
            let account = [("account", user.as_str())];
            let mut realm = realm;
            realm.query_pairs_mut().extend_pairs(account);
            with_query(realm).header(reqwest::header::AUTHORIZATION, basic(user, password)?)
        }
        Some(Credentials::Identity(token)) => {
            let mut form = url_encoder();
            form.extend_pairs(parameters);
            form.extend_pairs([
                ("grant_type", "refresh_token"),
                ("refresh_token", token),
                ("client_id", "berth"),
            ]);
            let body = form.query().unwrap_or_default().to_string();
            client
                .post(realm)
                .header(reqwest::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(body)
        }
        _ => with_query(realm),
    })
}

/// Form encoding is query encoding; a URL that is never requested does it.
fn url_encoder() -> FormEncoder {
    FormEncoder(Url::parse("http://form").expect("a constant URL parses"))
}

struct FormEncoder(Url);

impl FormEncoder {
    fn extend_pairs<'a>(
        &mut self,
        pairs: impl IntoIterator<Item = impl std::borrow::Borrow<(&'a str, &'a str)>>,
    ) {
        let mut query = self.0.query_pairs_mut();
        for pair in pairs {
            let (key, value) = *pair.borrow();
            query.append_pair(key, value);
        }
    }

    fn query(&self) -> Option<&str> {
        self.0.query()
    }
}

/// The token in the answer of a token server.
pub async fn read_token(mut response: reqwest::Response) -> Result<HeaderValue, Failure> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let mut bytes = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(Failure::transport)? {
        bytes.extend_from_slice(&piece);
        if bytes.len() > MAX_TOKEN {
            return Err(Failure::Lasting(cause("the token server's answer is too large")));
        }
    }
    let answer: Answer = serde_json::from_slice(&bytes)
        .map_err(|_| Failure::Lasting(cause("the token server's answer is malformed")))?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| Failure::Lasting(cause("the token server's answer has no token")))?;
    header("Bearer", &token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_parsed() {
        let check = |text: &str, expect| assert_eq!(Challenge::parse(text), expect, "{text}");
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.into(),
                service: service.map(String::from),
                scope: scope.map(String::from),
            })
        };
        check("Basic realm=\"x\"", Some(Challenge::Basic));
        check("basic", Some(Challenge::Basic));
        check(
            "Bearer realm=\"https://a/t\",service=\"r\",scope=\"repository:a/b:pull,push\"",
            bearer("https://a/t", Some("r"), Some("repository:a/b:pull,push")),
        );
        check("bearer REALM=https://a/t, service=r", bearer("https://a/t", Some("r"), None));
        check("Bearer service=\"r\"", None);
        check("Bearer realm=\"unterminated", bearer("unterminated", None, None));
        check("Negotiate", None);
        check("", None);
    }

    #[test]
    fn credentials_go_only_where_the_registry_may_send_them() {
        let check = |endpoint: &str, realm: &str, expect| {
            assert_eq!(
                trust(&endpoint.parse().unwrap(), &realm.parse().unwrap()),
                expect,
                "{realm} for {endpoint}"
            );
        };
        check("https://r.io/", "https://r.io/token", Trust::Credentials);
        check("https://r.io/", "https://auth.r.io/token", Trust::Credentials);
        check("https://r.io/", "http://r.io/token", Trust::Refused);
        check("https://r.io/", "http://auth.r.io/token", Trust::Refused);
        check("https://r.io/", "https://169.254.169.254/latest", Trust::Refused);
        check("https://r.io/", "https://[::ffff:169.254.169.254]/", Trust::Refused);
        check("https://r.io/", "https://[fe80::1]/", Trust::Refused);
        check("https://r.io/", "https://localhost/", Trust::Refused);
        check("http://r.io:5000/", "http://r.io:5000/token", Trust::Credentials);
        check("http://r.io:5000/", "http://r.io:5001/token", Trust::Anonymous);
        check("http://r.io:5000/", "https://evil.io/token", Trust::Anonymous);
        check("http://127.0.0.1:1/", "http://127.0.0.1:2/token", Trust::Anonymous);
        check("http://10.0.0.1:1/", "http://127.0.0.1:2/token", Trust::Refused);
        check("https://r.io/", "file:///etc/passwd", Trust::Refused);
    }
}
