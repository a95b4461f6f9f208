//! Everything that a run is made of: hosts, the processes on them, the network, and the judge.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use blixard_core::{EndpointId, NodeId};
use futures::FutureExt;
use futures::future::BoxFuture;
use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use tokio::io::AsyncWriteExt;

use super::agent::Guests;
use super::dice::Dice;
use super::disk::Disk;
use super::life::{Host, Life, RIGHT_PPM, lock};
use super::network::Network;
use super::oracle::Oracle;
use super::planted::Planted;
use crate::raft::{Incoming, Link, Outgoing, Raft};

/// Clocks run at most so much fast or slow, in parts per million: far worse than any quartz, as under a bad hypervisor.
const SKEW_PPM: u64 = 50_000;
/// Wall clocks are off by up to so much, in milliseconds: a host without a time service.
const WALL_ERROR_MS: u64 = 600_000;
/// How long dialling a peer that does not answer takes at most, in milliseconds.
const DIAL_MS_MAX: u64 = 2_000;

/// A process that runs.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) life: Arc<Life>,
    /// Nothing until its stores are open.
    pub(crate) raft: Option<Raft>,
    /// Members that it was told of by others, ahead of its replica.
    pub(crate) told: BTreeSet<EndpointId>,
}

/// A host, and what is on it.
pub(crate) struct Place {
    pub(crate) host: Arc<Host>,
    /// The key of the node that is set up there; changes when the host is set up anew.
    pub(crate) key: EndpointId,
    pub(crate) setups: u8,
    pub(crate) running: Option<Running>,
    /// Whether its node was let into the cluster: it then rejoins when it starts.
    pub(crate) is_member: bool,
    pub(crate) guests: Guests,
}

pub(crate) struct World {
    pub(crate) planted: Option<Planted>,
    pub(crate) dice: Dice,
    pub(crate) network: Arc<Network>,
    places: Mutex<BTreeMap<u64, Place>>,
    oracle: Mutex<Oracle>,
    is_calm: Mutex<bool>,
}

/// The key of a node.
fn key(number: u64, setups: u8) -> EndpointId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    bytes[8] = setups;
    EndpointId(bytes)
}

impl World {
    /// A world of hosts on which nothing runs yet.
    pub(crate) fn new(seed: u64, hosts: u64, planted: Option<Planted>) -> Arc<Self> {
        let dice = Dice::new(seed);
        let network = Network::new(dice.between(0, u64::MAX - 1));
        let place = |number: u64| {
            let rate_ppm = dice.between(RIGHT_PPM - SKEW_PPM, RIGHT_PPM + SKEW_PPM);
            let ahead_ms = dice.between(0, WALL_ERROR_MS);
            let disk = Disk::new(dice.between(0, u64::MAX - 1), planted == Some(Planted::NoFsync));
            let host = Arc::new(Host { number, rate_ppm, ahead_ms, disk });
            let guests = Guests::default();
            (number, Place { host, key: key(number, 0), setups: 0, running: None, is_member: false, guests })
        };
        let places = (1..=hosts).map(place).collect();
        Arc::new(Self {
            planted,
            dice,
            network,
            places: Mutex::new(places),
            oracle: Mutex::default(),
            is_calm: Mutex::default(),
        })
    }

    pub(crate) fn is_planted(&self, bug: Planted) -> bool {
        self.planted == Some(bug)
    }

    /// Has the judge look. It must not wait for anything meanwhile.
    pub(crate) fn judge<T>(&self, look: impl FnOnce(&mut Oracle) -> T) -> T {
        look(&mut lock(&self.oracle))
    }

    pub(crate) fn with_place<T>(&self, number: u64, look: impl FnOnce(&mut Place) -> T) -> T {
        look(lock(&self.places).get_mut(&number).expect("places are numbered from 1"))
    }

    pub(crate) fn numbers(&self) -> Vec<u64> {
        lock(&self.places).keys().copied().collect()
    }

    /// No more faults from now on.
    pub(crate) fn calm(&self) {
        *lock(&self.is_calm) = true;
    }

    pub(crate) fn is_calm(&self) -> bool {
        *lock(&self.is_calm)
    }

