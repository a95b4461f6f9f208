//! Requests about how a node finds the others.

use std::time::Instant;

use axum::extract::State;
use blixard_core::SITE_LABEL;
use http::Method;

use super::ask::{self, NO_BODY};
use super::transfers::About;
use super::{Asker, Json, Query, Server};
use crate::api::fault::Fault;
use crate::api::views::{PeerPath, PeerView};
use crate::images::SCORE_MAX;
use crate::transport::PathKind;

pub(super) async fn list(
    State(server): State<Server>,
    asker: Asker,
    Query(about): Query<About>,
) -> Result<Json<Vec<PeerView>>, Fault> {
    match about.elsewhere(&server)? {
        None => Ok(Json(here(&server))),
        Some(node) => ask::about_node(&server, node, asker.caller.0, Method::GET, "/peers", NO_BODY).await.map(Json),
    }
}

/// Every other member, as this node knows it.
pub(super) fn here(server: &Server) -> Vec<PeerView> {
    let (standings, traffic) = (server.inner.images.standings(), server.inner.transport.traffic());
    let now = Instant::now();
    let me = server.inner.me;
    server.inner.raft.read(|state| {
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
    })
}
