//! Requests to the hub: bounded in time and in redirects, the token for the endpoint only, every failure in words.
//!
//! hf-hub's own requests have no timeouts, follow relative redirects without end and panic on a redirect without an
//! address; so this part is done here, on the same HTTP library.

use super::settings::HubSettings;
use crate::error::Error;
use std::time::Duration;
use ureq::http::{HeaderMap, Uri};
use ureq::{Agent, Body};

/// Redirects that are followed.
const MAX_HOPS: usize = 10;
/// Longest document that is read into memory.
const MAX_DOCUMENT: u64 = 64 << 20;

/// Why a request failed.
#[derive(Debug)]
pub enum Failure {
    /// The same request may succeed a moment later.
    Passing(Error),
    /// It will not.
    Final(Error),
}

impl Failure {
    /// The error itself.
    pub fn into_error(self) -> Error {
        match self {
            Failure::Passing(error) | Failure::Final(error) => error,
        }
    }
}

/// A reply that carries what was asked for (status 200, 206 or 416).
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Headers of each hop, the first one's first.
    hops: Vec<HeaderMap>,
    /// The content.
    pub body: Body,
}

impl Reply {
    /// A header of the final hop.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.hops.last()?.get(name)?.to_str().ok()
    }

    /// The first hop that has this header: the hub itself speaks before the storage behind it.
    pub fn first_header(&self, name: &str) -> Option<&str> {
        self.hops.iter().find_map(|headers| headers.get(name)?.to_str().ok())
    }
}

/// Speaks to one hub.
pub struct Client<'a> {
    settings: &'a HubSettings,
    agent: Agent,
}

