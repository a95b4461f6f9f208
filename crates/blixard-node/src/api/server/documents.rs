//! Requests about documents. None of them needs a leader: each is answered from what the asked node has.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body as RawBody;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use blixard_core::limits::{CONFIG_FILES_MAX, DOCUMENT_VALUE_BYTES_MAX};
use blixard_core::{ConfigFile, ConfigSource, DocumentKey, DocumentName, ShareId};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::vms::{PIECES_WAITING, streamed};
use super::{Asker, BYTES, Body, Json, Path, Query, Server};
use crate::api::fault::{Fault, FaultKind};
use crate::api::views::{
    ConfigFileView, CreateDocumentShare, CreatedDocumentShare, DocumentShareView, DocumentView, EntryView,
    JoinDocument, OriginView,
};
use crate::clock;
use crate::documents::{DocumentError, DocumentShare, DocumentTicket, Entry, Found, Listed, TICKET_NODES_MAX};

/// Changes of this time are told together: each look reads every key that is watched.
const GATHER: Duration = Duration::from_millis(20);

/// Which keys.
#[derive(Debug, Clone, Default, schemars::JsonSchema, Deserialize)]
pub(super) struct PrefixQuery {
    /// Only those that begin with this.
    #[serde(default)]
    prefix: String,
}

/// Which entries.
#[derive(Debug, Clone, Copy, Default, schemars::JsonSchema, Deserialize)]
pub(super) struct AllQuery {
    /// What each node wrote last under a key, deletions included, and not only what counts.
    #[serde(default)]
    all: bool,
}

/// Which key.
#[derive(Debug, Clone, schemars::JsonSchema, Deserialize)]
pub(super) struct KeyQuery {
    key: DocumentKey,
}

impl From<DocumentError> for Fault {
    fn from(error: DocumentError) -> Self {
        let kind = match &error {
            DocumentError::NoDocument(_) | DocumentError::NoKey(..) => FaultKind::NotFound,
            DocumentError::NotOpen | DocumentError::NotHere(..) | DocumentError::Unreached(_) => FaultKind::Unavailable,
            DocumentError::Empty | DocumentError::TooLarge => FaultKind::BadRequest,
            DocumentError::Full(_) | DocumentError::TooMany | DocumentError::ClockBehind => FaultKind::Conflict,
            DocumentError::ReadOnly(_) | DocumentError::NameTaken(_) | DocumentError::Here(_) => FaultKind::Conflict,
            DocumentError::NotJoined(_) | DocumentError::Catalog => FaultKind::Conflict,
            DocumentError::Refused | DocumentError::TooManyShares => FaultKind::Conflict,
            DocumentError::ShareExists(_) => FaultKind::Unknown,
            DocumentError::Storage(_) => FaultKind::Internal,
        };
        Self::new(kind, format!("{:#}", anyhow::Error::from(error)))
    }
}

impl Server {
    /// The files of a new vm, with the values that this node has at the moment.
    pub(super) async fn config_files(&self, sources: Vec<ConfigSource>) -> Result<Vec<ConfigFile>, Fault> {
        let mut files = Vec::new();
        // Of more than a vm may have the first tell enough.
        for source in sources.into_iter().take(CONFIG_FILES_MAX + 1) {
            let (entry, content) = self.inner.documents.get(&source.document, &source.key).await?;
            files.push(ConfigFile { source, hash: entry.hash, content });
        }
        Ok(files)
    }

    /// The files of a vm, and whether their values have changed since it was created.
    pub(super) async fn config_file_views(&self, files: &[ConfigFile]) -> Vec<ConfigFileView> {
        let mut views = Vec::new();
        for ConfigFile { source, hash, .. } in files {
            let now = self.inner.documents.hash(&source.document, &source.key).await.ok();
            views.push(ConfigFileView { source: source.clone(), changed: now.map(|now| now != Some(*hash)) });
        }
        views
    }

