//! Commands: the only way in which cluster state changes.
//!
//! A command carries everything that apply needs, time and ids included, because apply may look nowhere else. Its encoding
//! is kept in every node's log: variants and fields are only ever added at the end, under a new [`Command::FORMAT`].

use serde::{Deserialize, Serialize};

use crate::{
    BootRecord, Client, ClusterId, ContentHash, Deed, DocumentsSecret, EndpointId, Image, ImageId, Node, NodeId, Note,
    Observed, Rejection, RequestId, SecretHash, Settings, Token, TokenId, UnixMs, VmId, VmName, VmSpec,
};

/// Who asked for a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Actor {
    /// A node of the cluster, by itself: the leader's decisions and the agents' reports.
    Node(NodeId),
    /// A user.
    Client(EndpointId),
}

/// What a request is known by.
///
/// What it asks for is told from the request and not from the command: of one request each try makes another command, with
/// ids, secrets and times of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestKey {
    /// Given by whoever asks, and by nobody twice.
    pub id: RequestId,
    /// What it asks for, so that an id that is used again for something else is noticed.
    pub content: ContentHash,
}

/// A change, and who asked for it when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// With a key, the same request arriving twice (a retry whose first try had succeeded after all) has one effect and
    /// one answer. Reports and decisions have none: they are made again from what is seen.
    pub request: Option<RequestKey>,
    /// When the node that accepted the request did so.
    pub at: UnixMs,
    /// Who asked.
    pub by: Actor,
    /// What is to change.
    pub change: Change,
}

/// What a command changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The first command of every log.
    InitCluster {
        /// The cluster's id.
        cluster: ClusterId,
        /// The first node.
        node: Node,
        /// The user who started it, and who may use the control API.
        client: Client,
        /// Settings of the cluster.
        settings: Settings,
    },
    /// Changes the settings of the cluster.
    ChangeSettings(Settings),
    /// Makes a join token.
    CreateToken(Token),
    /// Revokes a join token.
    RevokeToken(TokenId),
    /// Lets a node in that showed a token's secret. A node that is a member already is updated.
    AdmitNode {
        /// The node; [`Node::joined_at`] is set by apply.
        node: Node,
        /// The token it showed, and the hash of the secret it showed. A member that rejoins needs none.
        token: Option<(TokenId, SecretHash)>,
    },
    /// A member's addresses, capacity, labels or version changed. Sent by itself.
    UpdateNode(Node),
    /// Removes a node from the cluster.
    RemoveNode {
        /// The node.
        node: NodeId,
        /// Removes it though vms are placed on it or it holds the last copy of an image: the vms lose their disks.
        force: bool,
    },
    /// Lets a client in, or gives one that is known another role or name.
    GrantClient(Client),
    /// Takes all rights from a client.
    RevokeClient(EndpointId),
    /// Adds an image to the catalog; the node in its holders has all of it.
    AddImage(Image),
    /// Removes an image from the catalog; nodes then drop their copies.
    DeleteImage(ImageId),
    /// The scheduler wants a copy of an image on a node.
    WantCopy {
        /// The image.
        image: ImageId,
        /// The node that is to fetch it.
        node: NodeId,
    },
    /// A node has, or no longer has, a whole and verified copy of an image.
    ReportCopy {
        /// The image.
        image: ImageId,
        /// The node that reports.
        node: NodeId,
        /// Whether it has the copy.
        present: bool,
    },
    /// Creates a vm.
    CreateVm {
        /// Its id, minted by the node that accepted the request.
        id: VmId,
        /// Its name.
        name: VmName,
        /// What was asked for.
        spec: VmSpec,
        /// Whether it should run at once.
        start: bool,
    },
    /// A vm should run.
    StartVm(VmId),
    /// A vm should not run.
    StopVm {
        /// The vm.
        id: VmId,
        /// How long the guest may take before it is forced, in milliseconds.
        timeout_ms: u64,
    },
    /// A vm should be stopped, if it runs, and run again.
    RestartVm {
        /// The vm.
        id: VmId,
        /// How long the guest may take before it is forced, in milliseconds.
        timeout_ms: u64,
    },
    /// A vm and all its files are to go.
    DeleteVm(VmId),
    /// The scheduler's decision. Refused when `epoch` is not the next one or the node cannot carry the vm.
    PlaceVm {
        /// The vm.
        id: VmId,
        /// The node.
        node: NodeId,
        /// One more than the vm's last epoch.
        epoch: u64,
    },
    /// What a vm's node sees of it.
    ReportVm {
        /// The vm.
        id: VmId,
        /// The node that reports.
        node: NodeId,
        /// What it sees.
        observed: Observed,
    },
    /// The node has removed every file of a vm that is being deleted.
    ForgetVm {
        /// The vm.
        id: VmId,
        /// The node that reports.
        node: NodeId,
        /// The epoch of the placement.
        epoch: u64,
    },
    /// Something happened that no other command follows from.
    Note(Note),
    /// Gives the members the secret of their documents. The first one stays.
    SetDocumentsSecret(DocumentsSecret),
    /// A node wants to give its copy of an image up, to have room. Refused when the copy is needed; when it is not, the node
    /// counts as a holder no more, and removes the copy then.
    ReleaseCopy {
        /// The image.
        image: ImageId,
        /// The node that asks.
        node: NodeId,
    },
    /// A node did what a client asked of it, which is a matter of that node alone. It goes into the audit trail, and changes
    /// nothing else.
    RecordDeed {
        /// The node that did it, and says so.
        node: NodeId,
        /// Who asked.
        client: EndpointId,
        /// What was done: one of those of which [`Deed::is_of_one_node`] holds.
        deed: Deed,
        /// Of what.
        object: String,
    },
    /// A node has seen what a boot reads of an image. What is there already stays, unless that was cut short.
    RecordBoot {
        /// The image.
        image: ImageId,
        /// The node that reports.
        node: NodeId,
        /// What it saw.
        record: BootRecord,
    },
}

