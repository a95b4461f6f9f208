//! The public facts of a node at its TCP door, and how a joiner or a client asks for them.

use std::time::Duration;

use anyhow::{Context, bail};
use blixard_core::{ClusterId, EndpointId, NodeId};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use crate::config::HTTP_PORT_OFFSET;
use crate::transport::PeerAddress;

/// How long asking for bootstrap facts may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(3);
/// More than an honest answer takes.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// The answer of `/bootstrap`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// The node's number.
    pub node_id: NodeId,
    /// Its key, in hexadecimal.
    pub p2p_node_id: EndpointId,
    /// Addresses at which another host can reach it over UDP.
    pub p2p_addresses: Vec<std::net::SocketAddr>,
    /// Its relay, if it has one.
    pub p2p_relay_url: Option<String>,
    /// The cluster it belongs to.
    pub cluster_id: ClusterId,
}

impl Bootstrap {
    /// Reads an answer.
    ///
    /// # Errors
    /// When it is not one of a Blixard node.
    pub fn decode(answer: &[u8]) -> anyhow::Result<Self> {
        serde_json::from_slice(answer).context("the answer is not that of a Blixard node")
    }

    /// How the node can be reached.
    pub fn address(&self) -> PeerAddress {
        PeerAddress {
            endpoint: self.p2p_node_id,
            addresses: self.p2p_addresses.clone(),
            relay_url: self.p2p_relay_url.clone(),
        }
    }
}

/// Splits `host:port` as users give it, IPv6 in brackets.
pub(crate) fn split_host_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty()).then_some((host, port.parse().ok()?))
}

/// Asks the node whose UDP port is named by `host:port` for its public facts.
///
/// # Errors
/// When nobody answers, or the answer is not one of a Blixard node that is ready.
pub async fn fetch(peer: &str) -> anyhow::Result<Bootstrap> {
    let (host, port) = split_host_port(peer).with_context(|| format!("{peer:?} is not of the form HOST:PORT"))?;
    let port = port
        .checked_add(HTTP_PORT_OFFSET)
        .with_context(|| format!("port {port} leaves no room for the HTTP port at {HTTP_PORT_OFFSET} more"))?;
    let url = format!("http://{}:{port}/bootstrap", if host.contains(':') { format!("[{host}]") } else { host.into() });
    let exchange = async {
        let stream = TcpStream::connect((host, port)).await.context("connect")?;
        let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        let request =
            http::Request::get("/bootstrap").header(http::header::HOST, host).body(Empty::<bytes::Bytes>::new())?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("read the answer: {error}"))?.to_bytes();
        if !status.is_success() {
            bail!("the node answered {status}: {}", String::from_utf8_lossy(&body).trim());
        }
        Bootstrap::decode(&body)
    };
    tokio::time::timeout(FETCH_TIMEOUT, exchange)
        .await
        .unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {} s", FETCH_TIMEOUT.as_secs())))
        .with_context(|| format!("ask {url}"))
}
