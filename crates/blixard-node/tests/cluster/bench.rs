//! What the tests stand on: nodes with directories of their own, and waiting for a condition with a deadline.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use blixard_core::{NodeId, VmName};
use blixard_hypervisor::{ExitReason, FakeDriver, FakeScript};
use blixard_node::api::{
    AddImage, Client, ClientError, ClusterView, CreateVm, FaultKind, ImageSource, ImageView, NodeState, NodeView,
    Target, VmView,
};
use blixard_node::config::{HTTP_PORT_OFFSET, Layers, NodeConfig};
use blixard_node::transport::{Registry, SecretKey, Transport, TransportConfig};
use blixard_node::user::UserState;
use blixard_node::{Node, StartError};
use bytes::Bytes;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long a test waits for what must come about. Far more than it takes, because machines are busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Ports of the tests lie below those that the kernel gives to others, so that a node finds its own again after a restart.
const PORTS: std::ops::Range<u16> = 12_000..30_000;

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
        // So much of everything that no host is too small for a test.
        for (key, value) in [("capacity.vcpus", "8"), ("capacity.memory_mib", "8192"), ("capacity.disk_mib", "65536")] {
            layers = layers.flag("test", key, value).unwrap();
        }
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
        self.try_start_as("user", config).await
    }

    /// Starts a node in the name of some user.
    pub(crate) async fn try_start_as(&self, user: &str, config: &NodeConfig) -> Result<Node, StartError> {
        let started = Node::start(config.clone(), self.user(user));
        tokio::time::timeout(PATIENCE, started).await.expect("the node did not start in time")
    }

    /// A client of the default user, at a node's registry file.
    pub(crate) async fn client(&self, node: &Node) -> Client {
        client(&self.user("user"), node.registry()).await
    }

    /// Founds a cluster of one node.
    pub(crate) async fn one(&self, settings: &[(&str, &str)]) -> (NodeConfig, Node, Client) {
        let config = self.config(1, settings);
        let node = self.start(&config).await;
        let client = self.client(&node).await;
        (config, node, client)
    }

    /// Three nodes, the second and third joined to the first, all of them voters.
    pub(crate) async fn three(&self) -> (Vec<NodeConfig>, Vec<Node>, Client) {
        self.cluster(3, &[], 3).await
    }

    /// A cluster of nodes 1 to `count` with the same settings, all heard from and `voting` of them voters. The client asks
    /// node 1.
    pub(crate) async fn cluster(
        &self,
        count: u64,
        settings: &[(&str, &str)],
        voting: usize,
    ) -> (Vec<NodeConfig>, Vec<Node>, Client) {
        let configs = self.configs(count, settings);
        let (nodes, client) = self.start_all(&configs, voting).await;
        (configs, nodes, client)
    }

    /// Configurations of nodes 1 to `count`, all but the first with the first as their peer.
    pub(crate) fn configs(&self, count: u64, settings: &[(&str, &str)]) -> Vec<NodeConfig> {
        let first = self.config(1, settings);
        let peer = first.bind.to_string();
        let mut configs = vec![first];
        configs.extend((2..=count).map(|id| {
            let joining: Vec<_> = settings.iter().copied().chain([("peers", peer.as_str())]).collect();
            self.config(id, &joining)
        }));
        configs
    }

    /// Starts the nodes and waits until all are heard from and `voting` of them vote.
    pub(crate) async fn start_all(&self, configs: &[NodeConfig], voting: usize) -> (Vec<Node>, Client) {
        let mut nodes = vec![self.start(&configs[0]).await];
        let others = configs[1..].iter().map(|config| self.start(config));
        nodes.extend(futures::future::join_all(others).await);
        let client = self.client(&nodes[0]).await;
        until("all nodes ready and enough of them voting", async || {
            let Ok(view) = client.cluster(false).await else { return false };
            let ready = view.nodes.iter().filter(|node| node.state == NodeState::Ready).count();
            let settled = view.voters == voting && !view.voters_changing;
            view.leader.is_some() && settled && ready == configs.len()
        })
        .await;
        (nodes, client)
    }

    /// The fake driver of a node, to be asked and steered behind the node's back.
    pub(crate) fn driver(&self, node: u64) -> FakeDriver {
        FakeDriver::new(&self.path(&format!("data{node}")).join("vms")).unwrap()
    }

    /// Ends the run of a vm on a node as if by itself.
    pub(crate) fn end_run(&self, node: u64, vm: &VmView, reason: ExitReason) {
        assert!(self.driver(node).end_run(&vm.id.to_string(), reason).unwrap(), "vm {} does not run", vm.name);
    }

    /// Says what goes wrong on a node from now on.
    pub(crate) fn script(&self, node: u64, script: &FakeScript) {
        self.driver(node).set_script(script).unwrap();
    }
}

pub(crate) async fn client(user: &UserState, registry: &Path) -> Client {
    let target: Target = registry.to_str().unwrap().parse().unwrap();
    let (peers, _) = target.resolve(&[]).await.unwrap();
    Client::open(user.client_key().unwrap(), peers).await.unwrap()
}

/// How many nodes vote, if the cluster can be asked and has a leader.
pub(crate) async fn voters(client: &Client) -> Option<usize> {
    let view: ClusterView = client.cluster(false).await.ok()?;
    view.leader.map(|_| view.voters)
}

