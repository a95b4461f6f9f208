//! The composition root: builds the rooms, wires them, and stops them in reverse order. Nothing else knows everybody.

mod data_dir;
mod enter;
mod record;
mod tasks;
mod upkeep;
mod watchdog;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use blixard_core::{ClusterId, NodeId};
use blixard_hypervisor::{Driver, FakeDriver, QemuDriver, QemuOptions};
use tokio::sync::watch;

use crate::agent::{Agent, Hands};
use crate::api::join::{self, JoinRefusal};
use crate::api::server::{Served, Server};
use crate::catalogs::{Catalogs, Leans};
use crate::config::{HypervisorKind, NodeConfig};
use crate::damage::Damage;
use crate::documents::Documents;
use crate::http::Stage;
use crate::images::{Direction, Images};
use crate::lazy::LazyDisks;
use crate::metrics::Metrics;
use crate::raft::Raft;
use crate::shares::Shares;
use crate::transfers::Transfers;
use crate::transport::{
    KEY_LOST, Protocol, Registry, SecretKey, Ticket, Transport, TransportConfig, load_or_create_key,
};
use crate::user::UserState;
use crate::{http, leader, raft};
use data_dir::DataDir;
use enter::Entrance;
use record::record;
use tasks::Tasks;
use upkeep::{Me, end_guests, keep_access, keep_circle, keep_contact, keep_membership};

/// How long a node that starts waits for a leader before it calls itself started.
const CONTACT_PATIENCE: Duration = Duration::from_secs(10);
/// How long a stopped node waits for requests in hand to end. They fail as soon as they notice.
const LET_GO: Duration = Duration::from_secs(5);
/// How often it looks.
const LET_GO_POLL: Duration = Duration::from_millis(5);
/// The file with what people have set of transfers.
/// The disks that are served to hypervisors while their images come.
const LAZY_DIR: &str = "lazy";
const TRANSFERS_FILE: &str = "transfers.json";
/// The file with what this node shares.
const SHARES_FILE: &str = "shares.json";
/// Which images are on their way from other clusters.
const PULLS_FILE: &str = "pulls.json";

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The cluster refused to let it in.
    #[error("the cluster refused this node")]
    Refused(#[source] JoinRefusal),
    /// The data directory belongs to another node or another cluster.
    #[error("{0}")]
    OtherOwner(String),
    /// The cluster removed it earlier.
    #[error("node {0} was removed from its cluster: start it with an empty data directory to join anew")]
    Removed(NodeId),
    /// A file in the data directory is damaged or missing.
    #[error(transparent)]
    Damaged(Damage),
    /// Something failed.
    #[error(transparent)]
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for StartError {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Damage>() {
            Ok(damage) => Self::Damaged(damage),
            Err(error) => Self::Failed(error),
        }
    }
}

/// Why a running node ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The cluster removed it, or it left.
    Removed(NodeId),
    /// It cannot go on.
    Failed(String),
}

/// A running node.
pub struct Node {
    tasks: Tasks,
    ground: Ground,
    transfers: Transfers,
    ended: watch::Receiver<Option<Ended>>,
    registry: PathBuf,
    cluster: ClusterId,
    // Last, so that the lock is held until everything else is gone.
    data: Arc<DataDir>,
}

