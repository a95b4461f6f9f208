//! Requests about the caches of nodes: what is there and what would go, what stays, and whether it is still what it was.

use axum::extract::State;
use blixard_core::{Deed, EndpointId, ImageId, ImageName, NodeId, Rejection};
use futures::StreamExt;
use http::Method;
use serde::Deserialize;

use super::ask::{self, NO_BODY};
use super::queue::ASKED_AT_ONCE;
use super::transfers::About;
use super::view::STATUS_PATIENCE;
use super::{Asker, Freshness, Json, Path, Query, Server};
use crate::agent::{CachedImage, VerifyState};
use crate::api::fault::{Fault, FaultKind};
use crate::api::views::{CachedView, CollectedView, NodeCacheView, VerificationView, VerifiedState};

/// What can be done about an image on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, schemars::JsonSchema, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Pinning {
    /// It stays there whatever happens.
    Pin,
    /// It stays there as long as it is needed and there is room.
    Unpin,
}

pub(super) async fn list(State(server): State<Server>, asker: Asker) -> Json<Vec<NodeCacheView>> {
    let members = server.inner.raft.read(|state| {
        let member = |node: &blixard_core::Node| (node.id, node.endpoint);
        state.nodes.values().map(member).collect::<Vec<_>>()
    });
    let asked = futures::stream::iter(members).map(async |node| {
        if node.0 == server.inner.me {
            return here(&server).await;
        }
        let asked = ask::about_node(&server, node, asker.caller.0, Method::GET, "/cache", NO_BODY);
        let silent = match tokio::time::timeout(STATUS_PATIENCE, asked).await {
            Ok(Ok(view)) => return view,
            Ok(Err(fault)) => Fault::to_string(&fault),
            Err(_) => format!("node {} does not answer: nothing came within {} s", node.0, STATUS_PATIENCE.as_secs()),
        };
        NodeCacheView { node: node.0, silent: Some(silent), used_bytes: 0, max_bytes: None, images: Vec::new() }
    });
    let mut views: Vec<NodeCacheView> = asked.buffer_unordered(ASKED_AT_ONCE).collect().await;
    views.sort_by_key(|view| view.node);
    Json(views)
}

/// The cache of this node.
pub(super) async fn here(server: &Server) -> NodeCacheView {
    let usage = server.inner.agent.cache_usage().await;
    let cached = server.inner.agent.cached();
    let images = server.inner.raft.read(|state| {
        // One that was deleted a moment ago is on its way out.
        let known = |cached: CachedImage| {
            let image = state.images.get(&cached.image)?;
            Some(CachedView {
                image: image.name.clone(),
                image_id: image.id,
                bytes: image.manifest.bytes(),
                used_at: cached.used_at,
                pinned: cached.is_pinned,
                goes: cached.goes.as_ref().ok().copied(),
                stays: cached.goes.err(),
            })
        };
        cached.into_iter().filter_map(known).collect()
    });
    let (used_bytes, max_bytes) = (usage.used_bytes, usage.max_bytes);
    NodeCacheView { node: server.inner.me, silent: None, used_bytes, max_bytes, images }
}

pub(super) async fn collect(
    State(server): State<Server>,
    asker: Asker,
    Query(about): Query<About>,
) -> Result<Json<CollectedView>, Fault> {
    match about.elsewhere(&server)? {
        None => Ok(Json(collect_here(&server).await)),
        Some(node) => {
            ask::about_node(&server, node, asker.caller.0, Method::POST, "/cache/gc", NO_BODY).await.map(Json)
        }
    }
}

/// Removes what nothing keeps on this node.
pub(super) async fn collect_here(server: &Server) -> CollectedView {
    let before = server.inner.agent.cache_usage().await.used_bytes;
    server.inner.images.collect().await;
    let used_bytes = server.inner.agent.cache_usage().await.used_bytes;
    CollectedView { node: server.inner.me, freed_bytes: before.saturating_sub(used_bytes), used_bytes }
}

/// The image of a name, also when it was added a moment ago through another node.
async fn image_id(server: &Server, name: &ImageName) -> Result<ImageId, Fault> {
    let look = || server.inner.raft.read(|state| state.image_named(name).map(|image| image.id));
    if look().is_none() {
        server.read_point(Freshness::default()).await?;
    }
    Ok(look().ok_or(Rejection::UnknownImage)?)
}

pub(super) async fn pin(
    State(server): State<Server>,
    asker: Asker,
    Path(name): Path<ImageName>,
    Query(about): Query<About>,
) -> Result<Json<NodeId>, Fault> {
    set_pin(&server, asker, &name, about, Pinning::Pin).await
}

