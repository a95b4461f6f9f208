//! The sending half of a request's stream, which outlives the interest of the peer in it.
//!
//! A node that refuses a request answers before it has read all of it, and stops reading. For HTTP/1 a failed write is the
//! end of the exchange, so the answer, which is under way and says why, would be lost. Here what nobody reads goes nowhere.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

/// Takes writes for good that the peer does not want any more.
pub(super) struct HeardOut<S> {
    stream: S,
    is_stopped: bool,
}

impl<S> HeardOut<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, is_stopped: false }
    }

    /// What became of a write, or `nowhere` when the peer has stopped reading: that is the error of a stream which it resets, and
    /// the end of the connection has another.
    fn settle<T>(&mut self, written: Poll<io::Result<T>>, nowhere: T) -> Poll<io::Result<T>> {
        match written {
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                self.is_stopped = true;
                Poll::Ready(Ok(nowhere))
            }
            other => other,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HeardOut<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_stopped {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.settle(written, bytes.len())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_stopped {
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.settle(flushed, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_stopped {
            return Poll::Ready(Ok(()));
        }
        let ended = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.settle(ended, ())
    }
}
