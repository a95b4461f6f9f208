//! Requests about how the asked node finds the others.

use std::time::Instant;

use axum::extract::State;
use blixard_core::SITE_LABEL;

use super::{Json, Server};
use crate::api::views::{PeerPath, PeerView};
use crate::images::SCORE_MAX;
use crate::transport::PathKind;

/// Every other member. What is said of them is this node's own knowledge, so nobody is asked.
pub(super) async fn list(State(server): State<Server>) -> Json<Vec<PeerView>> {
    let (standings, traffic) = (server.inner.images.standings(), server.inner.transport.traffic());
    let now = Instant::now();
    let me = server.inner.me;
    Json(server.inner.raft.read(|state| {
        let others = state.nodes.values().filter(|node| node.id != me);
        let peers = others.map(|node| {
            let standing = standings.get(&node.endpoint);
            let with = traffic.peers.get(&node.endpoint);
            PeerView {
                node: node.id,
                endpoint_id: node.endpoint,
                site: node.labels.get(SITE_LABEL).cloned(),
                score: standing.map_or(SCORE_MAX, |standing| standing.score(now)),
                reason: standing.and_then(|standing| standing.reason.clone()),
                failures: standing.map_or(0, |standing| standing.failures),
                lies: standing.map_or(0, |standing| standing.lies),
                content_bytes: standing.map_or(0, |standing| standing.received_bytes),
                path: match with.map_or(PathKind::None, |with| with.path) {
                    PathKind::Direct => PeerPath::Direct,
                    PathKind::Relay => PeerPath::Relay,
                    PathKind::None => PeerPath::None,
                },
                round_trip_us: with
                    .and_then(|with| with.round_trip)
                    .map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
                sent_bytes: with.map_or(0, |with| with.sent_bytes),
                received_bytes: with.map_or(0, |with| with.received_bytes),
            }
        });
        peers.collect()
    }))
}