    /// The process on a host, when its stores are open.
    pub(crate) fn raft_of(&self, number: u64) -> Option<(Raft, Arc<Life>)> {
        self.with_place(number, |place| {
            let running = place.running.as_ref()?;
            Some((running.raft.clone()?, running.life.clone()))
        })
    }

    pub(crate) fn number_of(&self, key: EndpointId) -> Option<u64> {
        lock(&self.places).iter().find(|(_, place)| place.key == key).map(|(number, _)| *number)
    }

    /// Asks a node something over the network. There is no answer when a packet is lost, or the process dies meanwhile.
    pub(crate) async fn ask<T, Fut>(
        &self,
        from: u64,
        to: u64,
        question: impl FnOnce(Raft) -> Fut,
    ) -> Result<T, NoAnswer>
    where
        T: Send + 'static,
        Fut: Future<Output = T> + Send + 'static,
    {
        if !self.network.leg(from, to).await {
            return Err(NoAnswer::NotSent);
        }
        let (raft, life) = self.raft_of(to).ok_or(NoAnswer::NotSent)?;
        let answer = life.spawn(question(raft)).await.map_err(|_| NoAnswer::Lost)?;
        if self.network.leg(to, from).await { Ok(answer) } else { Err(NoAnswer::Lost) }
    }

    /// Whether a node lets a key in, by the rule of the access list: the members its replica shows, whoever the group counts,
    /// and those that others told it of.
    fn lets_in(&self, number: u64, key: EndpointId) -> bool {
        if self.is_planted(Planted::RemovedNodeLetIn) {
            return true;
        }
        let Some((raft, _)) = self.raft_of(number) else { return false };
        let was_told = self.with_place(number, |place| place.running.as_ref().is_some_and(|r| r.told.contains(&key)));
        let is_removed = raft.read(|state| state.removed.contains(&key));
        raft.read(|state| state.node_of(&key).is_some()) || raft.members().contains(&key) || (was_told && !is_removed)
    }
}

/// Why a question has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// It did not arrive.
    NotSent,
    /// It may have been acted on.
    Lost,
}

/// A node's way to the others.
pub(crate) struct Cable {
    pub(crate) world: Weak<World>,
    pub(crate) life: Weak<Life>,
    pub(crate) key: EndpointId,
}

impl Link for Cable {
    fn id(&self) -> EndpointId {
        self.key
    }

    fn open(&self, peer: EndpointId, kind: u8) -> BoxFuture<'_, io::Result<(Outgoing, Incoming)>> {
        let (world, life) = (self.world.upgrade(), self.life.upgrade());
        let opening = async move {
            let (Some(world), Some(life)) = (world, life) else { return Err(io::ErrorKind::NotConnected.into()) };
            let own = life.host.number;
            let unreachable = async |world: &World| {
                SimRuntime::sleep(world.dice.millis(50, DIAL_MS_MAX)).await;
                Err(io::ErrorKind::TimedOut.into())
            };
            let Some(number) = world.number_of(peer) else { return unreachable(&world).await };
            if !world.network.leg(own, number).await || !world.network.leg(number, own).await {
                return unreachable(&world).await;
            }
            let Some((raft, there)) = world.raft_of(number).filter(|(_, there)| !there.is_paused()) else {
                return unreachable(&world).await;
            };
            if !world.lets_in(number, self.key) {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "not a member of this cluster"));
            }
            let [(mut send, receive), (answer, request)] = world.network.stream(&life, &there);
            send.write_u8(kind).await?;
            drop(there.spawn(raft.serve(Box::new(answer), Box::new(request))));
            Ok((Box::new(send) as Outgoing, Box::new(receive) as Incoming))
        };
        opening.boxed()
    }
}

/// Waits for an answer, which may never come.
pub(crate) async fn within<T>(
    time: Duration,
    answer: impl Future<Output = Result<T, NoAnswer>> + Send,
) -> Result<T, NoAnswer> {
    SimRuntime::timeout(time, answer).await.unwrap_or(Err(NoAnswer::Lost))
}

/// A node's number in the words of the product.
pub(crate) fn id(number: u64) -> NodeId {
    NodeId(number)
}
