//! The control API for tools on one's own host that speak plain HTTP: each request is passed on with the user's key.
//!
//! Whoever reaches it acts as the user, so it is a socket file that only the user may open, or a loopback port that wants a
//! secret with each request: on loopback are all users of the host, and every web page in a browser there.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::response::IntoResponse;
use http::header::{AUTHORIZATION, CONNECTION, HOST, UPGRADE, WWW_AUTHENTICATE};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use super::client::{Client, ClientError};
use super::fault::{Fault, FaultKind};

/// Requests in hand at once; further ones wait. A tool that asks more at once is a loop that has gone wrong.
const REQUESTS_MAX: usize = 64;
/// How long a tool may take to say what it wants.
const HEAD_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Passes requests on to a client's nodes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Proxy {
    client: Client,
    secret: Option<Arc<str>>,
    permits: Arc<Semaphore>,
}

impl Proxy {
    /// A proxy that passes on what comes with this bearer token, or with none everything.
    pub fn new(client: Client, secret: Option<String>) -> Self {
        Self { client, secret: secret.map(Into::into), permits: Arc::new(Semaphore::new(REQUESTS_MAX)) }
    }

    /// Serves one connection of a tool until it ends.
    pub async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = hyper::service::service_fn(move |request| {
            let proxy = self.clone();
            async move { Ok::<_, Infallible>(proxy.answer(request).await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a tool's connection ended early");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if !self.is_allowed(&request) {
            let told = "the proxy wants the bearer token that it printed when it started";
            let wanted = [(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))];
            return (StatusCode::UNAUTHORIZED, wanted, Json(Fault::new(FaultKind::Forbidden, told))).into_response();
        }
        let Ok(_permit) = self.permits.acquire().await else {
            return Fault::new(FaultKind::Internal, "the proxy is ending").into_response();
        };
        let mut request = request.map(Body::new);
        let headers = request.headers_mut();
        headers.remove(AUTHORIZATION);
        // What holds between the tool and the proxy only. A console cannot be passed through here.
        headers.remove(CONNECTION);
        headers.remove(UPGRADE);
        headers.insert(HOST, HeaderValue::from_static("blixard"));
        match self.client.pass(request).await {
            Ok(answer) => answer.map(Body::new),
            Err(error) => {
                let kind = match error {
                    ClientError::Refused(..) => FaultKind::Forbidden,
                    ClientError::Lost(_) => FaultKind::Unknown,
                    _ => FaultKind::Unavailable,
                };
                Fault::new(kind, format!("{:#}", anyhow::Error::from(error))).into_response()
            }
        }
    }

    fn is_allowed<B>(&self, request: &Request<B>) -> bool {
        let Some(secret) = &self.secret else { return true };
        let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|text| text.strip_prefix("Bearer ")).unwrap_or_default();
        // By their hashes, so that the time it takes tells nothing of how much was right.
        blake3::hash(given.as_bytes()) == blake3::hash(secret.as_bytes())
    }
}
