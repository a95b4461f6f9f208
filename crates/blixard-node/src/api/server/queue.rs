//! Requests about the queues of transfers: of all nodes together, or of one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use axum::extract::State;
use blixard_core::{Deed, EndpointId, ImageId, ImageName, NodeId, Rejection, State as ClusterState};
use futures::StreamExt;
use http::Method;
use serde::Deserialize;

use super::ask::{self, NO_BODY};
use super::transfers::About;
use super::view::STATUS_PATIENCE;
use super::{Asker, Freshness, Json, Path, Query, Server};
use crate::api::fault::{Fault, FaultKind};
use crate::api::views::{NodeTransfersView, PeerBytesView, QueuedState, QueuedView, TransferOrder, TransferStatsView};
use crate::clock;
use crate::images::Direction;
use crate::metrics::{REUSED, outcome};
use crate::transfers::{Cancelled, FailureClass, Priority, TransferState, TransferStatus};

/// The latest deadline, in milliseconds from now: a month. What may take longer than that needs none.
const DEADLINE_MS_MAX: u64 = 31 * 24 * 3600 * 1000;
/// Nodes that are asked at once for their queues: the answers of many more would only wait for each other.
pub(super) const ASKED_AT_ONCE: usize = 32;

pub(super) async fn list(State(server): State<Server>, asker: Asker) -> Json<Vec<NodeTransfersView>> {
    let members = server.inner.raft.read(|state| {
        let member = |node: &blixard_core::Node| (node.id, node.endpoint);
        state.nodes.values().map(member).collect::<Vec<_>>()
    });
    let asked = futures::stream::iter(members).map(|node| of_node(&server, node, asker.caller.0));
    let mut views: Vec<NodeTransfersView> = asked.buffer_unordered(ASKED_AT_ONCE).collect().await;
    views.sort_by_key(|view| view.node);
    Json(views)
}

async fn of_node(server: &Server, node: (NodeId, EndpointId), client: EndpointId) -> NodeTransfersView {
    if node.0 == server.inner.me {
        return here(server);
    }
    let asked = ask::about_node(server, node, client, Method::GET, "/transfers", NO_BODY);
    let silent = match tokio::time::timeout(STATUS_PATIENCE, asked).await {
        Ok(Ok(view)) => return view,
        Ok(Err(fault)) => fault.message,
        Err(_) => format!("node {} does not answer: nothing came within {} s", node.0, STATUS_PATIENCE.as_secs()),
    };
    NodeTransfersView { node: node.0, silent: Some(silent), transfers: Vec::new(), stats: TransferStatsView::default() }
}

/// The transfers of this node.
pub(super) fn here(server: &Server) -> NodeTransfersView {
    let (listed, now) = (server.inner.transfers.list(), Instant::now());
    let pulled = server.inner.catalogs.names();
    let transfers = server.inner.raft.read(|state| {
        let known = |(image, status)| queued(state, &pulled, image, status, now);
        listed.into_iter().filter_map(known).collect()
    });
    NodeTransfersView { node: server.inner.me, silent: None, transfers, stats: stats(server) }
}

/// A transfer; nothing when its image was deleted a moment ago, and the queue will forget it.
fn queued(
    state: &ClusterState,
    pulled: &BTreeMap<ImageId, ImageName>,
    image: ImageId,
    status: TransferStatus,
    now: Instant,
) -> Option<QueuedView> {
    let TransferStatus { priority, progress, bytes_per_s, sources, failures, failure, deadline, .. } = status;
    let (state_word, retry_at) = match status.state {
        TransferState::Queued => (QueuedState::Queued, None),
        TransferState::Running => (QueuedState::Running, None),
        TransferState::Paused => (QueuedState::Paused, None),
        TransferState::Failed { retry_at } => (QueuedState::Failed, retry_at),
    };
    let milliseconds = |span: std::time::Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let missing = progress.bytes_total.saturating_sub(progress.bytes_done);
    let is_running = state_word == QueuedState::Running;
    Some(QueuedView {
        image: state.images.get(&image).map(|image| &image.name).or(pulled.get(&image))?.clone(),
        image_id: image,
        priority: priority.word().to_owned(),
        state: state_word,
        bytes_done: progress.bytes_done,
        bytes_total: progress.bytes_total,
        bytes_reused: progress.bytes_reused,
        bytes_zero: progress.bytes_zero,
        bytes_per_s,
        eta_ms: (is_running && bytes_per_s > 0).then(|| missing.saturating_mul(1000) / bytes_per_s),
        sources: if is_running { progress.sources } else { 0 },
        holders: sources.iter().filter_map(|source| state.node_of(source)).map(|node| node.id).collect(),
        failures,
        failure_class: failure.as_ref().map(|failure| failure.class.word().to_owned()),
        failure: failure.map(|failure| failure.reason),
        retry_in_ms: retry_at.map(|at| milliseconds(at.saturating_duration_since(now))),
        deadline_in_ms: deadline.map(|at| milliseconds(at.saturating_duration_since(now))),
    })
}

