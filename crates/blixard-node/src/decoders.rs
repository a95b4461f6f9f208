//! The decoders of bytes that come from outside, one door for fuzzing and property tests.
//!
//! Each gives the words of its refusal, or else what it read in a form that it reads again; empty where it has none.

use std::io;
use std::path::Path;

use blixard_core::chunks::ChunkIndex;
use blixard_core::{Command, EndpointId, State};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::api::bootstrap::Bootstrap;
use crate::api::join::{JoinAnswer, JoinRequest};
use crate::api::server::extract;
use crate::api::{
    ClusterView, DocumentView, EntryView, EventView, ExplainView, Fault, ImageView, LiveView, TokenView, VmView,
};
use crate::catalogs::PublishedImage;
use crate::config::Layers;
use crate::documents::{self, DocumentTicket};
use crate::raft::GroupView;
use crate::shares::{self, Listing, ShareTicket};
use crate::trace::TraceContext;
use crate::transport::http::{Caller, serve_stream};
use crate::transport::{Registry, Ticket};

fn words(error: anyhow::Error) -> String {
    format!("{error:#}")
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data always encodes into memory")
}

fn postcard<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain data always encodes into memory")
}

/// Waits on a runtime of this thread. All bytes are there, so that nothing waits for long.
fn block_on<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    thread_local! {
        static RUNTIME: io::Result<tokio::runtime::Runtime> =
            tokio::runtime::Builder::new_current_thread().enable_time().build();
    }
    RUNTIME.with(|runtime| match runtime {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    })
}

/// A ticket, as pasted.
pub fn ticket(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let ticket: Ticket = String::from_utf8_lossy(bytes).parse().map_err(|error| words(anyhow::Error::from(error)))?;
    Ok(ticket.to_string().into_bytes())
}

/// What is inside of a ticket. Whoever makes one up gives it a checksum that fits.
pub fn ticket_content(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let ticket = Ticket::decode(bytes).map_err(|error| error.to_string())?;
    Ok(postcard(&ticket))
}

/// The header that carries the context of a trace.
pub fn trace(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let context: TraceContext = text.parse().map_err(|_| "it is no trace context".to_owned())?;
    Ok(context.to_string().into_bytes())
}

/// A registry file.
pub fn registry(bytes: &[u8]) -> Result<Vec<u8>, String> {
    Registry::decode(bytes).map(|registry| json(&registry)).map_err(words)
}

/// An answer of `/bootstrap`.
pub fn bootstrap(bytes: &[u8]) -> Result<Vec<u8>, String> {
    Bootstrap::decode(bytes).map(|bootstrap| json(&bootstrap)).map_err(words)
}

/// A configuration file.
pub fn config(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let layers = Layers::defaults().text(text, Path::new("blixard.toml")).map_err(words)?;
    let config = layers.config().map_err(words)?;
    toml::to_string(&config).map(String::into_bytes).map_err(|error| error.to_string())
}

/// A stream of Raft requests.
pub fn raft_stream(bytes: &[u8]) -> Result<Vec<u8>, String> {
    block_on(crate::raft::reread_requests(bytes)).map_err(|error| error.to_string())
}

/// What a hypervisor, which a guest may have taken over, says to the server of its disk.
pub fn disk_client(bytes: &[u8]) -> Result<Vec<u8>, String> {
    /// What is on its way at a time, as in a socket.
    const BUFFER_BYTES: usize = 4096;
    let (client, mut server) = tokio::io::duplex(BUFFER_BYTES);
    let exchange = async {
        let (mut hears, mut says) = tokio::io::split(client);
        let said = async {
            // Who is cut off is not heard to the end.
            let _ = says.write_all(bytes).await;
            let _ = says.shutdown().await;
        };
        // The answers are read, or the server would wait for a client that does not.
        let drained = async { tokio::io::copy(&mut hears, &mut tokio::io::sink()).await.map(drop) };
        let heard = async {
            let heard = crate::lazy::hear_out(&mut server).await;
            drop(server);
            heard
        };
        let ((), heard, _) = tokio::join!(said, heard, drained);
        heard
    };
    block_on(exchange).map(|()| vec![]).map_err(|error| error.to_string())
}

/// A key in a document, as another member stored it.
pub fn document_key(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let key = documents::read_stored_key(bytes).ok_or("it is no key")?;
    Ok(documents::stored_key(key.as_str()))
}

