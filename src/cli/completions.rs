//! `llamantino completions` and `llamantino man`: made from the command line's own description.

use super::{output, Cli};
use crate::error::{Error, Result};
use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Arguments of `completions`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  llamantino completions bash > ~/.local/share/bash-completion/completions/llamantino"
)]
pub struct CompletionsArgs {
    /// Shell to complete for.
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Prints the completions.
pub fn run(args: CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "llamantino", &mut script);
    output::data(&String::from_utf8_lossy(&script));
    Ok(())
}

/// Prints the manual page.
pub fn man() -> Result<()> {
    let mut page = Vec::new();
    let render = clap_mangen::Man::new(Cli::command()).render(&mut page);
    render.map_err(|error| Error::failed(format!("rendering the manual page: {error}")))?;
    output::data(&String::from_utf8_lossy(&page));
    Ok(())
}
