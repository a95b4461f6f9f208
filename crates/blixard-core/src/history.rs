//! What happened in the cluster: the last events, and what the leader last noted of it.
//!
//! Events follow from commands and nothing else, so every replica tells the same story, and a restart forgets none of it.
//! What happens apart from commands (an election, a node that falls silent) becomes one by a [`Note`], which the leader
//! or the node itself proposes.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    Actor, ClientRole, HEALTHY_WITHIN_MS, ImageId, ImageName, NodeId, RaftView, Settings, State, TokenId, UnixMs, VmId,
    VmName,
};

/// How long a member must have been silent before that is an event, in milliseconds. Longer than an election takes, during
/// which everybody is silent, and short enough that people hear of a loss while they can still do something.
pub const SILENT_AFTER_MS: u64 = 5_000;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Rises by one with each event, from 1 on.
    pub number: u64,
    /// When, by the clock of the node that accepted the command.
    pub at: UnixMs,
    /// Whose command it followed from.
    pub by: Actor,
    /// What.
    pub what: Happening,
}

/// What can happen. Things are named as they were called then: they may be gone by now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Happening {
    /// The cluster was founded.
    Founded {
        /// By this node.
        node: NodeId,
    },
    /// A node was let in.
    NodeJoined {
        /// The node.
        node: NodeId,
    },
    /// A node was taken out.
    NodeRemoved {
        /// The node.
        node: NodeId,
        /// Whether something may have been lost with it.
        force: bool,
    },
    /// A node's process started and has caught up.
    NodeStarted {
        /// The node.
        node: NodeId,
    },
    /// A node does not answer the leader any more.
    NodeLost {
        /// The node.
        node: NodeId,
    },
    /// A node answers again.
    NodeBack {
        /// The node.
        node: NodeId,
    },
    /// Another node leads.
    LeaderChanged {
        /// The node.
        node: NodeId,
        /// Its term.
        term: u64,
    },
    /// Others vote.
    VotersChanged {
        /// Those who vote now.
        voters: BTreeSet<NodeId>,
    },
    /// Settings of the cluster were changed.
    SettingsChanged {
        /// What they are now.
        settings: Settings,
    },
    /// A join token was made.
    TokenMade {
        /// The token.
        token: TokenId,
    },
    /// A join token was revoked.
    TokenRevoked {
        /// The token.
        token: TokenId,
    },
    /// A client may use the cluster, or was given another role in it.
    ClientGranted {
        /// Its name.
        name: String,
        /// Its role.
        role: ClientRole,
    },
    /// A client may not use the cluster any more.
    ClientRevoked {
        /// Its name.
        name: String,
    },
    /// An image was added to the catalog.
    ImageAdded {
        /// The image.
        image: ImageName,
        /// Where its first copy is.
        node: NodeId,
    },
    /// A node is to fetch a copy of an image.
    ImageWanted {
        /// The image.
        image: ImageName,
        /// The node.
        node: NodeId,
    },
    /// A node has a copy of an image.
    ImageFetched {
        /// The image.
        image: ImageName,
        /// The node.
        node: NodeId,
    },
    /// A node has a copy of an image no more.
    ImageDropped {
        /// The image.
        image: ImageName,
        /// The node.
        node: NodeId,
    },
    /// An image is gone from the catalog.
    ImageRemoved {
        /// The image.
        image: ImageName,
    },
    /// A vm was created.
    VmCreated {
        /// The vm.
        vm: VmName,
    },
    /// A vm is to do something that a user asked for.
    VmOrdered {
        /// The vm.
        vm: VmName,
        /// What.
        order: VmOrder,
    },
    /// A vm was given to a node.
    VmPlaced {
        /// The vm.
        vm: VmName,
        /// The node.
        node: NodeId,
    },
    /// A guest runs.
    VmStarted {
        /// The vm.
        vm: VmName,
        /// The node.
        node: NodeId,
        /// How often the restart policy has started it in this run.
        restarts: u32,
    },
    /// A guest has stopped, as was asked for.
    VmStopped {
        /// The vm.
        vm: VmName,
        /// The node.
        node: NodeId,
        /// How it ended.
        reason: String,
    },
    /// A guest ended by itself, or could not be started.
    VmFailed {
        /// The vm.
        vm: VmName,
        /// The node.
        node: NodeId,
        /// Why.
        reason: String,
        /// Whether it will be tried again without a user's doing.
        retrying: bool,
    },
    /// A guest ran on while its node's process was away.
    VmAdopted {
        /// The vm.
        vm: VmName,
        /// The node.
        node: NodeId,
    },
    /// A vm's node was taken out of the cluster, and its disk with it.
    VmLost {
        /// The vm.
        vm: VmName,
        /// The node that it was on.
        node: NodeId,
    },
    /// A vm and all its files are gone.
    VmDeleted {
        /// The vm.
        vm: VmName,
    },
    /// A node could not fetch an image.
    ImageFailing {
        /// The image.
        image: ImageName,
        /// The node.
        node: NodeId,
        /// Why.
        reason: String,
        /// Whether it is tried again without a user's doing.
        retrying: bool,
    },
}

