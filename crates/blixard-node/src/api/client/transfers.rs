//! Requests about image content on its way between nodes.

use std::time::Duration;

use blixard_core::{ImageName, NodeId};
use http::Method;

use super::{Client, ClientError};
use crate::api::views::{LimitsView, NodeTransfersView, SetLimits, TransferOrder};

/// The node that a request is about, as a query; without one, it is the node that is asked.
pub(super) fn about(node: Option<NodeId>) -> String {
    node.map_or_else(String::new, |node| format!("?node={node}"))
}

impl Client {
    /// What is on its way to each node, and which nodes could not be asked.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn transfers(&self) -> Result<Vec<NodeTransfersView>, ClientError> {
        self.get("/v1/transfers").await
    }

    /// Has a node fetch an image, if need be by a deadline, and says which node that is. To ask again sets the deadline anew.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn fetch_image(
        &self,
        image: &ImageName,
        node: Option<NodeId>,
        deadline: Option<Duration>,
    ) -> Result<NodeId, ClientError> {
        let deadline = deadline.map(|deadline| format!("deadline_ms={}", deadline.as_millis()));
        let node = node.map(|node| format!("node={node}"));
        let query: Vec<String> = [node, deadline].into_iter().flatten().collect();
        let path = format!("/v1/images/{image}/fetch?{}", query.join("&"));
        self.call(Method::POST, &path, None::<&()>).await
    }

    /// Changes how a node fetches an image, and says which node that is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn order_transfer(
        &self,
        image: &ImageName,
        node: Option<NodeId>,
        order: TransferOrder,
    ) -> Result<NodeId, ClientError> {
        let path = match order {
            TransferOrder::Fetch => return self.fetch_image(image, node, None).await,
            TransferOrder::Pause | TransferOrder::Resume | TransferOrder::Cancel => {
                format!("/v1/transfers/{image}/{}{}", order.word(), about(node))
            }
        };
        self.call(Method::POST, &path, None::<&()>).await
    }

    /// How fast a node sends and receives image content, at most.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn limits(&self, node: Option<NodeId>) -> Result<LimitsView, ClientError> {
        self.get(&format!("/v1/transfers/limits{}", about(node))).await
    }

    /// Sets how fast a node sends and receives image content, at most. It holds at once, and the node keeps it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn set_limits(&self, node: Option<NodeId>, limits: &SetLimits) -> Result<LimitsView, ClientError> {
        self.call(Method::PUT, &format!("/v1/transfers/limits{}", about(node)), Some(limits)).await
    }
}
