//! The serving side of the contract: who asks, what is read, and which command a request becomes.

mod ask;
mod audit;
mod body;
mod cache;
mod catalogs;
mod clients;
mod cluster;
mod compare;
mod deeds;
mod documents;
mod events;
pub(crate) mod extract;
mod images;
mod logs;
mod openapi;
mod peer;
mod peers;
mod queue;
pub(super) mod routes;
mod shares;
pub(crate) mod tokens;
mod transfers;
mod view;
mod vms;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::extract::{FromRequestParts, MatchedPath, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use blixard_core::{
    Actor, Answer, BlobHash, Change, ClientRole, Command, ContentHash, EndpointId, NodeId, RequestId, RequestKey,
};
use http::StatusCode;
use http::request::Parts;
use tracing::{Instrument, info_span};

use super::REQUEST_HEADER;
use super::fault::{Fault, FaultKind};
use crate::agent::Agent;
use crate::catalogs::Catalogs;
use crate::clock;
use crate::documents::Documents;
use crate::images::{Images, ImportedBlob};
use crate::metrics::{Metrics, observe};
use crate::raft::Raft;
use crate::shares::Shares;
use crate::trace;
use crate::transfers::Transfers;
use crate::transport::http::{self as http_over, Caller, Requests};
use crate::transport::{Handler, PeerAddress, Transport};
use body::Body;
use deeds::Deeds;

/// The largest JSON body: user data of 64 KiB, escaped, and room to spare.
const BODY_BYTES_MAX: usize = 1 << 20;
/// The content type of bytes.
const BYTES: &str = "application/octet-stream";
/// Requests of one client that are worked on at once, followed logs and open consoles included.
const REQUESTS_A_CLIENT_MAX: usize = 256;
/// Requests of one member: it passes on those of all clients that ask it.
const REQUESTS_A_MEMBER_MAX: usize = 4096;

impl Deref for Inner {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.rooms
    }
}

/// What requests are served from. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Server {
    inner: Arc<Inner>,
}

/// The rooms that requests are served from, and the node they are of.
pub(crate) struct Served {
    pub(crate) me: NodeId,
    pub(crate) raft: Raft,
    pub(crate) transport: Transport,
    pub(crate) images: Images,
    pub(crate) documents: Documents,
    pub(crate) transfers: Transfers,
    pub(crate) shares: Shares,
    pub(crate) catalogs: Catalogs,
    pub(crate) agent: Agent,
    pub(crate) metrics: Arc<Metrics>,
}

struct Inner {
    rooms: Served,
    /// Blobs uploaded and not yet part of an image, and when they came.
    uploads: Mutex<BTreeMap<BlobHash, (ImportedBlob, Instant)>>,
    /// What was done for clients, and waits to be recorded.
    deeds: Deeds,
}

impl Server {
    pub(crate) fn new(rooms: Served) -> Self {
        let deeds = Deeds::new(rooms.raft.clone());
        Self { inner: Arc::new(Inner { rooms, uploads: Mutex::default(), deeds }) }
    }

    /// The handler of the control API.
    pub(crate) fn handler(&self) -> Handler {
        let (app, requests) = (self.routes(), Requests::new(REQUESTS_A_CLIENT_MAX));
        crate::transport::handler(move |connection| http_over::serve(requests.clone(), connection, app.clone()))
    }

    /// The handler of what members ask of each other.
    pub(crate) fn peer_handler(&self) -> Handler {
        let (app, requests) = (peer::routes(self.clone()), Requests::new(REQUESTS_A_MEMBER_MAX));
        crate::transport::handler(move |connection| http_over::serve(requests.clone(), connection, app.clone()))
    }

    fn routes(&self) -> axum::Router {
        let metrics = self.inner.metrics.clone();
        routes::all(self)
            // Holds for what is read whole. An upload is a stream that goes straight into the blob store.
            .layer(body_limit())
            .fallback(async || Fault::not_found("there is no such request in this API"))
            .method_not_allowed_fallback(async || {
                (StatusCode::METHOD_NOT_ALLOWED, Json(Fault::bad_request("this path does not take that method")))
            })
            .layer(axum::middleware::from_fn(move |request, next| measured(metrics.clone(), request, next)))
            .with_state(self.clone())
    }

    /// Where nodes of the cluster can be reached, this one first, for a ticket that names at most so many.
    fn addresses(&self, max: usize) -> Vec<PeerAddress> {
        let me = self.inner.transport.address();
        let others = self.inner.raft.read(|state| {
            let others = state.nodes.values().filter(|node| node.endpoint != me.endpoint).take(max.saturating_sub(1));
            let address = |node: &blixard_core::Node| PeerAddress {
                endpoint: node.endpoint,
                addresses: node.addresses.clone(),
                relay_url: node.relay_url.clone(),
            };
            others.map(address).collect::<Vec<_>>()
        });
        std::iter::once(me).chain(others).collect()
    }

    /// Waits until reads here see everything that was acknowledged before, unless the caller does not mind.
    async fn read_point(&self, freshness: Freshness) -> Result<(), Fault> {
        if !freshness.stale {
            self.inner.raft.barrier().await?;
        }
        Ok(())
    }

