//! The one way in and out: this node's endpoint, who may reach it, and its connections to others.
//!
//! The room owns the only iroh endpoint of the process, its secret key, the address book and the connections that other
//! rooms share. It knows protocols by name but nothing of what they say. A protocol's connections are refused at the
//! handshake unless the [`AccessList`] allows the caller's key; a panic in a handler ends that connection and nothing else.
//!
//! It is fed by `node.rs` (members and clients from the replicated state, addresses of peers) and stops last: closing
//! the endpoint tells every peer at once, instead of letting them wait for a time-out.

mod access;
mod connections;
mod heard_out;
pub mod http;
mod identity;
mod pace;
mod places;
mod registry;
mod ticket;
mod traffic;

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::Context;
use blixard_core::EndpointId;
use blixard_core::limits::ADDRESSES_MAX;
use iroh::address_lookup::MemoryLookup;
use iroh::endpoint::{BindOpts, PortmapperConfig, QuicTransportConfig, VarInt, presets};
use iroh::protocol::{AcceptError, DynProtocolHandler, ProtocolHandler, Router};
use iroh::{Endpoint, EndpointAddr, RelayMode, TransportAddr};

pub use access::{AccessList, REFUSED};
pub use connections::{ConnectError, refusal};
pub(crate) use identity::KEY_LOST;
pub use identity::{SecretKey, load_or_create_key, write_private};
pub use iroh::endpoint::{Connection, RecvStream, SendStream};
pub use places::BUSY;
pub use registry::Registry;
pub(crate) use ticket::TicketKind;
pub use ticket::{Ticket, TicketError, TicketSecret};

use connections::Connections;
use places::Places;
pub(crate) use traffic::PathKind;
use traffic::Watched;

/// A dead peer's connections end after this time without a sign of life. iroh's own 30 s would hold up whatever waits.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Keeps an idle connection alive, and makes its loss known within [`IDLE_TIMEOUT`].
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Streams that a member or client may have open at once on one connection.
const STREAMS_MAX: u32 = 1024;
/// What may wait unread of all streams of one connection: several times what a stream may carry ahead of its reader.
const RECEIVE_BYTES_MAX: u32 = 64 << 20;
/// Streams of a connection whose key has not been looked at yet. A stranger needs one.
const STRANGER_STREAMS_MAX: u32 = 4;
/// What may wait unread of such a connection: more than one request to join.
const STRANGER_RECEIVE_BYTES_MAX: u32 = 64 << 10;
/// What may wait unread of one client's connection. An upload is read as it comes.
const CLIENT_RECEIVE_BYTES_MAX: u32 = 8 << 20;

/// A protocol spoken between nodes, or between a client and a node. The server and the client use the same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// Consensus, between members.
    Raft,
    /// Requests among members: consoles, logs and live views of each other's vms.
    Peer,
    /// The control API, for clients.
    Api,
    /// Asking to be let in. A stranger may speak it: one bounded request a connection.
    Join,
    /// What is shared, for whoever has a ticket. A stranger may speak it: bounded requests, each with the ticket's secret.
    Share,
    /// Image content, between members.
    Blobs,
    /// Comparing documents, between members.
    Documents,
    /// What stands in documents, between members.
    Values,
    /// Documents of this cluster, for whoever has a ticket. A stranger may speak it: bounded requests, each with the ticket's secret.
    SharedDocuments,
    /// Content of images that this cluster publishes, for whoever has the ticket of its catalog. A stranger may speak it: it shows the
    /// ticket's secret first.
    Published,
}

impl Protocol {
    /// The name used in the TLS handshake.
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Raft => b"blixard/raft/1",
            Self::Peer => b"blixard/peer/1",
            Self::Api => b"blixard/api/1",
            Self::Join => b"blixard/join/1",
            Self::Share => b"blixard/share/1",
            Self::Blobs => iroh_blobs_alpn(),
            Self::Documents => iroh_docs_alpn(),
            Self::Values => b"blixard/values/1",
            Self::SharedDocuments => b"blixard/documents/1",
            Self::Published => b"blixard/images/1",
        }
    }

    /// The word for it in metrics.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Raft => "raft",
            Self::Peer => "peer",
            Self::Api => "api",
            Self::Join => "join",
            Self::Share => "share",
            Self::Blobs => "blobs",
            Self::Documents => "documents",
            Self::Values => "values",
            Self::SharedDocuments => "shared_documents",
            Self::Published => "published",
        }
    }

    fn of_alpn(alpn: &[u8]) -> Option<Self> {
        let members = [Self::Raft, Self::Peer, Self::Blobs, Self::Documents, Self::Values];
        let mut all =
            members.into_iter().chain([Self::Api, Self::Join, Self::Share, Self::SharedDocuments, Self::Published]);
        all.find(|protocol| protocol.alpn() == alpn)
    }
}

