//! Requests about image content on its way between nodes. Each is about one node, which is asked by the one that got it.

use axum::extract::State;
use blixard_core::{Deed, EndpointId, NodeId, Rejection};
use http::Method;
use serde::Deserialize;

use super::ask::{self, NO_BODY};
use super::{Asker, Body, Json, Query, Server};
use crate::api::fault::{Fault, FaultKind};
use crate::api::views::{LimitsView, PeerLimitsView, SetLimits};
use crate::images::{BYTES_PER_S_MIN, Rates};

/// The node that a request is about; without one, the node that is asked.
#[derive(Debug, Clone, Copy, schemars::JsonSchema, Deserialize)]
pub(super) struct About {
    node: Option<NodeId>,
}

impl About {
    /// Which other node is to be asked, if it is not this one.
    pub(super) fn elsewhere(self, server: &Server) -> Result<Option<(NodeId, EndpointId)>, Fault> {
        let Some(node) = self.node.filter(|node| *node != server.inner.me) else { return Ok(None) };
        Ok(Some((node, key_of(server, node)?)))
    }
}

fn key_of(server: &Server, node: NodeId) -> Result<EndpointId, Fault> {
    let key = server.inner.raft.read(|state| state.nodes.get(&node).map(|node| node.endpoint));
    Ok(key.ok_or(Rejection::UnknownNode(node))?)
}

pub(super) async fn limits(
    State(server): State<Server>,
    asker: Asker,
    Query(about): Query<About>,
) -> Result<Json<LimitsView>, Fault> {
    match about.elsewhere(&server)? {
        None => Ok(Json(limits_here(&server))),
        Some(node) => {
            ask::about_node(&server, node, asker.caller.0, Method::GET, "/transfers/limits", NO_BODY).await.map(Json)
        }
    }
}

pub(super) async fn set_limits(
    State(server): State<Server>,
    Query(about): Query<About>,
    Body(asker, limits): Body<SetLimits>,
) -> Result<Json<LimitsView>, Fault> {
    match about.elsewhere(&server)? {
        None => set_limits_here(&server, asker.caller.0, limits).await.map(Json),
        Some(node) => {
            let path = "/transfers/limits";
            ask::about_node(&server, node, asker.caller.0, Method::PUT, path, Some(&limits)).await.map(Json)
        }
    }
}

/// The limits of this node.
pub(super) fn limits_here(server: &Server) -> LimitsView {
    let kept = server.inner.transfers.kept();
    let peer = |(key, rates): (&EndpointId, &Rates)| PeerLimitsView {
        peer: server.inner.raft.read(|state| state.node_of(key).map(|node| node.id)),
        endpoint_id: *key,
        up_bytes_per_s: rates.up_bytes_per_s,
        down_bytes_per_s: rates.down_bytes_per_s,
    };
    let mut peers: Vec<PeerLimitsView> = kept.peers.iter().map(peer).collect();
    peers.sort_by_key(|peer| peer.peer);
    let Rates { up_bytes_per_s, down_bytes_per_s } = kept.limits;
    LimitsView { node: server.inner.me, up_bytes_per_s, down_bytes_per_s, peers }
}

/// Sets limits of this node.
pub(super) async fn set_limits_here(
    server: &Server,
    client: EndpointId,
    limits: SetLimits,
) -> Result<LimitsView, Fault> {
    let SetLimits { peer, up_bytes_per_s, down_bytes_per_s } = limits;
    for rate in [up_bytes_per_s, down_bytes_per_s].into_iter().flatten() {
        if rate < BYTES_PER_S_MIN {
            let text = format!("a limit is at least {BYTES_PER_S_MIN} bytes a second; without a number there is none");
            return Err(Fault::bad_request(text));
        }
    }
    if peer == Some(server.inner.me) {
        let text = "a node sends nothing to itself: name another node as the peer, or none";
        return Err(Fault::new(FaultKind::Conflict, text));
    }
    let key = peer.map(|peer| key_of(server, peer)).transpose()?;
    server.inner.transfers.limit(key, Rates { up_bytes_per_s, down_bytes_per_s }).await?;
    let with = peer.map_or_else(String::new, |peer| format!(" peer={peer}"));
    let rate = |rate: Option<u64>| rate.map_or_else(|| "none".to_owned(), |rate| format!("{rate}B/s"));
    let (up, down) = (rate(up_bytes_per_s), rate(down_bytes_per_s));
    let object = format!("node={}{with} up={up} down={down}", server.inner.me);
    server.record(client, Deed::LimitTransfers, object);
    Ok(limits_here(server))
}
