//! `llamantino data`: what the model will really see (`inspect`), and tokens made ahead of time (`prepare`).

use super::{hub, output, progress};
use crate::config;
use crate::data::batch::{BatchSettings, Batches};
use crate::data::inspect::{inspect, Example, Inspection};
use crate::data::load::{self, Progress, SourceReport};
use crate::data::tokenize::Tokenizer;
use crate::device;
use crate::error::{Error, Result};
use crate::model::open::{config_of, with_description};
use crate::train::config::RunConfig;
use crate::train::stages::Recipe;
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Arguments of `data`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino data inspect my.toml\n  llamantino data prepare my.toml")]
pub struct DataArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: DataCommand,
}

/// The subcommands of `data`.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Show counts, lengths, packing, and examples with their trained tokens marked.
    Inspect(InspectArgs),
    /// Tokenise everything now; runs then start at once. Goes on where it was stopped.
    Prepare(PrepareArgs),
}

/// Arguments of `data inspect`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino data inspect my.toml\n  \
    llamantino data inspect my.toml --examples 20 --html > data.html\n  \
    llamantino data inspect my.toml --set data.template=llamantino-chat --json")]
pub struct InspectArgs {
    /// The run's configuration.
    #[command(flatten)]
    pub run: RunArgs,
    /// How many examples to show of each source.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub examples: usize,
    /// One JSON object instead of text.
    #[arg(long, conflicts_with = "html")]
    pub json: bool,
    /// A page for a browser instead of text.
    #[arg(long)]
    pub html: bool,
}

/// Arguments of `data prepare`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino data prepare my.toml\n  \
    llamantino data prepare my.toml --set data.cache=/big/disk/tokens")]
pub struct PrepareArgs {
    /// The run's configuration.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Which run.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// The run's configuration (TOML). Of the model only its configuration, tokenizer and template are read.
    pub config: PathBuf,
    /// Replace a value of the configuration, e.g. `data.sequence_length=1024`; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Of a chain of stages, the one whose data are meant; `prepare` takes all without it.
    #[arg(long, value_name = "NAME")]
    pub stage: Option<String>,
}

/// Runs `data`.
pub fn run(args: DataArgs) -> Result<()> {
    match args.command {
        DataCommand::Inspect(args) => {
            open(&args.run, |config, tokenizer, model| run_inspect(&args, config, tokenizer, model))
        }
        DataCommand::Prepare(args) => run_prepare(&args.run),
    }
}

/// Calls `read` with the configuration, the tokenizer of its model and the folder that describes the model.
fn open<T>(args: &RunArgs, read: impl FnOnce(&RunConfig, &Tokenizer, &Path) -> Result<T>) -> Result<T> {
    let mut recipe: Recipe = config::load_file(&args.config, &args.overrides)?;
    recipe.run_of(args.stage.as_deref())?;
    recipe.run.model = hub::resolve_local(&recipe.run.model)?.to_string_lossy().into_owned();
    let config = recipe.run_of(args.stage.as_deref())?;
    device::set_threads(Some(config.training.threads).filter(|threads| *threads > 0))?;
    let place = Path::new(&config.model);
    let rows = config_of(place)?.vocab_size;
    with_description(place, |model| {
        let tokenizer = Tokenizer::load(model, Some(rows))?;
        tokenizer.warnings().iter().for_each(|warning| output::warning(warning));
        read(&config, &tokenizer, model)
    })
}

fn run_inspect(args: &InspectArgs, config: &RunConfig, tokenizer: &Tokenizer, model: &Path) -> Result<()> {
    let bar = progress::counted(0, "reading the data (KiB)");
    let data = load::load(&config.data, tokenizer, model, &mut |state| advance(&bar, state))?;
    bar.finish_and_clear();
    let settings = BatchSettings {
        sequence_length: config.data.sequence_length,
        packing: config.data.packing,
        group_by_length: config.data.group_by_length,
        windows: config.training.micro_batch,
        seed: config.seed,
    };
    let batches = Batches::new(Arc::new(data.train.clone()), settings)?;
    let inspection = inspect(&data, &batches, tokenizer, (args.examples, config.seed))?;
    for warning in inspection.report.sources.iter().flat_map(|source| &source.warnings) {
        output::warning(warning);
    }
    if args.json {
        let json = serde_json::to_string(&inspection)
            .map_err(|error| Error::failed(format!("the inspection cannot be written: {error}")))?;
        output::data(&format!("{json}\n"));
    } else if args.html {
        output::data(&inspection.to_html());
    } else {
        output::data(&text(&inspection, output::stdout_takes_colours()));
    }
    Ok(())
}