/// The content protocol's name is fixed by iroh-blobs; a test in `images/` holds this copy against it.
const fn iroh_blobs_alpn() -> &'static [u8] {
    b"/iroh-bytes/4"
}

/// The same of iroh-docs, held by a test in `documents/`.
const fn iroh_docs_alpn() -> &'static [u8] {
    b"/iroh-sync/1"
}

/// Where a node or client can be reached.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PeerAddress {
    /// Its key.
    pub endpoint: EndpointId,
    /// Its direct addresses.
    pub addresses: Vec<SocketAddr>,
    /// Its relay, if it has one.
    pub relay_url: Option<String>,
}

/// How to open the endpoint.
#[derive(Debug)]
pub struct TransportConfig {
    /// The key that is this endpoint's identity.
    pub key: SecretKey,
    /// Addresses to bind, at most one of each family; a port of 0 takes any.
    pub bind: Vec<SocketAddr>,
    /// Relays to be reachable through; none turns relaying off.
    pub relays: Vec<String>,
}

/// The endpoint and everything that goes with it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Transport {
    inner: Arc<Inner>,
    // After the endpoint, which is dropped when the last of these is gone.
    held: Arc<()>,
}

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    book: MemoryLookup,
    access: AccessList,
    places: Places,
    connections: Connections,
    watched: Watched,
    incarnation: u64,
    router: std::sync::Mutex<Option<Router>>,
}

impl Transport {
    /// Opens the endpoint.
    ///
    /// # Errors
    /// When an address cannot be bound or a relay's URL cannot be read.
    pub async fn open(config: TransportConfig) -> anyhow::Result<Self> {
        let book = MemoryLookup::new();
        let access = AccessList::default();
        let connections = Connections::default();
        let watched = Watched::default();
        let quic = QuicTransportConfig::builder()
            .max_idle_timeout(Some(IDLE_TIMEOUT.try_into().expect("5 s is a valid idle time-out")))
            .keep_alive_interval(KEEP_ALIVE)
            .default_path_max_idle_timeout(IDLE_TIMEOUT)
            .default_path_keep_alive_interval(KEEP_ALIVE)
            // Whoever connects gets more when its key is known. No protocol has datagrams or streams of one direction.
            .max_concurrent_bidi_streams(VarInt::from_u32(STRANGER_STREAMS_MAX))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .receive_window(VarInt::from_u32(STRANGER_RECEIVE_BYTES_MAX))
            .datagram_receive_buffer_size(None)
            .build();
        let mut builder = Endpoint::builder(presets::Minimal)
            .secret_key(config.key.inner().clone())
            .clear_ip_transports()
            .portmapper_config(PortmapperConfig::Disabled)
            .address_lookup(book.clone())
            .transport_config(quic)
            .hooks(access.hook(connections.clone(), watched.clone()));
        for address in &config.bind {
            // Every address there is of a family may be none: a host can be without IPv6.
            let options = BindOpts::default().set_is_required(!(address.is_ipv6() && address.ip().is_unspecified()));
            let with = builder.bind_addr_with_opts(*address, options);
            builder = with.with_context(|| format!("use {address} as an address to bind"))?;
        }
        let relays = config
            .relays
            .iter()
            .map(|url| url.parse().with_context(|| format!("read relay URL {url:?}")))
            .collect::<anyhow::Result<Vec<iroh::RelayUrl>>>()?;
        builder = builder.relay_mode(if relays.is_empty() { RelayMode::Disabled } else { RelayMode::custom(relays) });
        let bound = config.bind.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let endpoint = builder.bind().await.with_context(|| format!("bind UDP {bound}"))?;
        let mut incarnation = [0; 8];
        getrandom::fill(&mut incarnation).context("draw a number for this process")?;
        let incarnation = u64::from_le_bytes(incarnation);
        let router = std::sync::Mutex::new(None);
        let places = Places::default();
        let inner = Inner { endpoint, book, access, places, connections, watched, incarnation, router };
        Ok(Self { inner: Arc::new(inner), held: Arc::default() })
    }

    /// Starts to accept connections, one handler a protocol.
    pub fn serve(&self, handlers: Vec<(Protocol, Handler)>) {
        let mut builder = Router::builder(self.inner.endpoint.clone());
        for (protocol, handler) in handlers {
            let (access, places) = (self.inner.access.clone(), self.inner.places.clone());
            let handler = Isolated { protocol, handler: Arc::from(handler), access, places };
            builder = builder.accept(protocol.alpn(), handler);
        }
        let router = builder.spawn();
        *self.inner.router.lock().expect("no holder of this lock panics") = Some(router);
    }

