//! `eval --as`: one model in every form that people run it in.

use super::super::model_args::ModelArgs;
use super::super::{output, progress};
use super::{session, table, EvalArgs};
use crate::adapter::peft;
use crate::error::{Error, Result};
use crate::eval::forms::against;
use crate::eval::run::Measured;
use crate::eval::Evaluator;
use crate::export::gguf::scheme::FileType;
use crate::export::gguf::{export_gguf, GgufJob};
use crate::export::merge::{merge_folder, MergeJob};
use crate::export::SHARD_BYTES;
use crate::model::{Method, OpenModel};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};

/// A form to run a model in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum FormArg {
    /// The base as it is stored, the adapter beside it.
    Base,
    /// The base in NF4, the adapter beside it.
    Nf4,
    /// The adapter merged into the base.
    Merged,
    /// The merged model quantised to NF4 again.
    Nf4Again,
    /// A GGUF file as most people download them: Q4_K_M.
    Gguf,
    /// A GGUF file of type Q8_0.
    #[value(name = "gguf-q8_0")]
    GgufQ8,
    /// A GGUF file of type F16.
    GgufF16,
}

impl FormArg {
    fn name(self) -> &'static str {
        match self {
            FormArg::Base => "base",
            FormArg::Nf4 => "nf4",
            FormArg::Merged => "merged",
            FormArg::Nf4Again => "nf4-again",
            FormArg::Gguf => "gguf",
            FormArg::GgufQ8 => "gguf-q8_0",
            FormArg::GgufF16 => "gguf-f16",
        }
    }

    /// What the matrices of a GGUF form are stored in.
    fn gguf_type(self) -> Option<FileType> {
        match self {
            FormArg::Gguf => Some(FileType::Q4KM),
            FormArg::GgufQ8 => Some(FileType::Q8_0),
            FormArg::GgufF16 => Some(FileType::F16),
            FormArg::Base | FormArg::Nf4 | FormArg::Merged | FormArg::Nf4Again => None,
        }
    }
}

/// Runs `eval --as`.
pub fn run(args: &EvalArgs, model: &ModelArgs) -> Result<()> {
    if !args.task.is_empty() {
        return Err(Error::usage("--as measures text: --task has no part in it").hint("leave --task out"));
    }
    let targets = session::targets(args)?;
    let opened = model.open()?;
    let trained = trained_form(model)?;
    let workshop = Workshop::new(args, model, &opened)?;
    let reference = workshop.make(trained)?;
    output::note(&format!("reference: {}, the form it was trained in", trained.name()));
    let mut rows = Vec::new();
    for &form in &args.forms {
        let made = if form == trained { None } else { Some(workshop.make(form)?) };
        for target in &targets {
            let (job, _) = session::text_job(args, target, &reference)?;
            let bar = progress::timed(job.examples.len() as u64, &format!("{} as {}", job.name, form.name()));
            let measured = against(&reference, made.as_ref().unwrap_or(&reference), &job.examples, &mut |done, _| {
                bar.set_position(done as u64);
                true
            });
            bar.finish_and_clear();
            if let Some((measured, _)) = measured? {
                rows.push((job.name.clone(), form, measured));
            }
        }
    }
    let json = json!({"reference": trained.name(), "rows": rows.iter().map(row_json).collect::<Vec<Value>>()});
    super::print(args, &json, &text(&rows));
    Ok(())
}

/// A text, a form, and its numbers.
type Row = (String, FormArg, Vec<Measured>);

fn row_json((name, form, measured): &Row) -> Value {
    let mut row = json!({"text": name, "form": form.name()});
    for Measured { metric, value, interval } in measured {
        let interval = interval.map(|interval| [interval.low, interval.high]);
        row[metric.name] = json!({"value": value, "interval_95": interval});
    }
    row
}

fn text(rows: &[Row]) -> String {
    let mut cells =
        vec![["text", "form", "bits_per_byte", "kl_per_token", "same_likeliest"].map(String::from).to_vec()];
    for (name, form, measured) in rows {
        let numbers = measured.iter().map(|measured| format!("{:.5}", measured.value));
        cells.push([name.clone(), form.name().into()].into_iter().chain(numbers).collect());
    }
    table::align(&cells, 2)
}

