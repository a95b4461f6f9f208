//! Requests about what nodes share. Each share is on one node; it is made and stopped without a leader.

use axum::extract::State;
use blixard_core::{Deed, EndpointId, NodeId, Part, ShareId};
use futures::StreamExt;
use http::Method;

use super::ask::{self, NO_BODY};
use super::transfers::About;
use super::view::STATUS_PATIENCE;
use super::{Asker, Body, Json, Path, Query, Server};
use crate::api::fault::{Fault, FaultKind};
use crate::api::views::{CreateShare, CreatedShare, NodeSharesView, ShareState, ShareView};
use crate::clock;
use crate::shares::{Share, ShareError, ShareTicket, hash_of};

/// Nodes that are asked at once for what they share: the answers of many more would only wait for each other.
const ASKED_AT_ONCE: usize = 32;

async fn view(server: &Server, id: ShareId, share: Share) -> ShareView {
    let state = if share.is_over(clock::now()) {
        ShareState::Expired
    } else if server.inner.shares.is_whole(&share).await {
        ShareState::Ready
    } else {
        ShareState::Lost
    };
    ShareView {
        id,
        state,
        name: share.name,
        is_folder: share.is_folder,
        files: share.files,
        bytes: share.content.map_or(0, |content| content.bytes),
        created_at: share.created_at,
        expires_at: share.expires_at,
    }
}

/// What this node shares.
pub(super) async fn here(server: &Server) -> NodeSharesView {
    let mut shares = Vec::new();
    for (id, share) in server.inner.shares.list() {
        shares.push(view(server, id, share).await);
    }
    shares.sort_by_key(|share| share.created_at);
    NodeSharesView { node: server.inner.me, silent: None, shares }
}

pub(super) async fn list(State(server): State<Server>, asker: Asker) -> Json<Vec<NodeSharesView>> {
    let members = server.inner.raft.read(|state| {
        let member = |node: &blixard_core::Node| (node.id, node.endpoint);
        state.nodes.values().map(member).collect::<Vec<_>>()
    });
    let asked = futures::stream::iter(members).map(|node| of_node(&server, node, asker.caller.0));
    let mut views: Vec<NodeSharesView> = asked.buffer_unordered(ASKED_AT_ONCE).collect().await;
    views.sort_by_key(|view| view.node);
    Json(views)
}

async fn of_node(server: &Server, node: (NodeId, EndpointId), client: EndpointId) -> NodeSharesView {
    if node.0 == server.inner.me {
        return here(server).await;
    }
    let asked = ask::about_node(server, node, client, Method::GET, "/shares", NO_BODY);
    let silent = match tokio::time::timeout(STATUS_PATIENCE, asked).await {
        Ok(Ok(view)) => return view,
        Ok(Err(fault)) => fault.message,
        Err(_) => format!("node {} does not answer: nothing came within {} s", node.0, STATUS_PATIENCE.as_secs()),
    };
    NodeSharesView { node: node.0, silent: Some(silent), shares: Vec::new() }
}

fn fault(error: ShareError) -> Fault {
    match error {
        // The request is sound; what was uploaded before it is not.
        ShareError::Listing(_) | ShareError::TooMany => Fault::new(FaultKind::Conflict, error),
        ShareError::NoContent => Fault::not_found(error),
        ShareError::Exists(id) => {
            // This was a retry: the first try made the share, and its secret was lost with its answer.
            let text = "the share was made, but its ticket was lost on the way: stop it with `blixard share --stop";
            Fault::new(FaultKind::Unknown, format!("{text} {id}`, and share again"))
        }
        ShareError::Failed(error) => error.into(),
    }
}

/// The id of a new share. A request that is sent twice makes one.
pub(super) fn minted(asker: Asker) -> Result<ShareId, Fault> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| Fault::new(FaultKind::Internal, error))?;
    let mut id = ShareId([0; 8]);
    let of = asker.id.map_or(random, |id| id.0);
    blake3::Hasher::new().update(&of).update(&asker.content.0).finalize_xof().fill(&mut id.0);
    Ok(id)
}

pub(super) async fn create(
    State(server): State<Server>,
    Body(asker, request): Body<CreateShare>,
) -> Result<Json<CreatedShare>, Fault> {
    if request.ttl_ms == Some(0) {
        return Err(Fault::bad_request("a share that lasts no time makes no sense: give it some"));
    }
    let id = minted(asker)?;
    let listing = {
        let uploads = server.inner.uploads.lock().expect("no holder of this lock panics");
        uploads.get(&request.listing).map(|(blob, _)| Part { hash: request.listing, bytes: blob.bytes })
    };
    let Some(listing) = listing else {
        if server.inner.shares.list().contains_key(&id) {
            return Err(fault(ShareError::Exists(id)));
        }
        let text = format!("listing {} was not uploaded to this node, or an hour ago", request.listing.short());
        return Err(Fault::not_found(text));
    };
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|error| Fault::new(FaultKind::Internal, error))?;
    let expires_at = request.ttl_ms.map(|ttl_ms| clock::now().plus_ms(ttl_ms));
    let share = server.inner.shares.add(id, hash_of(&secret), listing, expires_at).await.map_err(fault)?;
    {
        let mut uploads = server.inner.uploads.lock().expect("no holder of this lock panics");
        let is_part = |hash| hash == share.listing.hash || share.content.is_some_and(|content| content.hash == hash);
        uploads.retain(|hash, _| !is_part(*hash));
    }
    let object = format!("{id} bytes={} node={}", share.content.map_or(0, |content| content.bytes), server.inner.me);
    server.record(asker.caller.0, Deed::CreateShare, object);
    let ticket = ShareTicket { node: server.inner.transport.address(), secret, listing }.to_string();
    Ok(Json(CreatedShare { ticket, share: view(&server, id, share).await }))
}

pub(super) async fn stop(
    State(server): State<Server>,
    asker: Asker,
    Path(share): Path<ShareId>,
    Query(about): Query<About>,
) -> Result<Json<NodeId>, Fault> {
    match about.elsewhere(&server)? {
        None => stop_here(&server, asker.caller.0, share).await.map(Json),
        Some(node) => {
            let path = format!("/shares/{share}");
            ask::about_node(&server, node, asker.caller.0, Method::DELETE, &path, NO_BODY).await.map(Json)
        }
    }
}

/// Stops a share of this node.
pub(super) async fn stop_here(server: &Server, client: EndpointId, share: ShareId) -> Result<NodeId, Fault> {
    if server.inner.shares.stop(share).await? {
        server.record(client, Deed::StopShare, format!("{share} node={}", server.inner.me));
        return Ok(server.inner.me);
    }
    Err(Fault::not_found(format!("node {} has no share {share}", server.inner.me)))
}
