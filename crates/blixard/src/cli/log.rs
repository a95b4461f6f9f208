//! The log of this process, on standard error.

use std::io::IsTerminal;

use blixard_node::trace::TARGET;
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::traces::Traces;
use crate::failure::Failure;

/// Chooses what is logged, in the syntax of `RUST_LOG`.
pub(super) const VARIABLE: &str = "BLIXARD_LOG";
/// What a node logs unless told otherwise: its own doings, and of the libraries below it only what they cannot
/// hand back: what they answer to us is logged once, where we handle it.
pub(super) const NODE_FILTER: &str = "info,iroh=error,iroh_relay=error,iroh_blobs=error,noq=error,noq_proto=error,\
                                      noq_udp=error,netwatch=error,openraft=error,\
                                      openraft::progress=warn,hyper=error";

/// How a node's log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// Lines for people, in colour on a terminal unless `NO_COLOR` is set.
    Pretty,
    /// One JSON object a line, for programs.
    Json,
}

/// Starts the log, and the traces where there are any.
///
/// # Errors
/// When the filter in the environment cannot be read.
pub(super) fn start(default_filter: &str, format: LogFormat, traces: Option<&Traces>) -> anyhow::Result<()> {
    let text = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
    let filter = EnvFilter::try_new(text.as_deref().unwrap_or(default_filter)).map_err(|error| {
        Failure::usage(format!("{VARIABLE} is not a log filter: {error}"))
            .next_step(format!("write it as in {VARIABLE}=info or {VARIABLE}=warn,blixard_node=debug"))
    })?;
    // Spans that are exported would stand before every line that is logged within them.
    let off = format!("{TARGET}=off").parse().expect("a directive");
    let filter = filter.add_directive(off);
    let layer = fmt::layer().with_writer(std::io::stderr);
    let layer = match format {
        LogFormat::Json => layer.json().with_filter(filter).boxed(),
        LogFormat::Pretty => {
            let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let layer = layer.with_ansi(std::io::stderr().is_terminal() && !no_color).with_target(false);
            layer.with_filter(filter).boxed()
        }
    };
    tracing_subscriber::registry().with(layer).with(traces.map(Traces::layer)).init();
    Ok(())
}
