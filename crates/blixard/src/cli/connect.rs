//! From flags, variables and contexts to a client that is ready to ask.

use std::time::Duration;

use anyhow::Context;
use blixard_node::api::{Client, Target, bootstrap};
use blixard_node::transport::{PeerAddress, Registry};
use blixard_node::user::UserState;
use clap::Args;
use futures::future::join_all;
use serde::Serialize;

use super::context::file::{ContextFile, ContextName};
use super::context::named;
use crate::failure::{Exit, Failure, exit_of};

/// The id of the flag that names the node to ask.
pub(super) const ADDR: &str = "addr";
/// The id of the flag that names the context.
pub(super) const CONTEXT: &str = "context";
/// What the flags stand above of, each for itself.
const ADDR_VARIABLE: &str = "BLIXARD_NODE_ADDR";
const CONTEXT_VARIABLE: &str = "BLIXARD_CONTEXT";
/// How long saying goodbye may take; the node notices a client that just goes, only later.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Which node to ask. What the user says in the command goes before what they said in the environment, and that before what
/// they said some day.
#[derive(Debug, Args)]
pub(super) struct NodeAddress {
    /// The node to ask: HOST:PORT, a registry file, a ticket or an endpoint id. Without it: --context, BLIXARD_NODE_ADDR,
    /// BLIXARD_CONTEXT, the current context, or the nodes that you started on this host.
    #[arg(id = ADDR, long, global = true, value_name = "NODE")]
    address: Option<String>,
    /// The context to use, of those that `blixard context list` shows.
    #[arg(id = CONTEXT, long, global = true, value_name = "NAME", conflicts_with = ADDR)]
    context: Option<ContextName>,
}

/// Which nodes are to be asked, and why those.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Choice {
    /// The context they are of.
    pub(super) context: Option<ContextName>,
    /// In the forms of `--addr`, to be tried in turn; none for those that this user started on this host.
    pub(super) nodes: Vec<String>,
    /// What made the choice.
    pub(super) origin: String,
}

