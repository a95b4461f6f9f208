//! What the control API takes and gives, as JSON. The server, the command line and scripts share these.

mod confinement;
mod documents;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use blixard_core::{
    BlobHash, ClientRole, ClusterId, ConfigSource, Deed, Desired, EndpointId, ImageId, ImageKind, ImageName, Manifest,
    NodeId, Power, PublishedPort, Resources, RestartPolicy, Seed, Settings, Strategy, TokenId, UnixMs, VmId, VmName,
    limits,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::raft::Role;
pub use confinement::{ConfinementView, PrivilegesView};

mod cache;
mod catalogs;
mod compare;
mod peers;
mod shares;
mod transfers;
pub use cache::*;
pub use catalogs::*;
pub use compare::*;
pub use documents::*;
pub use peers::*;
pub use shares::*;
pub use transfers::*;

/// The cluster as one node sees it.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct ClusterView {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// Whose view this is: the leader's where it could be asked, otherwise that of the node that was asked.
    pub seen_by: NodeId,
    /// The leader, if one is known.
    pub leader: Option<NodeId>,
    /// The Raft term.
    pub term: u64,
    /// How many nodes vote.
    pub voters: usize,
    /// Whether a change of who votes is under way: until it is written, the voters before may be needed as well.
    pub voters_changing: bool,
    /// How many voters answer; unknown without a leader.
    pub voters_reachable: Option<usize>,
    /// The quorum margin in words.
    pub margin: String,
    /// Settings of the cluster.
    pub settings: Settings,
    /// The nodes.
    pub nodes: Vec<NodeView>,
    /// How many vms there are.
    pub vms: usize,
    /// How many images there are.
    pub images: usize,
    /// The BLAKE3 hash of the replicated state at `applied`: equal on all nodes that applied as much.
    pub state_digest: BlobHash,
    /// The last log index applied by the node that looked.
    pub applied: u64,
}

/// How a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It answers.
    Ready,
    /// It was admitted and has not answered yet.
    Joining,
    /// It does not answer.
    Unreachable,
    /// Nobody leads, so nobody knows.
    Unknown,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct NodeView {
    /// Its number.
    pub id: NodeId,
    /// Its key.
    pub endpoint_id: EndpointId,
    /// Its direct addresses.
    pub addresses: Vec<SocketAddr>,
    /// Its relay, if it has one.
    pub relay_url: Option<String>,
    /// Its part in the Raft group; nothing until the leader has taken it in.
    pub role: Option<Role>,
    /// How it is.
    pub state: NodeState,
    /// Milliseconds since it last answered the leader.
    pub last_contact_ms: Option<u64>,
    /// What it may promise to vms.
    pub capacity: Resources,
    /// What it has promised to vms.
    pub used: Resources,
    /// How many vms are placed on it.
    pub vms: usize,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its version of Blixard.
    pub version: String,
}

/// Asks for a join token.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// How long it is good for, in milliseconds; without a time, until it is revoked.
    #[schemars(range(min = 1))]
    pub ttl_ms: Option<u64>,
    /// How many nodes may join with it; without a number, any.
    #[schemars(range(min = 1))]
    pub uses: Option<u32>,
}

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct TokenView {
    /// Its id.
    pub id: TokenId,
    /// `valid`, `expired`, `used up` or `revoked`.
    pub state: String,
    /// How many more nodes may join with it.
    pub uses_left: Option<u32>,
    /// From when on it is refused.
    pub expires_at: Option<UnixMs>,
    /// When it was made.
    pub created_at: UnixMs,
}

/// A new join token. The ticket is shown this once: the cluster keeps only its hash.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct CreatedToken {
    /// The ticket for `blixard node --join`.
    pub ticket: String,
    /// The token.
    pub token: TokenView,
}

/// Asks for a client to be let in with a role, or to be given another.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantClient {
    /// What it may ask for.
    pub role: ClientRole,
    /// A word for people; without one, the name it has, or the first digits of its key.
    #[serde(default)]
    #[schemars(length(max = limits::WORD_CHARS_MAX), regex(pattern = limits::TEXT_PATTERN))]
    pub name: Option<String>,
}

/// A client of the control API.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct ClientView {
    /// Its key, as `blixard client id` prints it.
    pub id: EndpointId,
    /// A word for people.
    pub name: String,
    /// What it may ask for.
    pub role: ClientRole,
    /// When it was let in.
    pub added_at: UnixMs,
}

/// A write that was asked for, as the audit trail has it.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct AuditView {
    /// One more than that of the write before, so that a gap shows.
    pub number: u64,
    /// When the node that accepted the request did so, by that node's clock.
    pub at: UnixMs,
    /// The client that asked, unless a node did.
    pub client: Option<EndpointId>,
    /// The name that the client had then.
    pub client_name: Option<String>,
    /// The node that asked: the one that founded the cluster or let another in.
    pub node: Option<NodeId>,
    /// What was asked for.
    pub deed: Deed,
    /// Of what: a name or an id, and what tells this write from another like it.
    pub object: String,
    /// Why it was rejected; nothing when it was carried out.
    pub rejection: Option<String>,
}