impl Node {
    /// Starts a node and returns when it is a member of its cluster, however long joining takes.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: NodeConfig, user: UserState) -> Result<Self, StartError> {
        let data = Arc::new(DataDir::open(&config.data_dir)?);
        let ticket: Option<Ticket> = match &config.join {
            Some(text) => Some(text.parse().context("read the ticket given with --join")?),
            None => None,
        };
        if let Err(refused) = enter::check_membership(&data, &config, ticket.as_ref()) {
            if matches!(refused, StartError::Removed(_)) {
                // The process that learned of the removal may have ended before it had ended them all.
                end_guests(&driver(&config, &data)?).await;
            }
            return Err(refused);
        }
        let key_path = data.join("node.key");
        let is_in_use = data.membership()?.is_some();
        if is_in_use && !key_path.exists() {
            return Err(StartError::Damaged(Damage::missing(&key_path, KEY_LOST)));
        }
        let key = load_or_create_key(&key_path)?;
        let ground = Ground::open(&config, &data, key, is_in_use).await?;
        let started = Self::start_rooms(config, user, data, ground.clone(), ticket).await;
        match started {
            Ok(node) => Ok(node),
            Err(error) => {
                ground.close().await;
                Err(error)
            }
        }
    }

    async fn start_rooms(
        config: NodeConfig,
        user: UserState,
        data: Arc<DataDir>,
        ground: Ground,
        ticket: Option<Ticket>,
    ) -> Result<Self, StartError> {
        let Ground { transport, raft, images, documents, metrics } = ground.clone();
        let mut tasks = Tasks::new(metrics.clone());
        let listener = http::listen(config.bind).await?;
        let transfers_file = data.join(TRANSFERS_FILE);
        let transfers =
            Transfers::open(&transfers_file, config.transfers.running_max, images.clone(), metrics.clone())?;
        let shares = Shares::open(&data.join(SHARES_FILE), images.clone(), metrics.clone()).await?;
        let driver = driver(&config, &data)?;
        let patience = Duration::from_secs(config.lazy.patience_s.into());
        let disks = LazyDisks::open(&data.join(LAZY_DIR), images.clone(), patience, metrics.clone())?;
        let hands = Hands { images: images.clone(), transfers: transfers.clone(), disks, driver: driver.clone() };
        let agent = Agent::new(config.id, raft.clone(), hands, metrics.clone());
        let leans = Leans {
            raft: raft.clone(),
            transport: transport.clone(),
            images: images.clone(),
            documents: documents.clone(),
            transfers: transfers.clone(),
            agent: agent.clone(),
            shares_images: config.p2p_enabled,
        };
        let catalogs = Catalogs::open(&data.join(PULLS_FILE), leans)?;
        let served = Served {
            me: config.id,
            raft: raft.clone(),
            transport: transport.clone(),
            images: images.clone(),
            documents: documents.clone(),
            transfers: transfers.clone(),
            shares: shares.clone(),
            catalogs: catalogs.clone(),
            agent: agent.clone(),
            metrics: metrics.clone(),
        };
        let server = Server::new(served);

        let (contact, contacts) = watch::channel(false);
        let (stage, stages) = watch::channel(Stage::Starting("the node is starting".into()));
        let listener = Arc::new(tokio::sync::Mutex::new(listener));
        tasks.keep("http", {
            let contacts = contacts.clone();
            let limits = images.limits();
            let seen = http::Seen {
                raft: raft.clone(),
                transport: transport.clone(),
                metrics: metrics.clone(),
                sent_bytes: limits.moved_bytes(Direction::Up).clone(),
                received_bytes: limits.moved_bytes(Direction::Down).clone(),
                received_why: images.received_why().clone(),
            };
            move || http::run(listener.clone(), stages.clone(), contacts.clone(), seen.clone())
        });
        tasks.keep("contact", {
            let raft = raft.clone();
            move || keep_contact(raft.clone(), contact.clone())
        });
        tasks.keep("access", {
            let (raft, transport, data) = (raft.clone(), transport.clone(), data.clone());
            let contacts = contacts.clone();
            move || keep_access(raft.clone(), transport.clone(), data.clone(), contacts.clone())
        });
        tasks.keep("documents", {
            let documents = documents.clone();
            move || documents.clone().run()
        });
        tasks.keep("catalogs", {
            let catalogs = catalogs.clone();
            move || catalogs.clone().run()
        });
        tasks.keep("shares", {
            let shares = shares.clone();
            move || shares.clone().run()
        });
        tasks.keep("circle", {
            let (raft, documents, data) = (raft.clone(), documents.clone(), data.clone());
            let own = transport.id();
            move || keep_circle(raft.clone(), documents.clone(), data.clone(), own)
        });
        let mut handlers = vec![
            (Protocol::Raft, raft.handler()),
            (Protocol::Peer, server.peer_handler()),
            (Protocol::Api, server.handler()),
            (Protocol::Join, join::handler(raft.clone(), transport.clone(), metrics.clone())),
        ];
        handlers.extend(documents.handlers());
        handlers.push((Protocol::Share, shares.handler()));
        if config.p2p_enabled {
            handlers.push((Protocol::Blobs, images.handler()));
            handlers.push((Protocol::Published, catalogs.handler()));
        }
        transport.serve(handlers);

        let record = record(&config, &data, &transport)?;
        let say = |why: String| drop(stage.send_replace(Stage::Starting(why)));
        let entrance = Entrance {
            config: &config,
            data: &data,
            user: &user,
            transport: &transport,
            raft: &raft,
            record: record.clone(),
            say: &say,
        };
        let membership = entrance.enter(ticket.as_ref()).await?;
        let cluster = membership.cluster;
        let me = Me { record, cluster, transport: transport.clone(), raft: raft.clone() };
        let (end, ended) = watch::channel(None);
        tasks.keep("upkeep", {
            let (me, data, lasting, told) = (me.clone(), data.clone(), contacts.clone(), stage.clone());
            let driver = driver.clone();
            move || {
                keep_membership(
                    me.clone(),
                    membership.clone(),
                    data.clone(),
                    driver.clone(),
                    lasting.clone(),
                    told.clone(),
                    end.clone(),
                )
            }
        });
        tasks.keep("leader", {
            let (raft, metrics) = (raft.clone(), metrics.clone());
            move || leader::run(raft.clone(), metrics.clone())
        });
        tasks.keep("agent", move || agent.clone().run());

        say("let into the cluster; waiting for its state".into());
        let mut has_ended = ended.clone();
        tokio::select! {
            () = me.is_member() => {}
            end = has_ended.wait_for(Option::is_some) => {
                let end = end.map_err(|_| anyhow::anyhow!("the node's upkeep has ended"))?.clone();
                return Err(match end {
                    Some(Ended::Removed(node)) => StartError::Removed(node),
                    Some(Ended::Failed(reason)) => StartError::Failed(anyhow::anyhow!(reason)),
                    None => StartError::Failed(anyhow::anyhow!("the node's upkeep has ended")),
                });
            }
        }
        let facts = me.bootstrap();
        me.registry().write(data.path())?;
        let registry = Registry::path(data.path(), config.id);
        if let Err(error) = user.remember_node(&registry) {
            tracing::warn!(error = format!("{error:#}"), "commands of this user will not find this node by themselves");
        }
        stage.send_replace(Stage::Member(facts));
        // A node that comes back while most others are down must stay up, or they could never find each other: so it waits for a
        // leader for a while only.
        let mut in_contact = contacts.clone();
        if tokio::time::timeout(CONTACT_PATIENCE, in_contact.wait_for(|contact| *contact)).await.is_err() {
            tracing::warn!("no leader answers: fewer than a majority of the voters may be running");
        }
        tracing::info!(node = %config.id, %cluster, registry = %registry.display(), "ready");
        // Without systemd there is nobody to tell, which is no error.
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            tracing::warn!(%error, "systemd could not be told that the node is ready");
        }
        if let Some(limit) = sd_notify::watchdog_enabled() {
            tasks.keep("watchdog", move || watchdog::feed(metrics.clone(), limit));
        }
        Ok(Self { tasks, ground, transfers, ended, registry, cluster, data })
    }

    /// The registry file, by which tools on this host find the node.
    pub fn registry(&self) -> &std::path::Path {
        &self.registry
    }

    /// The node's cluster.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Waits until the node ends by itself.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or_else(|| Ended::Failed("the node's upkeep has ended".into())),
            Err(_) => Ended::Failed("the node's upkeep has ended".into()),
        }
    }

    /// Stops the rooms in the reverse order of their start. Guests go on under their guards. When this returns, the port and
    /// the files are free for a successor.
    pub async fn shutdown(self) {
        tracing::info!("stopping");
        // Without systemd there is nobody to tell.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        let Self { mut tasks, ground, transfers, data, .. } = self;
        tasks.end().await;
        drop(tasks);
        tracing::debug!("background tasks have stopped");
        transfers.shutdown().await;
        drop(transfers);
        tracing::debug!("transfers have stopped");
        if ground.raft.view().is_leader() {
            ground.hand_over().await;
        }
        ground.close().await;
        tracing::info!(data_dir = %data.path().display(), "stopped");
    }
}

