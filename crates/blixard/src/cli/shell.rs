//! What shells and `man` know of the program, made from the definition of its command line.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use super::output;

/// For which shell.
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell.
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

/// Prints the script that teaches a shell to complete the program's command lines.
pub(super) fn completions(mut command: Command, asked: &CompletionsArgs) -> anyhow::Result<()> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(asked.shell, &mut command, name, &mut script);
    output::print(&script)
}

/// Where to.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// The folder to write the pages to. It is made if there is none.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Writes a manual page for each command that users are told of.
pub(super) fn man(mut command: Command, asked: &ManArgs) -> anyhow::Result<()> {
    // A page for `help` would say nothing.
    command = command.disable_help_subcommand(true);
    command.build();
    let source = format!("Blixard {}", env!("CARGO_PKG_VERSION"));
    std::fs::create_dir_all(&asked.dir)
        .and_then(|()| write_pages(&command, &source, &asked.dir))
        .with_context(|| format!("write manual pages to {}", asked.dir.display()))
}

fn write_pages(command: &Command, source: &str, dir: &Path) -> std::io::Result<()> {
    Man::new(command.clone()).source(source).manual("Blixard").generate_to(dir)?;
    command.get_subcommands().filter(|inner| !inner.is_hide_set()).try_for_each(|inner| write_pages(inner, source, dir))
}
