//! Builds the binary that the cluster's nodes run.

use crate::{process, workspace_root};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// How the binary is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Quick to build.
    Dev,
    /// As users run it.
    Release,
}

impl Profile {
    /// Cargo's name for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
        }
    }
}

/// What was built.
#[derive(Debug)]
pub(crate) struct Binaries {
    blixard: PathBuf,
    examples: Vec<(String, PathBuf)>,
}

impl Binaries {
    /// The program itself.
    pub(crate) fn blixard(&self) -> &Path {
        &self.blixard
    }

    /// An example program that was asked for.
    pub(crate) fn example(&self, name: &str) -> Result<&Path> {
        let found = self.examples.iter().find(|(known, _)| known == name);
        found.map(|(_, path)| path.as_path()).with_context(|| format!("cargo did not say where {name} is"))
    }
}

/// Builds `blixard` and nothing else.
pub(crate) fn blixard(profile: Profile) -> Result<PathBuf> {
    Ok(build(profile, &[])?.blixard)
}

/// Builds `blixard`, and examples of `blixard-node`, with cargo's progress on the terminal.
pub(crate) fn build(profile: Profile, examples: &[&str]) -> Result<Binaries> {
    let mut command = process::cargo();
    command.args(["build", "--package", "blixard", "--bin", "blixard", "--profile", profile.name()]);
    for example in examples {
        command.args(["--package", "blixard-node", "--example", example]);
    }
    // Where the binaries go is for cargo to say: CARGO_TARGET_DIR and configuration files have a word in it.
    command.arg("--message-format=json-render-diagnostics").current_dir(workspace_root());
    let shown = process::shown(&command);
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("start `{shown}`"))?;
    ensure!(output.status.success(), "`{shown}` ended with {}", output.status);
    let messages = String::from_utf8(output.stdout).with_context(|| format!("read what `{shown}` says"))?;
    let built: Vec<(String, PathBuf)> = messages.lines().filter_map(executable).collect();
    let blixard = built.iter().find(|(name, _)| name == "blixard").map(|(_, path)| path.clone());
    let blixard = blixard.with_context(|| format!("`{shown}` did not say where the binary is"))?;
    Ok(Binaries { blixard, examples: built })
}

/// The name and place of a program, when this message of cargo's is about one.
fn executable(message: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(message).ok()?;
    let name = message.pointer("/target/name")?.as_str()?.to_owned();
    Some((name, message.get("executable")?.as_str()?.into()))
}