/// What apply answers when a change was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The change was made, or nothing had to change.
    Done,
    /// The vm that the command was about, with the run that is now desired.
    Vm {
        /// The vm.
        id: VmId,
        /// [`crate::Desired::run`].
        run: u64,
    },
    /// The image that the command was about. When the same image was there already, it is the one that was there.
    Image(ImageId),
}

/// What a command comes to. Equal on every replica.
pub type Outcome = Result<Answer, Rejection>;

/// An encoded command or state that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It was written by a version of Blixard that this one does not know.
    #[error("written in format {found}, and this version of Blixard reads format {known}: run the newer version")]
    Format {
        /// The format found.
        found: u8,
        /// The format this version reads.
        known: u8,
    },
    /// It is damaged.
    #[error("damaged: {0}")]
    Damaged(String),
}

/// Encodes with a leading format byte.
pub(crate) fn encode<T: Serialize>(format: u8, value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![format]).expect("plain data always encodes into memory")
}

/// Decodes what [`encode`] wrote, to the last byte.
pub(crate) fn decode<'a, T: Deserialize<'a>>(known: u8, bytes: &'a [u8]) -> Result<T, DecodeError> {
    let (format, body) = bytes.split_first().ok_or_else(|| DecodeError::Damaged("empty".into()))?;
    if *format != known {
        return Err(DecodeError::Format { found: *format, known });
    }
    let (value, rest) = postcard::take_from_bytes(body).map_err(|error| DecodeError::Damaged(error.to_string()))?;
    if rest.is_empty() { Ok(value) } else { Err(DecodeError::Damaged(format!("{} bytes too many", rest.len()))) }
}

impl Command {
    /// The format of encoded commands.
    pub const FORMAT: u8 = 1;

    /// The command as it stands in the log.
    pub fn encode(&self) -> Vec<u8> {
        encode(Self::FORMAT, self)
    }

    /// Reads a command from the log.
    ///
    /// # Errors
    /// When it was written in another format, or is damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode(Self::FORMAT, bytes)
    }
}
