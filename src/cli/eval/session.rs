//! From the arguments of `eval` to results: which texts and tasks, of which model.

use super::super::model_args::{Loaded, ModelArgs};
use super::super::{output, progress};
use super::EvalArgs;
use crate::adapter::peft;
use crate::data::template::Template;
use crate::error::{Error, Result};
use crate::eval::evaluator::Settings;
use crate::eval::results::{hash_files, Results};
use crate::eval::run::{Job, Shots};
use crate::eval::store::Identity;
use crate::eval::text::{self, Cut, TEXT};
use crate::eval::{tasks, Evaluator, Question, Task};
use crate::model::OpenModel;
use crate::ops::gpu::Gpu;
use serde_json::{json, Value};
use std::path::{Path, PathBuf};

/// A thing to evaluate on, as the user named it.
pub struct Target {
    /// Its name in results.
    pub name: String,
    /// Its file, folder or glob.
    pub path: String,
    /// None: text.
    pub task: Option<Task>,
}

/// Measures `model` on everything that `args` name, and keeps the results in `out`.
///
/// # Errors
/// Names and files that are wrong; answers of another evaluation in `out`.
pub fn evaluate(args: &EvalArgs, model: &ModelArgs, out: Option<PathBuf>) -> Result<Results> {
    let targets = targets(args)?;
    let opened = model.open()?;
    let evaluator = evaluator(args, model, &opened)?;
    let mut results = Results::open(out, model_identity(model, &opened, &evaluator)?)?;
    let job = |target: &Target| match &target.task {
        None => text_job(args, target, &evaluator),
        Some(task) => task_job(args, target, task, &evaluator),
    };
    let jobs = targets.iter().map(job).collect::<Result<Vec<_>>>()?;
    jobs.iter().try_for_each(|(job, _)| evaluator.check(&job.examples).map_err(|error| error.at(&job.name)))?;
    for (job, identity) in &jobs {
        let mut store = results.store(&job.name, identity)?;
        let bar = progress::timed(0, &job.name);
        let outcome = job.run(&evaluator, &mut store, &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            true
        });
        bar.finish_and_clear();
        let Some(outcome) = outcome? else { continue };
        if outcome.cut > 0 {
            let (cut, context) = (outcome.cut, evaluator.settings().context);
            output::warning(&format!(
                "{}: {cut} questions lost their beginning: the context holds {context}",
                job.name
            ));
        }
        results.add(&job.name, &job.task, identity, &outcome)?;
    }
    Ok(results)
}

/// `NAME=REST` as its parts.
fn named(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        Some((name, rest)) if !name.is_empty() && !name.contains(['/', '\\', '*']) => (Some(name), rest),
        _ => (None, text),
    }
}

/// What `args` name.
///
/// # Errors
/// Unknown tasks; names that are given twice.
pub fn targets(args: &EvalArgs) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for text in &args.text {
        let (name, path) = named(text);
        targets.push(Target { name: name.unwrap_or(TEXT.name).into(), path: path.into(), task: None });
    }
    for task in &args.task {
        let (Some(name), path) = named(task) else {
            return Err(Error::usage(format!("--task {task}: expected NAME=FILE"))
                .hint("`llamantino eval --list` shows the names"));
        };
        targets.push(Target { name: name.into(), path: path.into(), task: Some(tasks::by_name(name)?) });
    }
    let mut names: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::usage(format!("`{}` is given twice", twice[0])).hint("name texts apart: --text NAME=PATH"));
    }
    if let Some(name) = names.iter().find(|name| !name.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c))) {
        return Err(Error::usage(format!("name `{name}`: expected letters, digits, `-`, `_` and `.`")));
    }
    Ok(targets)
}

/// The model of `model`, ready to be asked.
///
/// # Errors
/// Files that are missing or do not fit together.
pub fn evaluator(args: &EvalArgs, model: &ModelArgs, opened: &OpenModel) -> Result<Evaluator> {
    let device = args.device.open()?;
    device.note.iter().for_each(|note| output::note(note));
    let gpu = device.gpu.map(Gpu::new);
    let Loaded { model: llama, params, tokenizer, context } = model.load_parts(opened, gpu.as_ref())?;
    tokenizer.warnings().iter().for_each(|warning| output::warning(warning));
    let settings = Settings { compute: model.compute.into(), context, bos: !args.no_bos };
    let mut evaluator = match gpu {
        Some(gpu) => Evaluator::on_gpu(&gpu, (llama, params), tokenizer, settings)?,
        None => Evaluator::new((llama, params), tokenizer, settings),
    };
    evaluator.template = template(args, model, opened)?;
    Ok(evaluator)
}

