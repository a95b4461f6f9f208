//! Output that never holds up the connection it comes from.
//!
//! A reader that stops reading a stream can cost the whole connection, and a terminal can stop at any time (Ctrl-S, a slow
//! link, a pager). So what arrives goes into a bounded buffer, which a thread of its own writes out as fast as the output
//! takes it. What does not fit any more is dropped, oldest first, and a note says how much.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use anyhow::Context;
use tokio::sync::oneshot;

use super::super::output::output_result;

/// What is written at once: small enough that a stalled output leaves nearly all of the bound to the buffer.
const CHUNK_BYTES: usize = 16 << 10;

/// An output with a buffer before it.
pub(super) struct Screen {
    shared: Arc<Shared>,
    ended: oneshot::Receiver<io::Result<()>>,
    bytes_max: usize,
}

#[derive(Default)]
struct Shared {
    held: Mutex<Held>,
    changed: Condvar,
}

#[derive(Default)]
struct Held {
    bytes: VecDeque<u8>,
    dropped_bytes: u64,
    is_finished: bool,
}

impl Screen {
    /// Starts the thread that writes to `output`. At most `bytes_max` wait for it.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(output: impl Write + Send + 'static, bytes_max: usize) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (end, ended) = oneshot::channel();
        let source = shared.clone();
        let thread = std::thread::Builder::new().name("screen".to_owned());
        thread
            .spawn(move || {
                // Nobody listens any more when the command has ended before its output.
                let _ = end.send(copy(&source, output));
            })
            .context("start a thread")?;
        Ok(Self { shared, ended, bytes_max })
    }

    /// Takes bytes to be written. Never waits.
    pub(super) fn take(&self, bytes: &[u8]) {
        let mut held = self.shared.held.lock().expect("no holder of this lock panics");
        held.bytes.extend(bytes);
        let surplus = held.bytes.len().saturating_sub(self.bytes_max);
        held.bytes.drain(..surplus);
        held.dropped_bytes += surplus as u64;
        drop(held);
        self.shared.changed.notify_one();
    }

    /// Waits until the output has failed, as it does when its reader has gone.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        match (&mut self.ended).await {
            Ok(Err(error)) => output_result(Err(error)).expect_err("it is one"),
            // Before the end is announced, the thread ends by failing only.
            Ok(Ok(())) | Err(_) => anyhow::anyhow!("the output ended early"),
        }
    }

    /// Waits until everything is written, but no longer than `patience`.
    pub(super) async fn finish(self, patience: Duration) -> anyhow::Result<()> {
        self.shared.held.lock().expect("no holder of this lock panics").is_finished = true;
        self.shared.changed.notify_one();
        match tokio::time::timeout(patience, self.ended).await {
            Ok(Ok(result)) => output_result(result),
            // A terminal that does not take its output must not keep the user from leaving.
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }
}

fn copy(shared: &Shared, mut output: impl Write) -> io::Result<()> {
    loop {
        let held = shared.held.lock().expect("no holder of this lock panics");
        let is_idle = |held: &mut Held| held.bytes.is_empty() && !held.is_finished;
        let mut held = shared.changed.wait_while(held, is_idle).expect("no holder of this lock panics");
        if held.bytes.is_empty() {
            return Ok(());
        }
        let count = held.bytes.len().min(CHUNK_BYTES);
        let chunk: Vec<u8> = held.bytes.drain(..count).collect();
        let dropped_bytes = std::mem::take(&mut held.dropped_bytes);
        drop(held);
        if dropped_bytes > 0 {
            write!(
                output,
                "\r\n[{dropped_bytes} bytes are left out here: they came faster than they could be shown]\r\n"
            )?;
        }
        output.write_all(&chunk)?;
        output.flush()?;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// An output that takes a write only when the test lets it.
    struct Gated {
        gate: mpsc::Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.gate.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
            self.written.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated(bytes_max: usize) -> (mpsc::Sender<()>, Arc<Mutex<Vec<u8>>>, Screen) {
        let (open, gate) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let screen = Screen::start(Gated { gate, written: written.clone() }, bytes_max).unwrap();
        (open, written, screen)
    }

    #[tokio::test]
    async fn a_stalled_output_loses_the_oldest_and_says_so() {
        let (open, written, screen) = gated(10);
        for byte in 0..100_u8 {
            // As to a stalled terminal: this returns though nothing is taken.
            screen.take(&[b'0' + byte % 10]);
        }
        for _ in 0..100 {
            open.send(()).unwrap();
        }
        screen.finish(LONG).await.unwrap();
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert!(text.ends_with("0123456789"), "{text:?}");
        // Bytes may have been lost more than once: whoever writes can have begun with some of them while the others came.
        let (notes, shown): (Vec<&str>, Vec<&str>) = text.split("\r\n").partition(|part| part.starts_with('['));
        let lost = |note: &str| note.split(['[', ' ']).find_map(|word| word.parse::<usize>().ok()).unwrap();
        let lost: usize = notes.into_iter().map(lost).sum();
        assert!(lost > 0, "{text:?}");
        assert_eq!(lost + shown.iter().map(|part| part.len()).sum::<usize>(), 100, "{text:?}");
    }

    #[tokio::test]
    async fn everything_is_written_to_an_output_that_takes_it() {
        let (open, written, screen) = gated(1 << 20);
        let content: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        content.chunks(999).for_each(|chunk| screen.take(chunk));
        for _ in 0..1000 {
            open.send(()).unwrap();
        }
        screen.finish(LONG).await.unwrap();
        assert!(*written.lock().unwrap() == content);
    }

    #[tokio::test]
    async fn a_reader_that_goes_is_noticed_and_a_stuck_one_does_not_keep_us() {
        let (open, _written, mut screen) = gated(100);
        screen.take(b"x");
        drop(open);
        let error = tokio::time::timeout(LONG, screen.failed()).await.unwrap();
        assert!(error.is::<crate::failure::OutputClosed>(), "{error:?}");

        let (_open, _written, screen) = gated(100);
        screen.take(b"x");
        screen.finish(Duration::from_millis(50)).await.unwrap();
    }
}
