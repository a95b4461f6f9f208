//! `blixard node`: this process is a node until it is told to stop.

use anyhow::{Context, anyhow};
use blixard_node::user::UserState;
use blixard_node::{Ended, Node, StartError};
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::config::{self, NodeSettings};
use super::log::{self, LogFormat};
use super::traces::Traces;
use crate::failure::{Exit, Failure};

/// How to run the node.
#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    #[command(flatten)]
    settings: NodeSettings,
    /// How to write the log on standard error. What is logged is chosen by BLIXARD_LOG, as in BLIXARD_LOG=debug.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Pretty, env = "BLIXARD_LOG_FORMAT")]
    log_format: LogFormat,
}

/// The signals that ask a node to stop.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn received(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// Runs the node.
pub(super) async fn run(args: NodeArgs) -> anyhow::Result<()> {
    let config = config::resolve(&args.settings.layers()?)?;
    let endpoint = config.tracing.otlp_endpoint.as_deref();
    // Sends what is left when the node has stopped.
    let traces = endpoint.map(|endpoint| Traces::start(endpoint, format!("node {}", config.id))).transpose();
    let traces = traces.map_err(|error| Failure::usage(format!("{error:#}")))?;
    log::start(log::NODE_FILTER, args.log_format, traces.as_ref())?;
    let mut signals = StopSignals::listen()?;
    let id = config.id;
    let node = tokio::select! {
        started = Node::start(config, UserState::locate()?) => started.map_err(start_failure)?,
        // Joining may take for as long as the other nodes are away. A start that is dropped leaves no more behind than a
        // crash would, and the next start takes that up.
        name = signals.received() => {
            tracing::info!("{name} received before node {id} had started");
            return Ok(());
        }
    };
    let ended = tokio::select! {
        ended = node.ended() => Some(ended),
        name = signals.received() => {
            tracing::info!("{name} received");
            None
        }
    };
    tokio::select! {
        () = node.shutdown() => {}
        // Somebody who asks twice does not want to wait for the orderly way.
        name = signals.received() => tracing::warn!("{name} received while stopping: the rest is left undone"),
    }
    match ended {
        None => Ok(()),
        Some(Ended::Removed(id)) => Err(removed(format!("node {id} is no longer part of the cluster"))),
        Some(Ended::Failed(reason)) => Err(anyhow!("node {id} cannot go on: {reason}")),
    }
}

fn removed(message: String) -> anyhow::Error {
    let next_step = "start it with an empty data directory and a ticket to let it join anew";
    Failure::new(Exit::Removed, message).next_step(next_step).into()
}

fn start_failure(error: StartError) -> anyhow::Error {
    match error {
        StartError::Refused(refusal) => {
            Failure::new(Exit::JoinRefused, format!("the cluster refused this node: {refusal}")).into()
        }
        StartError::OtherOwner(message) => Failure::new(Exit::ForeignData, message).into(),
        StartError::Removed(id) => removed(format!("node {id} was removed from its cluster")),
        StartError::Damaged(damage) => damage.into(),
        StartError::Failed(error) => error.context("start the node"),
    }
}
