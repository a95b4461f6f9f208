//! Asking nodes through the `blixard` binary, with a time limit on each command.

use super::{Cluster, PATIENCE, POLL};
use crate::process;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

impl Cluster {
    /// A command of the binary under test in the cluster's own environment: nothing that the user has set for Blixard
    /// reaches it.
    pub(super) fn command<S: AsRef<str>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments.iter().map(AsRef::as_ref)).current_dir(&self.dir).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BLIXARD_") {
                command.env_remove(name);
            }
        }
        // The contexts of whoever runs this are none of its business.
        command.env("BLIXARD_STATE_DIR", self.state_dir()).env("BLIXARD_CONFIG_DIR", self.state_dir());
        command
    }

    /// A command that asks the given node.
    pub(crate) fn command_to(&self, node: u64, arguments: &[&str]) -> Command {
        let mut command = self.command(arguments);
        command.env("BLIXARD_NODE_ADDR", self.registry(node));
        command
    }

    /// What a command prints that asks the given node; an error when it does not end with 0.
    pub(crate) fn ask(&self, node: u64, arguments: &[&str]) -> Result<String> {
        self.type_into(node, arguments, "")
    }

    /// Like [`Cluster::ask`], with text for the command's standard input.
    pub(crate) fn type_into(&self, node: u64, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = self.command_to(node, arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let shown = process::shown(&command);
        let mut child = command.spawn().with_context(|| format!("start `{shown}`"))?;
        let mut stdin = child.stdin.take().expect("stdin was piped just now");
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (out, err) = (thread::spawn(|| all_of(stdout)), thread::spawn(|| all_of(stderr)));
        // What is typed is shorter than a pipe holds. A command that ended without reading it says why by itself.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let deadline = Instant::now() + PATIENCE;
        let ended = loop {
            if let Some(status) = child.try_wait().with_context(|| format!("wait for `{shown}`"))? {
                break Ok(status);
            }
            let late = || anyhow::anyhow!("it did not end within {PATIENCE:?}");
            let error = self.interrupt.check().err().or_else(|| (Instant::now() > deadline).then(late));
            if let Some(error) = error {
                child.kill().and_then(|()| child.wait()).with_context(|| format!("kill `{shown}`"))?;
                break Err(error);
            }
            thread::sleep(POLL);
        };
        let (out, err) = (out.join().expect("reading does not panic"), err.join().expect("reading does not panic"));
        let status = ended.with_context(|| format!("`{shown}` on node {node}: {}", err.trim()))?;
        ensure!(status.success(), "`{shown}` on node {node} ended with {status}: {}{}", err.trim(), out.trim());
        Ok(out)
    }

    /// What a command that asks the given node answers as JSON.
    pub(crate) fn ask_json(&self, node: u64, arguments: &[&str]) -> Result<Value> {
        let answer = self.ask(node, &[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&answer).with_context(|| format!("`blixard {}` answered {answer:?}", arguments.join(" ")))
    }
}

fn all_of(stream: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        // What was read before a failure is what there is to show.
        let _ = stream.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn at<'a, T>(view: &'a Value, pointer: &str, kind: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<T> {
    match view.pointer(pointer).and_then(read) {
        Some(found) => Ok(found),
        None => bail!("no {kind} at {pointer} of {view}"),
    }
}

/// The number at a JSON pointer.
pub(crate) fn unsigned(view: &Value, pointer: &str) -> Result<u64> {
    at(view, pointer, "number", Value::as_u64)
}

/// The text at a JSON pointer.
pub(crate) fn text<'a>(view: &'a Value, pointer: &str) -> Result<&'a str> {
    at(view, pointer, "text", Value::as_str)
}

/// The list at a JSON pointer.
pub(crate) fn array<'a>(view: &'a Value, pointer: &str) -> Result<&'a Vec<Value>> {
    at(view, pointer, "list", Value::as_array)
}
