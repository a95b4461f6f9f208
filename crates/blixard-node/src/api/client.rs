//! The client side of the control API.

mod access;
mod cache;
mod catalogs;
mod documents;
mod guests;
mod shares;
mod transfers;

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use axum::body::Body;
use blixard_core::{EndpointId, ImageName, NodeId, RequestId, Settings, VmName};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt};

pub use guests::{LogStart, VmLog};

use super::REQUEST_HEADER;
use super::fault::{Fault, FaultKind};
use super::views::{
    AddImage, BlobView, ClusterView, ComparedView, CreateVm, EventFilter, EventView, ExplainView, ImageView,
    RemoveNode, StopVm, VmView,
};
use crate::trace::{self, TraceContext};
use crate::transport::{self, Connection, PeerAddress, Protocol, SecretKey, Transport, TransportConfig, http as wire};

/// Tries of a request whose connection failed: the node may be restarting, or another of the ticket's nodes may answer.
const TRIES_MAX: u32 = 3;
/// The wait between two tries.
const RETRY_WAIT: Duration = Duration::from_millis(300);
/// The largest JSON answer: a list of 100,000 vms.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// The longest line of what is followed: a vm with all it may have, many times over.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// How long a request that only asks may take. The node itself gives up on a missing leader sooner.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A client of the control API, connected to one node.
#[derive(Debug, Clone)]
pub struct Client {
    transport: Transport,
    peers: Vec<PeerAddress>,
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The node answered with a fault.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The node refused this client's key.
    #[error("{0}. This client's key is {1}")]
    Refused(String, EndpointId),
    /// No node could be reached.
    #[error("no node could be reached")]
    Unreachable(#[source] anyhow::Error),
    /// A node was reached, and the connection ended before its answer was there.
    #[error("the connection to the node was lost before its answer")]
    Lost(#[source] anyhow::Error),
    /// The answer is not one that this version of Blixard can read.
    #[error("the node's answer cannot be read")]
    Unreadable(#[source] anyhow::Error),
    /// The request is about the node that gets it, and several may.
    #[error("any of {0} nodes may be asked, and the one that is would do this itself")]
    Ambiguous(usize),
}

/// The filter as the rest of a query.
fn filter_query(filter: &EventFilter) -> String {
    let vm = filter.vm.as_ref().map_or_else(String::new, |vm| format!("&vm={vm}"));
    let node = filter.node.map_or_else(String::new, |node| format!("&node={node}"));
    vm + &node
}

fn unreachable(error: impl Into<anyhow::Error>) -> ClientError {
    ClientError::Unreachable(error.into())
}

/// The content of an answer as it comes.
fn pieces_of(answer: Response<Incoming>) -> impl Stream<Item = std::io::Result<Bytes>> + Send + use<> {
    answer.into_body().into_data_stream().map_err(std::io::Error::other)
}

/// The values of a stream of JSON lines.
fn lines_of<T: DeserializeOwned + Send + 'static>(
    bytes: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    what: &'static str,
) -> BoxStream<'static, anyhow::Result<T>> {
    let lines = tokio_util::io::StreamReader::new(Box::pin(bytes));
    futures::stream::try_unfold(lines, move |mut lines| async move {
        let mut line = Vec::new();
        let read = (&mut lines).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
        if read.with_context(|| format!("follow {what}"))? == 0 {
            return Ok(None);
        }
        if line.len() as u64 == LINE_BYTES_MAX && !line.ends_with(b"\n") {
            bail!("a line about {what} has more than {LINE_BYTES_MAX} bytes");
        }
        let value = serde_json::from_slice(&line).with_context(|| format!("read a line about {what}"))?;
        Ok(Some((value, lines)))
    })
    .boxed()
}

impl Client {
    /// Opens an endpoint with the user's key. Nodes are connected to when the first request needs them.
    ///
    /// # Errors
    /// When no socket can be opened.
    pub async fn open(key: SecretKey, peers: Vec<PeerAddress>) -> anyhow::Result<Self> {
        let relays = peers.iter().filter_map(|peer| peer.relay_url.clone()).collect();
        let bind = vec![std::net::SocketAddr::from(([0, 0, 0, 0], 0)), std::net::SocketAddr::from(([0; 16], 0))];
        let transport = Transport::open(TransportConfig { key, bind, relays }).await?;
        for peer in &peers {
            transport.learn(peer);
        }
        Ok(Self { transport, peers })
    }

