//! What the room needs of the network: streams to peers, whose keys are known.

use std::io;

use blixard_core::EndpointId;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::transport::{Protocol, Transport, refusal};

/// The sending half of a stream. Dropping it ends the stream after what was written.
pub(crate) type Outgoing = Box<dyn AsyncWrite + Send + Sync + Unpin>;
/// The receiving half of a stream.
pub(crate) type Incoming = Box<dyn AsyncRead + Send + Sync + Unpin>;

/// The way to the peers of one node: iroh's connections, or the simulator's network.
pub(crate) trait Link: Send + Sync + 'static {
    /// This node's own key.
    fn id(&self) -> EndpointId;

    /// Opens a stream of a kind to a peer's Raft. It fails when the peer cannot be reached or refuses this node.
    fn open(&self, peer: EndpointId, kind: u8) -> BoxFuture<'_, io::Result<(Outgoing, Incoming)>>;
}

impl Link for Transport {
    fn id(&self) -> EndpointId {
        Self::id(self)
    }

    fn open(&self, peer: EndpointId, kind: u8) -> BoxFuture<'_, io::Result<(Outgoing, Incoming)>> {
        let opening = async move {
            let connection = self.connect(peer, Protocol::Raft).await.map_err(io::Error::other)?;
            let opened = async {
                let (mut send, recv) = connection.open_bi().await.map_err(io::Error::other)?;
                send.write_u8(kind).await?;
                Ok((Box::new(send) as Outgoing, Box::new(recv) as Incoming))
            };
            opened.await.map_err(|error: io::Error| match refusal(&connection) {
                Some(reason) => io::Error::new(io::ErrorKind::PermissionDenied, reason),
                None => error,
            })
        };
        opening.boxed()
    }
}
