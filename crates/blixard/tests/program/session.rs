//! A command as it runs in a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};

use super::{Bench, PATIENCE, eventually};

/// A command in a terminal of its own.
pub(crate) struct Session {
    pub(crate) child: Child,
    keyboard: File,
    terminal: OwnedFd,
    output: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Session {
    pub(crate) fn start(bench: &Bench, arguments: &[&str]) -> Self {
        Self::start_command(bench.command(arguments))
    }

    pub(crate) fn start_command(mut command: Command) -> Self {
        let pty = openpty(None, None).unwrap();
        let stdio = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        let mut reader = File::from(pty.master.try_clone().unwrap());
        let (send, output) = mpsc::channel();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut chunk) {
                if send.send(chunk[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, keyboard: File::from(pty.master), terminal: pty.slave, output, seen: String::new() }
    }

    pub(crate) fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    #[track_caller]
    pub(crate) fn sees(&mut self, text: &str) {
        self.finds(text, |seen| seen.contains(text).then_some(()));
    }

    /// Waits until there is something in what was printed so far.
    #[track_caller]
    pub(crate) fn finds<T>(&mut self, what: &str, mut look: impl FnMut(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look(&self.seen) {
                return found;
            }
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(chunk) => self.seen.push_str(&String::from_utf8_lossy(&chunk)),
                Err(error) => panic!("{what:?} is not there ({error}): {:?}", self.seen),
            }
        }
    }

    pub(crate) fn is_raw(&self) -> bool {
        !tcgetattr(self.terminal.as_fd()).unwrap().local_flags.contains(LocalFlags::ICANON)
    }

    pub(crate) fn becomes_raw(&self) {
        eventually("a raw terminal", || self.is_raw().then_some(()));
    }

    /// Interrupts the command, which has to end by that.
    #[track_caller]
    pub(crate) fn ends_when_interrupted(mut self) {
        super::signal(&self.child, nix::sys::signal::Signal::SIGINT);
        let status = eventually("the end of the command", || self.child.try_wait().unwrap());
        assert_eq!(status.code(), Some(130), "{:?}", self.seen);
    }

    #[track_caller]
    pub(crate) fn ends_with(mut self, code: i32) {
        let status = eventually("the end of the console", || self.child.try_wait().unwrap());
        assert_eq!(status.code(), Some(code), "{:?}", self.seen);
        assert!(!self.is_raw(), "the terminal was left raw");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It has ended, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
