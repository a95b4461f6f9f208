//! From `--addr` to a client that is ready to ask.

use std::time::Duration;

use anyhow::Context;
use blixard_node::api::{Client, Target, bootstrap};
use blixard_node::transport::{PeerAddress, Registry};
use blixard_node::user::UserState;
use clap::Args;
use futures::future::join_all;

use crate::failure::{Exit, Failure};

/// The id of the flag that names the node to ask.
pub(super) const ADDR: &str = "addr";
/// How long saying goodbye may take; the node notices a client that just goes, only later.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Which node to ask.
#[derive(Debug, Args)]
pub(super) struct NodeAddress {
    /// The node to ask: HOST:PORT, a registry file, a ticket or an endpoint id. Without it, the nodes that you started on
    /// this host.
    #[arg(id = ADDR, long, global = true, env = "BLIXARD_NODE_ADDR", hide_env_values = true, value_name = "NODE")]
    address: Option<String>,
}

impl NodeAddress {
    /// Connects, lets `act` ask what it has to ask, and says goodbye.
    pub(super) async fn ask<T>(self, act: impl AsyncFnOnce(&Client) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let user = UserState::locate()?;
        let peers = match self.address.filter(|address| !address.is_empty()) {
            Some(address) => named(&address, &user).await?,
            None => running_here(&user).await?,
        };
        let client = Client::open(user.client_key()?, peers).await.context("open an endpoint")?;
        let result = act(&client).await;
        // When it takes longer the node finds out by itself.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, client.close()).await;
        result
    }
}

/// Where the node is that the user named.
async fn named(address: &str, user: &UserState) -> anyhow::Result<Vec<PeerAddress>> {
    let target: Target = address.parse().map_err(|error| Failure::usage(format!("--addr: {error:#}")))?;
    match target.resolve(&user.known_peers()).await {
        Ok((peers, _)) => Ok(peers),
        Err(error) => {
            let next_step = match target {
                Target::HostPort(_) => "check that the node runs, and that --addr names the port of its --bind",
                Target::Registry(_) => "a node writes this file into its data directory when it starts",
                Target::Ticket(_) | Target::Endpoint(_) => "name the node in another way",
            };
            Err(Failure::new(Exit::Unreachable, format!("{error:#}")).next_step(next_step).into())
        }
    }
}

/// Where the nodes are that this user started here and that run now, if all are of one cluster.
async fn running_here(user: &UserState) -> anyhow::Result<Vec<PeerAddress>> {
    let known = user.nodes();
    let running =
        join_all(known.iter().map(async |(path, registry)| is_running(registry).await.then_some((path, registry))));
    let running: Vec<_> = running.await.into_iter().flatten().collect();
    let choose = "name a node with --addr HOST:PORT, or set BLIXARD_NODE_ADDR; a registry file, a ticket or an endpoint id \
                  will do, too";
    let Some((_, first)) = running.first() else {
        let failure = match known.as_slice() {
            [] => Failure::usage("no node is named, and you have started none on this host").next_step(choose),
            known => {
                let paths = known.iter().map(|(path, _)| path.display().to_string()).collect::<Vec<_>>().join(", ");
                let message = format!("no node is named, and none that you started on this host runs ({paths})");
                Failure::new(Exit::Unreachable, message).next_step("start one again, or name another node with --addr")
            }
        };
        return Err(failure.into());
    };
    if running.iter().any(|(_, registry)| registry.cluster_id != first.cluster_id) {
        let paths = running.iter().map(|(path, _)| path.display().to_string()).collect::<Vec<_>>().join(", ");
        let message = format!("no node is named, and nodes of several clusters run on this host ({paths})");
        return Err(Failure::usage(message).next_step("choose one with --addr and its registry file").into());
    }
    Ok(running.iter().map(|(_, registry)| registry.address()).collect())
}

/// Whether the node answers at its TCP door. On the same host that takes a millisecond, and another process at that port
/// does not give the node's key.
async fn is_running(registry: &Registry) -> bool {
    let asked = registry.direct_addresses.iter().map(async |address| {
        let answer = bootstrap::fetch(&address.to_string()).await;
        answer.is_ok_and(|facts| facts.p2p_node_id == registry.endpoint_id)
    });
    join_all(asked).await.into_iter().any(|is_running| is_running)
}