fn template(args: &EvalArgs, model: &ModelArgs, opened: &OpenModel) -> Result<Option<Template>> {
    let named = |name: &str| opened.with_description(|folder| Template::named(name, folder)).map(Some);
    if let Some(name) = args.template.as_deref() {
        return if name == "none" { Ok(None) } else { named(name) };
    }
    let adapter = model.adapter.as_deref().map(peft::read).transpose()?;
    if let Some(name) = adapter.and_then(|adapter| adapter.provenance?.template) {
        return named(&name);
    }
    match opened.chat_template()? {
        Some(template) => Ok(Some(template)),
        None => named("extremita"),
    }
}

/// What all tasks have in common.
fn model_identity(model: &ModelArgs, opened: &OpenModel, evaluator: &Evaluator) -> Result<Identity> {
    let adapter = match &model.adapter {
        None => Value::Null,
        Some(folder) => hash_files(&[folder.join(peft::CONFIG_FILE), folder.join(peft::TENSOR_FILE)])?.into(),
    };
    let settings = evaluator.settings();
    let mut identity = json!({
        "weights": opened.hash()?, "adapter": adapter, "nf4_on_load": model.nf4, "compute": settings.compute,
        "tokenizer": evaluator.tokenizer.fingerprint().to_hex().as_str(), "context": settings.context,
        "bos": settings.bos,
    });
    if let Some(device) = evaluator.device() {
        identity["device"] = device.into();
    }
    Ok(identity.as_object().cloned().unwrap_or_default())
}

/// A text as a job, and what belongs to it alone.
///
/// # Errors
/// Windows that do not fit the context; unreadable files.
pub fn text_job(args: &EvalArgs, target: &Target, evaluator: &Evaluator) -> Result<(Job, Identity)> {
    let context = evaluator.settings().context;
    let window = args.window.unwrap_or(context);
    if !(2..=context).contains(&window) {
        return Err(Error::usage(format!("--window {window}: expected 2 to {context}, the context")));
    }
    let stride = args.stride.unwrap_or(window / 2);
    if !(1..=window).contains(&stride) {
        return Err(Error::usage(format!("--stride {stride}: expected 1 to {window}, the window")));
    }
    let source =
        text::Source { paths: vec![target.path.clone()], limit: args.limit, max_bad_lines: args.max_bad_lines };
    let text = text::windows(&source, &evaluator.tokenizer, Cut { window, stride })?;
    if text.bad_lines.count > 0 {
        let (count, first) = (text.bad_lines.count, text.bad_lines.first.join("\n  "));
        output::warning(&format!("{}: {count} unusable lines left out, the first:\n  {first}", target.name));
    }
    let identity = json!({"data": hash_files(&text.files)?, "window": window, "stride": stride});
    let job = Job { task: TEXT, name: target.name.clone(), examples: text.examples, shots: Shots::default() };
    Ok((job, identity.as_object().cloned().unwrap_or_default()))
}

fn task_job(args: &EvalArgs, target: &Target, task: &Task, evaluator: &Evaluator) -> Result<(Job, Identity)> {
    let path = Path::new(&target.path);
    let mut examples = (task.load)(path)?;
    let shots_file = args.shots_from.iter().map(|from| named(from)).rev();
    let mut shots_file = shots_file.filter(|(name, _)| name.is_none_or(|name| name == target.name));
    let (shots, shots_data) = match shots_file.next() {
        None => (Shots::new(args.shots, &examples, true)?, Value::Null),
        Some((_, file)) => {
            let shots = Shots::new(args.shots, &(task.load)(Path::new(file))?, false)?;
            (shots, hash_files(&[file.into()])?.into())
        }
    };
    examples.truncate(args.limit.unwrap_or(usize::MAX));
    let mut identity = json!({"data": hash_files(&[path.into()])?, "shots": args.shots, "shots_data": shots_data});
    if examples.iter().any(|example| matches!(example.question, Question::Open { .. })) {
        identity["template"] = evaluator.template.as_ref().map_or("none", Template::name).into();
    }
    let job = Job { task: *task, name: target.name.clone(), examples, shots };
    Ok((job, identity.as_object().cloned().unwrap_or_default()))
}
