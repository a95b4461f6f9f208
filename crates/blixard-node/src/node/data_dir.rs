//! The data directory: who this node is, which cluster it belongs to, and the lock that keeps a second process out.
//!
//! ```text
//! node.key                    the node's secret key
//! cluster.key                 the cluster's secret key, on the node that created it
//! node.json                   this node's number and cluster
//! bootstrap.json              the last good answer to a bootstrap request
//! members.json                the members as this node last knew them
//! transfers.json              what people have set of transfers: limits, pauses, requests
//! node-<id>-registry.json     how tools on this host find the node
//! raft/                       log and state
//! images/                     blobs
//! documents/                  what is in the documents
//! vms/                        one folder a vm
//! ```

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use blixard_core::{ClusterId, NodeId};
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::damage::{Damage, read_bounded};
use crate::transport::write_private;

/// The largest JSON file: 1,000 members with all the addresses that they may have take less than 2 MiB.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// What this node is part of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Membership {
    /// The node's number.
    pub(crate) node: NodeId,
    /// Its cluster.
    pub(crate) cluster: ClusterId,
    /// Whether the cluster has removed it. What is here then belongs to nobody.
    pub(crate) removed: bool,
}

/// What is in the data directory and cannot be read by others, also where the directory itself was made by somebody who
/// left it open. Hypervisors, which may not enter, are given what they need.
const CLOSED: [&str; 3] = ["raft", "images", "documents"];

fn close_rooms(dir: &Path) -> anyhow::Result<()> {
    for path in CLOSED.map(|room| dir.join(room)) {
        let close = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700))
        };
        close().with_context(|| format!("close the directory {} to other users", path.display()))?;
    }
    Ok(())
}

/// An open data directory, locked for this process.
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl DataDir {
    /// Opens the directory, or makes it.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        // Closed to other users: the state holds what users gave to cloud-init.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.with_context(|| format!("create the data directory {}", path.display()))?;
        let path = path.canonicalize().with_context(|| format!("find the data directory {}", path.display()))?;
        let file = path.join("lock");
        let file = File::options()
            .create(true)
            .append(true)
            .open(&file)
            .with_context(|| format!("open {}", file.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                close_rooms(&path)?;
                Ok(Self { path, _lock: lock })
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                bail!(
                    "another node process uses the data directory {}: stop it, or give another --data-dir",
                    path.display()
                )
            }
            Err((_, error)) => Err(error).with_context(|| format!("lock the data directory {}", path.display())),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What this node is part of; nothing before it has joined or founded a cluster.
    pub(crate) fn membership(&self) -> anyhow::Result<Option<Membership>> {
        self.read(
            "node.json",
            "the cluster knows this node by its key, and tells it again when it is started with the same --id and with \
             --peers or --join",
        )
    }

    pub(crate) fn set_membership(&self, membership: &Membership) -> anyhow::Result<()> {
        self.write("node.json", membership)
    }

    /// Reads a JSON file; nothing when there is none. `regained` says how what it held is there again once a damaged one is
    /// removed.
    pub(crate) fn read<T: DeserializeOwned>(&self, name: &str, regained: &str) -> anyhow::Result<Option<T>> {
        let path = self.join(name);
        let text = match read_bounded(&path, FILE_BYTES_MAX) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let value = serde_json::from_slice(&text)
            .map_err(|error| Damage::new(&path, format!("is damaged: {error}"), format!("remove it: {regained}")))?;
        Ok(Some(value))
    }

    /// Writes a JSON file, whole or not at all.
    pub(crate) fn write<T: Serialize>(&self, name: &str, value: &T) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(value).with_context(|| format!("encode {name}"))?;
        write_private(&self.join(name), format!("{text}\n").as_bytes())
    }
}