fn stats(server: &Server) -> TransferStatsView {
    let metrics = &server.inner.metrics;
    let fetched = |priority: Priority| {
        let word = priority.word();
        (word.to_owned(), metrics.fetched_bytes.get_or_create(&[("priority", word.into())]).get())
    };
    let reused = |source: &'static str| {
        (source.to_owned(), metrics.reused_bytes.get_or_create(&[("source", source.into())]).get())
    };
    let failed = |class: FailureClass| {
        let word = class.word();
        (word.to_owned(), metrics.transfer_failures.get_or_create(&[("class", word.into())]).get())
    };
    let limits = server.inner.transfers.limits();
    let (sent, received) = (limits.moved_bytes(Direction::Up).read(), limits.moved_bytes(Direction::Down).read());
    let keys: BTreeSet<EndpointId> = sent.keys().chain(received.keys()).copied().collect();
    let of = |bytes: &BTreeMap<EndpointId, u64>, key: &EndpointId| bytes.get(key).copied().unwrap_or(0);
    let peers = server.inner.raft.read(|state| {
        let peer = |key: &EndpointId| PeerBytesView {
            peer: state.node_of(key).map(|node| node.id),
            endpoint_id: *key,
            sent_bytes: of(&sent, key),
            received_bytes: of(&received, key),
        };
        keys.iter().map(peer).collect()
    });
    TransferStatsView {
        fetched_bytes: Priority::ALL.into_iter().map(fetched).collect(),
        reused_bytes: REUSED.into_iter().map(reused).collect(),
        done: metrics.fetches.get_or_create(&outcome(true)).get(),
        failed: FailureClass::ALL.into_iter().map(failed).collect(),
        peers,
    }
}

/// By when an image is to be there.
#[derive(Debug, Clone, Copy, Default, schemars::JsonSchema, Deserialize)]
pub(super) struct Deadline {
    /// In so many milliseconds from when the node is asked; without a number, whenever it comes.
    #[schemars(range(min = 1, max = DEADLINE_MS_MAX))]
    deadline_ms: Option<u64>,
}

pub(super) async fn fetch(
    State(server): State<Server>,
    asker: Asker,
    Path(name): Path<ImageName>,
    Query(about): Query<About>,
    Query(by): Query<Deadline>,
) -> Result<Json<NodeId>, Fault> {
    order(&server, asker, &name, about, TransferOrder::Fetch, by).await
}

impl Deadline {
    fn check(self) -> Result<(), Fault> {
        if self.deadline_ms.is_some_and(|ms| ms == 0 || ms > DEADLINE_MS_MAX) {
            let text = format!("a deadline is between 1 and {DEADLINE_MS_MAX} milliseconds from now");
            return Err(Fault::bad_request(text));
        }
        Ok(())
    }
}

pub(super) async fn pause(
    State(server): State<Server>,
    asker: Asker,
    Path(name): Path<ImageName>,
    Query(about): Query<About>,
) -> Result<Json<NodeId>, Fault> {
    order(&server, asker, &name, about, TransferOrder::Pause, Deadline::default()).await
}

pub(super) async fn resume(
    State(server): State<Server>,
    asker: Asker,
    Path(name): Path<ImageName>,
    Query(about): Query<About>,
) -> Result<Json<NodeId>, Fault> {
    order(&server, asker, &name, about, TransferOrder::Resume, Deadline::default()).await
}

pub(super) async fn cancel(
    State(server): State<Server>,
    asker: Asker,
    Path(name): Path<ImageName>,
    Query(about): Query<About>,
) -> Result<Json<NodeId>, Fault> {
    order(&server, asker, &name, about, TransferOrder::Cancel, Deadline::default()).await
}

