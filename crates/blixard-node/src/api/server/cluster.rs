//! Requests about the cluster and its nodes.

use axum::extract::State;
use blixard_core::{BlobHash, Change, NodeId, Settings};

use super::view::GroupSeen;
use super::{Body, Freshness, Json, Path, Query, Server};
use crate::api::fault::{Fault, FaultKind};
use crate::api::views::{ClusterView, NodeState, NodeView, RemoveNode};

pub(super) async fn show(
    State(server): State<Server>,
    Query(freshness): Query<Freshness>,
) -> Result<Json<ClusterView>, Fault> {
    // The status must be seen most of all when there is no quorum, so it says how things stand instead of failing.
    let _ = tokio::time::timeout(super::view::STATUS_PATIENCE, server.read_point(freshness)).await;
    view(&server).await.map(Json)
}

pub(super) async fn change_settings(
    State(server): State<Server>,
    Body(asker, settings): Body<Settings>,
) -> Result<Json<ClusterView>, Fault> {
    server.change(asker, Change::ChangeSettings(settings)).await?;
    server.read_point(Freshness::default()).await?;
    view(&server).await.map(Json)
}

pub(super) async fn leave(
    State(server): State<Server>,
    Body(asker, request): Body<RemoveNode>,
) -> Result<Json<NodeId>, Fault> {
    let me = server.inner.me;
    server.change(asker.about_this(me), Change::RemoveNode { node: me, force: request.force }).await?;
    Ok(Json(me))
}

pub(super) async fn remove(
    State(server): State<Server>,
    Path(node): Path<NodeId>,
    Body(asker, request): Body<RemoveNode>,
) -> Result<Json<()>, Fault> {
    server.change(asker, Change::RemoveNode { node, force: request.force }).await?;
    Ok(Json(()))
}

async fn view(server: &Server) -> Result<ClusterView, Fault> {
    let seen = server.group_seen().await;
    let group = &seen.group;
    let me = server.inner.me;
    let raft = &server.inner.raft;
    raft.read_with_index(|state, applied| {
        let cluster_id = state
            .cluster
            .ok_or_else(|| Fault::new(FaultKind::Unavailable, "this node is not part of a cluster yet"))?;
        let nodes = state.nodes.values().map(|node| NodeView {
            id: node.id,
            endpoint_id: node.endpoint,
            addresses: node.addresses.clone(),
            relay_url: node.relay_url.clone(),
            role: group.role(node.id),
            state: node_state(&seen, node.id, me),
            last_contact_ms: if node.id == group.node {
                Some(0)
            } else {
                group.silent_ms.get(&node.id).copied().flatten()
            },
            capacity: node.capacity.promised(),
            used: state.used_on(node.id),
            vms: state.vms_on(node.id).count(),
            labels: node.labels.clone(),
            version: node.version.clone(),
        });
        let nodes: Vec<NodeView> = nodes.collect();
        let reachable = seen.by_leader.then(|| group.voters.intersection(&seen.reachable).count());
        Ok(ClusterView {
            cluster_id,
            seen_by: group.node,
            leader: group.leader,
            term: group.term,
            voters: group.voters.len(),
            voters_changing: group.changing,
            voters_reachable: reachable,
            margin: margin(group.voters.len(), reachable, group.changing),
            settings: state.settings,
            nodes,
            vms: state.vms.len(),
            images: state.images.len(),
            state_digest: BlobHash(state.digest()),
            applied,
        })
    })
}

fn node_state(seen: &GroupSeen, node: NodeId, me: NodeId) -> NodeState {
    if !seen.by_leader {
        // This node can vouch for itself alone.
        return if node == me { NodeState::Ready } else { NodeState::Unknown };
    }
    if seen.reachable.contains(&node) {
        return NodeState::Ready;
    }
    match seen.group.role(node) {
        None => NodeState::Joining,
        Some(_) => NodeState::Unreachable,
    }
}

/// How many voters may still be lost, in words.
fn margin(voters: usize, reachable: Option<usize>, changing: bool) -> String {
    let majority = voters / 2 + 1;
    let Some(reachable) = reachable else {
        return format!("no leader: nothing can be written until {majority} of the {voters} voters reach each other");
    };
    let seen = format!("{reachable} of {voters} voters reachable");
    if changing {
        // Two majorities may count, of which the leader's word is not out yet.
        return format!("{seen}: who votes is being changed");
    }
    match reachable.checked_sub(majority) {
        None => format!("{seen}: nothing can be written until {majority} are"),
        Some(0) if voters == 1 => format!("{seen}: its loss stops writes"),
        Some(0) => format!("{seen}: one more loss stops writes"),
        Some(1) => format!("{seen}: one loss is tolerated"),
        Some(spare) => format!("{seen}: {spare} losses are tolerated"),
    }
}

#[cfg(test)]
mod tests {
    use super::margin;

    #[test]
    fn the_margin_counts_what_may_still_be_lost() {
        assert_eq!(margin(3, Some(2), false), "2 of 3 voters reachable: one more loss stops writes");
        assert_eq!(margin(3, Some(3), false), "3 of 3 voters reachable: one loss is tolerated");
        assert_eq!(margin(5, Some(5), false), "5 of 5 voters reachable: 2 losses are tolerated");
        assert_eq!(margin(1, Some(1), false), "1 of 1 voters reachable: its loss stops writes");
        assert_eq!(margin(3, Some(1), false), "1 of 3 voters reachable: nothing can be written until 2 are");
        assert_eq!(
            margin(3, None, false),
            "no leader: nothing can be written until 2 of the 3 voters reach each other"
        );
        assert_eq!(margin(3, Some(3), true), "3 of 3 voters reachable: who votes is being changed");
    }
}
