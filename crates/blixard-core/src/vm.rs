//! Virtual machines: what was asked for (spec and desired), where (placement), and what is seen (observed).
//!
//! ```text
//!            CreateVm            PlaceVm(epoch 1)          ReportVm
//!  (nothing) --------> unplaced -----------------> placed ----------> observed: preparing, running, ...
//!                         |                           |  DeleteVm
//!                         | DeleteVm                  v
//!                         +--> (nothing)         deleting --ForgetVm (the node has removed every file)--> (nothing)
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ConfigFile, ImageId, ImageName, Manifest, NodeId, Resources, UnixMs, VmId, limits};

/// A name in a form that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}: use 1 to {max} of {allowed}, beginning and ending with a letter or digit")]
pub struct NameError {
    pub(crate) what: &'static str,
    pub(crate) max: usize,
    pub(crate) allowed: &'static str,
    pub(crate) text: String,
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal, $allowed:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::NameError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let allowed: fn(char) -> bool = $allowed;
                let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
                let good = text.len() <= $max
                    && text.chars().all(allowed)
                    && edge(text.chars().next())
                    && edge(text.chars().next_back());
                if good { Ok(Self(text.to_owned())) } else {
                    Err($crate::NameError {
                        what: $what,
                        max: $max,
                        allowed: if allowed('.') { "a-z, 0-9, '.', '_' and '-'" } else { "a-z, 0-9 and '-'" },
                        text: text.chars().take(80).collect(),
                    })
                }
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let allowed: fn(char) -> bool = $allowed;
                let inner = if allowed('.') { "a-z0-9._-" } else { "a-z0-9-" };
                let pattern = format!("^[a-z0-9]([{inner}]*[a-z0-9])?$");
                schemars::json_schema!({ "type": "string", "pattern": pattern, "maxLength": $max })
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use name_type;

name_type!(
    /// The name of a vm, which is also its guest's host name: lower-case letters, digits and `-`, at most 63.
    VmName, "a vm name", 63, |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
);

/// The transport protocol of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the guest that is reachable at a port of its host (`--publish 8080:80/tcp`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The host's address to listen on; without one, all of them.
    pub host_address: Option<IpAddr>,
    /// The host's port.
    #[schemars(range(min = 1))]
    pub host_port: u16,
    /// The guest's port.
    #[schemars(range(min = 1))]
    pub guest_port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl PublishedPort {
    /// Whether both could not listen on one host: same port and protocol, and addresses that overlap.
    pub fn collides_with(&self, other: &Self) -> bool {
        let is_any = |address: Option<IpAddr>| address.is_none_or(|address| address.is_unspecified());
        let overlap =
            is_any(self.host_address) || is_any(other.host_address) || self.host_address == other.host_address;
        overlap && self.host_port == other.host_port && self.protocol == other.protocol
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            None => {}
        }
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{}:{}/{protocol}", self.host_port, self.guest_port)
    }
}

impl FromStr for PublishedPort {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("{text:?} is not a published port: expected [ADDRESS:]HOST_PORT:GUEST_PORT[/tcp|/udp]");
        let (ports, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(refuse()),
        };
        let (host, guest) = ports.rsplit_once(':').ok_or_else(refuse)?;
        let (address, host) = match host.rsplit_once(':') {
            None => (None, host),
            Some((address, host)) => {
                let address = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
                (Some(address.parse().map_err(|_| refuse())?), host)
            }
        };
        let port = |text: &str| text.parse().ok().filter(|port| *port != 0).ok_or_else(refuse);
        Ok(Self { host_address: address, host_port: port(host)?, guest_port: port(guest)?, protocol })
    }
}

/// What cloud-init in the guest is given.
#[derive(Debug, Clone, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
pub struct Seed {
    /// The text of cloud-init's user-data.
    #[schemars(length(max = limits::SEED_BYTES_MAX))]
    pub user_data: Option<String>,
    /// Public keys that may log in over ssh.
    #[schemars(length(max = limits::SSH_KEYS_MAX), inner(regex(pattern = limits::TEXT_PATTERN)))]
    pub ssh_keys: Vec<String>,
}

/// How the scheduler chooses among nodes that fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// The emptiest node.
    #[default]
    Spread,
    /// The fullest node that still fits.
    Pack,
}