/// An uploaded blob that is no part of an image yet. It is dropped after a while unless an image is made of it.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct BlobView {
    /// Its hash.
    pub hash: BlobHash,
    /// Its length in bytes.
    pub bytes: u64,
}

/// What an image is to be made of: blobs uploaded to the same node before.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", deny_unknown_fields)]
pub enum ImageSource {
    /// A bootable disk, qcow2 or raw.
    Disk {
        /// The disk.
        disk: BlobHash,
    },
    /// A Linux kernel.
    Kernel {
        /// The kernel.
        kernel: BlobHash,
        /// The initial ramdisk.
        initrd: Option<BlobHash>,
        /// The root disk.
        root: Option<BlobHash>,
        /// The kernel's command line.
        #[serde(default)]
        #[schemars(length(max = Manifest::CMDLINE_BYTES_MAX), regex(pattern = limits::LINE_PATTERN))]
        cmdline: String,
    },
}

/// Asks for an image to be added to the catalog.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct AddImage {
    /// Its name.
    pub name: ImageName,
    /// What it is made of.
    pub source: ImageSource,
}

/// An image of the catalog.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct ImageView {
    /// Its id.
    pub id: ImageId,
    /// Its name.
    pub name: ImageName,
    /// Its kind.
    pub kind: ImageKind,
    /// Its length in bytes, over all parts.
    pub bytes: u64,
    /// What it is made of.
    pub manifest: Manifest,
    /// Nodes that hold it.
    pub holders: Vec<NodeId>,
    /// Those of them that the leader does not hear from; nobody can fetch it from these. Empty where no leader can be asked.
    #[serde(default)]
    pub unreachable: Vec<NodeId>,
    /// Nodes that are to fetch it.
    pub wanted: Vec<NodeId>,
    /// Vms that use it.
    pub used_by: Vec<VmName>,
    /// When it was added.
    pub added_at: UnixMs,
    /// What a boot reads of its disk, once that was seen on a node where it was read as it came.
    #[serde(default)]
    pub boot: Option<BootView>,
}

/// What a boot reads of an image's disk: it is fetched first where another lazy vm boots from the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct BootView {
    /// How much, in bytes.
    pub bytes: u64,
    /// In how many places.
    pub places: usize,
    /// Whether the boot was seen to its end. What is known of one that was not goes when more is known.
    pub is_whole: bool,
}

/// Asks for a vm.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// Its name.
    pub name: VmName,
    /// The image's name.
    pub image: ImageName,
    /// Virtual processors.
    #[schemars(range(min = 1, max = limits::VCPUS_MAX))]
    pub vcpus: u32,
    /// Memory in MiB.
    #[schemars(range(min = limits::MEMORY_MIB_MIN, max = limits::MEMORY_MIB_MAX))]
    pub memory_mib: u64,
    /// Size of its disk in MiB, at least that of the image's disk; without one, just that.
    #[serde(default)]
    #[schemars(range(max = limits::DISK_MIB_MAX))]
    pub disk_mib: Option<u64>,
    /// Ports of the guest published on its host.
    #[serde(default)]
    #[schemars(length(max = limits::PUBLISH_MAX))]
    pub publish: Vec<PublishedPort>,
    /// What cloud-init is given.
    #[serde(default)]
    pub seed: Seed,
    /// Labels that the node must have.
    #[serde(default)]
    #[schemars(schema_with = "labels")]
    pub require: BTreeMap<String, String>,
    /// Vms of one group are kept on different nodes.
    #[serde(default)]
    #[schemars(length(max = limits::WORD_CHARS_MAX), regex(pattern = limits::TEXT_PATTERN))]
    pub anti_affinity: Option<String>,
    /// How to choose among nodes that fit.
    #[serde(default)]
    pub strategy: Strategy,
    /// The only node it may run on.
    #[serde(default)]
    pub node: Option<NodeId>,
    /// What happens when the guest ends by itself.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Files that cloud-init writes in the guest, with values of documents as they are now.
    #[serde(default)]
    #[schemars(length(max = limits::CONFIG_FILES_MAX))]
    pub config_files: Vec<ConfigSource>,
    /// Whether it boots before its image is on its node as a whole; without a word, when the image has 256 MiB or more.
    #[serde(default)]
    pub lazy: Option<bool>,
    /// Whether it is started at once.
    #[serde(default = "yes")]
    pub start: bool,
}

fn yes() -> bool {
    true
}