    /// This client, which can turn to the other members of the cluster as well when a node does not answer.
    ///
    /// # Errors
    /// When no node answers.
    pub async fn with_members(&self) -> Result<Self, ClientError> {
        let mut peers = self.peers.clone();
        for node in self.cluster(true).await?.nodes {
            let (endpoint, addresses, relay_url) = (node.endpoint_id, node.addresses, node.relay_url);
            if !peers.iter().any(|peer| peer.endpoint == endpoint) {
                let peer = PeerAddress { endpoint, addresses, relay_url };
                self.transport.learn(&peer);
                peers.push(peer);
            }
        }
        Ok(Self { peers, ..self.clone() })
    }

    /// Turns to another of the nodes first from now on, because this one answers and cannot help.
    pub fn turn_away(&mut self) {
        let first = self.peers.len().min(1);
        self.peers.rotate_left(first);
    }

    /// Closes the connection, so that the node need not wait for it to time out.
    pub async fn close(&self) {
        self.transport.close().await;
    }

    /// Connects to the first of the nodes that can be connected to.
    async fn reach(&self) -> Result<Connection, ClientError> {
        let mut last = anyhow!("no node is named");
        for peer in &self.peers {
            match self.transport.connect(peer.endpoint, Protocol::Api).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error.into(),
            }
        }
        Err(unreachable(last))
    }

    /// Sends a request once, and gives the answer as it is.
    pub(super) async fn pass(&self, request: Request<Body>) -> Result<Response<Incoming>, ClientError> {
        let connection = self.reach().await?;
        wire::send(&connection, request).await.map_err(|error| match transport::refusal(&connection) {
            Some(reason) => ClientError::Refused(reason, self.transport.id()),
            None => ClientError::Lost(error),
        })
    }

