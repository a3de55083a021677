//! `llamantino train` without a configuration: the bundled model learns from the bundled Italian corpus.
//!
//! The files are compiled in and unpacked into [`FOLDER`] of the current folder, where they can be read, changed and used
//! again; what a person changed there is kept. The run itself is an ordinary one, of the configuration unpacked with them.

mod files;
#[cfg(test)]
mod tests;

use super::{output, shell};
use crate::adapter::peft;
use crate::data::tokenize::Tokenizer;
use crate::error::{Error, Result};
use crate::generate::{generate_text, Generator, SamplingOptions};
use crate::model::{self, Checkpoint, LoadOptions, Method, ModelConfig};
use crate::train::config::RunConfig;
use crate::train::run::RunSummary;
use std::path::{Path, PathBuf};

/// Where everything is unpacked, below the current folder.
pub const FOLDER: &str = "llamantino-quickstart";
/// Text that the models continue.
const PROMPT: &str = "La mattina";
/// Tokens of a completion.
const TOKENS: usize = 60;
/// Keeps a greedy completion of a small model from going round in circles.
const REPEAT_PENALTY: f32 = 1.2;

/// What unpacking did.
#[derive(Debug, Default, PartialEq, Eq)]
struct Unpacked {
    written: usize,
    bytes: usize,
    /// Files that were there with another content, and stayed.
    changed: Vec<PathBuf>,
}

/// Unpacks the quickstart into the current folder, says so, and returns the configuration's path.
///
/// # Errors
/// Files that cannot be read or written.
pub fn unpack() -> Result<PathBuf> {
    let folder = Path::new(FOLDER);
    let Unpacked { written, bytes, changed } = unpack_into(folder)?;
    match written {
        0 => output::note(&format!("quickstart: using the files in {FOLDER}/")),
        _ => output::note(&format!(
            "quickstart: unpacked {written} files ({:.1} MB) into {FOLDER}/: a small English model and an Italian corpus",
            bytes as f64 / 1e6
        )),
    }
    for path in changed {
        output::note(&format!("changed since, used as it is: {} (remove it to get the original)", path.display()));
    }
    Ok(folder.join("quickstart.toml"))
}

fn unpack_into(folder: &Path) -> Result<Unpacked> {
    let config = files::config_text(FOLDER);
    let mut unpacked = Unpacked::default();
    let config = [("quickstart.toml", config.as_bytes())];
    for (path, bytes) in config.into_iter().chain(files::FILES.iter().map(|file| (file.path, file.bytes))) {
        let path = folder.join(path);
        match std::fs::read(&path) {
            Ok(found) if found == bytes => {}
            Ok(_) => unpacked.changed.push(path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                write_whole(&path, bytes)?;
                unpacked.written += 1;
                unpacked.bytes += bytes.len();
            }
            Err(error) => return Err(Error::io(&path, "read", error)),
        }
    }
    Ok(unpacked)
}

/// Writes a file under another name and renames it: a file under its own name is whole, whatever happens.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|error| Error::io(parent, "create", error))?;
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    std::fs::write(&partial, bytes).map_err(|error| Error::io(&partial, "write", error))?;
    std::fs::rename(&partial, path).map_err(|error| Error::io(path, "rename into place", error))
}

/// Shows how base and result continue the same text, and the commands to go on with.
///
/// # Errors
/// A model or adapter that cannot be read.
pub fn show(config: &RunConfig, summary: &RunSummary) -> Result<()> {
    let model = Path::new(&config.model);
    let base = Continued { model, adapter: None, config };
    let result = match config.method {
        Method::Full => Continued { model: &summary.result, adapter: None, config },
        Method::Lora | Method::Qlora => Continued { model, adapter: Some(&summary.result), config },
    };
    output::note(&format!("\nhow the text \"{PROMPT}\" goes on"));
    output::note(&format!("  before: {}", base.text()?));
    output::note(&format!("  after:  {}", result.text()?));
    output::note(&format!("\nthe same again, or with a text of yours:\n  {}", result.command()));
    if let Some(adapter) = result.adapter {
        let merged = Path::new(FOLDER).join("merged");
        let (model, adapter, out) = (shell::path(model), shell::path(adapter), shell::path(&merged));
        output::note(&format!(
            "base and adapter as one model, which transformers loads too:\n  \
             llamantino merge --base {model} --adapter {adapter} --out {out}\n  {}",
            Continued { model: &merged, adapter: None, config }.command()
        ));
    }
    output::note(&format!(
        "your own text, with this configuration as a start:\n  \
         llamantino train {FOLDER}/quickstart.toml --set name=mine --set 'data.paths=[\"my-texts\"]'\n\
         A model of this size learns spelling and common words, not facts or sense: see the README."
    ));
    Ok(())
}

/// A model that continues [`PROMPT`].
struct Continued<'a> {
    model: &'a Path,
    adapter: Option<&'a Path>,
    config: &'a RunConfig,
}

impl Continued<'_> {
    /// The completion: greedy, so that [`Continued::command`] gives the same one.
    fn text(&self) -> Result<String> {
        let config = ModelConfig::from_folder(self.model)?;
        let checkpoint = Checkpoint::open(self.model)?;
        let adapter = self.adapter.map(peft::read).transpose()?;
        let mut options = LoadOptions::frozen(PROMPT.len() + TOKENS + 2);
        options.quantize = self.nf4().then_some(self.config.quantization);
        options.lora = adapter.as_ref().map(|adapter| adapter.config.clone());
        let (mut model, mut params) = model::load(&config, &checkpoint, &options, &mut |_, _| {})?;
        if let Some(adapter) = adapter {
            adapter.apply(&mut model, &mut params)?;
        }
        let tokenizer = Tokenizer::load(self.model, Some(config.vocab_size))?;
        let mut prompt: Vec<u32> = tokenizer.special().bos.iter().map(|token| token.id).collect();
        prompt.extend(tokenizer.encode_plain(PROMPT)?);
        let mut generator = Generator::new(model, params, Default::default(), prompt.len() + TOKENS + 1);
        let options =
            SamplingOptions { max_tokens: TOKENS, repeat_penalty: REPEAT_PENALTY, ..SamplingOptions::default() };
        let mut text = PROMPT.to_string();
        generate_text(&mut generator, &tokenizer, &prompt, &options, &mut |piece| {
            text.push_str(piece);
            Ok(true)
        })?;
        Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// The base and its adapter are shown as they were trained, the base in NF4; a merged model as it is stored.
    fn nf4(&self) -> bool {
        self.config.method == Method::Qlora && self.model == Path::new(&self.config.model)
    }

    /// The command that generates the same.
    fn command(&self) -> String {
        let mut command = format!("llamantino generate --model {}", shell::path(self.model));
        if let Some(adapter) = self.adapter {
            command += &format!(" --adapter {}", shell::path(adapter));
        }
        if self.nf4() {
            command += " --nf4";
        }
        format!("{command} --prompt \"{PROMPT}\" --max-tokens {TOKENS} --repeat-penalty {REPEAT_PENALTY} --echo")
    }
}
