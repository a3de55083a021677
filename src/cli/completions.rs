//! `llamantino completions`: made from the command line's own description.

use super::{output, Cli};
use crate::error::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Arguments of `completions`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    llamantino completions bash > ~/.local/share/bash-completion/completions/llamantino\n  \
    llamantino completions zsh > ~/.zfunc/_llamantino\n  \
    llamantino completions fish > ~/.config/fish/completions/llamantino.fish")]
pub struct CompletionsArgs {
    /// Shell to complete for.
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Prints the completions.
pub fn run(args: CompletionsArgs) -> Result<()> {
    output::data(&script(args.shell));
    Ok(())
}

/// The script for a shell.
pub(super) fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "llamantino", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}
