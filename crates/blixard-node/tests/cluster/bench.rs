//! What the tests stand on: nodes with directories of their own, and waiting for a condition with a deadline.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blixard_node::api::{Client, ClusterView, Target};
use blixard_node::config::{Layers, NodeConfig};
use blixard_node::user::UserState;
use blixard_node::{Node, StartError};
use tempfile::TempDir;

/// How long a test waits for what must come about. Far more than it takes, because machines are busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Directories, a user, and the ports of a cluster under test.
pub(crate) struct Bench {
    dir: TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        // Shown with the output of a test that fails; BLIXARD_LOG chooses what.
        let filter = tracing_subscriber::EnvFilter::try_from_env("BLIXARD_LOG");
        let filter = filter.unwrap_or_else(|_| "blixard_node=info".into());
        // Another test of the process may have set it up already.
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The state folder of a user.
    pub(crate) fn user(&self, name: &str) -> UserState {
        UserState::at(self.path(name))
    }

    /// The configuration of a node, with a data directory of its own and ports that are free.
    pub(crate) fn config(&self, id: u64, settings: &[(&str, &str)]) -> NodeConfig {
        let mut layers = Layers::defaults()
            .flag("--id", "id", &id.to_string())
            .and_then(|layers| layers.flag("--bind", "bind", &format!("127.0.0.1:{}", free_port())))
            .and_then(|layers| layers.flag("--data-dir", "data_dir", self.path(&format!("data{id}")).to_str().unwrap()))
            .and_then(|layers| layers.flag("--hypervisor", "hypervisor", "fake"))
            .unwrap();
        for (key, value) in settings {
            layers = layers.flag("test", key, value).unwrap();
        }
        layers.config().unwrap()
    }

    /// Starts a node in the name of the default user.
    pub(crate) async fn start(&self, config: &NodeConfig) -> Node {
        self.try_start(config).await.unwrap()
    }

    pub(crate) async fn try_start(&self, config: &NodeConfig) -> Result<Node, StartError> {
        let started = Node::start(config.clone(), self.user("user"));
        tokio::time::timeout(PATIENCE, started).await.expect("the node did not start in time")
    }

    /// A client of the default user, at a node's registry file.
    pub(crate) async fn client(&self, node: &Node) -> Client {
        client(&self.user("user"), node.registry()).await
    }

    /// Three nodes, the second and third joined to the first, all of them voters.
    pub(crate) async fn three(&self) -> (Vec<NodeConfig>, Vec<Node>, Client) {
        let first = self.config(1, &[]);
        let peer = first.bind.to_string();
        let mut configs = vec![first];
        configs.extend([2, 3].map(|id| self.config(id, &[("peers", &peer)])));
        let mut nodes = Vec::new();
        for config in &configs {
            nodes.push(self.start(config).await);
        }
        let client = self.client(&nodes[0]).await;
        until("three voters", async || voters(&client).await == Some(3)).await;
        (configs, nodes, client)
    }
}

pub(crate) async fn client(user: &UserState, registry: &Path) -> Client {
    let target: Target = registry.to_str().unwrap().parse().unwrap();
    let (peers, _) = target.resolve(&[]).await.unwrap();
    Client::open(user.client_key().unwrap(), peers).await.unwrap()
}

/// How many nodes vote, if the cluster can be asked.
pub(crate) async fn voters(client: &Client) -> Option<usize> {
    let view: ClusterView = client.cluster(false).await.ok()?;
    view.leader.map(|_| view.voters)
}

/// A UDP port whose TCP neighbour 1000 higher is free as well.
fn free_port() -> u16 {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = udp.local_addr().unwrap().port();
        let door = port.checked_add(1000).map(|door| std::net::TcpListener::bind(("127.0.0.1", door)));
        if matches!(door, Some(Ok(_))) {
            return port;
        }
    }
}

/// Waits until a condition holds, and fails the test when it does not within [`PATIENCE`].
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
