//! What goes through the endpoint, for `/metrics`: open connections, bytes by kind of path, refusals, round trips.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blixard_core::EndpointId;
use iroh::endpoint::{Connection, WeakConnectionHandle};

use super::{Protocol, Transport};

/// How a connection gets to its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PathKind {
    /// From host to host.
    Direct,
    /// Through a relay.
    Relay,
    /// No path is chosen yet, or none any more.
    None,
}

impl PathKind {
    /// The word for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::None => "none",
        }
    }
}

/// What the endpoint sees at one moment.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Open connections, whoever made them.
    pub(crate) connections: BTreeMap<(Protocol, PathKind), u64>,
    /// Bytes sent since the process started.
    pub(crate) sent_bytes: BTreeMap<PathKind, u64>,
    /// Bytes received since the process started.
    pub(crate) received_bytes: BTreeMap<PathKind, u64>,
    /// Connections refused at the handshake since the process started.
    pub(crate) refused: u64,
    /// What goes between this endpoint and each peer with an open connection.
    pub(crate) peers: BTreeMap<EndpointId, PeerTraffic>,
}

/// What the open connections with one peer carry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerTraffic {
    /// The best path of any of them.
    pub(crate) path: PathKind,
    /// The shortest round trip.
    pub(crate) round_trip: Option<Duration>,
    /// Bytes sent on them.
    pub(crate) sent_bytes: u64,
    /// Bytes received on them.
    pub(crate) received_bytes: u64,
}

/// Connections that were allowed, for as long as they are open. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Watched {
    open: Arc<Mutex<Vec<(Protocol, WeakConnectionHandle)>>>,
    refused: Arc<AtomicU64>,
}

impl Watched {
    /// Notes a connection that has passed the handshake, and forgets those that have ended.
    pub(super) fn opened(&self, connection: &Connection) {
        let Some(protocol) = Protocol::of_alpn(connection.alpn()) else { return };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(_, handle)| is_open(handle));
        open.push((protocol, connection.weak_handle()));
    }

    /// Counts a connection that was not let through.
    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
}

fn is_open(handle: &WeakConnectionHandle) -> bool {
    handle.upgrade().is_some_and(|connection| connection.close_reason().is_none())
}

impl Transport {
    /// What goes through the endpoint at the moment.
    pub(crate) fn traffic(&self) -> Traffic {
        let socket = &self.inner.endpoint.metrics().socket;
        let direct = |v4: u64, v6: u64| (PathKind::Direct, v4.saturating_add(v6));
        let watched = &self.inner.watched;
        let mut traffic = Traffic {
            sent_bytes: BTreeMap::from([
                direct(socket.send_ipv4.get(), socket.send_ipv6.get()),
                (PathKind::Relay, socket.send_relay.get()),
            ]),
            received_bytes: BTreeMap::from([
                direct(socket.recv_data_ipv4.get(), socket.recv_data_ipv6.get()),
                (PathKind::Relay, socket.recv_data_relay.get()),
            ]),
            refused: watched.refused.load(Ordering::Relaxed),
            ..Traffic::default()
        };
        let open: Vec<(Protocol, Connection)> = {
            let open = watched.open.lock().unwrap_or_else(PoisonError::into_inner);
            let open = open.iter().filter_map(|(protocol, handle)| Some((*protocol, handle.upgrade()?)));
            open.filter(|(_, connection)| connection.close_reason().is_none()).collect()
        };
        for (protocol, connection) in open {
            let paths = connection.paths();
            let selected = paths.iter().find(|path| path.is_selected());
            let kind = selected
                .as_ref()
                .map_or(PathKind::None, |path| if path.is_relay() { PathKind::Relay } else { PathKind::Direct });
            *traffic.connections.entry((protocol, kind)).or_default() += 1;
            let nothing = PeerTraffic { path: kind, round_trip: None, sent_bytes: 0, received_bytes: 0 };
            let peer = EndpointId(*connection.remote_id().as_bytes());
            let with = traffic.peers.entry(peer).or_insert(nothing);
            let (carried, round_trip) = (connection.stats(), selected.map(|path| path.rtt()));
            with.path = with.path.min(kind);
            with.round_trip = with.round_trip.into_iter().chain(round_trip).min();
            with.sent_bytes = with.sent_bytes.saturating_add(carried.udp_tx.bytes);
            with.received_bytes = with.received_bytes.saturating_add(carried.udp_rx.bytes);
        }
        traffic
    }
}