/// A node as the cluster sees it.
pub(crate) async fn node_view(client: &Client, id: u64) -> Option<NodeView> {
    let view = client.cluster(false).await.ok()?;
    view.nodes.into_iter().find(|node| node.id == NodeId(id))
}

/// The smallest file that passes for a kernel, different for each mark.
pub(crate) fn kernel(mark: u8, bytes: usize) -> Vec<u8> {
    let mut image = vec![mark; bytes.max(1024)];
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
    image[0x236] = 1;
    image
}

/// An endpoint with this key that knows where the node is.
pub(crate) async fn endpoint(key: SecretKey, node: &Node) -> Transport {
    let bind = vec!["127.0.0.1:0".parse().unwrap()];
    let transport = Transport::open(TransportConfig { key, bind, relays: Vec::new() }).await.unwrap();
    transport.learn(&Registry::read(node.registry()).unwrap().address());
    transport
}

/// Imports a kernel image of its own content at the node that the client asks.
pub(crate) async fn import(client: &Client, name: &str, content: Vec<u8>) -> ImageView {
    let pieces: Vec<std::io::Result<Bytes>> = content.chunks(64 << 10).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
    let blob = client.upload(futures::stream::iter(pieces)).await.unwrap();
    assert_eq!(blob.bytes, content.len() as u64);
    let source = ImageSource::Kernel { kernel: blob.hash, initrd: None, root: None, cmdline: "console=ttyS0".into() };
    client.add_image(&AddImage { name: name.parse().unwrap(), source }).await.unwrap()
}

/// A small vm of an image, to be changed by the test as it needs.
pub(crate) fn vm(name: &str, image: &str) -> CreateVm {
    CreateVm {
        name: name.parse().unwrap(),
        image: image.parse().unwrap(),
        vcpus: 1,
        memory_mib: 64,
        disk_mib: None,
        publish: Vec::new(),
        seed: Default::default(),
        require: Default::default(),
        anti_affinity: None,
        strategy: Default::default(),
        node: None,
        restart: Default::default(),
        config_files: Vec::new(),
        lazy: None,
        start: true,
    }
}

/// Waits until a vm is in a phase.
pub(crate) async fn until_phase(client: &Client, name: &str, phase: &str) -> VmView {
    until_vm(client, name, phase, |vm| vm.phase == phase).await
}

/// Waits until a condition on a vm holds.
pub(crate) async fn until_vm(client: &Client, name: &str, what: &str, holds: impl Fn(&VmView) -> bool) -> VmView {
    let name: VmName = name.parse().unwrap();
    let mut last = None;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.vm(&name).await {
            Ok(view) if holds(&view) => return view,
            other => last = Some(other).or(last),
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for vm {name} to be {what}: {last:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The kind of a request's fault.
pub(crate) fn fault<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> (FaultKind, String) {
    match answer {
        Err(ClientError::Fault(fault)) => (fault.kind, fault.message),
        other => panic!("not a fault: {other:?}"),
    }
}

/// A node on a runtime of its own, so that it can die without a word.
pub(crate) struct Host {
    pub(crate) config: NodeConfig,
    pub(crate) node: Node,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Host {
    pub(crate) async fn start(bench: &Bench, config: &NodeConfig) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let starting = runtime.spawn(Node::start(config.clone(), bench.user("user")));
        let started = tokio::time::timeout(PATIENCE, starting).await.expect("the node did not start in time");
        Self { config: config.clone(), node: started.unwrap().unwrap(), runtime: Some(runtime) }
    }

    /// Ends every task of the node where it stands: nothing is handed over, flushed or said. The configuration is that of a
    /// host which begins with what was on the disk at that moment, at another address.
    pub(crate) async fn kill(mut self) -> NodeConfig {
        let (runtime, mut config) = (self.runtime.take().unwrap(), self.config.clone());
        let (done, ended) = tokio::sync::oneshot::channel();
        // A runtime must not end within another.
        std::thread::spawn(move || {
            runtime.shutdown_timeout(PATIENCE);
            // Whoever does not wait any more has failed.
            let _ = done.send(());
        });
        ended.await.unwrap();
        let left = config.data_dir.clone();
        config.data_dir.set_file_name(format!("left-by-{}", config.id));
        copy_dir(&left, &config.data_dir);
        config.bind.set_port(free_port());
        // What it holds open, such as its port, stays so: it is not closed in order, or it would not be a crash.
        std::mem::forget(self);
        config
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// One of a node's own metrics, asked for at its HTTP door.
pub(crate) async fn metric(config: &NodeConfig, name: &str) -> u64 {
    let door = std::net::SocketAddr::new(config.bind.ip(), config.bind.port() + HTTP_PORT_OFFSET);
    let mut stream = tokio::net::TcpStream::connect(door).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no metric {name} in {text}")).parse().unwrap()
}

/// A UDP port that is free, and whose TCP neighbour 1000 higher is free as well.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test binaries that run at the same time begin at different places.
    let start = u16::try_from(std::process::id() % 60).unwrap() * 300;
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + start.wrapping_add(next) % (PORTS.end - PORTS.start);
        let udp = std::net::UdpSocket::bind(("127.0.0.1", port));
        let door = std::net::TcpListener::bind(("127.0.0.1", port + 1000));
        if udp.is_ok() && door.is_ok() {
            return port;
        }
    }
}

/// Waits until a condition holds, and fails the test when it does not within [`PATIENCE`].
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
