//! How slow the other end of a stream may be. Whoever sends or takes nothing for too long is cut off, so that a request
//! takes up room for no longer than its sender makes use of it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::io::AsyncWrite;
use tokio::time::{Instant, Sleep, sleep};

use super::SendStream;

/// How long a sender may send nothing, and a reader take nothing.
const STALL_MAX: Duration = Duration::from_secs(30);
/// What the body of a request has to come at, once it has had [`STALL_MAX`] to begin with: the slowest line does better,
/// and a sender of single bytes does not.
const BODY_BYTES_A_SECOND_MIN: u64 = 1024;
/// The code with which a stream is cut off.
const TOO_SLOW: u32 = 408;

#[derive(Debug, thiserror::Error)]
#[error("the body comes too slowly: send at least {BODY_BYTES_A_SECOND_MIN} bytes a second, and do not pause for {} s", STALL_MAX.as_secs())]
struct TooSlow;

/// The body of a request, which ends with an error when it comes too slowly. Only time spent waiting for it counts.
pub(super) struct PacedBody {
    inner: Incoming,
    received: u64,
    waited: Duration,
    waiting: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl PacedBody {
    pub(super) fn new(inner: Incoming) -> Self {
        Self { inner, received: 0, waited: Duration::ZERO, waiting: None, timer: Box::pin(sleep(STALL_MAX)) }
    }

    /// How much longer may be waited now.
    fn patience(&self) -> Duration {
        let earned = STALL_MAX + Duration::from_secs(self.received / BODY_BYTES_A_SECOND_MIN);
        earned.saturating_sub(self.waited).min(STALL_MAX)
    }
}

impl Body for PacedBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            if let Some(since) = self.waiting.take() {
                self.waited += since.elapsed();
            }
            if let Some(Ok(data)) = frame.as_ref().map(|frame| frame.as_ref().map(Frame::data_ref)) {
                self.received += data.map_or(0, |data| data.len() as u64);
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        if self.waiting.is_none() {
            let now = Instant::now();
            let until = now + self.patience();
            self.waiting = Some(now);
            self.timer.as_mut().reset(until);
        }
        ready!(self.timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(TooSlow.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A stream to a reader, which is cut off when it takes nothing for too long.
pub(super) struct PacedSend {
    inner: SendStream,
    timer: Option<Pin<Box<Sleep>>>,
}

impl PacedSend {
    pub(super) fn new(inner: SendStream) -> Self {
        Self { inner, timer: None }
    }

    fn paced<T>(&mut self, cx: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.timer = None;
            return done;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(STALL_MAX)));
        ready!(timer.as_mut().poll(cx));
        // What waits to be sent is let go of; ending the stream in order would keep it. It may have ended meanwhile.
        let _ = self.inner.reset(TOO_SLOW.into());
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the reader takes nothing")))
    }
}

impl AsyncWrite for PacedSend {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let done = AsyncWrite::poll_write(Pin::new(&mut self.inner), cx, buf);
        self.paced(cx, done)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = AsyncWrite::poll_flush(Pin::new(&mut self.inner), cx);
        self.paced(cx, done)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = AsyncWrite::poll_shutdown(Pin::new(&mut self.inner), cx);
        self.paced(cx, done)
    }
}
