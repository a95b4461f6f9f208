//! Running other programs: one place that turns a failed one into an error that shows the command and what it said.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The command as a person would type it, for messages.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words.map(quoted).collect();
    words.join(" ")
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let is_plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:=+,@%~^".contains(c));
    if is_plain { word.into_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// Runs the command with its output on our terminal; an error when it cannot start or does not succeed.
pub fn check(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs the command and returns what it wrote on standard output; on failure the error carries its standard error.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start `{}`", shown(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` ended with {}: {}", shown(command), output.status, said.trim());
    }
    Ok(output.stdout)
}

/// Like [`output`], for programs that write text.
pub fn text(command: &mut Command) -> Result<String> {
    let bytes = output(command)?;
    String::from_utf8(bytes).with_context(|| format!("`{}` wrote something that is not UTF-8", shown(command)))
}

/// Cargo, for a build of its own. What cargo has told this program about itself stays out of it: it would reach the build
/// scripts of dependencies, some of which then build again, and everything on top of them.
pub fn cargo() -> Command {
    let mut command = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}

/// Where a program lies: on the PATH, or in the folders of administrators' programs that a user's PATH often lacks.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn commands_are_shown_as_a_person_would_type_them() {
        let mut command = Command::new("apt-get");
        command.args(["install", "a b", "it's", "x=1"]);
        assert_eq!(shown(&command), r"apt-get install 'a b' 'it'\''s' x=1");
    }

    #[test]
    fn a_failed_program_is_an_error_with_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo spoken >&2; exit 3"])).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("spoken") && error.contains('3'), "{error}");
        assert!(format!("{:#}", check(&mut Command::new("no-such-program-here")).unwrap_err()).contains("no-such"));
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-here").is_none());
    }
}
