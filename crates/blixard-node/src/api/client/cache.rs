//! Requests about the caches of nodes.

use blixard_core::{ImageName, NodeId};
use http::Method;

use super::transfers::about;
use super::{Client, ClientError};
use crate::api::views::{CollectedView, NodeCacheView, VerificationView};

impl Client {
    /// What images take of each node, which of them would go, and which nodes could not be asked.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn caches(&self) -> Result<Vec<NodeCacheView>, ClientError> {
        self.get("/v1/cache").await
    }

    /// Has a node remove what nothing keeps.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn collect(&self, node: Option<NodeId>) -> Result<CollectedView, ClientError> {
        self.call(Method::POST, &format!("/v1/cache/gc{}", about(node)), None::<&()>).await
    }

    /// Says whether an image stays on a node whatever happens, and which node that is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn pin(&self, image: &ImageName, node: Option<NodeId>, is_pinned: bool) -> Result<NodeId, ClientError> {
        let word = if is_pinned { "pin" } else { "unpin" };
        self.call(Method::POST, &format!("/v1/images/{image}/{word}{}", about(node)), None::<&()>).await
    }

    /// Has a node read its copy of an image again.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn verify(&self, image: &ImageName, node: Option<NodeId>) -> Result<VerificationView, ClientError> {
        self.call(Method::POST, &format!("/v1/images/{image}/verify{}", about(node)), None::<&()>).await
    }

    /// How that goes, or how it went last.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn verification(&self, image: &ImageName, node: Option<NodeId>) -> Result<VerificationView, ClientError> {
        self.get(&format!("/v1/images/{image}/verify{}", about(node))).await
    }
}