    /// This endpoint's key.
    pub fn id(&self) -> EndpointId {
        EndpointId(*self.inner.endpoint.id().as_bytes())
    }

    /// Who may connect.
    pub fn access(&self) -> &AccessList {
        &self.inner.access
    }

    /// Where this endpoint can be reached: addresses that another host could use, never an unspecified one. Loopback
    /// addresses are named only when there are no others.
    pub fn address(&self) -> PeerAddress {
        let own = self.inner.endpoint.addr();
        let mut addresses: Vec<SocketAddr> = own.ip_addrs().copied().collect();
        addresses.extend(self.inner.endpoint.bound_sockets());
        addresses.retain(|address| !address.ip().is_unspecified() && address.port() != 0);
        if addresses.iter().any(|address| !address.ip().is_loopback()) {
            addresses.retain(|address| !address.ip().is_loopback());
        }
        addresses.sort();
        addresses.dedup();
        addresses.truncate(ADDRESSES_MAX);
        let relay_url = own.relay_urls().next().map(ToString::to_string);
        PeerAddress { endpoint: self.id(), addresses, relay_url }
    }

    /// Learns where a peer can be reached, in place of what was known. Of too many addresses the first are believed.
    pub fn learn(&self, peer: &PeerAddress) {
        if let Some(address) = endpoint_address(peer) {
            self.inner.book.set_endpoint_info(address);
        }
    }

    /// Learns where somebody can be reached who is no member, as somebody else says. Gives whether that may be: where members are,
    /// this cluster knows best.
    pub(crate) fn learn_outside(&self, peer: &PeerAddress) -> bool {
        let is_outside = peer.endpoint != self.id() && !self.inner.access.is_member(&peer.endpoint);
        if is_outside {
            self.learn(peer);
        }
        is_outside
    }

    /// A connection of the caller's own to a peer whose place is known.
    ///
    /// # Errors
    /// When it cannot be reached in time.
    pub(crate) async fn dial_known(&self, peer: EndpointId, protocol: Protocol) -> Result<Connection, ConnectError> {
        let (endpoint, address) = self.dialled(peer).ok_or(ConnectError::BadKey(peer))?;
        connections::dial(endpoint, address, peer, protocol).await
    }

    /// A live connection to a peer: the one there is, or a new one.
    ///
    /// # Errors
    /// When the peer cannot be reached in time, or was found unreachable a moment ago.
    pub async fn connect(&self, peer: EndpointId, protocol: Protocol) -> Result<Connection, ConnectError> {
        self.inner.connections.get(&self.inner.endpoint, peer, protocol).await
    }

    /// A connection to somebody who need be no member, where a ticket says that it is. It is the caller's own. What the ticket says
    /// is believed for this alone: it could name a member at a wrong place.
    ///
    /// # Errors
    /// When it cannot be reached in time.
    pub(crate) async fn dial(&self, peer: &PeerAddress, protocol: Protocol) -> Result<Connection, ConnectError> {
        let address = endpoint_address(peer).ok_or(ConnectError::BadKey(peer.endpoint))?;
        connections::dial(&self.inner.endpoint, address, peer.endpoint, protocol).await
    }

    /// What a library needs that dials a peer by itself; nothing for a key that cannot be one.
    pub(crate) fn dialled(&self, peer: EndpointId) -> Option<(&Endpoint, EndpointAddr)> {
        // Where it is, the endpoint looks up in the address book.
        let id = iroh::EndpointId::from_bytes(&peer.0).ok()?;
        Some((&self.inner.endpoint, EndpointAddr::new(id)))
    }

    /// A number drawn anew for each process, by which peers tell that this one was restarted.
    pub fn incarnation(&self) -> u64 {
        self.inner.incarnation
    }

    /// Notes which process of a peer is alive. Connections to an earlier one are dead, though nothing has said so yet: they
    /// are let go, so that nobody waits for them to time out.
    pub fn met(&self, peer: EndpointId, incarnation: u64) {
        self.inner.connections.met(peer, incarnation);
    }

    /// Ends what is served, then closes the endpoint, so that peers learn of it at once.
    pub async fn close(&self) {
        let router = self.inner.router.lock().expect("no holder of this lock panics").take();
        if let Some(router) = router
            && let Err(error) = router.shutdown().await
        {
            tracing::debug!(%error, "a protocol handler had ended before");
        }
        self.inner.endpoint.close().await;
        self.inner.connections.clear();
    }