    /// Sends a request once. An answer that is a fault is an error.
    async fn once(&self, mut request: Request<Body>) -> Result<Response<Incoming>, ClientError> {
        if let Some(Ok(context)) = TraceContext::current().map(|context| context.to_string().parse()) {
            request.headers_mut().insert(trace::HEADER, context);
        }
        let answer = self.pass(request).await?;
        let status = answer.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| ClientError::Lost(anyhow!("read the answer: {error}")))?.to_bytes();
        Err(serde_json::from_slice(&body).map_or_else(
            |_| Fault::new(FaultKind::Internal, format!("{status}: {}", String::from_utf8_lossy(&body))).into(),
            ClientError::Fault,
        ))
    }

    /// Sends a request with a JSON body, and again when the connection failed: the request id makes it one request.
    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| unreachable(anyhow!("draw a request id: {error}")))?;
        let body = match body {
            Some(body) => Bytes::from(serde_json::to_vec(body).map_err(unreachable)?),
            None => Bytes::new(),
        };
        let mut tries = 0;
        let mut was_lost = false;
        loop {
            tries += 1;
            let request = Request::builder()
                .method(method.clone())
                .uri(path)
                .header(http::header::HOST, "blixard")
                .header(http::header::CONTENT_TYPE, "application/json")
                .header(REQUEST_HEADER, RequestId(id).to_string())
                .body(Body::from(body.clone()))
                .map_err(unreachable)?;
            let attempt = async {
                let answer = self.once(request).await?;
                let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
                let body = body.map_err(|error| ClientError::Lost(anyhow!("read the answer: {error}")))?.to_bytes();
                let body = if body.is_empty() { b"null" } else { &body[..] };
                serde_json::from_slice(body).context("read its JSON").map_err(ClientError::Unreadable)
            };
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, attempt)
                .await
                .unwrap_or_else(|_| Err(ClientError::Lost(anyhow!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))));
            match answer {
                Err(ClientError::Lost(_)) if tries < TRIES_MAX => was_lost = true,
                // A node that was there a moment ago is likely restarting; one that never was is not worth another wait.
                Err(ClientError::Unreachable(_)) if was_lost && tries < TRIES_MAX => {}
                answer => return answer,
            }
            tokio::time::sleep(RETRY_WAIT).await;
        }
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, None::<&()>).await
    }

    async fn open_stream(&self, path: &str) -> Result<Response<Incoming>, ClientError> {
        let request = Request::get(path).header(http::header::HOST, "blixard").body(Body::empty());
        self.once(request.map_err(unreachable)?).await
    }

    async fn stream(&self, path: &str) -> Result<impl Stream<Item = std::io::Result<Bytes>> + use<>, ClientError> {
        Ok(pieces_of(self.open_stream(path).await?))
    }

    /// The cluster: current as of this call, or with `stale` as the asked node last knew it.
    ///
    /// # Errors
    /// See [`ClientError`]; so for all requests.
    pub async fn cluster(&self, stale: bool) -> Result<ClusterView, ClientError> {
        self.get(&format!("/v1/cluster?stale={stale}")).await
    }

    /// Changes the settings of the cluster.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn change_settings(&self, settings: &Settings) -> Result<ClusterView, ClientError> {
        self.call(Method::PUT, "/v1/cluster/settings", Some(settings)).await
    }

    /// Takes the node that is asked out of the cluster. It then stops.
    ///
    /// # Errors
    /// See [`ClientError`]. [`Ambiguous`](ClientError::Ambiguous) when the client knows more nodes than one: another would leave
    /// in place of the one that cannot be reached.
    pub async fn leave(&self, force: bool) -> Result<NodeId, ClientError> {
        if self.peers.len() > 1 {
            return Err(ClientError::Ambiguous(self.peers.len()));
        }
        self.call(Method::POST, "/v1/cluster/leave", Some(&RemoveNode { force })).await
    }

    /// Removes a node from the cluster.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn remove_node(&self, node: NodeId, force: bool) -> Result<(), ClientError> {
        self.call(Method::POST, &format!("/v1/nodes/{node}/remove"), Some(&RemoveNode { force })).await
    }

    /// Uploads a blob. It is sent once: an interrupted upload has to be started anew.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn upload<S>(&self, content: S) -> Result<BlobView, ClientError>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let request = Request::post("/v1/blobs")
            .header(http::header::HOST, "blixard")
            .body(Body::from_stream(content))
            .map_err(unreachable)?;
        let answer = self.once(request).await?;
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| ClientError::Lost(anyhow!("read the answer: {error}")))?.to_bytes();
        serde_json::from_slice(&body).context("read its JSON").map_err(ClientError::Unreadable)
    }

    /// Makes an image of uploaded blobs.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn add_image(&self, request: &AddImage) -> Result<ImageView, ClientError> {
        self.call(Method::POST, "/v1/images", Some(request)).await
    }

    /// The images.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn images(&self) -> Result<Vec<ImageView>, ClientError> {
        self.get("/v1/images").await
    }

    /// An image.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn image(&self, name: &ImageName) -> Result<ImageView, ClientError> {
        self.get(&format!("/v1/images/{name}")).await
    }

    /// How much of an image's disk another image has as well; without one, what of it is no content.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn compare_images(
        &self,
        name: &ImageName,
        base: Option<&ImageName>,
    ) -> Result<ComparedView, ClientError> {
        let with = base.map_or_else(String::new, |base| format!("?base={base}"));
        self.get(&format!("/v1/images/{name}/compare{with}")).await
    }

    /// Removes an image from the catalog.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete_image(&self, name: &ImageName) -> Result<(), ClientError> {
        self.call(Method::DELETE, &format!("/v1/images/{name}"), None::<&()>).await
    }

    /// The bytes of one part of an image: `disk`, `kernel`, `initrd` or `root`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn export_image(
        &self,
        name: &ImageName,
        part: &str,
    ) -> Result<impl Stream<Item = std::io::Result<Bytes>> + use<>, ClientError> {
        self.stream(&format!("/v1/images/{name}/parts/{part}")).await
    }

    /// Creates a vm.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn create_vm(&self, request: &CreateVm) -> Result<VmView, ClientError> {
        self.call(Method::POST, "/v1/vms", Some(request)).await
    }

    /// The vms.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn vms(&self, stale: bool) -> Result<Vec<VmView>, ClientError> {
        self.get(&format!("/v1/vms?stale={stale}")).await
    }

    /// A vm, with what its node sees of it now.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn vm(&self, name: &VmName) -> Result<VmView, ClientError> {
        self.get(&format!("/v1/vms/{name}")).await
    }

    /// Starts a vm.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn start_vm(&self, name: &VmName) -> Result<VmView, ClientError> {
        self.call(Method::POST, &format!("/v1/vms/{name}/start"), None::<&()>).await
    }

    /// Stops a vm.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn stop_vm(&self, name: &VmName, request: &StopVm) -> Result<VmView, ClientError> {
        self.call(Method::POST, &format!("/v1/vms/{name}/stop"), Some(request)).await
    }

    /// Restarts a vm.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn restart_vm(&self, name: &VmName, request: &StopVm) -> Result<VmView, ClientError> {
        self.call(Method::POST, &format!("/v1/vms/{name}/restart"), Some(request)).await
    }

    /// Deletes a vm and all its files.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete_vm(&self, name: &VmName) -> Result<(), ClientError> {
        self.call(Method::DELETE, &format!("/v1/vms/{name}"), None::<&()>).await
    }

    /// Why a vm is, or is not, on each node.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn explain_vm(&self, name: &VmName) -> Result<ExplainView, ClientError> {
        self.get(&format!("/v1/vms/{name}/explain")).await
    }

    /// A vm, and again whenever it changed, until it is gone.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn watch_vm(
        &self,
        name: &VmName,
    ) -> Result<impl Stream<Item = anyhow::Result<VmView>> + use<>, ClientError> {
        let bytes = self.stream(&format!("/v1/vms/{name}/watch")).await?;
        Ok(lines_of(bytes, "the vm"))
    }

    /// What happened last, oldest first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn events(&self, filter: &EventFilter, last: usize) -> Result<Vec<EventView>, ClientError> {
        self.get(&format!("/v1/events?last={last}{}", filter_query(filter))).await
    }

    /// What happened after the event of a number, and what happens from now on.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn watch_events(
        &self,
        filter: &EventFilter,
        after: u64,
    ) -> Result<impl Stream<Item = anyhow::Result<EventView>> + use<>, ClientError> {
        let bytes = self.stream(&format!("/v1/events/watch?after={after}{}", filter_query(filter))).await?;
        Ok(lines_of(bytes, "events"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn lines(
        pieces: impl IntoIterator<Item = Vec<u8>, IntoIter: Send + 'static>,
    ) -> BoxStream<'static, anyhow::Result<u32>> {
        let pieces = pieces.into_iter().map(|piece| Ok(Bytes::from(piece)));
        lines_of(futures::stream::iter(pieces), "a test")
    }

    #[tokio::test]
    async fn lines_are_read_however_they_are_cut_and_no_further_than_they_may_go() {
        let read: Vec<u32> = lines([b"1\n2".to_vec(), b"3\n4".to_vec()]).try_collect().await.unwrap();
        assert_eq!(read, [1, 23, 4]);
        let mut endless = lines(std::iter::repeat(vec![b'1'; 4096]));
        let error = endless.next().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("more than"), "{error:#}");
    }
}
