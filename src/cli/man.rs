//! `llamantino man`: manual pages out of the command line's own description, one for each command.

use super::{output, Cli};
use crate::error::{Error, Result};
use clap::builder::Resettable;
use clap::{Args, Command, CommandFactory};
use clap_mangen::Man;
use std::path::{Path, PathBuf};

/// Arguments of `man`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  llamantino man | man -l -\n  llamantino man data inspect | man -l -\n  \
    llamantino man --out ~/.local/share/man/man1")]
pub struct ManArgs {
    /// Command whose page to print, such as `data inspect`; none: the program's own.
    #[arg(value_name = "COMMAND", conflicts_with = "out")]
    pub command: Vec<String>,
    /// Write the pages of all commands into this folder: llamantino.1, llamantino-train.1, ...
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Prints a page, or writes all of them.
pub fn run(args: ManArgs) -> Result<()> {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    if let Some(folder) = &args.out {
        std::fs::create_dir_all(folder).map_err(|error| Error::io(folder, "create", error))?;
        let count = write_all(&program, folder)?;
        output::note(&format!("{count} pages in {}", folder.display()));
        return Ok(());
    }
    let mut command = &program;
    for name in &args.command {
        command = command.find_subcommand(name).ok_or_else(|| {
            let known: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
            Error::usage(format!("{}: no such command", args.command.join(" ")))
                .hint(format!("commands: {}", known.join(", ")))
        })?;
    }
    output::data(&page(command)?);
    Ok(())
}

/// Writes the page of `command` and those of its subcommands; gives their number.
fn write_all(command: &Command, folder: &Path) -> Result<usize> {
    let path = folder.join(Man::new(command.clone()).get_filename());
    std::fs::write(&path, page(command)?).map_err(|error| Error::io(&path, "write", error))?;
    command.get_subcommands().try_fold(1, |count, part| Ok(count + write_all(part, folder)?))
}

/// A page as roff. What stands behind the options, examples mostly, keeps its lines.
fn page(command: &Command) -> Result<String> {
    let mut page = Vec::new();
    let rendered = Man::new(command.clone().after_help(Resettable::Reset)).render(&mut page);
    rendered.map_err(|error| Error::failed(format!("rendering the manual page: {error}")))?;
    let mut page = String::from_utf8_lossy(&page).into_owned();
    if let Some(text) = command.get_after_help() {
        let text = text.to_string();
        let (_, examples) = text.split_once('\n').unwrap_or(("", &text));
        page += ".SH EXAMPLES\n.nf\n";
        examples.lines().for_each(|line| page += &format!("\\&{}\n", escaped(line)));
        page += ".fi\n";
    }
    Ok(page)
}

/// A line whose characters are shown as they are, so that a command can be copied out of a page.
fn escaped(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    for character in line.chars() {
        match character {
            '\\' => text += "\\(rs",
            '-' => text += "\\-",
            '\'' => text += "\\(aq",
            '`' => text += "\\(ga",
            '~' => text += "\\(ti",
            '^' => text += "\\(ha",
            other => text.push(other),
        }
    }
    text
}
