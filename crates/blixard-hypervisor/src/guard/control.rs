//! `control.sock`: one JSON order per line, one JSON answer per line.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use serde::{Deserialize, Serialize};

/// Orders are given one at a time by one node; more connections than this are a mistake.
const CLIENTS_MAX: usize = 16;
/// The longest order is some 50 bytes.
const ORDER_BYTES_MAX: usize = 4096;

/// An order to a guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "order", deny_unknown_fields)]
pub(super) enum Order {
    Stop { timeout_ms: u64 },
    Kill,
    Settle,
}

/// What a guard says to an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Accepted,
    Refused(String),
}

/// The guard's end of `control.sock`.
pub(super) struct Control {
    listener: UnixListener,
    clients: Vec<Client>,
}

struct Client {
    stream: UnixStream,
    inbox: Vec<u8>,
    is_gone: bool,
}

impl Control {
    pub(super) fn bind(path: &str) -> io::Result<Control> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Control { listener, clients: vec![] })
    }

    pub(super) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    pub(super) fn clients(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.clients.iter().map(|client| client.stream.as_fd())
    }

    pub(super) fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() < CLIENTS_MAX && stream.set_nonblocking(true).is_ok() {
                self.clients.push(Client { stream, inbox: vec![], is_gone: false });
            }
        }
    }

    /// Reads from one client; gives each complete order to `carry_out` and sends back what it answers.
    pub(super) fn serve(&mut self, index: usize, mut carry_out: impl FnMut(Order) -> Answer) {
        let Some(client) = self.clients.get_mut(index) else { return };
        let mut buffer = [0; 1024];
        match client.stream.read(&mut buffer) {
            Ok(got) if got > 0 => client.inbox.extend_from_slice(&buffer[..got]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            _ => return client.is_gone = true,
        }
        while let Some(end) = client.inbox.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = client.inbox.drain(..=end).collect();
            let answer = match serde_json::from_slice(&line) {
                Ok(order) => carry_out(order),
                Err(error) => Answer::Refused(format!("not an order: {error}")),
            };
            let sent = serde_json::to_vec(&answer).map_err(io::Error::from).and_then(|mut line| {
                line.push(b'\n');
                client.stream.write_all(&line)
            });
            // A client that does not read its answers is not waited for.
            client.is_gone |= sent.is_err();
        }
        client.is_gone |= client.inbox.len() > ORDER_BYTES_MAX;
    }

    /// Forgets the clients that have gone; indexes change only here.
    pub(super) fn sweep(&mut self) {
        self.clients.retain(|client| !client.is_gone);
    }
}