    /// What a request is answered that is not carried out, because it was before or because its id is another's. Asked before
    /// anything is looked up by name: what the first try removed is not there any more, and must not be reported as missing.
    fn answered(&self, asker: Asker) -> Option<Result<Answer, Fault>> {
        let request = RequestKey { id: asker.id?, content: asker.content };
        Some(self.inner.raft.read(|state| state.answer_to(request))?.map_err(Fault::from))
    }

    /// Whether a client may ask for what needs this role.
    async fn permit(&self, client: EndpointId, least: ClientRole) -> Result<(), Fault> {
        let look = || self.inner.raft.read(|state| state.client_may(client, least).map(drop));
        if look().is_ok() {
            return Ok(());
        }
        // What was granted a moment ago through another node may not have come here yet. Without a leader it never does,
        // and then what is known here holds.
        let _ = self.inner.raft.barrier().await;
        Ok(look()?)
    }

    /// Has a change written in the name of the caller.
    async fn change(&self, asker: Asker, change: Change) -> Result<Answer, Fault> {
        let by = Actor::Client(asker.caller.0);
        // Without an id of the caller's, one of our own: the command may be sent to more than one leader.
        let id = match asker.id {
            Some(id) => id,
            None => {
                let mut id = RequestId([0; 16]);
                getrandom::fill(&mut id.0).map_err(|error| Fault::new(FaultKind::Internal, error))?;
                id
            }
        };
        let request = Some(RequestKey { id, content: asker.content });
        let command = Command { request, at: clock::now(), by, change };
        Ok(self.inner.raft.propose(&command).await??)
    }
}

fn body_limit() -> axum::extract::DefaultBodyLimit {
    axum::extract::DefaultBodyLimit::max(BODY_BYTES_MAX)
}

/// Answers a request, and notes which it was, how it ended, and how long it took.
async fn measured(metrics: Arc<Metrics>, request: Request, next: Next) -> Response {
    // The route and not the path, which has names that users choose: labels must be few.
    let route = request.extensions().get::<MatchedPath>().map(|route| route.as_str().to_owned());
    let route = route.unwrap_or_else(|| "unknown".to_owned());
    let method = match request.method().as_str() {
        known @ ("GET" | "POST" | "PUT" | "DELETE") => known.to_owned(),
        _ => "OTHER".to_owned(),
    };
    let parent = request.headers().get(trace::HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
    let span =
        trace::under(parent, || info_span!(target: trace::TARGET, "request", otel.name = %format!("{method} {route}")));
    let start = Instant::now();
    let answer = next.run(request).instrument(span).await;
    observe(&metrics.api_times.get_or_create(&[("route", route.clone().into())]), start.elapsed());
    let labels =
        [("route", route.into()), ("method", method.into()), ("status", answer.status().as_str().to_owned().into())];
    metrics.api_requests.get_or_create(&labels).inc();
    answer
}

/// Who asks, and what tells the request from others. Of a request with a body it comes with the [`Body`].
#[derive(Debug, Clone, Copy)]
struct Asker {
    caller: Caller,
    id: Option<RequestId>,
    content: ContentHash,
}

impl Asker {
    fn of(parts: &Parts, body: &[u8]) -> Result<Self, Fault> {
        let caller = parts.extensions.get::<Caller>().copied();
        let caller = caller.ok_or_else(|| Fault::new(FaultKind::Forbidden, "the caller is not known"))?;
        let id = match parts.headers.get(REQUEST_HEADER) {
            None => None,
            Some(text) => {
                let id = text.to_str().ok().and_then(|text| text.parse().ok());
                Some(id.ok_or_else(|| Fault::bad_request(format!("{REQUEST_HEADER} must be 32 hexadecimal digits")))?)
            }
        };
        // By the names and the bytes that were sent, not by what they stand for: a retry sends the same once more, and by
        // then a name may stand for something else.
        let content = content(&[&caller.0.0, parts.method.as_str().as_bytes(), parts.uri.path().as_bytes(), body]);
        Ok(Self { caller, id, content })
    }

    /// The same request is another one at another node.
    fn about_this(self, node: NodeId) -> Self {
        Self { content: content(&[&self.content.0, &node.0.to_le_bytes()]), ..self }
    }
}

fn content(pieces: &[&[u8]]) -> ContentHash {
    let mut hasher = blake3::Hasher::new();
    for piece in pieces {
        // With their lengths, so that no two lists of pieces run together to the same bytes.
        hasher.update(&(piece.len() as u64).to_le_bytes()).update(piece);
    }
    let mut hash = ContentHash([0; 16]);
    hasher.finalize_xof().fill(&mut hash.0);
    hash
}

impl<S: Send + Sync> FromRequestParts<S> for Asker {
    type Rejection = Fault;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Fault> {
        Self::of(parts, &[])
    }
}

/// Whether a read may be out of date (`?stale=true`).
#[derive(Debug, Clone, Copy, Default, schemars::JsonSchema, serde::Deserialize)]
struct Freshness {
    #[serde(default)]
    stale: bool,
}

/// A part of a path, or a query, that is checked like a body.
struct Path<T>(T);

impl<S: Send + Sync, T: serde::de::DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Fault;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        path.map(|axum::extract::Path(value)| Self(value))
            .map_err(|rejection| Fault::bad_request(rejection.body_text()))
    }
}

struct Query<T>(T);

impl<S: Send + Sync, T: serde::de::DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Fault;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        query
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|rejection| Fault::bad_request(rejection.body_text()))
    }
}

/// An answer as JSON.
struct Json<T>(T);

impl<T: serde::Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}
