//! Just enough of QEMU's control protocol to press the power button of a guest under test.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// QEMU answers within milliseconds, and a guest powers off in a tenth of a second, unless the host is very busy.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection to one QEMU.
pub(super) struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Qmp {
    /// Connects and leaves the negotiation mode.
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let writer = UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
        writer.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let mut qmp = Self { reader: BufReader::new(writer.try_clone()?), writer };
        let greeting = qmp.line()?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU greeted with {greeting}");
        }
        qmp.execute("qmp_capabilities")?;
        Ok(qmp)
    }

    /// Runs a command without arguments and returns what it returns.
    pub(super) fn execute(&mut self, command: &str) -> Result<Value> {
        let request = json!({ "execute": command });
        writeln!(self.writer, "{request}").with_context(|| format!("send {command} to QEMU"))?;
        loop {
            let answer = self.line().with_context(|| format!("wait for the answer to {command}"))?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            // Events may come in between; the ones that somebody waits for come later.
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
        }
    }

    /// Reads until QEMU reports the event, and returns what it says about it.
    pub(super) fn wait_for_event(&mut self, name: &str) -> Result<Value> {
        loop {
            let message = self.line().with_context(|| format!("wait for QEMU's event {name}"))?;
            if message["event"] == name {
                return Ok(message["data"].clone());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => bail!("QEMU closed its control socket"),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => bail!("QEMU said nothing for {ANSWER_TIMEOUT:?}"),
            Err(error) => return Err(error).context("read from QEMU"),
        }
        serde_json::from_str(&line).with_context(|| format!("QEMU sent something that is not JSON: {line}"))
    }
}
