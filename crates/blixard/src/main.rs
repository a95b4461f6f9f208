//! `blixard`: one VM cluster out of Linux hosts anywhere.
//!
//! `main` picks the exit code; everything else is a verb of [`cli`], the only module that writes to the terminal.

mod cli;
mod failure;

use std::process::ExitCode;

use failure::Exit;

fn main() -> ExitCode {
    match cli::run(cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            let exit = failure::exit_of(&error);
            if exit != Exit::Success {
                cli::report(&error, failure::next_step_of(&error).as_deref());
            }
            exit.into()
        }
    }
}
