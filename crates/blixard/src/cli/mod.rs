//! The command line: what people type, and what they read.
//!
//! One file per group of verbs. Each reads its arguments into one type, asks a node through the client of the control API,
//! and shows the answer; none decides anything about the cluster. Results go to standard output, everything else to
//! standard error.

mod api;
mod audit;
mod catalog;
mod client;
mod cluster;
mod config;
mod connect;
mod context;
mod doc;
mod events;
mod fetch;
mod files;
mod image;
mod log;
mod node;
mod output;
mod peer;
mod progress;
mod share;
mod shell;
mod status;
mod traces;
mod transfer;
mod values;
mod vm;

use std::ffi::OsString;
use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::failure::{EXIT_CODES, Exit, Failure};
use connect::NodeAddress;
pub(crate) use output::report;
use traces::Traces;
use tracing::Instrument;

/// One VM cluster out of Linux hosts anywhere.
#[derive(Debug, Parser)]
#[command(name = "blixard", version, max_term_width = 100, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    node: NodeAddress,
    #[command(subcommand)]
    verb: Verb,
    /// The program and its verbs, as in `blixard vm create`.
    #[arg(skip)]
    words: String,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a node on this host until it is told to stop.
    #[command(after_help = "Examples:
  blixard node --id 1 --bind 127.0.0.1:7001 --data-dir ./data1                             a new cluster
  blixard node --id 2 --bind 127.0.0.1:7002 --data-dir ./data2 --peers 127.0.0.1:7001      join it
  blixard node --id 3 --join $(blixard cluster token create --addr 127.0.0.1:7001)
  blixard node --config /etc/blixard/blixard.toml --log-format json")]
    Node(node::NodeArgs),
    /// Show the configuration that a node would start with.
    #[command(subcommand)]
    Config(config::Verb),
    /// Keep names for several clusters, and choose among them.
    #[command(subcommand)]
    Context(context::Verb),
    /// See and change the cluster: its nodes, settings, join tokens and clients.
    #[command(subcommand)]
    Cluster(cluster::Verb),
    /// Show the key by which clusters know you.
    #[command(subcommand)]
    Client(client::Verb),
    /// Import, list and export what vms boot from.
    #[command(subcommand)]
    Image(image::Verb),
    /// Publish images for other clusters, and pull what others publish.
    #[command(subcommand)]
    Catalog(catalog::Verb),
    /// Read and write documents: small values that every node has, also while there is no leader.
    #[command(subcommand)]
    Doc(doc::Verb),
    /// Share a file or a folder with whoever gets the ticket that this prints.
    #[command(after_help = "Examples:
  blixard share report.pdf                         for a day
  blixard share ./photos --expires 7d --name trip
  blixard share --list
  blixard share --stop 6a1f0c9d2e4b8a37")]
    Share(share::Share),
    /// Fetch what somebody shares, with its ticket. It needs no node and no cluster here.
    #[command(after_help = "Examples:
  blixard fetch TICKET                     under the name that it was shared as
  blixard fetch TICKET -o ./photos         go on where it was by running it again
  pass show ticket | blixard fetch -")]
    Fetch(fetch::Fetch),
    /// See how nodes find each other as sources of images.
    #[command(subcommand)]
    Peer(peer::Verb),
    /// See images on their way between nodes, and limit how fast they go.
    #[command(subcommand)]
    Transfer(transfer::Verb),
    /// Create, run and watch virtual machines.
    #[command(subcommand)]
    Vm(vm::Verb),
    /// Show what happened in the cluster: to vms, images and nodes, and who caused it.
    #[command(after_help = "Examples:
  blixard events                        the last 50
  blixard events -f                     and whatever happens from now on
  blixard events --vm web -n 1000       the life of a vm, as far as it is kept
  blixard events -f --node 3 -o json    one JSON object a line")]
    Events(events::Events),
    /// Give other programs the control API.
    #[command(subcommand)]
    Api(api::Verb),
    /// Print a script that completes command lines of this program in a shell.
    #[command(after_help = "Examples:
  blixard completions bash > ~/.local/share/bash-completion/completions/blixard
  blixard completions zsh > ~/.zfunc/_blixard       a folder that fpath names
  blixard completions fish > ~/.config/fish/completions/blixard.fish")]
    Completions(shell::CompletionsArgs),
    /// Write manual pages. Packages come with them.
    #[command(hide = true)]
    Man(shell::ManArgs),
    /// Own one hypervisor process. A node starts guards itself.
    #[command(hide = true, disable_help_flag = true)]
    Guard {
        /// Passed on as they are.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

impl Verb {
    fn asks_no_node(&self) -> bool {
        match self {
            Self::Context(verb) => !matches!(verb, context::Verb::Show { .. }),
            Self::Node(_) | Self::Config(_) | Self::Client(_) | Self::Fetch(_) => true,
            Self::Completions(_) | Self::Man(_) | Self::Guard { .. } => true,
            Self::Api(verb) => matches!(verb, api::Verb::Openapi),
            Self::Cluster(_) | Self::Image(_) | Self::Catalog(_) | Self::Doc(_) | Self::Peer(_) | Self::Transfer(_) => {
                false
            }
            Self::Vm(_) | Self::Events(_) | Self::Share(_) => false,
        }
    }
}

const EXAMPLES: &str = "Examples:
  blixard cluster status --addr 127.0.0.1:7001     ask the node at this address
  blixard image import --name debian debian.qcow2  add an image
  blixard vm create web --image debian             run a vm from it
  blixard vm console web                           sit at its serial console";

/// What follows the help of the whole program.
fn closing_help() -> String {
    let mut text = format!("{EXAMPLES}\n\nExit codes:\n");
    for (exit, meaning) in EXIT_CODES {
        writeln!(text, "  {:>3}  {meaning}", *exit as u8).expect("writing to a string does not fail");
    }
    text
}

/// The definition of the command line, with all of its help.
fn command() -> clap::Command {
    with_short_names(Cli::command()).after_help(closing_help())
}

/// What people's fingers know from elsewhere, for each verb of that name.
const SHORT_NAMES: &[(&str, &str)] = &[("list", "ls"), ("delete", "rm"), ("remove", "rm")];

fn with_short_names(mut command: clap::Command) -> clap::Command {
    let names: Vec<String> = command.get_subcommands().map(|inner| inner.get_name().to_owned()).collect();
    for name in &names {
        let short = SHORT_NAMES.iter().find(|(long, short)| long == name && names.iter().all(|name| name != short));
        command = command.mut_subcommand(name, |inner| {
            let inner = with_short_names(inner);
            match short {
                Some((_, short)) => inner.visible_alias(short),
                None => inner,
            }
        });
    }
    command
}

/// The verbs of that name in any group, as they are typed.
fn verbs_named(command: &clap::Command, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        let path = format!("{} {}", command.get_name(), inner.get_name());
        if inner.get_name() == name || inner.get_all_aliases().any(|alias| alias == name) {
            found.push(path);
        }
        let deeper = verbs_named(inner, name).into_iter();
        found.extend(deeper.map(|found| format!("{} {found}", command.get_name())));
    }
    found
}

