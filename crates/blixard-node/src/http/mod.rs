//! The TCP door, at the port of `bind` and 1000 more: what may be public and nothing else.
//!
//! `/bootstrap` tells a joiner whom to talk to, `/healthz` that the process lives, `/readyz` whether it can serve, `/metrics`
//! what it counts. No secret passes through here and no request changes anything. It starts before the node has joined, so
//! that it can say why the node is not ready, and stops when its task is dropped.

mod metrics;
mod places;
mod process;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use blixard_core::HEALTHY_WITHIN_MS;
use http::StatusCode;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::api::bootstrap::Bootstrap;
use crate::config::HTTP_PORT_OFFSET;
use crate::metrics::{Counters, Metrics, PeerBytes};
use crate::raft::Raft;
use crate::transport::Transport;
use places::Callers;

/// Connections served at once. Further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
/// The largest head of a request: several times what a browser or a scraper sends. The body of one is not read.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// How long a caller may take to send a request, and how long a connection may idle between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one connection may last: none of the answers takes a second.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// How far the node is.
#[derive(Debug, Clone)]
pub(crate) enum Stage {
    /// Not there yet, and why.
    Starting(String),
    /// A member of its cluster.
    Member(Bootstrap),
}

#[derive(Clone)]
struct Door {
    stage: watch::Receiver<Stage>,
    contact: watch::Receiver<bool>,
    seen: Seen,
}

/// What `/readyz` and `/metrics` tell of.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) raft: Raft,
    pub(crate) transport: Transport,
    pub(crate) metrics: Arc<Metrics>,
    /// Image content sent to and received from each peer.
    pub(crate) sent_bytes: Arc<PeerBytes>,
    pub(crate) received_bytes: Arc<PeerBytes>,
    /// What was received, by why it was fetched when it was.
    pub(crate) received_why: Counters<1>,
}

/// Opens the door.
///
/// # Errors
/// When the port cannot be bound.
pub(crate) async fn listen(bind: SocketAddr) -> anyhow::Result<TcpListener> {
    let port = bind.port().checked_add(HTTP_PORT_OFFSET).context("the HTTP port is beyond the last port")?;
    if bind.ip().is_unspecified() {
        // Takes IPv4 as well, as the UDP sockets together do. Hosts without IPv6 go on to the address as it was given.
        if let Ok(listener) = TcpListener::bind(SocketAddr::from(([0; 16], port))).await {
            return Ok(listener);
        }
    }
    let address = SocketAddr::new(bind.ip(), port);
    TcpListener::bind(address).await.with_context(|| format!("bind TCP {address}, the HTTP port that goes with {bind}"))
}

/// Serves for as long as the node runs. Never returns.
pub(crate) async fn run(
    listener: Arc<tokio::sync::Mutex<TcpListener>>,
    stage: watch::Receiver<Stage>,
    contact: watch::Receiver<bool>,
    seen: Seen,
) {
    let app = axum::Router::new()
        .route("/bootstrap", get(bootstrap))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(async || (StatusCode::NOT_FOUND, "there are /bootstrap, /healthz, /readyz and /metrics\n"))
        .with_state(Door { stage, contact, seen });
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let callers = Callers::default();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, caller) = match listener.lock().await.accept().await {
            // One caller cannot take the places of all: what is over its share is closed at once.
            Ok((stream, address)) => match callers.enter(address.ip()) {
                Some(caller) => (stream, caller),
                None => continue,
            },
            Err(error) => {
                tracing::warn!(%error, "an HTTP connection could not be accepted");
                // Out of file descriptors, most likely: wait for some to be closed.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let app = app.clone();
        tokio::spawn(async move {
            let serving = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(HEAD_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
            // Errors here are the caller's: a cut connection, or what is not HTTP.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, serving).await;
            drop((place, caller));
        });
    }
}

async fn bootstrap(State(door): State<Door>) -> Response {
    match &*door.stage.borrow() {
        Stage::Starting(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
        Stage::Member(facts) => axum::Json(facts.clone()).into_response(),
    }
}

async fn readyz(State(door): State<Door>) -> Response {
    let why_not = match &*door.stage.borrow() {
        Stage::Starting(why) => Some(why.clone()),
        Stage::Member(_) => None,
    };
    let view = door.seen.raft.view();
    let why_not = why_not.or_else(|| {
        let stopped = door.seen.metrics.store_alive.get() == 0;
        stopped
            .then(|| "the image store has stopped, perhaps on a full disk: make room and restart the node".to_owned())
    });
    let why_not = why_not.or_else(|| view.stopped.clone()).or_else(|| {
        let is_led = view.leader.is_some() && !view.lacks_majority(HEALTHY_WITHIN_MS) && *door.contact.borrow();
        let text = "no leader is known that hears from a majority of the voters: too few of them may be running";
        (!is_led).then(|| text.to_owned())
    });
    match why_not {
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
        None => "ready\n".into_response(),
    }
}

async fn metrics(State(door): State<Door>) -> Response {
    let kind = [(http::header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    (kind, metrics::text(&door.seen)).into_response()
}