impl<'a> Client<'a> {
    /// Nothing is sent yet.
    pub fn new(settings: &'a HubSettings) -> Client<'a> {
        let limits = &settings.limits;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .accept_encoding("identity")
            .user_agent(concat!("llamantino/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(limits.connect))
            .timeout_connect(Some(limits.connect))
            .timeout_send_request(Some(limits.reply))
            .timeout_recv_response(Some(limits.reply))
            .timeout_per_read(Some(limits.stall));
        if host(&settings.endpoint).is_some_and(|host| is_loopback(&host)) {
            config = config.proxy(None);
        }
        Client { settings, agent: config.build().new_agent() }
    }

    /// Who asks, and where files stay.
    pub fn settings(&self) -> &'a HubSettings {
        self.settings
    }

    /// Asks for `path` of the endpoint, from byte `from` on, and follows redirects. `whole` bounds the time for all of
    /// the content; without it only the time without a byte is bounded.
    pub fn get(&self, path: &str, from: u64, whole: Option<Duration>) -> Result<Reply, Failure> {
        let mut url = format!("{}/{path}", self.settings.endpoint);
        let mut hops = Vec::new();
        for _ in 0..=MAX_HOPS {
            let response = self.request(&url, from, whole)?;
            let (head, body) = response.into_parts();
            let status = head.status.as_u16();
            let location = head.headers.get("location").map(|value| value.to_str().unwrap_or_default().to_string());
            hops.push(head.headers);
            match (status, location) {
                (200 | 206 | 416, _) => return Ok(Reply { status, hops, body }),
                (301 | 302 | 303 | 307 | 308, Some(location)) => url = redirected(&url, &location)?,
                _ => return Err(self.refusal(&url, status, hops.last())),
            }
        }
        Err(Failure::Final(
            Error::failed(format!("{}: more than {MAX_HOPS} redirects", shown(&url)))
                .hint("the hub or a proxy sends requests round in circles: check HF_ENDPOINT and HTTPS_PROXY"),
        ))
    }

    fn request(&self, url: &str, from: u64, whole: Option<Duration>) -> Result<ureq::http::Response<Body>, Failure> {
        let mut request = self.agent.get(url).config().timeout_recv_body(whole).build();
        if let Some(token) = self.settings.token.as_ref().filter(|_| same_origin(url, &self.settings.endpoint)) {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        request.call().map_err(|error| transport_failure(url, error))
    }

    /// A JSON document.
    pub fn json(&self, path: &str) -> Result<serde_json::Value, Failure> {
        let mut reply = self.get(path, 0, Some(self.settings.limits.reply))?;
        let url = format!("{}/{path}", self.settings.endpoint);
        if reply.status != 200 {
            return Err(self.refusal(&url, reply.status, reply.hops.last()));
        }
        let bytes = reply.body.with_config().limit(MAX_DOCUMENT).read_to_vec();
        let bytes = bytes.map_err(|error| transport_failure(&url, error))?;
        serde_json::from_slice(&bytes).map_err(|error| Failure::Final(not_json(&shown(&url), &bytes, &error)))
    }

    /// What a status without content means.
    fn refusal(&self, url: &str, status: u16, headers: Option<&HeaderMap>) -> Failure {
        let header = |name: &str| headers.and_then(|headers| headers.get(name)?.to_str().ok()).unwrap_or_default();
        let code = header("x-error-code");
        let place = shown(url);
        let message: String = header("x-error-message").chars().filter(|c| !c.is_control()).take(200).collect();
        let said = if message.is_empty() { String::new() } else { format!(" ({message})") };
        let error = |what: &str| Error::failed(format!("{place}: {what}{said}"));
        let known = self.settings.token.is_some();
        match status {
            401 | 403 if code == "GatedRepo" => Failure::Final(match known {
                true => error("access is gated and this token has none")
                    .hint("accept the licence on the model's page with the account that the token belongs to, then run the same command again"),
                false => error("access is gated").hint(
                    "accept the licence on the model's page, then set HF_TOKEN to a token from huggingface.co/settings/tokens",
                ),
            }),
            // A wrong token is refused for public models too.
            401 if known && code.is_empty() => Failure::Final(error("this token is not accepted").hint(
                "HF_TOKEN, or the token file, is wrong or has expired: make another at huggingface.co/settings/tokens, or unset it for a public model",
            )),
            401 | 403 | 404 if code == "RepoNotFound" || status == 401 => Failure::Final(match known {
                true => error("no such model, or the token may not see it")
                    .hint("check the spelling and HF_TOKEN (a token may have expired); a model's folder on disk can be named instead"),
                false => error("no such model, or a private one")
                    .hint("check the spelling; for a private or gated model accept its licence on its page and set HF_TOKEN"),
            }),
            403 => Failure::Final(error("access denied").hint(
                "accept the licence on the model's page if it has one, and check that HF_TOKEN may read this model",
            )),
            404 if code == "RevisionNotFound" => Failure::Final(
                error("no such revision").hint("name a branch, a tag or a commit of the model after the @"),
            ),
            404 => Failure::Final(error("not found").hint("check the spelling of model and revision, and HF_ENDPOINT")),
            429 => Failure::Passing(
                error("too many requests").hint("wait a few minutes; with HF_TOKEN set the limit is higher"),
            ),
            408 | 500..=599 => Failure::Passing(
                error(&format!("the server answers {status}")).hint("try again later; what was downloaded is kept"),
            ),
            _ => Failure::Final(
                error(&format!("the server answers {status}, expected 200")).hint("check HF_ENDPOINT and HTTPS_PROXY"),
            ),
        }
    }
}

/// An error for content that should be JSON.
pub fn not_json(place: &str, bytes: &[u8], reason: &serde_json::Error) -> Error {
    if bytes.trim_ascii_start().starts_with(b"<") {
        return Error::failed(format!("{place}: a web page came instead of JSON")).hint(
            "a proxy or the login page of a network answers in the hub's place: check HF_ENDPOINT, HTTPS_PROXY and your connection",
        );
    }
    Error::failed(format!("{place}: not JSON: {reason}")).hint("check HF_ENDPOINT; if it is right, try again later")
}

fn transport_failure(url: &str, error: ureq::Error) -> Failure {
    let place = shown(url);
    let host = host(url).unwrap_or_default();
    let offline = "check the network, HTTPS_PROXY and HF_ENDPOINT; a model's folder on disk works without a network";
    match error {
        ureq::Error::HostNotFound => {
            Failure::Passing(Error::failed(format!("{host}: no such host, or no network")).hint(offline))
        }
        ureq::Error::Io(reason) if reason.kind() == std::io::ErrorKind::UnexpectedEof => Failure::Passing(
            Error::failed(format!("{place}: the connection broke off")).hint("try again; what was downloaded is kept"),
        ),
        ureq::Error::Io(reason) => {
            Failure::Passing(Error::failed(format!("{host}: cannot be reached: {reason}")).hint(offline))
        }
        ureq::Error::Timeout(_) => Failure::Passing(
            Error::failed(format!("{place}: no answer in time"))
                .hint("check the network and try again; what was downloaded is kept"),
        ),
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => Failure::Final(
            Error::failed(format!("{host}: no secure connection: {error}"))
                .hint("check this machine's clock, and whether a proxy puts its own certificate in between"),
        ),
        error => Failure::Final(Error::failed(format!("{place}: {error}")).hint("check HF_ENDPOINT and HTTPS_PROXY")),
    }
}

/// The address that a redirect leads to.
fn redirected(from: &str, location: &str) -> Result<String, Failure> {
    let wrong = |what: &str| {
        let shown_location: String = shown(location).chars().filter(|c| !c.is_control()).take(200).collect();
        Failure::Final(
            Error::failed(format!("{}: a redirect to {shown_location:?}: {what}", shown(from)))
                .hint("check HF_ENDPOINT and HTTPS_PROXY"),
        )
    };
    let base: Uri = from.parse().map_err(|_| wrong("from no address"))?;
    let (Some(scheme), Some(authority)) = (base.scheme_str(), base.authority()) else {
        return Err(wrong("from no address"));
    };
    let url = if location.starts_with("http://") || location.starts_with("https://") {
        location.to_string()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        return Err(wrong("expected an address or a path that begins with /"));
    };
    match url.parse::<Uri>() {
        Ok(to) if to.host().is_none_or(str::is_empty) => Err(wrong("no host")),
        Ok(to) if scheme == "https" && to.scheme_str() != Some("https") => Err(wrong("it leaves https")),
        Ok(_) => Ok(url),
        Err(_) => Err(wrong("no address")),
    }
}

/// An address for messages: what follows the ? may be a signature.
fn shown(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or(url).to_string()
}

fn host(url: &str) -> Option<String> {
    url.parse::<Uri>().ok()?.host().map(str::to_lowercase)
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn same_origin(url: &str, endpoint: &str) -> bool {
    let origin = |url: &str| {
        let uri: Uri = url.parse().ok()?;
        Some((uri.scheme_str()?.to_string(), uri.authority()?.as_str().to_lowercase()))
    };
    origin(url).is_some_and(|own| Some(own) == origin(endpoint))
}
