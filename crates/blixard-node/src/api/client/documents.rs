//! Requests for documents.

use anyhow::anyhow;
use axum::body::Body;
use blixard_core::limits::DOCUMENT_VALUE_BYTES_MAX;
use blixard_core::{DocumentKey, DocumentName, ShareId};
use bytes::Bytes;
use futures::Stream;
use http::{Method, Request};
use http_body_util::{BodyExt, Limited};

use super::{ANSWER_BYTES_MAX, ANSWER_TIMEOUT, Client, ClientError, lines_of, pieces_of, unreachable};
use crate::api::views::{
    CreateDocumentShare, CreatedDocumentShare, DocumentShareView, DocumentView, EntryView, JoinDocument,
};

/// Escapes what has a meaning of its own in a query; a prefix may be any text.
fn escaped(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    text.bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn value_path(document: &DocumentName, key: &DocumentKey) -> String {
    // A key has nothing that would have to be escaped.
    format!("/v1/documents/{document}/value?key={key}")
}

async fn whole(body: hyper::body::Incoming, bytes_max: usize) -> Result<Bytes, ClientError> {
    let body = Limited::new(body, bytes_max).collect().await;
    Ok(body.map_err(|error| ClientError::Lost(anyhow!("read the answer: {error}")))?.to_bytes())
}

async fn in_time<T>(answer: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    let late = |_| Err(ClientError::Lost(anyhow!("no answer within {} s", ANSWER_TIMEOUT.as_secs())));
    tokio::time::timeout(ANSWER_TIMEOUT, answer).await.unwrap_or_else(late)
}

impl Client {
    /// The documents, as the asked node has them.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn documents(&self) -> Result<Vec<DocumentView>, ClientError> {
        self.get("/v1/documents").await
    }

    /// Makes a document, unless it is there already.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn create_document(&self, document: &DocumentName) -> Result<(), ClientError> {
        self.call(Method::PUT, &format!("/v1/documents/{document}"), None::<&()>).await
    }

    /// Shares a document with whoever gets the ticket.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn share_document(
        &self,
        document: &DocumentName,
        request: CreateDocumentShare,
    ) -> Result<CreatedDocumentShare, ClientError> {
        self.call(Method::POST, &format!("/v1/documents/{document}/shares"), Some(&request)).await
    }

    /// The tickets of a document.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn document_shares(&self, document: &DocumentName) -> Result<Vec<DocumentShareView>, ClientError> {
        self.get(&format!("/v1/documents/{document}/shares")).await
    }

    /// Has a ticket of a document open nothing any more.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn stop_document_share(&self, document: &DocumentName, share: ShareId) -> Result<(), ClientError> {
        self.call(Method::DELETE, &format!("/v1/documents/{document}/shares/{share}"), None::<&()>).await
    }

    /// Follows a document of another cluster under a name.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn join_document(&self, document: &DocumentName, ticket: &str) -> Result<(), ClientError> {
        let request = JoinDocument { ticket: ticket.to_owned() };
        self.call(Method::PUT, &format!("/v1/documents/{document}/origin"), Some(&request)).await
    }

    /// Follows a document of another cluster no longer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn leave_document(&self, document: &DocumentName) -> Result<(), ClientError> {
        self.call(Method::DELETE, &format!("/v1/documents/{document}/origin"), None::<&()>).await
    }

    /// The keys of a document that begin with `prefix`. With `all`, what each node wrote last under them, deletions included.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn entries(
        &self,
        document: &DocumentName,
        prefix: &str,
        all: bool,
    ) -> Result<Vec<EntryView>, ClientError> {
        self.get(&format!("/v1/documents/{document}/entries?all={all}&prefix={}", escaped(prefix))).await
    }

    /// The value of a key.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn value(&self, document: &DocumentName, key: &DocumentKey) -> Result<Bytes, ClientError> {
        in_time(async {
            let answer = self.open_stream(&value_path(document, key)).await?;
            whole(answer.into_body(), usize::try_from(DOCUMENT_VALUE_BYTES_MAX).unwrap_or(usize::MAX)).await
        })
        .await
    }

    /// Writes the value of a key.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn set_value(
        &self,
        document: &DocumentName,
        key: &DocumentKey,
        value: Bytes,
    ) -> Result<EntryView, ClientError> {
        let request = Request::put(value_path(document, key)).header(http::header::HOST, "blixard");
        let request = request.body(Body::from(value)).map_err(unreachable)?;
        in_time(async {
            let body = whole(self.once(request).await?.into_body(), ANSWER_BYTES_MAX).await?;
            serde_json::from_slice(&body).map_err(|error| ClientError::Unreadable(error.into()))
        })
        .await
    }

    /// Deletes a key.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete_value(&self, document: &DocumentName, key: &DocumentKey) -> Result<EntryView, ClientError> {
        self.call(Method::DELETE, &value_path(document, key), None::<&()>).await
    }

    /// The keys of a document that begin with `prefix`, and again whatever is written or deleted.
    ///
    /// # Errors
    /// See [`ClientError`]. The stream ends with an error when the connection is lost.
    pub async fn watch_document(
        &self,
        document: &DocumentName,
        prefix: &str,
    ) -> Result<impl Stream<Item = anyhow::Result<EntryView>> + use<>, ClientError> {
        let path = format!("/v1/documents/{document}/watch?prefix={}", escaped(prefix));
        Ok(lines_of(pieces_of(self.open_stream(&path).await?), "a document"))
    }
}