    /// By which to tell when the port is free again.
    pub(crate) fn hold(&self) -> Hold {
        Hold { held: Arc::downgrade(&self.held), sockets: self.inner.endpoint.bound_sockets() }
    }
}

/// What a transport holds of its host.
pub(crate) struct Hold {
    held: Weak<()>,
    sockets: Vec<SocketAddr>,
}

impl Hold {
    /// Whether nobody has the transport any more and its sockets are closed, which the endpoint does in the background: so
    /// it is tried.
    pub(crate) fn is_free(&self) -> bool {
        self.held.strong_count() == 0 && self.sockets.iter().all(|socket| UdpSocket::bind(socket).is_ok())
    }
}

fn endpoint_address(peer: &PeerAddress) -> Option<EndpointAddr> {
    let id = iroh::EndpointId::from_bytes(&peer.endpoint.0).ok()?;
    // Each of them is sent packets to when the peer is dialled, whoever lives there.
    let direct = peer.addresses.iter().take(ADDRESSES_MAX).map(|address| TransportAddr::Ip(*address));
    let relay = peer.relay_url.as_ref().and_then(|url| url.parse().ok()).map(TransportAddr::Relay);
    Some(EndpointAddr::from_parts(id, direct.chain(relay)))
}

/// What a room does with the connections of its protocol.
pub type Handler = Box<dyn DynProtocolHandler>;

/// Makes a handler of an async function that runs for as long as the connection is of use.
pub fn handler<F, Fut>(serve: F) -> Handler
where
    F: Fn(Connection) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    Box::new(Serve(serve))
}

struct Serve<F>(F);

impl<F> std::fmt::Debug for Serve<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Serve")
    }
}

impl<F, Fut> ProtocolHandler for Serve<F>
where
    F: Fn(Connection) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        (self.0)(connection).await;
        Ok(())
    }
}

/// Lets a connection carry as much as its protocol needs.
fn make_room(connection: &Connection, protocol: Protocol) {
    let receive_bytes_max = match protocol {
        Protocol::Join | Protocol::Share | Protocol::SharedDocuments | Protocol::Published => return,
        Protocol::Api => CLIENT_RECEIVE_BYTES_MAX,
        Protocol::Raft | Protocol::Peer | Protocol::Blobs | Protocol::Documents | Protocol::Values => RECEIVE_BYTES_MAX,
    };
    connection.set_receive_window(VarInt::from_u32(receive_bytes_max));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(STREAMS_MAX));
}

/// Runs a handler in a task of its own: a panic that reached the router would close the endpoint for everybody.
/// It also turns away connections for which there is no place, and ends one whose key loses its right to be here.
#[derive(Debug)]
struct Isolated {
    protocol: Protocol,
    places: Places,
    handler: Arc<dyn DynProtocolHandler>,
    access: AccessList,
}

impl ProtocolHandler for Isolated {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        let handler = self.handler.clone();
        let peer = connection.remote_id();
        let (key, alpn) = (EndpointId(*peer.as_bytes()), connection.alpn().to_vec());
        let _place = match self.places.take(self.protocol, key, self.access.is_member(&key)) {
            Ok(place) => place,
            Err(reason) => {
                tracing::debug!(peer = %peer.fmt_short(), reason, "a connection is turned away");
                connection.close(BUSY.into(), reason.as_bytes());
                return Ok(());
            }
        };
        make_room(&connection, self.protocol);
        let weak = connection.weak_handle();
        let mut serving = tokio::spawn(async move { handler.accept(connection).await });
        let served = tokio::select! {
            served = &mut serving => served,
            reason = self.access.revoked(&key, &alpn) => {
                tracing::info!(peer = %peer.fmt_short(), reason, "a connection is ended");
                if let Some(connection) = weak.upgrade() {
                    connection.close(REFUSED.into(), reason.as_bytes());
                }
                serving.await
            }
        };
        match served {
            Ok(result) => result,
            Err(error) => {
                if error.is_panic() {
                    tracing::error!(peer = %peer.fmt_short(), "a protocol handler panicked; its connection is closed");
                }
                Ok(())
            }
        }
    }

    async fn shutdown(&self) {
        self.handler.shutdown().await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn whoever_names_many_addresses_has_few_of_them_dialled() {
        let endpoint = SecretKey::generate().id();
        let addresses: Vec<SocketAddr> = (1..=3000_u16).map(|port| ([192, 0, 2, 1], port).into()).collect();
        let known = endpoint_address(&PeerAddress { endpoint, addresses, relay_url: None }).unwrap();
        let ports: Vec<u16> = known.ip_addrs().map(SocketAddr::port).collect();
        assert_eq!(ports, (1..=16).collect::<Vec<_>>());
    }
}
