//! The little of QEMU's machine protocol (QMP) that a guard speaks.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

/// The longest message that is read; what we ask for is answered in a few hundred bytes.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// What is read at once: many times what a hypervisor has to say at any moment.
const RECEIVE_BYTES: usize = 4096;
/// Commands that wait for a hypervisor that does not read; each is some 40 bytes, and a stop repeats them for ever.
const OUTBOX_BYTES_MAX: usize = 4096;

/// By which the answer to a command is told from others.
const ASKED: &str = "asked";

/// What the hypervisor said that a guard cares about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// It takes commands.
    Ready,
    /// It will end, and why in its own words, such as `guest-shutdown`.
    Shutdown(String),
    /// How the command went that was sent with [`Monitor::execute_asking`] or [`Monitor::execute_with`].
    Answered(Result<(), String>),
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

    /// Sends a command as it is; nobody waits for its answer.
    pub(super) fn execute_plain(&mut self, command: &Value) {
        if self.is_ready {
            self.send(command);
        }
    }

    /// Sends a command whose answer is news. One at a time.
    pub(super) fn execute_asking(&mut self, command: &Value) {
        self.execute_plain(&asking(command));
    }

    /// Sends a command whose answer is news, and a file with it.
    pub(super) fn execute_with(&mut self, command: &Value, file: &File) -> io::Result<()> {
        self.flush();
        if !self.is_ready || self.is_closed || self.wants_write() {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "the hypervisor does not listen now"));
        }
        let line = format!("{}\n", asking(command));
        let files = [file.as_raw_fd()];
        let with = [ControlMessage::ScmRights(&files)];
        let parts = [IoSlice::new(line.as_bytes())];
        let sent = sendmsg::<()>(self.stream.as_raw_fd(), &parts, &with, MsgFlags::MSG_NOSIGNAL, None)?;
        self.outbox.extend_from_slice(&line.as_bytes()[sent..]);
        Ok(())
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

    /// Reads some of what has come; nothing when nothing has. Never all of it: a hypervisor that talks without end would keep
    /// its guard from everything else, the order to kill it included.
    pub(super) fn receive(&mut self) -> Option<Vec<News>> {
        if self.is_closed {
            return None;
        }
        let mut news = vec![];
        let mut buffer = [0; RECEIVE_BYTES];
        match self.stream.read(&mut buffer) {
            Ok(got @ 1..) => self.take(&buffer[..got], &mut news),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return None;
            }
            Ok(0) | Err(_) => self.close(&mut news),
        }
        Some(news)
    }

    fn take(&mut self, mut bytes: &[u8], news: &mut Vec<News>) {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            self.inbox.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.inbox);
            news.extend(self.understand(&line));
        }
        self.inbox.extend_from_slice(bytes);
        if self.inbox.len() > MESSAGE_BYTES_MAX {
            // Not a monitor that we know how to talk to; without one the vm can still be killed.
            self.close(news);
        }
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
            // Once: what follows from it writes a record to the disk.
            return (!std::mem::replace(&mut self.is_ready, true)).then_some(News::Ready);
        }
        if message.get("id").and_then(Value::as_str) == Some(ASKED) {
            let refusal = message.get("error");
            let detail =
                refusal.map(|error| error.get("desc").and_then(Value::as_str).unwrap_or("it said no").to_owned());
            return Some(News::Answered(detail.map_or(Ok(()), Err)));
        }
        if message.get("event").and_then(Value::as_str) == Some("SHUTDOWN") {
            let reason = message.pointer("/data/reason").and_then(Value::as_str).unwrap_or("unknown");
            return Some(News::Shutdown(reason.to_owned()));
        }
        None
    }
}

/// A command with the mark by which its answer is known.
fn asking(command: &Value) -> Value {
    let mut command = command.clone();
    command["id"] = json!(ASKED);
    command
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
        assert_eq!(monitor.receive(), Some(vec![]));
        let mut asked = [0; 256];
        let got = theirs.read(&mut asked).unwrap();
        assert!(!String::from_utf8_lossy(&asked[..got]).contains("system_powerdown"), "sent before it was ready");
        theirs.write_all(b"urn\": {}, \"id\": \"ready\"}\n").unwrap();
        assert_eq!(monitor.receive(), Some(vec![News::Ready]));
        theirs.write_all(b"not json\n{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-reset\"}}\n").unwrap();
        drop(theirs);
        assert_eq!(monitor.receive(), Some(vec![News::Shutdown("guest-reset".into())]));
        assert_eq!(monitor.receive(), Some(vec![News::Closed]));
        assert_eq!(monitor.receive(), None);
    }

    #[test]
    fn a_hypervisor_that_talks_without_end_is_heard_a_little_at_a_time() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut monitor = Monitor::new(ours).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let ready = b"{\"return\": {}, \"id\": \"ready\"}\n";
        let shutdown = b"{\"event\": \"SHUTDOWN\"}\n";
        while theirs.write_all(&[&ready[..], &shutdown[..]].concat()).is_ok() {}
        let heard = monitor.receive().unwrap();
        assert!((1..=RECEIVE_BYTES / shutdown.len()).contains(&heard.len()), "{}", heard.len());
        let rest: Vec<News> = std::iter::from_fn(|| monitor.receive()).flatten().collect();
        let times_ready = heard.iter().chain(&rest).filter(|news| **news == News::Ready).count();
        assert_eq!(times_ready, 1, "it comes up once, however often it says so");
    }

    #[test]
    fn a_message_without_end_closes_the_monitor() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut monitor = Monitor::new(ours).unwrap();
        let mut sent = 0;
        while !monitor.is_closed() {
            theirs.write_all(&[b'a'; RECEIVE_BYTES]).unwrap();
            sent += RECEIVE_BYTES;
            assert!(sent <= MESSAGE_BYTES_MAX + RECEIVE_BYTES, "{sent} bytes are kept of one message");
            monitor.receive();
        }
        assert!(sent > MESSAGE_BYTES_MAX);
    }
}