    fn entry_view(&self, entry: &Entry, latest: bool, here: bool) -> EntryView {
        EntryView {
            key: entry.key.clone(),
            bytes: entry.bytes,
            hash: entry.hash,
            written_at: entry.written_at(),
            written_by: entry.author,
            node: self.inner.raft.read(|state| state.node_of(&entry.author).map(|node| node.id)),
            deleted: entry.is_deleted(),
            latest,
            here,
        }
    }
}

pub(super) async fn list(State(server): State<Server>) -> Result<Json<Vec<DocumentView>>, Fault> {
    Ok(Json(server.inner.documents.list().await?.into_iter().map(document_view).collect()))
}

fn document_view(listed: Listed) -> DocumentView {
    let origin =
        listed.origin.map(|(write, contact)| OriginView { write, met_at: contact.met_at, failure: contact.failure });
    DocumentView { name: listed.name, keys: listed.keys, bytes: listed.bytes, origin }
}

fn share_view((id, share): (ShareId, DocumentShare)) -> DocumentShareView {
    let expired = share.is_over(clock::now());
    let DocumentShare { write, created_at, expires_at, .. } = share;
    DocumentShareView { id, write, expired, created_at, expires_at }
}

pub(super) async fn share(
    State(server): State<Server>,
    Path(document): Path<DocumentName>,
    Body(asker, request): Body<CreateDocumentShare>,
) -> Result<Json<CreatedDocumentShare>, Fault> {
    if request.ttl_ms == Some(0) {
        return Err(Fault::bad_request("a ticket that lasts no time makes no sense: give it some"));
    }
    let id = super::shares::minted(asker)?;
    let expires_at = request.ttl_ms.map(|ttl_ms| clock::now().plus_ms(ttl_ms));
    let nodes = server.addresses(TICKET_NODES_MAX);
    let shared = server.inner.documents.share(id, &document, request.write, expires_at, nodes).await;
    let (ticket, share) = shared.map_err(|error| match error {
        // This was a retry: the first try made the ticket, which was lost with its answer.
        DocumentError::ShareExists(id) => {
            let text = "the ticket was made, and lost on the way: stop it with `blixard doc share";
            Fault::new(FaultKind::Unknown, format!("{text} {document} --stop {id}`, and share again"))
        }
        other => other.into(),
    })?;
    tracing::info!(client = %asker.caller.0.short(), share = %id, %document, write = request.write, "a document is shared");
    Ok(Json(CreatedDocumentShare { ticket: ticket.to_string(), share: share_view((id, share)) }))
}

pub(super) async fn shares(
    State(server): State<Server>,
    Path(document): Path<DocumentName>,
) -> Result<Json<Vec<DocumentShareView>>, Fault> {
    let mut shares: Vec<_> = server.inner.documents.shares(&document).await?.into_iter().map(share_view).collect();
    shares.sort_by_key(|share| share.created_at);
    Ok(Json(shares))
}

pub(super) async fn stop_share(
    State(server): State<Server>,
    asker: Asker,
    Path((document, share)): Path<(DocumentName, ShareId)>,
) -> Result<Json<()>, Fault> {
    if !server.inner.documents.stop_share(&document, share).await? {
        return Err(Fault::not_found(format!("document {document} has no ticket {share}")));
    }
    tracing::info!(client = %asker.caller.0.short(), %share, %document, "a document is shared no longer");
    Ok(Json(()))
}

pub(super) async fn join(
    State(server): State<Server>,
    Path(document): Path<DocumentName>,
    Body(asker, request): Body<JoinDocument>,
) -> Result<Json<()>, Fault> {
    // Any text is a sound request; whether it is a ticket, its checksum says.
    let ticket = request.ticket.parse::<DocumentTicket>();
    let ticket = ticket.map_err(|error| Fault::new(FaultKind::Conflict, error))?;
    server.inner.documents.join(&document, &ticket).await?;
    tracing::info!(client = %asker.caller.0.short(), %document, "a document of another cluster is joined");
    Ok(Json(()))
}

pub(super) async fn leave(
    State(server): State<Server>,
    asker: Asker,
    Path(document): Path<DocumentName>,
) -> Result<Json<()>, Fault> {
    server.inner.documents.leave(&document).await?;
    tracing::info!(client = %asker.caller.0.short(), %document, "a document of another cluster is left");
    Ok(Json(()))
}