/// The form that the adapter was trained in, or the model itself.
fn trained_form(model: &ModelArgs) -> Result<FormArg> {
    let adapter = model.adapter.as_deref().map(peft::read).transpose()?;
    let method = adapter.and_then(|adapter| Some(adapter.provenance?.method));
    Ok(if model.nf4 || method == Some(Method::Qlora) { FormArg::Nf4 } else { FormArg::Base })
}

/// Makes forms of one model.
struct Workshop<'a> {
    args: &'a EvalArgs,
    model: &'a ModelArgs,
    base: PathBuf,
    /// Where a merged model lies, made when it is first needed.
    folder: tempfile::TempDir,
}

impl<'a> Workshop<'a> {
    fn new(args: &'a EvalArgs, model: &'a ModelArgs, opened: &OpenModel) -> Result<Workshop<'a>> {
        let place = match &args.out {
            Some(out) => {
                std::fs::create_dir_all(out).map_err(|error| Error::io(out, "make the folder", error))?;
                out.clone()
            }
            None => std::env::temp_dir(),
        };
        let folder = tempfile::tempdir_in(&place).map_err(|error| Error::io(&place, "write into", error))?;
        Ok(Workshop { args, model, base: opened.path().to_owned(), folder })
    }

    fn make(&self, form: FormArg) -> Result<Evaluator> {
        let model = match form {
            FormArg::Gguf | FormArg::GgufQ8 | FormArg::GgufF16 => {
                let model = self.gguf(form)?.display().to_string();
                ModelArgs { model, adapter: None, nf4: false, ..self.model.clone() }
            }
            FormArg::Base => ModelArgs { nf4: false, ..self.model.clone() },
            FormArg::Nf4 => ModelArgs { nf4: true, ..self.model.clone() },
            FormArg::Merged | FormArg::Nf4Again => {
                let merged = self.merged()?;
                let model = merged.display().to_string();
                ModelArgs { model, adapter: None, nf4: form == FormArg::Nf4Again, ..self.model.clone() }
            }
        };
        session::evaluator(self.args, &model, &model.open()?)
    }

    /// The GGUF file of a form; the one before it is removed.
    fn gguf(&self, form: FormArg) -> Result<PathBuf> {
        let file_type = form.gguf_type().ok_or_else(|| Error::failed("not a form in GGUF"))?;
        let folder = self.folder.path().join("gguf");
        if folder.exists() {
            std::fs::remove_dir_all(&folder).map_err(|error| Error::io(&folder, "remove", error))?;
        }
        std::fs::create_dir(&folder).map_err(|error| Error::io(&folder, "make the folder", error))?;
        let job = GgufJob {
            model: self.base.clone(),
            adapter: self.model.adapter.clone(),
            out: folder.join("model.gguf"),
            file_type,
            template: None,
            any_base: false,
            dequantize_base: false,
        };
        let summary = progress::counting("exporting", |progress| export_gguf(&job, progress));
        summary?.warnings.iter().for_each(|warning| output::warning(warning));
        Ok(job.out)
    }

    /// The merged model's folder.
    fn merged(&self) -> Result<PathBuf> {
        let Some(adapter) = &self.model.adapter else {
            return Err(Error::usage("without --adapter there is nothing to merge"));
        };
        let out = self.folder.path().join("merged");
        if !out.exists() {
            merge(&self.base, adapter, &out)?;
        }
        Ok(out)
    }
}

fn merge(base: &Path, adapter: &Path, out: &Path) -> Result<()> {
    let job = MergeJob {
        base: base.into(),
        adapter: adapter.into(),
        out: out.into(),
        dtype: None,
        shard_bytes: SHARD_BYTES,
        any_base: false,
        dequantize_base: false,
    };
    let summary = progress::counting("merging", |progress| merge_folder(&job, progress));
    summary?.warnings.iter().for_each(|warning| output::warning(warning));
    Ok(())
}
