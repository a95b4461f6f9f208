//! Why a command was refused. An answer, not a failure: it is equal on every replica.

use serde::{Deserialize, Serialize};

use crate::{ClusterId, ImageName, NodeId, TokenId, VmName};

/// Why a command was refused, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Rejection {
    /// A command before the first, [`crate::Change::InitCluster`].
    #[error("the cluster has not been created yet")]
    NoCluster,
    /// A second [`crate::Change::InitCluster`].
    #[error("the cluster {0} exists already")]
    ClusterExists(ClusterId),
    /// A value outside its limits.
    #[error("{0}")]
    Invalid(String),
    /// No such token.
    #[error("no token {0} is known: make one with `blixard cluster token create`")]
    UnknownToken(TokenId),
    /// The secret does not belong to the token.
    #[error("the ticket's secret is wrong: make a new ticket with `blixard cluster token create`")]
    WrongSecret,
    /// The token's time is over.
    #[error("the ticket has expired: make a new one with `blixard cluster token create`")]
    TokenExpired,
    /// As many nodes joined with the token as it allowed.
    #[error("the ticket has been used up: make a new one with `blixard cluster token create`")]
    TokenUsedUp,
    /// The token was revoked.
    #[error("the ticket was revoked: make a new one with `blixard cluster token create`")]
    TokenRevoked,
    /// A new node showed no token.
    #[error("a node that is not a member needs a ticket: make one with `blixard cluster token create`")]
    TokenMissing,
    /// The number belongs to a node with another key.
    #[error("node {0} is already in the cluster with another key: choose another --id")]
    NodeIdTaken(NodeId),
    /// The key belongs to a node with another number.
    #[error("this node is already in the cluster as node {0}: start it with --id {0}")]
    NodeKnownAs(NodeId),
    /// The key belonged to a node that was removed.
    #[error("this node was removed from the cluster: start it with an empty data directory to join anew")]
    NodeRemoved,
    /// No such node.
    #[error("there is no node {0} in the cluster")]
    UnknownNode(NodeId),
    /// The last node cannot be removed.
    #[error("node {0} is the only node of the cluster")]
    LastNode(NodeId),
    /// Vms are placed on the node.
    #[error("node {node} has vms placed on it ({vms}): delete them, or use --force to give up their disks")]
    NodeHasVms {
        /// The node.
        node: NodeId,
        /// The vms' names.
        vms: String,
    },
    /// The node holds the last copy of an image.
    #[error("node {node} holds the last copy of {images}: wait for the copy elsewhere, or use --force to give it up")]
    NodeHasLastCopy {
        /// The node.
        node: NodeId,
        /// The images' names.
        images: String,
    },
    /// The limit on how many of something the cluster keeps.
    #[error("the cluster has {limit} {what} already, which is the limit")]
    LimitReached {
        /// Of what.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// The last admin can be neither revoked nor given a lesser role.
    #[error("this is the only admin: make another client admin first with `blixard cluster grant`")]
    LastAdmin,
    /// No such client.
    #[error("no such client key")]
    UnknownClient,
    /// The image's name belongs to other content.
    #[error("an image named {0} exists with other content: choose another name, or delete it first")]
    ImageNameTaken(ImageName),
    /// The same content is in the catalog under another name.
    #[error("the same image is in the catalog as {0}")]
    ImageKnownAs(ImageName),
    /// No such image.
    #[error("there is no such image")]
    UnknownImage,
    /// Vms use the image.
    #[error("image {image} is used by {vms}: delete them first")]
    ImageInUse {
        /// The image.
        image: ImageName,
        /// The vms' names.
        vms: String,
    },
    /// The vm's name is taken.
    #[error("a vm named {0} exists already")]
    VmNameTaken(VmName),
    /// No such vm.
    #[error("there is no such vm")]
    UnknownVm,
    /// The vm is being deleted.
    #[error("vm {0} is being deleted")]
    VmDeleting(VmName),
    /// The vm's placement has moved on.
    #[error("the placement is stale: the vm is at epoch {epoch}")]
    StaleEpoch {
        /// The vm's epoch.
        epoch: u64,
    },
    /// The vm is placed already.
    #[error("the vm is placed on node {0} already")]
    AlreadyPlaced(NodeId),
    /// The node cannot carry the vm.
    #[error("node {node} cannot carry the vm: {reason}")]
    DoesNotFit {
        /// The node.
        node: NodeId,
        /// What is missing.
        reason: String,
    },
    /// Whoever asked has no say in this.
    #[error("{0}")]
    NotAllowed(String),
    /// The id of the request was given to another one before.
    #[error("another request had this id: give each request an id of its own")]
    RequestIdTaken,
    /// The node's copy of an image is needed.
    #[error("node {node} keeps its copy of image {image}: {reason}")]
    CopyNeeded {
        /// The image.
        image: ImageName,
        /// The node.
        node: NodeId,
        /// What for.
        reason: String,
    },
}