/// Adds to an error about a verb that is not there in which groups there is one of that name.
fn with_other_groups(mut error: clap::Error, command: &clap::Command) -> clap::Error {
    use clap::error::{ContextKind, ContextValue};
    let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidSubcommand) else { return error };
    let found = verbs_named(command, name);
    if !found.is_empty() {
        let tips = found.into_iter().map(|path| format!("there is `{path}`").into());
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips.collect()));
    }
    error
}

/// Reads the command line. Ends the process, with help or an error, when that is all there is to do.
pub(crate) fn parse() -> Cli {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(std::env::args_os());
    let matches = matches.unwrap_or_else(|error| with_other_groups(error, &command).exit());
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit());
    let verbs = std::iter::successors(matches.subcommand(), |(_, inner)| inner.subcommand());
    cli.words = ["blixard"].into_iter().chain(verbs.map(|(verb, _)| verb)).collect::<Vec<_>>().join(" ");
    let names_a_node = [connect::ADDR, connect::CONTEXT].iter().any(|id| matches.value_source(id).is_some());
    if cli.verb.asks_no_node() && names_a_node {
        let told = "--addr and --context name a node to ask, and this command asks none";
        command.error(clap::error::ErrorKind::ArgumentConflict, told).exit();
    }
    cli
}

