//! `blixard`: one VM cluster out of Linux hosts anywhere.
//!
//! `main` picks the exit code; everything else is a verb of [`cli`], the only module that writes to the terminal.

mod cli;
mod failure;

use std::process::ExitCode;

use failure::Exit;

fn main() -> ExitCode {
    let Err(error) = cli::run(cli::parse()) else { return Exit::Success.into() };
    let exit = failure::exit_of(&error);
    if exit != Exit::Success {
        cli::report(&error, failure::next_step_of(&error).as_deref());
    }
    exit.into()
}
