//! The serial console: from the guest to the log and to every viewer, from every viewer to the guest.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::poll::PollFlags;

use crate::log::LogWriter;

/// A console is shared by a few people, not by an audience.
pub(crate) const VIEWERS_MAX: usize = 16;
/// What a viewer that does not read may fall behind before it loses old output: some screens full.
pub(crate) const VIEWER_QUEUE_BYTES_MAX: usize = 64 * 1024;
/// What a new viewer is shown of the past: a screen or two.
pub(crate) const REPLAY_BYTES_MAX: usize = 4096;
/// Input that the guest has not read yet; beyond it the viewers wait.
const INPUT_BYTES_MAX: usize = 4096;

/// The guard's end of the serial console and of `console.sock`.
pub(super) struct Console {
    serial: UnixStream,
    serial_is_open: bool,
    listener: UnixListener,
    log: LogWriter,
    replay: VecDeque<u8>,
    input: VecDeque<u8>,
    viewers: Vec<Viewer>,
}

struct Viewer {
    stream: UnixStream,
    output: VecDeque<u8>,
    /// False once the viewer has said that it sends no more; it may still read.
    sends: bool,
    /// False once the viewer has said that it reads no more; what it typed before still counts.
    reads: bool,
}

impl Console {
    pub(super) fn new(serial: UnixStream, path: &str, log: LogWriter) -> io::Result<Console> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        serial.set_nonblocking(true)?;
        Ok(Console {
            serial,
            serial_is_open: true,
            listener,
            log,
            replay: VecDeque::with_capacity(REPLAY_BYTES_MAX),
            input: VecDeque::new(),
            viewers: vec![],
        })
    }

    pub(super) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// The serial line and what to wait for on it; none once the hypervisor has closed it.
    pub(super) fn serial(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, !self.input.is_empty());
        self.serial_is_open.then(|| (self.serial.as_fd(), flags))
    }

    /// The viewers and what to wait for on each.
    pub(super) fn viewers(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let has_room = self.input.len() < INPUT_BYTES_MAX;
        self.viewers.iter().map(move |viewer| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, has_room && viewer.sends);
            flags.set(PollFlags::POLLOUT, !viewer.output.is_empty());
            (viewer.stream.as_fd(), flags)
        })
    }

    pub(super) fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.viewers.len() < VIEWERS_MAX && stream.set_nonblocking(true).is_ok() {
                let mut viewer = Viewer { stream, output: self.replay.clone(), sends: true, reads: true };
                viewer.flush();
                self.viewers.push(viewer);
            }
        }
    }

    /// Moves bytes both ways on the serial line; false when the guest had nothing to say.
    pub(super) fn serve_serial(&mut self) -> bool {
        self.write_input();
        let mut buffer = [0; 16 * 1024];
        match self.serial.read(&mut buffer) {
            Ok(0) => self.serial_is_open = false,
            Ok(got) => {
                self.output(&buffer[..got]);
                return true;
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.serial_is_open = false,
        }
        false
    }

    fn output(&mut self, bytes: &[u8]) {
        // A full disk costs log lines, never the guest or its viewers.
        let _ = self.log.append(bytes);
        push_bounded(&mut self.replay, bytes, REPLAY_BYTES_MAX);
        for viewer in &mut self.viewers {
            if viewer.reads {
                push_bounded(&mut viewer.output, bytes, VIEWER_QUEUE_BYTES_MAX);
                viewer.flush();
            }
        }
    }

    /// Reads what a viewer typed and writes what it has not seen.
    pub(super) fn serve_viewer(&mut self, index: usize, happened: PollFlags) {
        let Some(viewer) = self.viewers.get_mut(index) else { return };
        viewer.flush();
        if viewer.sends && happened.contains(PollFlags::POLLIN) {
            let mut buffer = [0; 1024];
            match viewer.stream.read(&mut buffer) {
                Ok(0) => viewer.sends = false,
                Ok(got) => self.input.extend(&buffer[..got]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => viewer.sends = false,
            }
        } else if happened.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
            (viewer.sends, viewer.reads) = (false, false);
        }
        self.write_input();
    }

    fn write_input(&mut self) {
        while !self.input.is_empty() {
            match self.serial.write(self.input.as_slices().0) {
                Ok(written) if written > 0 => drop(self.input.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The hypervisor has gone; nobody will read this.
                _ => self.input.clear(),
            }
        }
    }

    /// Forgets the viewers that have gone; indexes change only here.
    pub(super) fn sweep(&mut self) {
        self.viewers.retain(|viewer| viewer.sends || viewer.reads);
    }

    /// Whether some viewer has not been sent everything yet.
    pub(super) fn has_unsent(&self) -> bool {
        self.viewers.iter().any(|viewer| !viewer.output.is_empty())
    }
}

impl Viewer {
    fn flush(&mut self) {
        while !self.output.is_empty() {
            match self.stream.write(self.output.as_slices().0) {
                Ok(written) if written > 0 => drop(self.output.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                _ => {
                    self.reads = false;
                    self.output.clear();
                }
            }
        }
    }
}

/// Appends bytes and drops the oldest beyond `bytes_max`.
fn push_bounded(queue: &mut VecDeque<u8>, bytes: &[u8], bytes_max: usize) {
    let bytes = &bytes[bytes.len().saturating_sub(bytes_max)..];
    let excess = (queue.len() + bytes.len()).saturating_sub(bytes_max);
    queue.drain(..excess);
    queue.extend(bytes);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_viewer_that_does_not_read_stalls_nobody_and_sees_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("console.sock");
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let mut console = Console::new(ours, socket.to_str().unwrap(), LogWriter::open(dir.path()).unwrap()).unwrap();
        let mut idle = UnixStream::connect(&socket).unwrap();
        console.accept();
        let pieces: usize = 2000;
        for piece in 0..pieces {
            guest.write_all(format!("{piece:0>999}\n").as_bytes()).unwrap();
            assert!(console.serve_serial());
        }
        assert!(console.viewers[0].output.len() <= VIEWER_QUEUE_BYTES_MAX);
        assert!(console.replay.len() <= REPLAY_BYTES_MAX);
        idle.set_nonblocking(true).unwrap();
        let mut seen = vec![];
        loop {
            let mut buffer = [0; 8192];
            match idle.read(&mut buffer) {
                Ok(got) => seen.extend_from_slice(&buffer[..got]),
                Err(_) if console.has_unsent() => console.serve_viewer(0, PollFlags::POLLOUT),
                Err(_) => break,
            }
        }
        assert!(seen.ends_with(format!("{:0>999}\n", pieces - 1).as_bytes()));
        assert!(seen.len() < pieces * 1000);
    }

    #[test]
    fn what_was_typed_counts_even_when_the_viewer_has_left() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("console.sock");
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let mut console = Console::new(ours, socket.to_str().unwrap(), LogWriter::open(dir.path()).unwrap()).unwrap();
        guest.write_all(b"a prompt").unwrap();
        console.serve_serial();
        UnixStream::connect(&socket).unwrap().write_all(b"halt\n").unwrap();
        console.accept();
        console.sweep();
        console.serve_viewer(0, PollFlags::POLLIN | PollFlags::POLLHUP);
        let mut typed = [0; 5];
        guest.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        guest.read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"halt\n");
        console.serve_viewer(0, PollFlags::POLLIN | PollFlags::POLLHUP);
        console.sweep();
        assert_eq!(console.viewers().count(), 0);
    }

    #[test]
    fn what_viewers_type_reaches_the_guest_in_full() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("console.sock");
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let mut console = Console::new(ours, socket.to_str().unwrap(), LogWriter::open(dir.path()).unwrap()).unwrap();
        let mut viewer = UnixStream::connect(&socket).unwrap();
        console.accept();
        viewer.write_all(b"ls\n").unwrap();
        viewer.shutdown(std::net::Shutdown::Write).unwrap();
        console.serve_viewer(0, PollFlags::POLLIN);
        console.serve_viewer(0, PollFlags::POLLIN);
        console.sweep();
        let mut typed = [0; 3];
        guest.read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"ls\n");
        guest.write_all(b"file").unwrap();
        console.serve_serial();
        let mut shown = [0; 4];
        viewer.read_exact(&mut shown).unwrap();
        assert_eq!(&shown, b"file", "a viewer that only reads is still a viewer");
        drop(viewer);
        console.serve_viewer(0, PollFlags::POLLHUP);
        console.sweep();
        assert_eq!(console.viewers().count(), 0);
    }
}