/// What a user can ask of a vm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmOrder {
    /// To run.
    Start,
    /// Not to run.
    Stop,
    /// To stop and run again.
    Restart,
    /// To go.
    Delete,
}

impl Happening {
    /// What happened, in two words or three at most, as `vm started`.
    pub fn words(&self) -> &'static str {
        match self {
            Self::Founded { .. } => "cluster founded",
            Self::NodeJoined { .. } => "node joined",
            Self::NodeRemoved { .. } => "node removed",
            Self::NodeStarted { .. } => "node started",
            Self::NodeLost { .. } => "node lost",
            Self::NodeBack { .. } => "node back",
            Self::LeaderChanged { .. } => "leader changed",
            Self::VotersChanged { .. } => "voters changed",
            Self::SettingsChanged { .. } => "settings changed",
            Self::TokenMade { .. } => "token made",
            Self::TokenRevoked { .. } => "token revoked",
            Self::ClientGranted { .. } => "client granted",
            Self::ClientRevoked { .. } => "client revoked",
            Self::ImageAdded { .. } => "image added",
            Self::ImageWanted { .. } => "image wanted",
            Self::ImageFetched { .. } => "image fetched",
            Self::ImageDropped { .. } => "image dropped",
            Self::ImageRemoved { .. } => "image removed",
            Self::VmCreated { .. } => "vm created",
            Self::VmOrdered { .. } => "vm ordered",
            Self::VmPlaced { .. } => "vm placed",
            Self::VmStarted { restarts: 0, .. } => "vm started",
            Self::VmStarted { .. } => "vm restarted",
            Self::VmStopped { .. } => "vm stopped",
            Self::VmFailed { .. } => "vm failed",
            Self::VmAdopted { .. } => "vm adopted",
            Self::VmLost { .. } => "vm lost",
            Self::VmDeleted { .. } => "vm deleted",
            Self::ImageFailing { .. } => "image failing",
        }
    }

    /// The vm that it is about.
    pub fn vm(&self) -> Option<&VmName> {
        match self {
            Self::VmCreated { vm }
            | Self::VmOrdered { vm, .. }
            | Self::VmPlaced { vm, .. }
            | Self::VmStarted { vm, .. }
            | Self::VmStopped { vm, .. }
            | Self::VmFailed { vm, .. }
            | Self::VmAdopted { vm, .. }
            | Self::VmLost { vm, .. }
            | Self::VmDeleted { vm } => Some(vm),
            _ => None,
        }
    }

    /// The image that it is about.
    pub fn image(&self) -> Option<&ImageName> {
        match self {
            Self::ImageAdded { image, .. }
            | Self::ImageWanted { image, .. }
            | Self::ImageFetched { image, .. }
            | Self::ImageDropped { image, .. }
            | Self::ImageFailing { image, .. }
            | Self::ImageRemoved { image } => Some(image),
            _ => None,
        }
    }

    /// The node that it is about, or happened on.
    pub fn node(&self) -> Option<NodeId> {
        match self {
            Self::Founded { node }
            | Self::NodeJoined { node }
            | Self::NodeRemoved { node, .. }
            | Self::NodeStarted { node }
            | Self::NodeLost { node }
            | Self::NodeBack { node }
            | Self::LeaderChanged { node, .. }
            | Self::ImageAdded { node, .. }
            | Self::ImageWanted { node, .. }
            | Self::ImageFetched { node, .. }
            | Self::ImageDropped { node, .. }
            | Self::ImageFailing { node, .. }
            | Self::VmPlaced { node, .. }
            | Self::VmStarted { node, .. }
            | Self::VmStopped { node, .. }
            | Self::VmFailed { node, .. }
            | Self::VmAdopted { node, .. }
            | Self::VmLost { node, .. } => Some(*node),
            _ => None,
        }
    }
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Founded { node } => write!(f, "node {node} founded the cluster"),
            Self::NodeJoined { node } => write!(f, "node {node} was let in"),
            Self::NodeRemoved { node, force: false } => write!(f, "node {node} left, or was removed"),
            Self::NodeRemoved { node, force: true } => write!(f, "node {node} was removed by force"),
            Self::NodeStarted { node } => write!(f, "node {node} started and has caught up"),
            Self::NodeLost { node } => write!(f, "node {node} does not answer the leader"),
            Self::NodeBack { node } => write!(f, "node {node} answers the leader again"),
            Self::LeaderChanged { node, term } => write!(f, "node {node} leads since term {term}"),
            Self::VotersChanged { voters } => {
                let nodes: Vec<String> = voters.iter().map(NodeId::to_string).collect();
                let (noun, verb) = if voters.len() == 1 { ("node", "votes") } else { ("nodes", "vote") };
                write!(f, "{noun} {} {verb}", nodes.join(", "))
            }
            Self::SettingsChanged { settings } => {
                write!(f, "voters: {}, copies of each image: {}", settings.voters, settings.copies)
            }
            Self::TokenMade { token } => write!(f, "join token {token} was made"),
            Self::TokenRevoked { token } => write!(f, "join token {token} was revoked"),
            Self::ClientGranted { name, role } => write!(f, "client {name} has the role {role}"),
            Self::ClientRevoked { name } => write!(f, "client {name} may not use the cluster any more"),
            Self::ImageAdded { image, node } => write!(f, "image {image} was added on node {node}"),
            Self::ImageWanted { image, node } => write!(f, "node {node} is to fetch image {image}"),
            Self::ImageFetched { image, node } => write!(f, "node {node} has all of image {image}"),
            Self::ImageDropped { image, node } => write!(f, "node {node} has image {image} no more"),
            Self::ImageRemoved { image } => write!(f, "image {image} is gone from the catalog"),
            Self::VmCreated { vm } => write!(f, "vm {vm} was created"),
            Self::VmOrdered { vm, order } => {
                let order = match order {
                    VmOrder::Start => "start",
                    VmOrder::Stop => "stop",
                    VmOrder::Restart => "restart",
                    VmOrder::Delete => "be deleted",
                };
                write!(f, "vm {vm} is to {order}")
            }
            Self::VmPlaced { vm, node } => write!(f, "vm {vm} was given to node {node}"),
            Self::VmStarted { vm, node, restarts: 0 } => write!(f, "vm {vm} runs on node {node}"),
            Self::VmStarted { vm, node, restarts } => {
                write!(f, "vm {vm} runs again on node {node}: restart {restarts} of this run")
            }
            Self::VmStopped { vm, node, reason } if reason.is_empty() => write!(f, "vm {vm} is off on node {node}"),
            Self::VmStopped { vm, node, reason } => write!(f, "vm {vm} has stopped on node {node}: {reason}"),
            Self::VmFailed { vm, node, reason, retrying } => {
                let next = if *retrying { " (it will be tried again)" } else { "" };
                write!(f, "vm {vm} has failed on node {node}: {reason}{next}")
            }
            Self::VmAdopted { vm, node } => write!(f, "vm {vm} ran on while node {node} was restarted"),
            Self::VmLost { vm, node } => write!(f, "vm {vm} lost its disk with node {node}"),
            Self::VmDeleted { vm } => write!(f, "vm {vm} and its files are gone"),
            Self::ImageFailing { image, node, reason, retrying } => {
                let next = if *retrying { " (it is tried again)" } else { " (it is not tried again by itself)" };
                write!(f, "node {node} could not fetch image {image}: {reason}{next}")
            }
        }
    }
}

