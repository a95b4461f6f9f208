//! The little of QEMU's machine protocol (QMP) that a guard speaks.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

/// The longest message that is read; what we ask for is answered in a few hundred bytes.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Commands that wait for a hypervisor that does not read; each is some 40 bytes, and a stop repeats them for ever.
const OUTBOX_BYTES_MAX: usize = 4096;

/// What the hypervisor said that a guard cares about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// It takes commands.
    Ready,
    /// It will end, and why in its own words, such as `guest-shutdown`.
    Shutdown(String),
    /// It closed the monitor: it is ending.
    Closed,
}

/// Our end of the monitor.
pub(super) struct Monitor {
    stream: UnixStream,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    is_ready: bool,
    is_closed: bool,
}

impl Monitor {
    pub(super) fn new(stream: UnixStream) -> io::Result<Monitor> {
        stream.set_nonblocking(true)?;
        Ok(Monitor { stream, inbox: vec![], outbox: vec![], is_ready: false, is_closed: false })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    pub(super) fn wants_write(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Sends a command without arguments. Before the monitor is ready it would only be refused, so it is dropped.
    pub(super) fn execute(&mut self, command: &str) {
        if self.is_ready {
            self.send(&json!({ "execute": command }));
        }
    }

    fn send(&mut self, message: &Value) {
        let line = format!("{message}\n");
        if self.outbox.len() + line.len() <= OUTBOX_BYTES_MAX {
            self.outbox.extend_from_slice(line.as_bytes());
            self.flush();
        }
    }

    /// Writes what waits, as far as the hypervisor reads.
    pub(super) fn flush(&mut self) {
        while !self.outbox.is_empty() {
            match self.stream.write(&self.outbox) {
                Ok(written) if written > 0 => drop(self.outbox.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Gone: its end is noticed by its process, not here.
                _ => self.outbox.clear(),
            }
        }
    }

    /// Reads what has come.
    pub(super) fn receive(&mut self) -> Vec<News> {
        let mut news = vec![];
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => break self.close(&mut news),
                Ok(got) => self.inbox.extend_from_slice(&buffer[..got]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break self.close(&mut news),
            }
            while let Some(end) = self.inbox.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.inbox.drain(..=end).collect();
                news.extend(self.understand(&line));
            }
            if self.inbox.len() > MESSAGE_BYTES_MAX {
                // Not a monitor that we know how to talk to; without one the vm can still be killed.
                break self.close(&mut news);
            }
        }
        news
    }

    fn close(&mut self, news: &mut Vec<News>) {
        self.is_closed = true;
        news.push(News::Closed);
    }

    fn understand(&mut self, line: &[u8]) -> Option<News> {
        let message: Value = serde_json::from_slice(line).ok()?;
        if message.get("QMP").is_some() {
            self.send(&json!({ "execute": "qmp_capabilities", "id": "ready" }));
            return None;
        }
        if message.get("id").and_then(Value::as_str) == Some("ready") && message.get("return").is_some() {
            self.is_ready = true;
            return Some(News::Ready);
        }
        if message.get("event").and_then(Value::as_str) == Some("SHUTDOWN") {
            let reason = message.pointer("/data/reason").and_then(Value::as_str).unwrap_or("unknown");
            return Some(News::Shutdown(reason.to_owned()));
        }
        None
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn greeting_readiness_and_shutdown_are_understood() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut monitor = Monitor::new(ours).unwrap();
        monitor.execute("system_powerdown");
        theirs.write_all(b"{\"QMP\": {}}\r\n{\"ret").unwrap();
        assert_eq!(monitor.receive(), []);
        let mut asked = [0; 256];
        let got = theirs.read(&mut asked).unwrap();
        assert!(!String::from_utf8_lossy(&asked[..got]).contains("system_powerdown"), "sent before it was ready");
        theirs.write_all(b"urn\": {}, \"id\": \"ready\"}\n").unwrap();
        assert_eq!(monitor.receive(), [News::Ready]);
        theirs.write_all(b"not json\n{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-reset\"}}\n").unwrap();
        drop(theirs);
        assert_eq!(monitor.receive(), [News::Shutdown("guest-reset".into()), News::Closed]);
    }
}
