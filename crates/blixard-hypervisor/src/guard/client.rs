//! The driver's end of `control.sock`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::time::Duration;

use super::control::{Answer, Order};
use crate::folder::{CONTROL_SOCKET, Folder};

/// A guard answers within a millisecond; this is for a host that is drowning.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer says why an order cannot be read. Where guests run as the node's user, one that broke out could answer.
const ANSWER_BYTES_MAX: u64 = 4096;

/// Orders a stop; returns when the guard has accepted it.
pub(crate) fn order_stop(folder: &Folder, timeout: Duration) -> io::Result<()> {
    send(folder, Order::Stop { timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX) })
}

/// Orders a kill; returns when the guard has accepted it.
pub(crate) fn order_kill(folder: &Folder) -> io::Result<()> {
    send(folder, Order::Kill)
}

/// Orders that a guest is changed over to the file of its base; returns when the guard has begun.
pub(crate) fn order_settle(folder: &Folder) -> io::Result<()> {
    send(folder, Order::Settle)
}

fn send(folder: &Folder, order: Order) -> io::Result<()> {
    let mut stream = folder.connect(CONTROL_SOCKET)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let mut line = serde_json::to_vec(&order)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    if BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut answer)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match serde_json::from_str(&answer)? {
        Answer::Accepted => Ok(()),
        Answer::Refused(why) => Err(io::Error::other(why)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn an_answer_without_end_is_not_heard_out() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(CONTROL_SOCKET)).unwrap();
        let guard = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut sent = 0;
            // The other end closes as soon as it has heard enough.
            while sent < 64 << 20 && stream.write_all(&[b'a'; 4096]).is_ok() {
                sent += 4096;
            }
            sent
        });
        let error = order_kill(&Folder::new(dir.path().to_owned())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        let sent = guard.join().unwrap();
        assert!(sent < 4 << 20, "{sent} bytes were taken for one answer");
    }
}