impl NodeAddress {
    /// Which nodes to ask.
    ///
    /// # Errors
    /// When a context is named that does not exist, or contexts cannot be read.
    pub(super) fn choose(&self) -> anyhow::Result<Choice> {
        self.choose_by(ContextFile::locate(), |name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn choose_by(
        &self,
        file: Option<ContextFile>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<Choice> {
        let address =
            |node: String, origin: &str| Choice { context: None, nodes: vec![node], origin: origin.to_owned() };
        if let Some(node) = self.address.clone().filter(|node| !node.is_empty()) {
            return Ok(address(node, "flag --addr"));
        }
        let mut context = self.context.clone().map(|name| (name, "flag --context".to_owned()));
        if context.is_none() {
            if let Some(node) = variable(ADDR_VARIABLE) {
                return Ok(address(node, &format!("environment {ADDR_VARIABLE}")));
            }
            if let Some(name) = variable(CONTEXT_VARIABLE) {
                let name = name.parse().map_err(|error| Failure::usage(format!("{CONTEXT_VARIABLE}: {error}")))?;
                context = Some((name, format!("environment {CONTEXT_VARIABLE}")));
            }
        }
        let contexts = match &file {
            Some(file) => file.read()?,
            None => Default::default(),
        };
        let origin =
            || format!("current context in {}", file.as_ref().map_or("".as_ref(), ContextFile::path).display());
        let context = context.or_else(|| contexts.current.clone().map(|name| (name, origin())));
        let Some((name, origin)) = context else {
            return Ok(Choice { context: None, nodes: vec![], origin: "default".to_owned() });
        };
        let nodes = named(&contexts, &name)?.nodes.clone();
        Ok(Choice { context: Some(name), nodes, origin })
    }

    /// Connects, lets `act` ask what it has to ask, and says goodbye.
    pub(super) async fn ask<T>(self, act: impl AsyncFnOnce(&Client) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let choice = self.choose()?;
        let result = ask_chosen(&choice, act).await;
        let Some(name) = choice.context else { return result };
        // Nobody typed where the node is, so whoever cannot reach it or is refused is told whom they asked.
        result.map_err(|error| match exit_of(&error) {
            Exit::Unreachable | Exit::Refused => error.context(format!("ask the nodes of context {name}")),
            _ => error,
        })
    }
}

async fn ask_chosen<T>(choice: &Choice, act: impl AsyncFnOnce(&Client) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let user = UserState::locate()?;
    let peers = if choice.nodes.is_empty() { running_here(&user).await? } else { chosen(choice, &user).await? };
    let client = Client::open(user.client_key()?, peers).await.context("open an endpoint")?;
    let result = act(&client).await;
    // When it takes longer the node finds out by itself.
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, client.close()).await;
    result
}

/// Where the nodes are that the user named: all that can be found out about, so that one that is down does no harm.
async fn chosen(choice: &Choice, user: &UserState) -> anyhow::Result<Vec<PeerAddress>> {
    let known = user.known_peers();
    let found = join_all(choice.nodes.iter().map(|node| find(node, &choice.origin, &known))).await;
    let mut peers = Vec::new();
    let mut failure = None;
    for found in found {
        match found {
            Ok(found) => peers.extend(found),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    match failure {
        Some(failure) if peers.is_empty() => Err(failure),
        _ => Ok(peers),
    }
}

/// Where one node is.
async fn find(node: &str, origin: &str, known: &[PeerAddress]) -> anyhow::Result<Vec<PeerAddress>> {
    let target: Target = node.parse().map_err(|error| Failure::usage(format!("{origin}: {error:#}")))?;
    match target.resolve(known).await {
        Ok((peers, _)) => Ok(peers),
        Err(error) => {
            let next_step = match target {
                Target::HostPort(_) => "check that the node runs, and that the port is that of its --bind",
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
                  will do, too; `blixard context add` keeps a name for it";
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_now_goes_before_what_was_said_earlier() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("contexts.toml");
        let file = || Some(ContextFile::at(path.clone()));
        let choose = |flags: [Option<&str>; 2], variables: [&str; 2]| {
            let [address, context] = flags;
            let node =
                NodeAddress { address: address.map(str::to_owned), context: context.map(|name| name.parse().unwrap()) };
            let variable = |name: &str| {
                let at = [ADDR_VARIABLE, CONTEXT_VARIABLE].iter().position(|known| *known == name)?;
                Some(variables[at].to_owned()).filter(|value| !value.is_empty())
            };
            let choice = node.choose_by(file(), variable)?;
            let context = choice.context.map(|name| name.to_string()).unwrap_or_default();
            anyhow::Ok((context, choice.nodes.join(","), choice.origin))
        };
        let is = |context: &str, nodes: &str, origin: &str| (context.to_owned(), nodes.to_owned(), origin.to_owned());
        assert_eq!(choose([None, None], ["", ""]).unwrap(), is("", "", "default"));
        let text = "current = 'a'\n[contexts.a]\nnodes = ['a:1', 'a:2']\n[contexts.b]\nnodes = ['b:1']\n\
                    [contexts.c]\nnodes = ['c:1']\n";
        std::fs::write(&path, text).unwrap();
        let current = format!("current context in {}", path.display());
        assert_eq!(choose([None, None], ["", ""]).unwrap(), is("a", "a:1,a:2", &current));
        assert_eq!(choose([None, None], ["", "b"]).unwrap(), is("b", "b:1", "environment BLIXARD_CONTEXT"));
        assert_eq!(choose([None, None], ["n:1", "b"]).unwrap(), is("", "n:1", "environment BLIXARD_NODE_ADDR"));
        assert_eq!(choose([None, Some("c")], ["n:1", "b"]).unwrap(), is("c", "c:1", "flag --context"));
        assert_eq!(choose([Some("f:1"), None], ["n:1", "b"]).unwrap(), is("", "f:1", "flag --addr"));
        assert_eq!(exit_of(&choose([None, Some("d")], ["", ""]).unwrap_err()), Exit::NotFound);
        assert_eq!(exit_of(&choose([None, None], ["", "a b"]).unwrap_err()), Exit::Usage);
        std::fs::write(&path, "current").unwrap();
        assert_eq!(exit_of(&choose([None, None], ["", ""]).unwrap_err()), Exit::Usage);
        assert_eq!(choose([Some("f:1"), None], ["", ""]).unwrap().1, "f:1", "nobody needs the file for that");
    }
}