/// Labels, as far as a schema can tell which are taken.
fn labels(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": limits::LABELS_MAX,
        "propertyNames": { "pattern": limits::LABEL_KEY_PATTERN, "maxLength": limits::LABEL_KEY_CHARS_MAX },
        "additionalProperties": {
            "type": "string", "pattern": limits::LINE_PATTERN, "maxLength": limits::LABEL_VALUE_CHARS_MAX,
        },
    })
}

/// Asks for a vm to be stopped or restarted.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopVm {
    /// How long the guest may take to shut down before it is forced, in milliseconds; without a time, 30 s; 0 forces at
    /// once.
    #[schemars(range(max = limits::STOP_TIMEOUT_MS_MAX))]
    pub timeout_ms: Option<u64>,
}

/// What only the vm's node knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct LiveView {
    /// The image's transfer, while it is on its way.
    pub transfer: Option<TransferView>,
    /// Whether the guest reads its image as it comes.
    #[serde(default)]
    pub lazy: bool,
    /// How the run before the present one ended.
    pub last_exit: Option<String>,
    /// The process id of the hypervisor.
    pub pid: Option<u32>,
    /// What runs the guest: `kvm`, `tcg` or `fake`.
    pub accelerator: Option<String>,
    /// What holds the hypervisor back.
    pub confinement: Option<ConfinementView>,
}

/// A vm.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct VmView {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
    /// The image it was made from.
    pub image: ImageName,
    /// The image's id.
    pub image_id: ImageId,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Size of its disk in MiB.
    pub disk_mib: u64,
    /// Published ports.
    pub publish: Vec<PublishedPort>,
    /// What happens when the guest ends by itself.
    pub restart: RestartPolicy,
    /// The node it is placed on.
    pub node: Option<NodeId>,
    /// The epoch of its placement.
    pub epoch: u64,
    /// What is wanted of it.
    pub desired: Desired,
    /// `pending`, `preparing`, `running`, `stopping`, `stopped`, `failed` or `deleting`.
    pub phase: String,
    /// The run that the phase is about.
    pub observed_run: u64,
    /// Why it is in this phase, where there is something to say.
    pub reason: Option<String>,
    /// Whether a failed vm will be tried again by itself.
    pub retrying: bool,
    /// How often its restart policy started it again in this run.
    pub restarts: u32,
    /// Since when it is in this phase.
    pub since: Option<UnixMs>,
    /// When it was created.
    pub created_at: UnixMs,
    /// Files with values of documents, as they were when it was created.
    #[serde(default)]
    pub config_files: Vec<ConfigFileView>,
    /// What only its node knows; nothing when that node was not asked or did not answer.
    pub live: Option<LiveView>,
}

impl VmView {
    /// Whether what was last asked of the vm has come about, or can no longer: `Some(Err)` says why not.
    pub fn settled(&self) -> Option<Result<(), String>> {
        let current = self.observed_run >= self.desired.run;
        let why = || self.reason.clone().unwrap_or_else(|| "no reason was given".to_owned());
        match (self.desired.power, self.phase.as_str()) {
            _ if self.desired.deleting => None,
            (Power::On, "running") if current => Some(Ok(())),
            (Power::On, "failed") if current && !self.retrying => Some(Err(why())),
            (Power::Off, "stopped" | "failed") => Some(Ok(())),
            (Power::Off, "pending") => Some(Ok(())),
            _ => None,
        }
    }
}

/// Why a vm is, or is not, on each node.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct ExplainView {
    /// The vm.
    pub vm: VmName,
    /// The node it is placed on.
    pub node: Option<NodeId>,
    /// A word on each node.
    pub verdicts: Vec<VerdictView>,
}

/// A word on one node.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct VerdictView {
    /// The node.
    pub node: NodeId,
    /// Whether the vm could be there.
    pub fits: bool,
    /// Its place among the nodes that could carry the vm, counted from 1; 0 for where it is.
    pub rank: Option<u32>,
    /// What sort of refusal it is, in words that are the same for every node that refuses for this.
    pub sort: Option<String>,
    /// Why, or why not.
    pub text: String,
}

/// Something that happened in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct EventView {
    /// Rises by one with each event of the cluster, whichever node is asked.
    pub number: u64,
    /// When.
    pub at: UnixMs,
    /// What happened, in two words: `vm started`, `node lost`.
    pub kind: String,
    /// The vm that it is about, as it was called then.
    pub vm: Option<VmName>,
    /// The image that it is about.
    pub image: Option<ImageName>,
    /// The node that it is about, or happened on.
    pub node: Option<NodeId>,
    /// Who caused it: the name of a client, or `node 2`, which decided or noticed it.
    pub by: String,
    /// All of it in a sentence.
    pub text: String,
}

/// Which events are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Only those about this vm.
    pub vm: Option<VmName>,
    /// Only those about this node.
    pub node: Option<NodeId>,
}

/// Asks for a node to be removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct RemoveNode {
    /// Removes it though vms are placed on it or it holds the last copy of an image.
    #[serde(default)]
    pub force: bool,
}
