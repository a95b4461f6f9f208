//! Requests about what nodes share.

use blixard_core::{NodeId, ShareId};
use http::Method;

use super::{Client, ClientError};
use crate::api::views::{CreateShare, CreatedShare, NodeSharesView};

impl Client {
    /// Shares what was uploaded to the node before: see [`CreateShare`].
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn create_share(&self, request: &CreateShare) -> Result<CreatedShare, ClientError> {
        self.call(Method::POST, "/v1/shares", Some(request)).await
    }

    /// What each node shares, and which nodes could not be asked.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn shares(&self) -> Result<Vec<NodeSharesView>, ClientError> {
        self.get("/v1/shares").await
    }

    /// Stops a share of a node, and says which node that is; without one, the node that is asked.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn stop_share(&self, share: ShareId, node: Option<NodeId>) -> Result<NodeId, ClientError> {
        let about = node.map_or_else(String::new, |node| format!("?node={node}"));
        self.call(Method::DELETE, &format!("/v1/shares/{share}{about}"), None::<&()>).await
    }
}
