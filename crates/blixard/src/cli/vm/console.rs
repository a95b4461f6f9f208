//! `blixard vm console`: the guest's serial console in the user's terminal, or in a pipe.
//!
//! ```text
//! keyboard (thread) --keys--> connection --bytes--> Screen --(thread)--> terminal
//! ```
//! Both threads are apart from the connection, which nothing here ever keeps waiting. The console ends when the user
//! presses Ctrl-], the connection ends, the output is closed, a signal arrives, or a pipe at the input has ended and the
//! guest has had time to answer.

use std::io::{self, IsTerminal, Read};
use std::time::Duration;

use anyhow::Context;
use blixard_core::VmName;
use blixard_node::api::{Client, ClientError, FaultKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::super::output;
use super::screen::Screen;
use super::terminal::RawTerminal;
use super::text;
use crate::failure::{Exit, Failure};

/// Ctrl-], as for `telnet` and `virsh console`.
const LEAVE_KEY: u8 = 0x1d;
/// What may wait for a terminal that does not take its output: a long boot, without being felt in memory.
const SCREEN_BYTES_MAX: usize = 4 << 20;
/// How long the terminal may take the rest when the console has ended.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);
/// Chunks of keys that wait for the connection. A pipe waits; of a paste into a dead connection the rest is lost.
const KEYS_MAX: usize = 256;
/// Read at once from the keyboard or the connection.
const CHUNK_BYTES: usize = 4096;
/// After the end of a pipe at the input, the guest counts as done when it has been silent for so long...
const QUIET: Duration = Duration::from_secs(2);
/// ...or after this time, silent or not.
const QUIET_MAX: Duration = Duration::from_secs(15);

/// How long somebody may take to say what became of the vm whose console was closed.
const WORD_TIMEOUT: Duration = Duration::from_secs(15);
/// Looks at a vm whose console was closed while it still counts as running: that its guest has ended takes a moment to be told.
const LOOKS: usize = 3;
/// Between two of these.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// Why the console ended.
enum End {
    Left,
    Disconnected,
    InputAnswered,
    Signal,
}

/// Shows the console until one side has enough.
pub(super) async fn run(client: &Client, name: &VmName) -> anyhow::Result<()> {
    let console = client.vm_console(name).await?;
    // Whoever has lost the node that was asked needs another one to learn what became of the vm. The user need not wait for it.
    let known = client.clone();
    let members = AbortOnDropHandle::new(tokio::spawn(async move { known.with_members().await }));
    let is_terminal = io::stdin().is_terminal();
    if is_terminal {
        output::note(&format!("This is the console of vm {name}. Ctrl-] leaves it. Press Enter to see a prompt."));
    }
    let raw = if is_terminal { Some(RawTerminal::enter()?) } else { None };
    let end = exchange(console, is_terminal).await;
    drop(raw);
    if is_terminal {
        output::note("");
    }
    match end? {
        End::Left | End::InputAnswered => Ok(()),
        End::Disconnected => {
            let ask = async {
                match members.await {
                    Ok(Ok(client)) => why_closed(&client, name).await,
                    _ => why_closed(client, name).await,
                }
            };
            let asked = tokio::time::timeout(WORD_TIMEOUT, ask).await;
            let (exit, why) = asked.unwrap_or_else(|_| (Exit::Unreachable, "nobody says how the vm does".to_owned()));
            let failure = Failure::new(exit, format!("the console of vm {name} was closed: {why}"));
            let next_step = match exit {
                Exit::NotFound => "`blixard events` tells what became of it".to_owned(),
                _ => format!(
                    "`blixard vm console {name}` opens it again while the vm runs, `blixard vm logs {name}` shows what it said"
                ),
            };
            Err(failure.next_step(next_step).into())
        }
        End::Signal => Err(Failure::new(Exit::Interrupted, "a signal ended the console").into()),
    }
}

/// What became of a vm whose console was closed from the other end.
async fn why_closed(client: &Client, name: &VmName) -> (Exit, String) {
    let mut look = 1;
    loop {
        match client.vm(name).await {
            Ok(view) if view.phase == "running" && view.reason.is_none() => {
                if look == LOOKS {
                    let node = view.node.map_or_else(String::new, |node| format!(" on node {node}"));
                    return (Exit::Unreachable, format!("the connection was lost; the vm runs{node}"));
                }
            }
            Ok(view) => return (Exit::Unreachable, format!("the vm is {}", text::progress(&view, None))),
            Err(ClientError::Fault(fault)) if fault.kind == FaultKind::NotFound => {
                return (Exit::NotFound, fault.message);
            }
            Err(error) => {
                let error = anyhow::Error::from(error);
                return (Exit::Unreachable, format!("nobody says how the vm does ({error:#})"));
            }
        }
        look += 1;
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn exchange(
    console: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin,
    is_terminal: bool,
) -> anyhow::Result<End> {
    // Before the first key is read, so that no signal finds the terminal raw and nobody to put it back.
    let mut signals = [
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
        signal(SignalKind::quit())?,
    ];
    let [interrupt, terminate, hangup, quit] = &mut signals;
    let mut screen = Screen::start(io::stdout(), SCREEN_BYTES_MAX)?;
    let mut keyboard = Keyboard::start(is_terminal)?;
    let (mut reader, mut writer) = tokio::io::split(console);
    let mut heard = vec![0; CHUNK_BYTES];
    let mut input_ended: Option<Instant> = None;
    let mut last_heard = Instant::now();

    let mut typing = std::pin::pin!(async {
        while let Some(keys) = keyboard.keys.recv().await {
            writer.write_all(&keys).await?;
            writer.flush().await?;
        }
        io::Result::Ok(())
    });
    let end = loop {
        let quiet_at = input_ended.map(|ended| (last_heard.max(ended) + QUIET).min(ended + QUIET_MAX));
        tokio::select! {
            count = reader.read(&mut heard) => match count {
                Ok(0) | Err(_) => break End::Disconnected,
                Ok(count) => {
                    last_heard = Instant::now();
                    screen.take(&heard[..count]);
                }
            },
            result = &mut typing, if input_ended.is_none() => match result {
                Ok(()) => input_ended = Some(Instant::now()),
                Err(_) => break End::Disconnected,
            },
            () = tokio::time::sleep_until(quiet_at.unwrap_or_else(Instant::now)), if quiet_at.is_some() => break End::InputAnswered,
            // A keyboard that has gone has nobody at it any more.
            _ = &mut keyboard.left, if is_terminal => break End::Left,
            error = screen.failed() => return Err(error),
            _ = interrupt.recv() => break End::Signal,
            _ = terminate.recv() => break End::Signal,
            _ = hangup.recv() => break End::Signal,
            _ = quit.recv() => break End::Signal,
        }
    };
    screen.finish(FINISH_TIMEOUT).await?;
    Ok(end)
}

/// What the user types, read by a thread: standard input cannot be waited for in another way that always works.
struct Keyboard {
    keys: mpsc::Receiver<Vec<u8>>,
    left: oneshot::Receiver<()>,
}

impl Keyboard {
    fn start(is_terminal: bool) -> anyhow::Result<Self> {
        let (send, keys) = mpsc::channel(KEYS_MAX);
        let (leave, left) = oneshot::channel();
        let thread = std::thread::Builder::new().name("keyboard".to_owned());
        thread.spawn(move || read_keys(io::stdin(), is_terminal, &send, leave)).context("start a thread")?;
        Ok(Self { keys, left })
    }
}

fn read_keys(mut input: impl Read, is_terminal: bool, send: &mpsc::Sender<Vec<u8>>, leave: oneshot::Sender<()>) {
    let mut chunk = [0; CHUNK_BYTES];
    loop {
        let count = match input.read(&mut chunk) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let keys = &chunk[..count];
        if is_terminal {
            if keys.contains(&LEAVE_KEY) {
                // The other end is gone only when the console has ended already.
                let _ = leave.send(());
                return;
            }
            // Waiting here would keep Ctrl-] from being read.
            let _ = send.try_send(keys.to_vec());
        } else if send.blocking_send(keys.to_vec()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(input: &'static [u8], is_terminal: bool) -> (Vec<u8>, bool) {
        let (send, mut keys) = mpsc::channel(KEYS_MAX);
        let (leave, mut left) = oneshot::channel();
        read_keys(input, is_terminal, &send, leave);
        drop(send);
        let mut typed = Vec::new();
        while let Some(chunk) = keys.blocking_recv() {
            typed.extend(chunk);
        }
        (typed, left.try_recv().is_ok())
    }

    #[test]
    fn the_leave_key_leaves_a_terminal_and_is_data_in_a_pipe() {
        assert_eq!(read(b"ls\r", true), (b"ls\r".to_vec(), false));
        assert_eq!(read(b"\x1d", true), (vec![], true));
        assert_eq!(read(b"a\x1db", false), (b"a\x1db".to_vec(), false));
    }

    #[test]
    fn a_terminal_whose_keys_nobody_takes_still_leaves() {
        struct Endless(usize);
        impl Read for Endless {
            fn read(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
                self.0 += 1;
                chunk[0] = if self.0 > 2 * KEYS_MAX { LEAVE_KEY } else { b'x' };
                Ok(1)
            }
        }
        let (send, _keys) = mpsc::channel(KEYS_MAX);
        let (leave, mut left) = oneshot::channel();
        read_keys(Endless(0), true, &send, leave);
        assert!(left.try_recv().is_ok());
    }
}
