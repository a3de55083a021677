//! Models by name: a folder, a GGUF file, or `org/name[@revision]` on the Hugging Face hub.
//!
//! Invariants: the network is used only for a model of the hub that is not wholly in the cache; every wait has an end;
//! a snapshot that is handed out is complete. The cache is the one that the Python libraries use, in their layout, so
//! that neither downloads what the other has. Names, addresses and layout are hf-hub's ([`Repo`], [`Cache`]).

mod client;
mod download;
mod plan;
pub mod settings;

pub use settings::{HubSettings, Limits};

use crate::error::{Error, Result};
use client::{Client, Failure};
use download::{Downloader, Watch};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use std::path::{Path, PathBuf};

/// Told how a download goes on.
pub trait HubObserver {
    /// `files` files are to be fetched; `bytes` is their length where the hub says it.
    fn begin(&mut self, model: &str, files: usize, bytes: Option<u64>);
    /// `done` bytes of all files are there; `name` is the present one.
    fn progress(&mut self, done: u64, name: &str);
    /// Something worth a word.
    fn note(&mut self, text: &str);
}

/// Nobody watches.
impl HubObserver for () {
    fn begin(&mut self, _model: &str, _files: usize, _bytes: Option<u64>) {}
    fn progress(&mut self, _done: u64, _name: &str) {}
    fn note(&mut self, _text: &str) {}
}

/// A model of the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    /// `org/name`.
    pub id: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl HubModel {
    /// Reads `org/name[@revision]`; `None` for anything else.
    pub fn parse(spec: &str) -> Option<HubModel> {
        let (id, revision) = spec.split_once('@').unwrap_or((spec, "main"));
        let (org, name) = id.split_once('/')?;
        let word = |text: &str| {
            let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && text.chars().all(fit)
                && text.len() <= 96
        };
        let plain = |text: &str| !text.contains("..") && !text.contains("--") && !text.ends_with('.');
        let file = [".gguf", ".safetensors", ".json", ".toml", ".bin"].iter().any(|ending| name.ends_with(ending));
        let sound = word(org) && word(name) && plain(org) && plain(name) && !file;
        let revision_sound = !revision.contains("..") && revision.split('/').all(word);
        (sound && revision_sound).then(|| HubModel { id: id.into(), revision: revision.into() })
    }

    /// As the user wrote it.
    fn shown(&self) -> String {
        match &self.revision[..] {
            "main" => self.id.clone(),
            revision => format!("{}@{revision}", self.id),
        }
    }
}

/// Where the model `spec` lies on disk, after fetching it if it is one of the hub that is not there yet.
///
/// A folder or file that exists is taken as it is. Errors: no such path, no such model, no access, no network, a
/// download that breaks off again and again; each says what to do.
pub fn resolve(spec: &str, observer: &mut dyn HubObserver) -> Result<PathBuf> {
    resolve_with(spec, HubSettings::from_env, observer)
}

/// [`resolve`] with settings that are asked for where they are needed.
pub fn resolve_with(
    spec: &str,
    settings: impl FnOnce() -> Result<HubSettings>,
    observer: &mut dyn HubObserver,
) -> Result<PathBuf> {
    let path = Path::new(spec);
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    let hub = HubModel::parse(spec);
    // A missing folder beside existing ones is a slip of the pen, not a reason to use the network.
    let beside = path.parent().filter(|parent| parent.is_dir() && !parent.as_os_str().is_empty());
    match (hub, beside) {
        (Some(model), None) => fetch(&model, &settings()?, observer),
        (Some(_), Some(folder)) => Err(Error::file(path, "no such folder").hint(format!(
            "{} is a folder here, so this is no model of the hub; for that one, work in another folder",
            folder.display()
        ))),
        (None, _) => Err(Error::file(path, "no such model folder or GGUF file")
            .hint("name a folder with config.json and *.safetensors, a .gguf file, or a model of the hub as org/name")),
    }
}

