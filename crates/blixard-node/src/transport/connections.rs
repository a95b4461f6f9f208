//! Connections to peers: one a peer and protocol, made once however many ask, with backoff after a failure.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blixard_core::EndpointId;
use iroh::endpoint::{Connection, ConnectionError};
use iroh::{Endpoint, EndpointAddr};

use super::{Protocol, REFUSED};
use crate::backoff;

/// How long dialling a peer may take. Hole punching and a relay's detour take a second or two on a bad day.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// The first wait after a failed dial; it doubles with each further failure.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The longest wait between two dials: how late, at worst, a peer that came back is found from this side.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The peer's key cannot be one.
    #[error("{0} is not a valid key")]
    BadKey(EndpointId),
    /// A dial failed a moment ago, and the next one has to wait.
    #[error("peer {peer} could not be reached a moment ago: {reason}")]
    BackingOff {
        /// The peer.
        peer: String,
        /// What the last dial said.
        reason: String,
    },
    /// The dial failed.
    #[error("peer {peer} cannot be reached: {reason}")]
    Unreachable {
        /// The peer.
        peer: String,
        /// What the dial said.
        reason: String,
    },
}

/// Why the peer closed the connection at the handshake, if it refused us.
pub fn refusal(connection: &Connection) -> Option<String> {
    match connection.close_reason()? {
        ConnectionError::ApplicationClosed(close) if close.error_code == REFUSED.into() => {
            Some(String::from_utf8_lossy(&close.reason).into_owned())
        }
        _ => None,
    }
}

/// Dials a peer once.
pub(super) async fn dial(
    endpoint: &Endpoint,
    address: EndpointAddr,
    peer: EndpointId,
    protocol: Protocol,
) -> Result<Connection, ConnectError> {
    let reason = match tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect(address, protocol.alpn())).await {
        Ok(Ok(connection)) => {
            // Whom we have called may answer at length.
            connection.set_receive_window(super::RECEIVE_BYTES_MAX.into());
            return Ok(connection);
        }
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
    };
    Err(ConnectError::Unreachable { peer: peer.short(), reason })
}

#[derive(Debug, Default)]
struct Slot {
    connection: Option<Connection>,
    failures: u32,
    not_before: Option<Instant>,
    last_error: String,
}

/// One lock a peer and protocol.
type SharedSlot = Arc<tokio::sync::Mutex<Slot>>;

#[derive(Debug, Clone, Default)]
pub(super) struct Connections {
    incarnations: Arc<Mutex<HashMap<EndpointId, u64>>>,
    slots: Arc<Mutex<HashMap<(EndpointId, Protocol), SharedSlot>>>,
}

impl Connections {
    /// Lets the next dial to a peer happen at once.
    pub(super) fn forgive(&self, peer: EndpointId) {
        let slots = self.slots.lock().expect("no holder of this lock panics");
        for (_, slot) in slots.iter().filter(|((key, _), _)| *key == peer) {
            // A slot that is busy dialling has no backoff to lift.
            if let Ok(mut slot) = slot.try_lock() {
                slot.not_before = None;
            }
        }
    }

    /// Lets go of connections to an earlier process of a peer.
    pub(super) fn met(&self, peer: EndpointId, incarnation: u64) {
        let before = self.incarnations.lock().expect("no holder of this lock panics").insert(peer, incarnation);
        if before == Some(incarnation) {
            return;
        }
        let slots = self.slots.lock().expect("no holder of this lock panics");
        for (_, slot) in slots.iter().filter(|((key, _), _)| *key == peer) {
            // A slot that is busy dialling holds no connection yet.
            if let Ok(mut slot) = slot.try_lock() {
                slot.not_before = None;
                if let Some(connection) = slot.connection.take() {
                    connection.close(0u32.into(), b"the peer was restarted");
                }
            }
        }
    }

    /// Lets go of all connections. They hold the endpoint, which holds these: neither would ever be dropped.
    pub(super) fn clear(&self) {
        self.slots.lock().expect("no holder of this lock panics").clear();
    }

    pub(super) async fn get(
        &self,
        endpoint: &Endpoint,
        peer: EndpointId,
        protocol: Protocol,
    ) -> Result<Connection, ConnectError> {
        let slot =
            self.slots.lock().expect("no holder of this lock panics").entry((peer, protocol)).or_default().clone();
        // One lock a peer and protocol: dialling a dead peer never delays a call to a live one.
        let mut slot = slot.lock_owned().await;
        if let Some(connection) = &slot.connection {
            if connection.close_reason().is_none() {
                return Ok(connection.clone());
            }
            if let Some(reason) = refusal(connection) {
                slot.last_error = reason;
                slot.failures += 1;
                slot.not_before = Some(Instant::now() + backoff::after(slot.failures, BACKOFF_MIN, BACKOFF_MAX));
            }
            slot.connection = None;
        }
        if slot.not_before.is_some_and(|time| time > Instant::now()) {
            return Err(ConnectError::BackingOff { peer: peer.short(), reason: slot.last_error.clone() });
        }
        let id = iroh::EndpointId::from_bytes(&peer.0).map_err(|_| ConnectError::BadKey(peer))?;
        let endpoint = endpoint.clone();
        // In a task of its own, which goes on when the caller has no more patience: a caller that is in a hurry, such as a heartbeat,
        // would otherwise cut short every try on a slow link or a busy host, and never get a connection. It is in no span either:
        // what drives a connection keeps the span that it was dialled in open for as long as it lives.
        let dialling = tokio::spawn(async move {
            let dialled = dial(&endpoint, EndpointAddr::new(id), peer, protocol).await;
            match &dialled {
                Ok(connection) => {
                    slot.failures = 0;
                    slot.not_before = None;
                    slot.connection = Some(connection.clone());
                }
                Err(error) => {
                    slot.failures += 1;
                    slot.not_before = Some(Instant::now() + backoff::after(slot.failures, BACKOFF_MIN, BACKOFF_MAX));
                    slot.last_error = match error {
                        ConnectError::Unreachable { reason, .. } => reason.clone(),
                        other => other.to_string(),
                    };
                }
            }
            dialled
        });
        match dialling.await {
            Ok(dialled) => dialled,
            Err(error) => {
                Err(ConnectError::Unreachable { peer: peer.short(), reason: format!("dialling ended: {error}") })
            }
        }
    }
}