/// What the other rooms stand on: opened first, closed last.
#[derive(Clone)]
struct Ground {
    transport: Transport,
    raft: Raft,
    images: Images,
    documents: Documents,
    metrics: Arc<Metrics>,
}

impl Ground {
    async fn open(config: &NodeConfig, data: &DataDir, key: SecretKey, is_in_use: bool) -> anyhow::Result<Self> {
        // What is damaged is told before anybody is talked to.
        let (raft_dir, images_dir, documents_dir) = (data.join("raft"), data.join("images"), data.join("documents"));
        let (looked_raft, looked_images, looked_documents) =
            (raft_dir.clone(), images_dir.clone(), documents_dir.clone());
        let looked = tokio::task::spawn_blocking(move || {
            raft::prepare(&looked_raft, is_in_use)?;
            Images::prepare(&looked_images)?;
            Documents::prepare(&looked_documents)
        });
        looked.await.context("look at the files of this node")??;
        let relays = config.relays.clone();
        let author = key.clone();
        let transport = Transport::open(TransportConfig { key, bind: binds(config), relays }).await?;
        let metrics = Arc::new(Metrics::default());
        let opened = async {
            let raft = Raft::start(&raft_dir, config.id, config.raft, transport.clone(), metrics.clone()).await?;
            let images = Images::open(images_dir, transport.clone(), config.cache.max).await?;
            let documents = Documents::open(&documents_dir, &author, transport.clone(), metrics.clone()).await?;
            Ok(Self { transport: transport.clone(), raft, images, documents, metrics: metrics.clone() })
        };
        let opened = opened.await;
        if opened.is_err() {
            transport.close().await;
        }
        opened
    }