/// A model of the hub: from the cache if all of it is there, else fetched.
pub fn fetch(model: &HubModel, settings: &HubSettings, observer: &mut dyn HubObserver) -> Result<PathBuf> {
    let repo = Repo::with_revision(model.id.clone(), RepoType::Model, model.revision.clone());
    let cache = Cache::new(settings.cache.clone());
    let root = settings.cache.join(repo.folder_name());
    let cached = cached_commit(&root, &model.revision).map(|commit| cache.repo(repo.clone()).pointer_path(&commit));
    let enough = if settings.offline { plan::has_model } else { plan::is_complete };
    if let Some(snapshot) = cached.filter(|snapshot| enough(snapshot)) {
        return Ok(snapshot);
    }
    if settings.offline {
        let what =
            format!("{}: not (wholly) in the cache {}, and HF_HUB_OFFLINE is set", model.shown(), root.display());
        return Err(Error::failed(what).hint("unset HF_HUB_OFFLINE once to download it, or name a folder"));
    }
    let cache = cache.repo(repo.clone());
    download(model, Place { settings, repo: &repo, cache: &cache }, observer).map_err(|e| e.at(model.shown()))
}

/// Where a model comes from and goes to.
struct Place<'a> {
    settings: &'a HubSettings,
    repo: &'a Repo,
    cache: &'a CacheRepo,
}

fn download(model: &HubModel, place: Place<'_>, observer: &mut dyn HubObserver) -> Result<PathBuf> {
    let client = Client::new(place.settings);
    let listing = patiently(place.settings, observer, &mut || {
        client
            .json(&format!("api/{}?blobs=true", place.repo.api_url()))
            .and_then(|json| plan::Listing::of(&json).map_err(Failure::Final))
    })?;
    let downloader = Downloader { client: &client, repo: place.repo, cache: place.cache, commit: &listing.commit };
    let mut files = listing.description()?;
    // Which weights there are may stand in an index, so that comes first.
    if let Some(index) = listing.index() {
        let mut watch = Whole { observer, done: 0, name: &index.name };
        downloader.fetch(&index, &mut watch)?;
        files.push(index);
    }
    let snapshot = place.cache.pointer_path(&listing.commit);
    files.extend(listing.weights(&snapshot)?);
    let sizes: Option<Vec<u64>> = files.iter().map(|file| file.size).collect();
    observer.begin(&model.shown(), files.len(), sizes.map(|sizes| sizes.iter().sum()));
    let mut done = 0;
    for file in &files {
        let path = downloader.fetch(file, &mut Whole { observer, done, name: &file.name })?;
        done += std::fs::metadata(&path).map_err(|e| Error::io(&path, "read", e))?.len();
        observer.progress(done, &file.name);
    }
    if !plan::has_model(&snapshot) {
        return Err(Error::file(&snapshot, "the model is not complete: expected config.json and weights"));
    }
    // Last, so that a revision never names a snapshot that has not been complete.
    if listing.commit != model.revision {
        place.cache.create_ref(&listing.commit).map_err(|e| Error::io(&snapshot, "note the revision of", e))?;
    }
    Ok(snapshot)
}

/// Adds what was fetched before.
struct Whole<'a> {
    observer: &'a mut dyn HubObserver,
    done: u64,
    name: &'a str,
}

impl Watch for Whole<'_> {
    fn bytes(&mut self, bytes: u64) {
        self.observer.progress(self.done + bytes, self.name);
    }

    fn note(&mut self, text: &str) {
        self.observer.note(text);
    }
}

/// Asks again where a failure may pass, a bounded number of times.
fn patiently<T>(
    settings: &HubSettings,
    observer: &mut dyn HubObserver,
    ask: &mut dyn FnMut() -> Result<T, Failure>,
) -> Result<T> {
    let limits = &settings.limits;
    let mut attempt = 1;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(Failure::Passing(error)) if attempt < limits.attempts => {
                observer.note(&format!("{}; trying again", error.message()));
                std::thread::sleep(limits.pause * (1 << (attempt - 1).min(6)));
                attempt += 1;
            }
            Err(failure) => return Err(failure.into_error()),
        }
    }
}

/// The commit that the cache knows for a revision.
fn cached_commit(root: &Path, revision: &str) -> Option<String> {
    let written = std::fs::read_to_string(root.join("refs").join(revision)).ok();
    let commit = written.map(|text| text.trim().to_string()).unwrap_or_else(|| revision.to_string());
    plan::is_commit(&commit).then_some(commit)
}

#[cfg(test)]
mod failure_tests;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