/// Does what the command line asks for. The exit code is that of a success, or a guard's own.
pub(crate) fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { node, verb, words } = cli;
    let done = match verb {
        // A guard's hypervisor dies with the thread that started it, so it must be this one, with no other beside it.
        Verb::Guard { arguments } => return Ok(blixard_hypervisor::guard::run(arguments)),
        Verb::Node(arguments) => block_on(node::run(arguments)),
        Verb::Config(verb) => config::run(verb),
        Verb::Client(verb) => client::run(verb),
        Verb::Context(verb) => context::run(&node, verb),
        Verb::Completions(asked) => shell::completions(command(), &asked),
        Verb::Man(asked) => shell::man(command(), &asked),
        Verb::Api(verb) => ask(&words, api::run(node, verb)),
        Verb::Cluster(verb) => ask(&words, cluster::run(node, verb)),
        Verb::Image(verb) => ask(&words, image::run(node, verb)),
        Verb::Catalog(verb) => ask(&words, catalog::run(node, verb)),
        Verb::Doc(verb) => ask(&words, doc::run(node, verb)),
        Verb::Share(share) => ask(&words, share::run(node, share)),
        Verb::Fetch(fetch) => ask(&words, fetch::run(fetch)),
        Verb::Peer(verb) => ask(&words, peer::run(node, verb)),
        Verb::Transfer(verb) => ask(&words, transfer::run(node, verb)),
        Verb::Vm(verb) => ask(&words, vm::run(node, verb)),
        Verb::Events(events) => ask(&words, events::run(node, events)),
    };
    done.map(|()| Exit::Success.into())
}

/// Runs a verb that talks to a node.
fn ask(words: &str, verb: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let endpoint = std::env::var(traces::VARIABLE).ok().filter(|endpoint| !endpoint.is_empty());
    let traces = endpoint.map(|endpoint| Traces::start(&endpoint, "command".to_owned())).transpose();
    let traces = traces.map_err(|error| Failure::usage(format!("{}: {error:#}", traces::VARIABLE)))?;
    if traces.is_some() || std::env::var_os(log::VARIABLE).is_some() {
        log::start("off", log::LogFormat::Pretty, traces.as_ref())?;
    }
    // All that follows from this command, on whatever node, is below this span.
    let span = tracing::info_span!(target: blixard_node::trace::TARGET, "command", otel.name = words);
    block_on(verb.instrument(span))
}

fn block_on(verb: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    // One thread for all that is quick: handing each other work costs threads more than the work itself. What waits for a disk, or
    // computes for long, has threads of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.context("start the async runtime")?;
    let result = runtime.block_on(verb);
    // A thread may be waiting for a key press that never comes.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_fit_together() {
        Cli::command().debug_assert();
    }

    fn visit(command: &clap::Command, path: &str, check: &dyn Fn(&clap::Command, &str)) {
        check(command, path);
        for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
            visit(inner, &format!("{path} {}", inner.get_name()), check);
        }
    }

    /// What gives no answer that could be written in another way: it runs on, passes bytes through, or draws a terminal.
    const WITHOUT_FORMAT: &[&str] = &[
        "blixard api openapi",
        "blixard api proxy",
        "blixard completions",
        "blixard doc get",
        "blixard fetch",
        "blixard guard",
        "blixard image export",
        "blixard man",
        "blixard node",
        "blixard vm console",
        "blixard vm logs",
    ];

    #[test]
    fn every_answer_comes_in_the_same_formats() {
        visit(&Cli::command(), "blixard", &|command, path| {
            let is_group = command.get_subcommands().next().is_some();
            let format = command.get_arguments().find(|argument| argument.get_id() == "format");
            let Some(format) = format else {
                return assert!(is_group || WITHOUT_FORMAT.contains(&path), "{path} has no -o FORMAT");
            };
            assert!(!is_group && !WITHOUT_FORMAT.contains(&path), "{path} has -o FORMAT");
            assert_eq!((format.get_short(), format.get_long()), (Some('o'), Some("output")), "{path}");
            let values: Vec<_> = format.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
            assert_eq!(values, ["table", "json", "yaml", "name"], "{path}");
        });
    }

    #[test]
    fn every_flag_has_a_sentence() {
        visit(&Cli::command(), "blixard", &|command, path| {
            assert!(command.get_about().is_some(), "{path} says nothing about itself");
            for argument in command.get_arguments() {
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(!help.is_empty(), "{path}: {} says nothing", argument.get_id());
            }
        });
    }
}