/// Gives an order to the node that it is about, and says which that is.
async fn order(
    server: &Server,
    asker: Asker,
    name: &ImageName,
    about: About,
    order: TransferOrder,
    by: Deadline,
) -> Result<Json<NodeId>, Fault> {
    by.check()?;
    let elsewhere = about.elsewhere(server)?;
    let look = || {
        let known = server.inner.raft.read(|state| state.image_named(name).map(|image| image.id));
        // Those that come from other clusters are known to the node that pulls them alone.
        let pulled = || server.inner.catalogs.names().into_iter().find(|(_, pulled)| pulled == name);
        known.or_else(|| pulled().map(|(id, _)| id))
    };
    if look().is_none() {
        // It may have been added a moment ago through another node. One that is known is found without a leader, too.
        server.read_point(Freshness::default()).await?;
    }
    let image = look().ok_or(Rejection::UnknownImage)?;
    let client = asker.caller.0;
    match elsewhere {
        None => order_here(server, client, image, order, by).await.map(Json),
        Some(node) => {
            let deadline = by.deadline_ms.map_or_else(String::new, |ms| format!("?deadline_ms={ms}"));
            let path = format!("/transfers/{image}/{}{deadline}", order.word());
            ask::about_node(server, node, client, Method::POST, &path, NO_BODY).await.map(Json)
        }
    }
}

/// Carries out an order on this node.
pub(super) async fn order_here(
    server: &Server,
    client: EndpointId,
    image: ImageId,
    order: TransferOrder,
    by: Deadline,
) -> Result<NodeId, Fault> {
    by.check()?;
    let (me, transfers) = (server.inner.me, &server.inner.transfers);
    let not_here = || Fault::not_found(format!("the image is not on its way to node {me}"));
    match order {
        TransferOrder::Fetch => fetch_here(server, image, by).await?,
        TransferOrder::Pause if !transfers.pause(image).await? => return Err(not_here()),
        TransferOrder::Resume if !transfers.resume(image).await? => return Err(not_here()),
        TransferOrder::Pause | TransferOrder::Resume => {}
        TransferOrder::Cancel if server.inner.catalogs.give_up(image).await? => {}
        TransferOrder::Cancel => match transfers.cancel_request(image).await? {
            None => return Err(not_here()),
            Some(Cancelled::Gone) => {}
            Some(Cancelled::Wanted(priority)) => {
                let why = match priority {
                    Priority::VmWaiting => "a vm there waits for it",
                    Priority::Operator | Priority::Copy => "the cluster keeps a copy there",
                };
                let text = format!("node {me} goes on fetching the image: {why}; `blixard transfer pause` stops it");
                return Err(Fault::new(FaultKind::Conflict, text));
            }
        },
    }
    let deed = match order {
        TransferOrder::Fetch => Deed::FetchImage,
        TransferOrder::Pause => Deed::PauseTransfer,
        TransferOrder::Resume => Deed::ResumeTransfer,
        TransferOrder::Cancel => Deed::CancelTransfer,
    };
    let deadline = by.deadline_ms.map_or_else(String::new, |ms| format!(" deadline={ms}ms"));
    server.record(client, deed, format!("{}{deadline}", server.image_here(image)));
    Ok(me)
}

async fn fetch_here(server: &Server, image: ImageId, by: Deadline) -> Result<(), Fault> {
    let me = server.inner.me;
    let look = || {
        server.inner.raft.read(|state| {
            let shares = state.nodes.get(&me).is_some_and(|node| node.shares_images);
            state.images.get(&image).map(|image| (image.manifest.clone(), shares))
        })
    };
    if look().is_none() {
        // The node that passed the order on may know of the image for longer.
        server.read_point(Freshness::default()).await?;
    }
    let (manifest, shares) = look().ok_or(Rejection::UnknownImage)?;
    if server.inner.images.is_complete(&manifest).await.map_err(anyhow::Error::from)? {
        return Ok(());
    }
    if !shares {
        let text = format!("node {me} shares no images (p2p_enabled is false): import the image there");
        return Err(Fault::new(FaultKind::Conflict, text));
    }
    let deadline = by.deadline_ms.map(|ms| clock::now().plus_ms(ms));
    Ok(server.inner.agent.request(image, deadline).await?)
}
