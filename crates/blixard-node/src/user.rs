//! What a user keeps on this host between commands: a client key, tickets of clusters, and which nodes they started here.
//!
//! ```text
//! client.key                   the user's key, known to the clusters that this user may ask
//! clusters/<cluster>.ticket    lets a node started by the same user join, and tells clients where the nodes are
//! nodes/<endpoint>             the path of the registry file of a node that this user started on this host
//! ```

use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use blixard_core::ClusterId;
use blixard_core::limits::WORD_CHARS_MAX;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{User, getuid};

use crate::damage::read_bounded;
use crate::transport::{PeerAddress, Registry, SecretKey, Ticket, load_or_create_key, write_private};

/// Names the folder, in place of the usual one.
const DIR_VARIABLE: &str = "BLIXARD_STATE_DIR";
/// More than a ticket or a path takes; a larger file is something else.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Files read from one folder: a user with more clusters or nodes on one host is a test that does not clean up.
const FILES_MAX: usize = 1024;

/// The folder in which a user's own state is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserState {
    dir: PathBuf,
}

impl UserState {
    /// The folder of the user that runs this process: `$BLIXARD_STATE_DIR`, else `$XDG_STATE_HOME/blixard`, else
    /// `~/.local/state/blixard`. It is made when something is first kept in it.
    ///
    /// # Errors
    /// When none of the three is set.
    pub fn locate() -> anyhow::Result<Self> {
        Self::locate_by(|name| std::env::var_os(name))
    }

    fn locate_by(variable: impl Fn(&str) -> Option<OsString>) -> anyhow::Result<Self> {
        let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(dir) = path(DIR_VARIABLE) {
            // The path is printed in advice to the user, where a relative one could mean another folder.
            let dir = std::path::absolute(&dir).with_context(|| format!("use {DIR_VARIABLE} {}", dir.display()))?;
            return Ok(Self { dir });
        }
        // As the XDG base directory specification wants it: a relative path there is ignored.
        if let Some(base) = path("XDG_STATE_HOME").filter(|base| base.is_absolute()) {
            return Ok(Self { dir: base.join("blixard") });
        }
        match path("HOME") {
            Some(home) => Ok(Self { dir: home.join(".local/state/blixard") }),
            None => bail!("there is no place for your client key: set {DIR_VARIABLE} or HOME"),
        }
    }

    /// A folder of the caller's choice.
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The folder's path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The user's key, made when there is none yet.
    ///
    /// # Errors
    /// See [`load_or_create_key`].
    pub fn client_key(&self) -> anyhow::Result<SecretKey> {
        let path = self.dir.join("client.key");
        if !path.exists() {
            // Several commands started at once must not each make a key of their own.
            let _lock = self.lock()?;
            return load_or_create_key(&path);
        }
        load_or_create_key(&path)
    }

    fn lock(&self) -> anyhow::Result<Flock<std::fs::File>> {
        let path = self.dir.join("lock");
        let open = || -> anyhow::Result<_> {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
        };
        open().with_context(|| format!("lock {}", path.display()))
    }

    /// The ticket of a cluster that a node of this user left here. One that cannot be read counts as missing, with a
    /// warning in the log: the node writes it anew.
    pub fn local_ticket(&self, cluster: ClusterId) -> Option<Ticket> {
        let ticket = read_ticket(&self.ticket_path(cluster))?;
        (ticket.cluster == cluster).then_some(ticket)
    }

    /// Keeps a ticket for later, in place of an earlier one of the same cluster.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save_local_ticket(&self, ticket: &Ticket) -> anyhow::Result<()> {
        write_private(&self.ticket_path(ticket.cluster), format!("{ticket}\n").as_bytes())
    }

    fn ticket_path(&self, cluster: ClusterId) -> PathBuf {
        self.dir.join("clusters").join(format!("{cluster}.ticket"))
    }

    /// Every place at which a node is known to be, from all tickets and from the nodes started here.
    pub fn known_peers(&self) -> Vec<PeerAddress> {
        let tickets = files(&self.dir.join("clusters"))
            .into_iter()
            .filter(|path| path.extension() == Some(OsStr::new("ticket")))
            .filter_map(|path| read_ticket(&path));
        let mut peers: Vec<PeerAddress> = self.nodes().into_iter().map(|(_, registry)| registry.address()).collect();
        for peer in tickets.flat_map(|ticket| ticket.peers) {
            if !peers.iter().any(|known| known.endpoint == peer.endpoint) {
                peers.push(peer);
            }
        }
        peers
    }

    /// Remembers that this user started a node on this host, so that commands find it without being told.
    ///
    /// # Errors
    /// When its registry file cannot be read, or the path cannot be kept.
    pub fn remember_node(&self, registry_path: &Path) -> anyhow::Result<()> {
        let registry = Registry::read(registry_path)?;
        let path = std::path::absolute(registry_path)?;
        write_private(&self.dir.join("nodes").join(registry.endpoint_id.to_string()), path.as_os_str().as_bytes())
    }

    /// The nodes that this user started on this host and whose registry files are still there, running or not.
    pub fn nodes(&self) -> Vec<(PathBuf, Registry)> {
        let paths = files(&self.dir.join("nodes")).into_iter().filter(|path| path.extension().is_none());
        let mut nodes: Vec<_> = paths
            .filter_map(|path| {
                let registry_path = PathBuf::from(OsString::from_vec(read_bounded(&path, FILE_BYTES_MAX).ok()?));
                let registry = Registry::read(&registry_path).ok()?;
                Some((registry_path, registry))
            })
            .collect();
        nodes.sort_by_key(|(_, registry)| registry.cluster_node_id);
        nodes
    }

    /// A word for the user, as the cluster's list of clients shows it: the login name, else the user's number.
    pub fn user_name(&self) -> String {
        let uid = getuid();
        let login = User::from_uid(uid).ok().flatten().map(|user| user.name);
        let name: String = login.unwrap_or_default().chars().filter(|c| !c.is_control()).collect();
        if name.is_empty() || name.chars().count() > WORD_CHARS_MAX { format!("uid-{uid}") } else { name }
    }
}