pub(super) async fn unpin(
    State(server): State<Server>,
    asker: Asker,
    Path(name): Path<ImageName>,
    Query(about): Query<About>,
) -> Result<Json<NodeId>, Fault> {
    set_pin(&server, asker, &name, about, Pinning::Unpin).await
}

async fn set_pin(
    server: &Server,
    asker: Asker,
    name: &ImageName,
    about: About,
    pinning: Pinning,
) -> Result<Json<NodeId>, Fault> {
    let elsewhere = about.elsewhere(server)?;
    let image = image_id(server, name).await?;
    match elsewhere {
        None => pin_here(server, asker.caller.0, image, pinning).await.map(Json),
        Some(node) => {
            let word = if pinning == Pinning::Pin { "pin" } else { "unpin" };
            let path = format!("/cache/{image}/{word}");
            ask::about_node(server, node, asker.caller.0, Method::POST, &path, NO_BODY).await.map(Json)
        }
    }
}

/// Pins an image on this node, or no longer.
pub(super) async fn pin_here(
    server: &Server,
    client: EndpointId,
    image: ImageId,
    pinning: Pinning,
) -> Result<NodeId, Fault> {
    let me = server.inner.me;
    if pinning == Pinning::Pin {
        let (shares, holds) = server.inner.raft.read(|state| {
            let holds = state.images.get(&image).is_some_and(|image| image.holders.contains(&me));
            (state.nodes.get(&me).is_some_and(|node| node.shares_images), holds)
        });
        if !shares && !holds {
            let text =
                format!("node {me} does not hold the image and shares none (p2p_enabled is false): import it there");
            return Err(Fault::new(FaultKind::Conflict, text));
        }
    }
    server.inner.agent.pin(image, pinning == Pinning::Pin).await?;
    let deed = if pinning == Pinning::Pin { Deed::PinImage } else { Deed::UnpinImage };
    server.record(client, deed, server.image_here(image));
    Ok(me)
}

pub(super) async fn verify(
    State(server): State<Server>,
    asker: Asker,
    Path(name): Path<ImageName>,
    Query(about): Query<About>,
) -> Result<Json<VerificationView>, Fault> {
    about_copy(&server, asker, &name, about, Method::POST).await
}

pub(super) async fn verification(
    State(server): State<Server>,
    asker: Asker,
    Path(name): Path<ImageName>,
    Query(about): Query<About>,
) -> Result<Json<VerificationView>, Fault> {
    about_copy(&server, asker, &name, about, Method::GET).await
}

async fn about_copy(
    server: &Server,
    asker: Asker,
    name: &ImageName,
    about: About,
    method: Method,
) -> Result<Json<VerificationView>, Fault> {
    let elsewhere = about.elsewhere(server)?;
    let image = image_id(server, name).await?;
    match elsewhere {
        None if method == Method::POST => verify_here(server, image).map(Json),
        None => verification_here(server, image).map(Json),
        Some(node) => {
            let path = format!("/cache/{image}/verify");
            ask::about_node(server, node, asker.caller.0, method, &path, NO_BODY).await.map(Json)
        }
    }
}

/// Begins to read this node's copy of an image again.
pub(super) fn verify_here(server: &Server, image: ImageId) -> Result<VerificationView, Fault> {
    if !server.inner.raft.read(|state| state.images.contains_key(&image)) {
        return Err(Rejection::UnknownImage.into());
    }
    server.inner.agent.verify(image);
    verification_here(server, image)
}

/// How that goes, or how it went last.
pub(super) fn verification_here(server: &Server, image: ImageId) -> Result<VerificationView, Fault> {
    let me = server.inner.me;
    let name = server.inner.raft.read(|state| state.images.get(&image).map(|image| image.name.clone()));
    let name = name.ok_or(Rejection::UnknownImage)?;
    let known = server.inner.agent.verification(image);
    let known =
        known.ok_or_else(|| Fault::not_found(format!("node {me} has not verified the image since it started")))?;
    let mut view = VerificationView {
        image: name,
        node: me,
        state: VerifiedState::Running,
        bytes_done: known.bytes_done,
        bytes_total: known.bytes_total,
        damaged: Vec::new(),
        refetched: false,
        failure: None,
    };
    match known.state {
        VerifyState::Running => {}
        VerifyState::Sound => view.state = VerifiedState::Sound,
        VerifyState::Damaged { parts, is_refetched } => {
            (view.state, view.damaged, view.refetched) = (VerifiedState::Damaged, parts, is_refetched);
        }
        VerifyState::Failed(why) => (view.state, view.failure) = (VerifiedState::Failed, Some(why)),
    }
    Ok(view)
}