/// What is told to the cluster because no command follows from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// The node that says so leads.
    Leads {
        /// Since this term.
        term: u64,
    },
    /// These vote.
    Voters(BTreeSet<NodeId>),
    /// A member does not answer.
    Lost(NodeId),
    /// A member that did not answer does again.
    Back(NodeId),
    /// The process of the node that says so started.
    Started {
        /// Guests that ran already.
        adopted: Vec<VmId>,
    },
    /// The node that says so could not fetch an image. Said once an image, until it is there.
    ImageFailing {
        /// The image.
        image: ImageId,
        /// Why, for people.
        reason: String,
        /// Whether it is tried again without a user's doing.
        retrying: bool,
    },
}

/// The story of the cluster, as far as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct History {
    /// The last events, oldest first.
    pub events: VecDeque<Event>,
    /// How many events there have been.
    pub count: u64,
    /// Who leads, and since which term, as was last noted.
    pub leader: Option<(NodeId, u64)>,
    /// Who votes, as was last noted.
    pub voters: BTreeSet<NodeId>,
    /// Members that are noted as lost.
    pub lost: BTreeSet<NodeId>,
}

impl State {
    /// What a leader of a term should note next, if anything: how things are and how they were noted last differ.
    pub fn plan_notes(&self, view: &RaftView, term: u64) -> Vec<Note> {
        let mut notes = Vec::new();
        if self.history.leader != Some((view.leader, term)) {
            notes.push(Note::Leads { term });
        }
        if self.history.voters != view.voters {
            notes.push(Note::Voters(view.voters.clone()));
        }
        for (node, silent_ms) in view.silent_ms.iter().filter(|(node, _)| self.nodes.contains_key(node)) {
            let is_noted = self.history.lost.contains(node);
            if *silent_ms >= SILENT_AFTER_MS && !is_noted {
                notes.push(Note::Lost(*node));
            } else if *silent_ms <= HEALTHY_WITHIN_MS && is_noted {
                notes.push(Note::Back(*node));
            }
        }
        // A leader answers itself.
        if self.history.lost.contains(&view.leader) {
            notes.push(Note::Back(view.leader));
        }
        notes
    }
}