/// The paths in a folder, in order; none when there is no such folder.
fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).take(FILES_MAX).collect();
    paths.sort();
    paths
}

fn read_ticket(path: &Path) -> Option<Ticket> {
    let content = read_bounded(path, FILE_BYTES_MAX).ok()?;
    match String::from_utf8_lossy(&content).parse() {
        Ok(ticket) => Some(ticket),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a kept ticket cannot be read");
            None
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use blixard_core::{EndpointId, NodeId};

    use super::*;

    fn state() -> (tempfile::TempDir, UserState) {
        let dir = tempfile::tempdir().unwrap();
        let state = UserState { dir: dir.path().join("state") };
        (dir, state)
    }

    fn peer(byte: u8) -> PeerAddress {
        PeerAddress {
            endpoint: EndpointId([byte; 32]),
            addresses: vec!["127.0.0.1:7001".parse().unwrap()],
            relay_url: None,
        }
    }

    #[test]
    fn the_folder_is_the_first_that_is_named() {
        let locate = |variables: &[(&str, &str)]| {
            UserState::locate_by(|name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
            })
            .map(|state| state.dir)
        };
        let all = &[("BLIXARD_STATE_DIR", "/a"), ("XDG_STATE_HOME", "/b"), ("HOME", "/c")];
        assert_eq!(locate(all).unwrap(), Path::new("/a"));
        assert_eq!(locate(&[("BLIXARD_STATE_DIR", ""), all[1], all[2]]).unwrap(), Path::new("/b/blixard"));
        assert_eq!(
            locate(&[("XDG_STATE_HOME", "relative"), ("HOME", "/c")]).unwrap(),
            Path::new("/c/.local/state/blixard")
        );
        assert!(locate(&[("BLIXARD_STATE_DIR", "here")]).unwrap().is_absolute());
        assert!(locate(&[]).unwrap_err().to_string().contains("BLIXARD_STATE_DIR"));
    }

    #[test]
    fn the_key_is_made_once_however_many_ask_for_it() {
        let (_dir, state) = state();
        let ids: Vec<EndpointId> = std::thread::scope(|scope| {
            let asked: Vec<_> = (0..8).map(|_| scope.spawn(|| state.client_key().unwrap().id())).collect();
            asked.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }

    #[test]
    fn a_ticket_is_kept_private_and_found_by_its_cluster() {
        let (_dir, state) = state();
        let (ours, other) = (ClusterId([1; 32]), ClusterId([2; 32]));
        assert_eq!(state.local_ticket(ours), None);
        assert_eq!(state.known_peers(), []);
        let ticket = |cluster, byte| Ticket { cluster, peers: vec![peer(byte)], secret: None };
        state.save_local_ticket(&ticket(ours, 7)).unwrap();
        state.save_local_ticket(&ticket(other, 8)).unwrap();
        assert_eq!(state.local_ticket(ours), Some(ticket(ours, 7)));
        assert_eq!(std::fs::metadata(state.ticket_path(ours)).unwrap().mode() & 0o777, 0o600);
        assert_eq!(state.known_peers(), [peer(7), peer(8)]);

        std::fs::rename(state.ticket_path(other), state.ticket_path(ours)).unwrap();
        assert_eq!(state.local_ticket(ours), None, "a ticket of another cluster under this name");
        std::fs::write(state.ticket_path(ours), "damaged").unwrap();
        assert_eq!(state.local_ticket(ours), None);
        assert_eq!(state.known_peers(), []);
    }

    #[test]
    fn a_node_is_remembered_for_as_long_as_its_registry_is_there() {
        let (dir, state) = state();
        let data_dir = dir.path().join("data");
        for number in [2, 1] {
            let registry = Registry {
                cluster_node_id: NodeId(number),
                endpoint_id: EndpointId([number as u8; 32]),
                direct_addresses: vec!["127.0.0.1:7001".parse().unwrap()],
                relay_url: None,
                cluster_id: ClusterId([1; 32]),
            };
            registry.write(&data_dir).unwrap();
            state.remember_node(&Registry::path(&data_dir, NodeId(number))).unwrap();
        }
        let numbers = |state: &UserState| -> Vec<u64> {
            state.nodes().iter().map(|(_, registry)| registry.cluster_node_id.0).collect()
        };
        assert_eq!(numbers(&state), [1, 2]);
        assert_eq!(state.known_peers().len(), 2);
        std::fs::remove_file(Registry::path(&data_dir, NodeId(1))).unwrap();
        assert_eq!(numbers(&state), [2]);
        assert!(state.remember_node(&data_dir.join("missing")).is_err());
    }

    #[test]
    fn the_user_has_a_name() {
        let (_dir, state) = state();
        assert!(!state.user_name().is_empty());
    }
}