pub(super) async fn create(
    State(server): State<Server>,
    Path(document): Path<DocumentName>,
) -> Result<Json<()>, Fault> {
    server.inner.documents.create(&document).await?;
    Ok(Json(()))
}

pub(super) async fn entries(
    State(server): State<Server>,
    Path(document): Path<DocumentName>,
    Query(keys): Query<PrefixQuery>,
    Query(which): Query<AllQuery>,
) -> Result<Json<Vec<EntryView>>, Fault> {
    let found = server.inner.documents.entries(&document, &keys.prefix, which.all).await?;
    Ok(Json(found.iter().map(|found| server.entry_view(&found.entry, found.counts, found.is_here)).collect()))
}

pub(super) async fn get(
    State(server): State<Server>,
    Path(document): Path<DocumentName>,
    Query(KeyQuery { key }): Query<KeyQuery>,
) -> Result<Response, Fault> {
    let (_, value) = server.inner.documents.get(&document, &key).await?;
    Ok(([(CONTENT_TYPE, BYTES)], value).into_response())
}

pub(super) async fn set(
    State(server): State<Server>,
    Path(document): Path<DocumentName>,
    Query(KeyQuery { key }): Query<KeyQuery>,
    body: RawBody,
) -> Result<Json<EntryView>, Fault> {
    let bytes_max = usize::try_from(DOCUMENT_VALUE_BYTES_MAX).unwrap_or(usize::MAX);
    let value =
        Limited::new(body, bytes_max).collect().await.map_err(|error| match error.is::<LengthLimitError>() {
            true => DocumentError::TooLarge.into(),
            false => Fault::bad_request(format!("the value broke off: {error}")),
        })?;
    let entry = server.inner.documents.set(&document, &key, value.to_bytes().to_vec()).await?;
    Ok(Json(server.entry_view(&entry, true, true)))
}

pub(super) async fn delete(
    State(server): State<Server>,
    Path(document): Path<DocumentName>,
    Query(KeyQuery { key }): Query<KeyQuery>,
) -> Result<Json<EntryView>, Fault> {
    let entry = server.inner.documents.delete(&document, &key).await?;
    Ok(Json(server.entry_view(&entry, true, true)))
}

/// One JSON line a key: those that there are, and then each that was written or deleted, once its value is here, until the
/// reader is gone.
pub(super) async fn watch(
    State(server): State<Server>,
    Path(document): Path<DocumentName>,
    Query(keys): Query<PrefixQuery>,
) -> Result<Response, Fault> {
    let documents = server.inner.documents.clone();
    let mut changes = documents.changes();
    // What is wrong with the request shows here, before the answer begins.
    let mut found = documents.entries(&document, &keys.prefix, true).await?;
    let (send, lines) = mpsc::channel::<std::io::Result<Bytes>>(PIECES_WAITING);
    tokio::spawn(async move {
        let mut told: BTreeMap<DocumentKey, Entry> = BTreeMap::new();
        let mut is_first = true;
        loop {
            for Found { entry, .. } in found.into_iter().filter(|found| found.counts && found.is_here) {
                if told.get(&entry.key) == Some(&entry) {
                    continue;
                }
                // What was deleted before anybody watched is not told.
                if !(is_first && entry.is_deleted()) {
                    let Ok(mut line) = serde_json::to_vec(&server.entry_view(&entry, true, true)) else { return };
                    line.push(b'\n');
                    if send.send(Ok(line.into())).await.is_err() {
                        return;
                    }
                }
                told.insert(entry.key.clone(), entry);
            }
            is_first = false;
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = send.closed() => return,
            }
            tokio::time::sleep(GATHER).await;
            changes.borrow_and_update();
            found = match documents.entries(&document, &keys.prefix, true).await {
                Ok(found) => found,
                Err(error) => {
                    // The reader learns that this was no orderly end.
                    let _ = send.send(Err(std::io::Error::other(error))).await;
                    return;
                }
            };
        }
    });
    Ok(streamed(lines, "application/x-ndjson"))
}
