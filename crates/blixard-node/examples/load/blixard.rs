//! A client of Blixard: requests of the control API as the command line sends them, over iroh.

use std::path::Path;

use anyhow::Context;
use blixard_core::TokenId;
use blixard_node::api::{Client, CreateToken};
use blixard_node::transport::Registry;
use blixard_node::user::UserState;

/// A connection to one node.
#[derive(Clone)]
pub(crate) struct Member {
    client: Client,
    token: TokenId,
}

impl Member {
    pub(crate) async fn connect(registry: &Path, state: &Path) -> anyhow::Result<Self> {
        let registry = Registry::read(registry)?;
        let key = UserState::at(state.to_owned()).client_key()?;
        let client = Client::open(key, vec![registry.address()]).await?;
        let made = client.create_token(&CreateToken { ttl_ms: None, uses: Some(1) }).await;
        let token = made.context("make a token")?.token.id;
        Ok(Self { client, token })
    }

    /// Revokes a token, which may be done any number of times: a command through the log like any other.
    pub(crate) async fn write(&self, _: u64) -> anyhow::Result<()> {
        Ok(self.client.revoke_token(self.token).await?)
    }

    /// The tokens as of now.
    pub(crate) async fn read(&self) -> anyhow::Result<()> {
        self.client.tokens().await?;
        Ok(())
    }

    /// How many voters there are, and how many of them the leader hears.
    pub(crate) async fn voters(&self) -> anyhow::Result<(usize, Option<usize>)> {
        let view = self.client.cluster(false).await?;
        Ok((view.voters, view.voters_reachable))
    }
}
