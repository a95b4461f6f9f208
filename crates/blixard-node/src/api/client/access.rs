//! Requests about who may join, who may ask, who asked for what, and how nodes find each other.

use blixard_core::{EndpointId, NodeId, TokenId};
use futures::Stream;
use http::Method;

use super::transfers::about;
use super::{Client, ClientError, lines_of};
use crate::api::views::{AuditView, ClientView, CreateToken, CreatedToken, GrantClient, PeerView, TokenView};

impl Client {
    /// Makes a join token.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn create_token(&self, request: &CreateToken) -> Result<CreatedToken, ClientError> {
        self.call(Method::POST, "/v1/tokens", Some(request)).await
    }

    /// The join tokens.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn tokens(&self) -> Result<Vec<TokenView>, ClientError> {
        self.get("/v1/tokens").await
    }

    /// Revokes a join token.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn revoke_token(&self, token: TokenId) -> Result<(), ClientError> {
        self.call(Method::DELETE, &format!("/v1/tokens/{token}"), None::<&()>).await
    }

    /// The clients that may use the control API.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn clients(&self) -> Result<Vec<ClientView>, ClientError> {
        self.get("/v1/clients").await
    }

    /// Lets a client in with a role, or gives one that is known another.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn grant_client(&self, client: EndpointId, request: &GrantClient) -> Result<ClientView, ClientError> {
        self.call(Method::PUT, &format!("/v1/clients/{client}"), Some(request)).await
    }

    /// Takes all rights from a client, and ends what it has open.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn revoke_client(&self, client: EndpointId) -> Result<(), ClientError> {
        self.call(Method::DELETE, &format!("/v1/clients/{client}"), None::<&()>).await
    }

    /// The other nodes as one of them finds them; without a number, the one that is asked.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn peers(&self, node: Option<NodeId>) -> Result<Vec<PeerView>, ClientError> {
        self.get(&format!("/v1/peers{}", about(node))).await
    }

    /// The last entries of the audit trail, oldest first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn audit(&self, last: usize) -> Result<Vec<AuditView>, ClientError> {
        self.get(&format!("/v1/audit?last={last}")).await
    }

    /// The last entries of the audit trail, and each further one as it is written, until the stream is dropped.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn watch_audit(
        &self,
        last: usize,
    ) -> Result<impl Stream<Item = anyhow::Result<AuditView>> + use<>, ClientError> {
        let bytes = self.stream(&format!("/v1/audit/watch?last={last}")).await?;
        Ok(lines_of(bytes, "the audit trail"))
    }
}
