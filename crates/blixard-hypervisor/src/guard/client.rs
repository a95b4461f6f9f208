//! The driver's end of `control.sock`.

use std::io::{self, BufRead, BufReader, Write};
use std::time::Duration;

use super::control::{Answer, Order};
use crate::folder::{CONTROL_SOCKET, Folder};

/// A guard answers within a millisecond; this is for a host that is drowning.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Orders a stop; returns when the guard has accepted it.
pub(crate) fn order_stop(folder: &Folder, timeout: Duration) -> io::Result<()> {
    send(folder, Order::Stop { timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX) })
}

/// Orders a kill; returns when the guard has accepted it.
pub(crate) fn order_kill(folder: &Folder) -> io::Result<()> {
    send(folder, Order::Kill)
}

fn send(folder: &Folder, order: Order) -> io::Result<()> {
    let mut stream = folder.connect(CONTROL_SOCKET)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let mut line = serde_json::to_vec(&order)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    if BufReader::new(stream).read_line(&mut answer)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match serde_json::from_str(&answer)? {
        Answer::Accepted => Ok(()),
        Answer::Refused(why) => Err(io::Error::other(why)),
    }
}
