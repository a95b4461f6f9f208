//! The replicated state of the cluster.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::command::{decode, encode};
use crate::{
    Audit, BootRecord, Client, ClusterId, DecodeError, DocumentsSecret, EndpointId, History, Image, ImageId, ImageName,
    Node, NodeId, Outcome, RequestKey, Resources, Settings, Token, TokenId, Vm, VmId, VmName,
};

/// Everything the cluster has agreed on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct State {
    /// The cluster's id; nothing before the first command.
    pub cluster: Option<ClusterId>,
    /// Settings of the cluster.
    pub settings: Settings,
    /// The members.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Keys of nodes that were removed, oldest first: told so when they come back.
    pub removed: VecDeque<EndpointId>,
    /// Join tokens.
    pub tokens: BTreeMap<TokenId, Token>,
    /// Keys that may use the control API.
    pub clients: BTreeMap<EndpointId, Client>,
    /// The catalog of images.
    pub images: BTreeMap<ImageId, Image>,
    /// The vms.
    pub vms: BTreeMap<VmId, Vm>,
    /// Answers to the last requests, oldest first, so that a retry gets the first answer.
    pub answered: VecDeque<(RequestKey, Outcome)>,
    /// What was asked for lately, and by whom.
    pub audit: Audit,
    /// What lets members find and write the documents; nothing until the founding is complete. It leaves the state by no view.
    pub documents_secret: Option<DocumentsSecret>,
    /// What a boot reads of images, as far as it was seen.
    pub boots: BTreeMap<ImageId, BootRecord>,
    /// What happened. The last field: [`State::digest`] leaves it out.
    pub history: History,
}

impl State {
    /// The format of encoded state.
    pub const FORMAT: u8 = 1;

    /// The state as it stands in a snapshot.
    pub fn encode(&self) -> Vec<u8> {
        encode(Self::FORMAT, self)
    }

    /// Reads a snapshot.
    ///
    /// # Errors
    /// When it was written in another format, or is damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode(Self::FORMAT, bytes)
    }

    /// The BLAKE3 hash of the encoded state without its history: equal on two replicas exactly when all else is. What is and
    /// not how it came about, so that a restart or an election, which are history, do not change it.
    pub fn digest(&self) -> [u8; 32] {
        let encoded = self.encode();
        let history = postcard::to_stdvec(&self.history).expect("plain data always encodes into memory");
        *blake3::hash(&encoded[..encoded.len() - history.len()]).as_bytes()
    }

    /// The vm of a name.
    pub fn vm_named(&self, name: &VmName) -> Option<&Vm> {
        self.vms.values().find(|vm| vm.name == *name)
    }

    /// The image of a name.
    pub fn image_named(&self, name: &ImageName) -> Option<&Image> {
        self.images.values().find(|image| image.name == *name)
    }

    /// The member with a key.
    pub fn node_of(&self, endpoint: &EndpointId) -> Option<&Node> {
        self.nodes.values().find(|node| node.endpoint == *endpoint)
    }

    /// The vms placed on a node.
    pub fn vms_on(&self, node: NodeId) -> impl Iterator<Item = &Vm> {
        self.vms.values().filter(move |vm| vm.placement.is_some_and(|placement| placement.node == node))
    }

    /// What the vms placed on a node take together.
    pub fn used_on(&self, node: NodeId) -> Resources {
        self.vms_on(node).fold(Resources::default(), |sum, vm| sum.plus(vm.spec.resources()))
    }

    /// The vms that pin an image.
    pub fn vms_using(&self, image: ImageId) -> impl Iterator<Item = &Vm> {
        self.vms.values().filter(move |vm| vm.spec.image == image)
    }
}
