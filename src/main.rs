//! Parses the command line, runs the command, prints the error and its hint, sets the exit code.

use llamantino::cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::output::error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
