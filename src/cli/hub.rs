//! Models named on the command line: a folder, a GGUF file, or `org/name[@revision]` of the hub, fetched with a bar.

use super::{output, progress};
use crate::error::{Error, Result};
use crate::model::hub::{self, HubModel, HubObserver, HubSettings};
use indicatif::ProgressBar;
use std::path::{Path, PathBuf};

/// Where the model `spec` lies, after fetching it if need be.
pub fn resolve(spec: &str) -> Result<PathBuf> {
    let mut watch = Watch { bar: None };
    let path = hub::resolve(spec, &mut watch);
    if let Some(bar) = watch.bar {
        bar.finish_and_clear();
    }
    path
}

/// Where the model `spec` lies without fetching anything.
///
/// # Errors
/// It lies nowhere yet.
pub fn resolve_local(spec: &str) -> Result<PathBuf> {
    let offline = || HubSettings::from_env().map(|settings| HubSettings { offline: true, ..settings });
    hub::resolve_with(spec, offline, &mut ()).map_err(|error| match HubModel::parse(spec) {
        Some(_) if !Path::new(spec).exists() => {
            Error::failed(format!("{spec}: not on this machine, and nothing is fetched for a plan"))
                .hint("put its config.json (and tokenizer.json, to count tokens) into a folder and name that")
        }
        _ => error,
    })
}

struct Watch {
    bar: Option<ProgressBar>,
}

impl HubObserver for Watch {
    fn begin(&mut self, model: &str, files: usize, bytes: Option<u64>) {
        let size = bytes.map_or(String::new(), |bytes| format!(", {:.1} MB", bytes as f64 / 1e6));
        output::note(&format!("fetching {model} from the hub: {files} files{size}"));
        self.bar = Some(progress::counted(bytes.unwrap_or(0), "fetching"));
    }

    fn progress(&mut self, done: u64, name: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(name.to_string());
        }
    }

    fn note(&mut self, text: &str) {
        output::note(text);
    }
}