/// Prepares the run that is named, or every stage of a chain.
fn run_prepare(run: &RunArgs) -> Result<()> {
    let recipe: Recipe = config::load_file(&run.config, &run.overrides)?;
    if run.stage.is_some() || recipe.stage.is_empty() {
        return open(run, prepare);
    }
    for stage in recipe.stage {
        output::note(&format!("stage {}", stage.name));
        open(&RunArgs { stage: Some(stage.name), ..run.clone() }, prepare)?;
    }
    Ok(())
}

fn prepare(config: &RunConfig, tokenizer: &Tokenizer, model: &Path) -> Result<()> {
    let bar = progress::counted(0, "tokenising (KiB)");
    let mut documents = (0, 0);
    let report = load::prepare(&config.data, tokenizer, model, &mut |state| {
        documents = (state.documents, state.tokens);
        advance(&bar, state);
    })?;
    bar.finish_and_clear();
    for source in &report.sources {
        source.warnings.iter().for_each(|warning| output::warning(warning));
        output::note(&format!("{}: {}", source.name, source.recognised.join("; ")));
        output::note(&format!(
            "  {} documents, {} tokens, {} unusable records",
            source.documents, source.tokens, source.bad_lines.count
        ));
    }
    output::note(&format!("{} documents tokenised now ({} tokens); the rest was there", documents.0, documents.1));
    Ok(())
}

fn advance(bar: &ProgressBar, state: &Progress) {
    bar.set_length(state.bytes_total >> 10);
    bar.set_position(state.bytes_done >> 10);
    let name = state.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    bar.set_message(format!("{name} · {} documents, {} tokens", state.documents, state.tokens));
}

/// The inspection for a person.
fn text(inspection: &Inspection, coloured: bool) -> String {
    let mut text = String::new();
    inspection.report.sources.iter().for_each(|source| source_text(&mut text, source));
    let epoch = &inspection.epoch;
    let _ = writeln!(
        text,
        "an epoch: {} windows of at most {} rows, {} rows, {} predict a trained token; windows {:.1} % full\n",
        epoch.windows,
        epoch.sequence_length,
        epoch.rows,
        epoch.trained_rows,
        100.0 * epoch.efficiency
    );
    let most = inspection.lengths.iter().map(|count| count.documents).max().unwrap_or(1).max(1);
    let _ = writeln!(text, "{:>15} {:>10}", "tokens", "documents");
    for count in &inspection.lengths {
        let bar = "█".repeat((40 * count.documents).div_ceil(most) as usize);
        let _ = writeln!(text, "{:>15} {:>10} {bar}", format!("{}-{}", count.from, count.to), count.documents);
    }
    let key = match coloured {
        true => format!("{} and {}", paint("trained", true), paint("not trained", false)),
        false => "trained tokens stand in ⟦ ⟧".into(),
    };
    let _ = writeln!(text, "\nexamples: {key}");
    inspection.examples.iter().for_each(|example| example_text(&mut text, example, coloured));
    text
}

fn source_text(text: &mut String, source: &SourceReport) {
    let _ = writeln!(text, "{}: {} file(s), {}", source.name, source.files, source.recognised.join("; "));
    for (name, count) in [
        ("documents to train on", source.documents),
        ("documents held out", source.held_out_documents),
        ("tokens", source.tokens),
        ("trained tokens", source.trained_tokens),
        ("cut to their first turns", source.cut),
        ("in several windows", source.split),
        ("dropped: too long for a window", source.dropped_long),
        ("dropped: no token", source.without_tokens),
        ("unusable records", source.bad_lines.count),
        ("name control tokens in their text", source.naming_control_tokens),
    ] {
        // What did not happen need not be said, but for the first four.
        if count > 0 || name.contains("tokens") && !name.contains("name") {
            let _ = writeln!(text, "  {name:<34} {count:>12}");
        }
    }
    for line in &source.bad_lines.first {
        let _ = writeln!(text, "    {line}");
    }
    text.push('\n');
}

fn example_text(text: &mut String, example: &Example, coloured: bool) {
    let Example { source, line, tokens, trained, cut, stretches } = example;
    let _ = writeln!(text, "\n── {source}, line {line}: {tokens} tokens, {trained} trained");
    for stretch in stretches {
        // What data say must not move the cursor or change colours.
        let shown: String =
            stretch.text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect();
        match (coloured, stretch.trained) {
            (true, trained) => text.push_str(&paint(&shown, trained)),
            (false, true) => text.push_str(&format!("⟦{shown}⟧")),
            (false, false) => text.push_str(&shown),
        }
    }
    if *cut > 0 {
        let _ = write!(text, " … {cut} tokens cut off");
    }
    text.push('\n');
}

/// Green for what is trained, grey for what is not; line by line, so that no pager loses the colour.
fn paint(text: &str, trained: bool) -> String {
    let colour = if trained { "32" } else { "90" };
    let lines: Vec<String> = text.split('\n').map(|line| format!("\u{1b}[{colour}m{line}\u{1b}[0m")).collect();
    lines.join("\n")
}
