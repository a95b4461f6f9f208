//! A client of etcd: its gRPC requests, written by hand over HTTP/2.
//!
//! Two requests of two fields each do not need a code generator. What is left out costs etcd nothing: it sees the same bytes
//! as from its own client.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::Request;
use tokio::net::TcpStream;

/// Key and value of a write are 256 bytes together.
const KEY_BYTES: usize = 16;
const VALUE_BYTES: u8 = 240;
/// Writes go round this many keys, as they do with Blixard.
const KEYS: u64 = 1000;

/// A connection to one member.
#[derive(Clone)]
pub(crate) struct Member(SendRequest<Bytes>);

impl Member {
    pub(crate) async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let socket = TcpStream::connect(address).await.with_context(|| format!("connect to etcd at {address}"))?;
        socket.set_nodelay(true)?;
        let (sender, connection) = h2::client::Builder::new()
            // Answers are small; windows that never fill cost no updates.
            .initial_window_size(1 << 20)
            .initial_connection_window_size(1 << 24)
            .handshake(socket)
            .await
            .context("start HTTP/2 with etcd")?;
        // Ends with the socket; requests then fail by themselves.
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    /// `Put`, answered when it is committed.
    pub(crate) async fn write(&self, number: u64) -> anyhow::Result<()> {
        let mut message = field(1, key(number).as_bytes());
        message.extend(field(2, &[b'v'; VALUE_BYTES as usize]));
        self.call("Put", &message).await
    }

    /// `Range` of one key, linearizable, which is its default.
    pub(crate) async fn read(&self) -> anyhow::Result<()> {
        self.call("Range", &field(1, key(0).as_bytes())).await
    }

    async fn call(&self, method: &str, message: &[u8]) -> anyhow::Result<()> {
        let request = Request::post(format!("http://etcd/etcdserverpb.KV/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let mut sender = self.0.clone().ready().await?;
        let (answer, mut stream) = sender.send_request(request, false)?;
        let mut frame = BytesMut::with_capacity(message.len() + 5);
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.len())?);
        frame.put_slice(message);
        stream.send_data(frame.freeze(), true)?;
        let answer = answer.await?;
        // A failure may be told at once instead of after a body.
        let mut status = answer.headers().get("grpc-status").cloned();
        let mut body = answer.into_body();
        while let Some(chunk) = body.data().await {
            body.flow_control().release_capacity(chunk?.len())?;
        }
        if let Some(trailers) = body.trailers().await? {
            status = trailers.get("grpc-status").cloned();
        }
        match status {
            Some(status) if status == "0" => Ok(()),
            status => bail!("etcd answered {method} with status {status:?}"),
        }
    }
}

fn key(number: u64) -> String {
    format!("{:0KEY_BYTES$}", number % KEYS)
}

/// A field of bytes in protocol buffers' encoding.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut len = bytes.len();
    while len > 0x7f {
        out.push(len.to_le_bytes()[0] | 0x80);
        len >>= 7;
    }
    out.push(len.to_le_bytes()[0]);
    out.extend_from_slice(bytes);
    out
}
