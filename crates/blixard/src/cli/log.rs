//! The log of this process, on standard error.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

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

/// Starts the log.
///
/// # Errors
/// When the filter in the environment cannot be read.
pub(super) fn start(default_filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let text = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
    let filter = EnvFilter::try_new(text.as_deref().unwrap_or(default_filter)).map_err(|error| {
        Failure::usage(format!("{VARIABLE} is not a log filter: {error}"))
            .next_step(format!("write it as in {VARIABLE}=info or {VARIABLE}=warn,blixard_node=debug"))
    })?;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Pretty => {
            let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            builder.with_ansi(std::io::stderr().is_terminal() && !no_color).with_target(false).init();
        }
    }
    Ok(())
}