    /// Closes everything, and waits until whoever still had it in hand has let go.
    async fn close(self) {
        let Self { transport, raft, images, documents, .. } = self;
        let (port, state, log) = (transport.hold(), raft.held_state(), raft.held_log());
        raft.shutdown().await;
        tracing::debug!("consensus has stopped");
        transport.close().await;
        tracing::debug!("the endpoint is closed");
        images.shutdown().await;
        tracing::debug!("the blob store is closed");
        documents.shutdown().await;
        tracing::debug!("the documents are closed");
        drop((transport, raft, images, documents));
        let let_go = async {
            while state.strong_count() > 0 || log.strong_count() > 0 || !port.is_free() {
                tokio::time::sleep(LET_GO_POLL).await;
            }
        };
        if tokio::time::timeout(LET_GO, let_go).await.is_err() {
            let (state, log, port) = (state.strong_count() > 0, log.strong_count() > 0, !port.is_free());
            tracing::warn!(
                state,
                log,
                port,
                "something still holds the port or the files of the node that was stopped"
            );
        }
    }

    /// Hands the leadership over before this node goes, so that the others need not wait out an election time-out.
    async fn hand_over(&self) {
        let view = self.raft.view();
        let heir = view.matched.iter().filter(|(node, _)| view.voters.contains(node) && **node != view.node);
        let Some((heir, _)) = heir.max_by_key(|(_, index)| **index) else { return };
        if let Err(error) = self.raft.transfer_leadership(*heir).await {
            tracing::debug!(error = format!("{error:#}"), "the leadership was not handed over");
            return;
        }
        let handed_over = async {
            while self.raft.view().is_leader() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // The others elect a leader by themselves if this does not work out.
        let _ = tokio::time::timeout(Duration::from_millis(500), handed_over).await;
    }
}

/// The address of `bind`, and for an unspecified one that of the other family as well.
fn binds(config: &NodeConfig) -> Vec<std::net::SocketAddr> {
    let port = config.bind.port();
    if config.bind.ip().is_unspecified() {
        vec![([0, 0, 0, 0], port).into(), ([0; 16], port).into()]
    } else {
        vec![config.bind]
    }
}

fn driver(config: &NodeConfig, data: &DataDir) -> anyhow::Result<Arc<dyn Driver>> {
    let root = data.join("vms");
    Ok(match config.hypervisor {
        HypervisorKind::Fake => Arc::new(FakeDriver::new(&root)?),
        HypervisorKind::Qemu => {
            let this = std::env::current_exe().context("find this program, which is also the guard of its vms")?;
            let guard: Vec<OsString> = vec![this.into(), "guard".into()];
            Arc::new(QemuDriver::new(&root, guard, QemuOptions::default()).context("set up QEMU")?)
        }
    })
}
