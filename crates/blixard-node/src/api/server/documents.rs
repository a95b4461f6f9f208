//! Requests about documents. None of them needs a leader: each is answered from what the asked node has.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body as RawBody;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use blixard_core::limits::{CONFIG_FILES_MAX, DOCUMENT_VALUE_BYTES_MAX};
use blixard_core::{ConfigFile, ConfigSource, DocumentKey, DocumentName};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::vms::{PIECES_WAITING, streamed};
use super::{BYTES, Json, Path, Query, Server};
use crate::api::fault::{Fault, FaultKind};
use crate::api::views::{ConfigFileView, DocumentView, EntryView};
use crate::documents::{DocumentError, Entry, Found};

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
            DocumentError::NotOpen | DocumentError::NotHere(..) => FaultKind::Unavailable,
            DocumentError::Empty | DocumentError::TooLarge => FaultKind::BadRequest,
            DocumentError::Full(_) | DocumentError::TooMany | DocumentError::ClockBehind => FaultKind::Conflict,
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
    let listed = server.inner.documents.list().await?.into_iter();
    Ok(Json(listed.map(|listed| DocumentView { name: listed.name, keys: listed.keys, bytes: listed.bytes }).collect()))
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
