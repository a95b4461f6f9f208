//! HTTP over streams: each request travels on a stream of its own, so that a slow one holds up no other.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context, anyhow};
use axum::body::Body;
use blixard_core::EndpointId;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tower::ServiceExt;

use super::heard_out::HeardOut;
use super::pace::{PacedBody, PacedSend};
use super::{Connection, refusal};

/// How long a caller may take to send the head of its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest head of a request or an answer.
const HEAD_BYTES_MAX: usize = 32 << 10;

/// Whose key is at the other end of the connection that a request came by.
#[derive(Debug, Clone, Copy)]
pub struct Caller(pub EndpointId);

/// Requests that are worked on at once for one key, over all its connections. A further one waits its turn.
#[derive(Debug)]
pub struct Requests {
    a_key_max: usize,
    // Held by the key's connections, so that nothing is kept of those who have gone.
    keys: Mutex<HashMap<EndpointId, Weak<Semaphore>>>,
}

impl Requests {
    /// So many for each key.
    pub fn new(a_key_max: usize) -> Arc<Self> {
        Arc::new(Self { a_key_max, keys: Mutex::default() })
    }

    fn of(&self, key: EndpointId) -> Arc<Semaphore> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = keys.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        keys.retain(|_, known| known.strong_count() > 0);
        let permits = Arc::new(Semaphore::new(self.a_key_max));
        keys.insert(key, Arc::downgrade(&permits));
        permits
    }
}

/// Serves a connection until it ends.
pub async fn serve(requests: Arc<Requests>, connection: Connection, app: axum::Router) {
    let caller = Caller(EndpointId(*connection.remote_id().as_bytes()));
    let permits = requests.of(caller.0);
    while let Ok((send, recv)) = connection.accept_bi().await {
        let app = app.clone();
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        tokio::spawn(async move {
            if let Err(error) = serve_stream(tokio::io::join(recv, PacedSend::new(send)), caller, app).await {
                tracing::debug!(peer = %caller.0.short(), %error, "a request ended early");
            }
            drop(permit);
        });
    }
}

/// Serves the one request of a stream.
pub(crate) async fn serve_stream<S>(stream: S, caller: Caller, app: axum::Router) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(caller);
        let answer = app.clone().oneshot(request.map(|body| Body::new(PacedBody::new(body))));
        async move { answer.await.map_err(|never: Infallible| never) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
}

/// Sends a request on a new stream, and returns its answer as soon as the head of it is there.
///
/// # Errors
/// When the peer refuses the connection, or the connection ends first.
pub async fn send(connection: &Connection, request: Request<Body>) -> anyhow::Result<Response<Incoming>> {
    let exchange = async {
        let (send, recv) = connection.open_bi().await.context("open stream")?;
        let (mut sender, driver) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(tokio::io::join(recv, HeardOut::new(send))))
            .await
            .context("start HTTP on the stream")?;
        tokio::spawn(async move {
            if let Err(error) = driver.with_upgrades().await {
                tracing::debug!(%error, "an answer ended early");
            }
        });
        sender.send_request(request).await.context("exchange request and answer")
    };
    match exchange.await {
        Ok(answer) => Ok(answer),
        Err(error) => match refusal(connection) {
            Some(reason) => Err(anyhow!("the node refused the connection: {reason}")),
            None => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connections_of_a_key_share_its_requests_and_leave_nothing() {
        let requests = Requests::new(2);
        let (one, other) = (EndpointId([1; 32]), EndpointId([2; 32]));
        let (first, second) = (requests.of(one), requests.of(one));
        let taken = (first.try_acquire(), second.try_acquire());
        assert!(second.try_acquire().is_err() && requests.of(one).try_acquire().is_err());
        assert!(requests.of(other).try_acquire().is_ok());
        drop(taken);
        drop((first, second));
        assert!(requests.of(one).try_acquire().is_ok());
        assert!(requests.keys.lock().is_ok_and(|keys| keys.len() <= 2), "those who have gone are forgotten");
    }
}