/// What happens when a guest ends though nobody asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// It stays down.
    Never,
    /// It is started again after a failure, at most `limit` times in a row.
    OnFailure {
        /// Restarts in a row before giving up.
        limit: u32,
    },
    /// It is started again however it ended.
    Always,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self::OnFailure { limit: 5 }
    }
}

/// What was asked for when the vm was created. It does not change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// The image, pinned by hash.
    pub image: ImageId,
    /// The image's name at that time, for people.
    pub image_name: ImageName,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Size of the vm's own disk in MiB; 0 when the image has no disk and none was asked for.
    pub disk_mib: u64,
    /// Ports of the guest published on its host.
    pub publish: Vec<PublishedPort>,
    /// What cloud-init is given.
    pub seed: Seed,
    /// Labels that the node must have.
    pub require: BTreeMap<String, String>,
    /// Vms of one group are kept on different nodes.
    pub anti_affinity: Option<String>,
    /// How to choose among nodes that fit.
    pub strategy: Strategy,
    /// The only node it may run on, if pinned.
    pub node: Option<NodeId>,
    /// What happens when the guest ends by itself.
    pub restart: RestartPolicy,
    /// Files that cloud-init writes, with values of documents.
    pub config_files: Vec<ConfigFile>,
    /// Whether it boots before its image is on its node as a whole; without a word, when the image is large.
    pub lazy: Option<bool>,
}

/// From this size on, in bytes, a vm boots before its image is all there unless it was asked not to: on a link of 1 Gbit/s it
/// would wait for more than two seconds, and a boot reads a small part of such an image.
pub const LAZY_BYTES_MIN: u64 = 256 << 20;

impl VmSpec {
    /// What the vm takes from its node's capacity.
    pub fn resources(&self) -> Resources {
        Resources { vcpus: u64::from(self.vcpus), memory_mib: self.memory_mib, disk_mib: self.disk_mib }
    }

    /// Whether it boots before its image, which is made of this, is on its node as a whole. Only disks can be read bit by bit.
    pub fn is_lazy(&self, manifest: &Manifest) -> bool {
        manifest.disk().is_some() && self.lazy.unwrap_or(manifest.bytes() >= LAZY_BYTES_MIN)
    }
}

/// Whether a vm should be on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Power {
    /// It should run.
    On,
    /// It should not run.
    Off,
}

/// What the user wants of a vm now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Desired {
    /// On or off.
    pub power: Power,
    /// Rises with every start and restart that a user asks for: a guest of a lower run is stopped first.
    pub run: u64,
    /// How long the guest may take to shut down before it is forced, in milliseconds; 0 forces at once.
    pub stop_timeout_ms: u64,
    /// Whether the vm and all its files are to go.
    pub deleting: bool,
}

/// Which node a vm belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The node.
    pub node: NodeId,
    /// Rises at each new placement; reports and orders of a lower epoch are stale.
    pub epoch: u64,
}

/// What a vm is doing, as its node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Its image is on its way, or its disk is being made.
    Preparing,
    /// The guest runs.
    Running,
    /// The guest was asked to shut down.
    Stopping,
    /// The guest does not run because that was asked for.
    Stopped {
        /// How the guest ended; nothing when it never ran.
        reason: Option<String>,
    },
    /// The guest ended by itself, or could not be started.
    Failed {
        /// Why.
        reason: String,
        /// Whether it will be tried again without a user's doing.
        retrying: bool,
    },
}

impl Phase {
    /// The phase in one word, as lists print it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped { .. } => "stopped",
            Self::Failed { .. } => "failed",
        }
    }
}

/// A node's report on a vm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// The epoch of the placement that the report is about.
    pub epoch: u64,
    /// The run that the report is about.
    pub run: u64,
    /// What the vm is doing.
    pub phase: Phase,
    /// Since when, by the clock of the node.
    pub since: UnixMs,
    /// How often it was started again by its restart policy in this run.
    pub restarts: u32,
}

/// A vm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// Its name, unique among the vms of the cluster.
    pub name: VmName,
    /// What was asked for.
    pub spec: VmSpec,
    /// What is wanted now.
    pub desired: Desired,
    /// Where it belongs, once the scheduler has decided.
    pub placement: Option<Placement>,
    /// The epoch of its last placement; 0 before the first.
    pub epoch: u64,
    /// What its node last reported, for the present placement.
    pub observed: Option<Observed>,
    /// When it was created.
    pub created_at: UnixMs,
}
