//! What the environment says about the hub, with the names that the Python libraries use.
//!
//! | variable | what |
//! |---|---|
//! | `HF_ENDPOINT` | the hub, `https://huggingface.co` |
//! | `HF_TOKEN`, else the file `HF_TOKEN_PATH` or `HF_HOME/token` | who asks |
//! | `HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub` | where downloads stay |
//! | `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE` | 1: never ask |

use crate::error::{Error, Result};
use std::path::PathBuf;
use std::time::Duration;

/// Where the hub is, who asks, where files stay, and how patient to be.
#[derive(Clone)]
pub struct HubSettings {
    /// Start of every address, without a slash at the end.
    pub endpoint: String,
    /// Folder of the cache.
    pub cache: PathBuf,
    /// Sent to the endpoint and to nobody else.
    pub token: Option<String>,
    /// Whether the network is left alone.
    pub offline: bool,
    /// Patience.
    pub limits: Limits,
}

/// Every wait has an end.
#[derive(Debug, Clone)]
pub struct Limits {
    /// For the name and the connection.
    pub connect: Duration,
    /// For the head of a reply, and for the whole of a small one.
    pub reply: Duration,
    /// Without a byte; also the span over which `slowest` is measured.
    pub stall: Duration,
    /// Bytes a second below which a download counts as stalled.
    pub slowest: u64,
    /// Requests in a row that bring nothing before giving up.
    pub attempts: u32,
    /// Before the second attempt; doubled for each further one.
    pub pause: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connect: Duration::from_secs(10),
            reply: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            slowest: 1024,
            attempts: 4,
            pause: Duration::from_millis(500),
        }
    }
}

impl HubSettings {
    /// Reads the environment.
    ///
    /// Errors: an endpoint that is no address, a token that cannot be sent, no place for the cache.
    pub fn from_env() -> Result<HubSettings> {
        HubSettings::from_vars(&|name| std::env::var(name).ok())
    }

    /// Reads variables. An empty one is as good as none.
    pub fn from_vars(variable: &dyn Fn(&str) -> Option<String>) -> Result<HubSettings> {
        let variable = |name: &str| variable(name).map(|v| v.trim().to_string()).filter(|value| !value.is_empty());
        let first = |names: &[&str]| names.iter().find_map(|name| variable(name));
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let endpoint = endpoint.trim_end_matches('/').to_string();
        if !["https://", "http://"].iter().any(|scheme| endpoint.len() > scheme.len() && endpoint.starts_with(scheme)) {
            return Err(Error::usage(format!(
                "HF_ENDPOINT: expected an address such as https://huggingface.co, found {endpoint:?}"
            )));
        }
        let caches = variable("XDG_CACHE_HOME").map(PathBuf::from);
        let caches = caches.or_else(|| {
            variable("HOME").or_else(|| variable("USERPROFILE")).map(|home| PathBuf::from(home).join(".cache"))
        });
        let home = variable("HF_HOME").map(PathBuf::from).or_else(|| caches.map(|caches| caches.join("huggingface")));
        let cache = first(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).map(PathBuf::from);
        let Some(cache) = cache.or_else(|| home.as_ref().map(|home| home.join("hub"))) else {
            return Err(Error::usage("no place for models of the hub: HOME is not set")
                .hint("set HF_HOME to a folder with room for models"));
        };
        let token_file = variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| home.map(|home| home.join("token")));
        let from_file = || token_file.and_then(|path| std::fs::read_to_string(path).ok()).map(|t| t.trim().to_string());
        let token = first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).or_else(from_file).filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| !token.chars().all(|c| c.is_ascii_graphic())) {
            return Err(Error::usage("the hub's token holds characters that no token has")
                .hint("copy it again from huggingface.co/settings/tokens into HF_TOKEN"));
        }
        let on =
            |name: &str| variable(name).is_some_and(|v| matches!(&v.to_lowercase()[..], "1" | "true" | "yes" | "on"));
        let offline = on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE");
        Ok(HubSettings { endpoint, cache, token, offline, limits: Limits::default() })
    }
}
