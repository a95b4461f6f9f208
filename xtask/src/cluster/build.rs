//! Builds the binary that the cluster's nodes run.

use crate::{process, workspace_root};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Stdio};

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

/// Builds `blixard` with cargo's progress on the terminal, and gives the path of the binary.
pub(crate) fn blixard(profile: Profile) -> Result<PathBuf> {
    let mut command = Command::new("cargo");
    command.args(["build", "--package", "blixard", "--bin", "blixard", "--profile", profile.name()]);
    // Where the binary goes is for cargo to say: CARGO_TARGET_DIR and configuration files have a word in it.
    command.arg("--message-format=json-render-diagnostics").current_dir(workspace_root());
    let shown = process::shown(&command);
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("start `{shown}`"))?;
    ensure!(output.status.success(), "`{shown}` ended with {}", output.status);
    let messages = String::from_utf8(output.stdout).with_context(|| format!("read what `{shown}` says"))?;
    let mut executable = messages.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_ours = message.pointer("/target/name")? == "blixard";
        message.get("executable").filter(|_| is_ours)?.as_str().map(PathBuf::from)
    });
    executable.next_back().with_context(|| format!("`{shown}` did not say where the binary is"))
}