/// An image in a catalog, as another cluster wrote it.
pub fn catalog_record(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let image = PublishedImage::decode(bytes).ok_or("it is no image of a catalog")?;
    Ok(image.encode())
}

/// What is inside of a document's ticket.
pub fn document_ticket(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let ticket = DocumentTicket::decode(bytes).map_err(|error| error.to_string())?;
    Ok(postcard(&ticket))
}

/// The head of a request for a shared document.
pub fn document_request(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let request = documents::Request::decode(bytes).ok_or("it is no request for a shared document")?;
    Ok(request.encode())
}

/// What a node of another cluster answers about a document.
pub fn document_answer(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let answer = documents::Answer::decode(bytes).ok_or("it is no answer about a shared document")?;
    Ok(answer.encode())
}

/// What is inside of a share's ticket.
pub fn share_ticket(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let ticket = ShareTicket::decode(bytes).map_err(|error| error.to_string())?;
    Ok(postcard(&ticket))
}

/// The listing of a share.
pub fn share_listing(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let listing = Listing::decode(bytes).map_err(|error| error.to_string())?;
    listing.encode().map_err(|error| error.to_string())
}

/// A stranger's request for a part of a share.
pub fn share_request(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let request = shares::Request::decode(bytes).ok_or("it is no request for a share")?;
    Ok(request.encode())
}

/// The index of a blob's chunks, as another member keeps it.
pub fn chunk_index(bytes: &[u8]) -> Result<Vec<u8>, String> {
    ChunkIndex::decode(bytes).map(|index| index.encode()).map_err(|error| error.to_string())
}

/// A command in the log.
pub fn command(bytes: &[u8]) -> Result<Vec<u8>, String> {
    Command::decode(bytes).map(|command| command.encode()).map_err(|error| error.to_string())
}

/// A state in a snapshot.
pub fn state(bytes: &[u8]) -> Result<Vec<u8>, String> {
    State::decode(bytes).map(|state| state.encode()).map_err(|error| error.to_string())
}

/// A stranger's request to be let in.
pub fn join_request(bytes: &[u8]) -> Result<Vec<u8>, String> {
    JoinRequest::decode(bytes).map(|request| postcard(&request)).map_err(words)
}

/// A member's answer to it.
pub fn join_answer(bytes: &[u8]) -> Result<Vec<u8>, String> {
    JoinAnswer::decode(bytes).map(|answer| postcard(&answer)).map_err(words)
}

/// An answer of a node to a node or a client. Its first byte says what was asked for.
pub fn answer(bytes: &[u8]) -> Result<Vec<u8>, String> {
    fn reread<T: Serialize + DeserializeOwned>(kind: u8, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let value: T = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        Ok([&[kind][..], &json(&value)].concat())
    }
    let Some((kind, bytes)) = bytes.split_first() else { return Err("nothing was asked for".to_owned()) };
    match kind {
        b'c' => reread::<ClusterView>(*kind, bytes),
        b'd' => reread::<DocumentView>(*kind, bytes),
        b'e' => reread::<EventView>(*kind, bytes),
        b'f' => reread::<Fault>(*kind, bytes),
        b'g' => reread::<GroupView>(*kind, bytes),
        b'i' => reread::<ImageView>(*kind, bytes),
        b'k' => reread::<EntryView>(*kind, bytes),
        b'l' => reread::<LiveView>(*kind, bytes),
        b't' => reread::<TokenView>(*kind, bytes),
        b'v' => reread::<VmView>(*kind, bytes),
        b'x' => reread::<ExplainView>(*kind, bytes),
        _ => Err("nothing is asked for by that".to_owned()),
    }
}

/// A request on a stream, to its path, query and body. Refused with what the caller is told.
pub fn request(bytes: &[u8]) -> Result<Vec<u8>, String> {
    thread_local! {
        static ROUTES: axum::Router = extract::readers();
    }
    let app = ROUTES.with(axum::Router::clone);
    let exchange = async {
        let (mut ours, theirs) = tokio::io::duplex(bytes.len().max(1));
        ours.write_all(bytes).await?;
        ours.shutdown().await?;
        let mut answer = vec![];
        // How it ends shows in what the caller gets.
        let (_, got) =
            tokio::join!(serve_stream(theirs, Caller(EndpointId([0; 32])), app), ours.read_to_end(&mut answer));
        got.map(|_| answer)
    };
    let answer = block_on(exchange).map_err(|error| error.to_string())?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    if answer.starts_with("HTTP/1.1 200") { Ok(vec![]) } else { Err(format!("answer: {answer}")) }
}
