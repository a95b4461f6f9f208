//! `blixard context`: clusters that a user goes to by name.

pub(in crate::cli) mod file;

use anyhow::{Context as _, bail};
use blixard_node::api::Target;
use clap::Subcommand;
use serde::Serialize;

use super::connect::{Choice, NodeAddress};
use super::output::{self, Output, Table};
use crate::failure::{Exit, Failure};
use file::{ContextFile, ContextName, Contexts, Entry, kept_form};

/// What to do with contexts.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List the contexts. The current one is marked.
    #[command(after_help = "Examples:
  blixard context list
  blixard context list -o name")]
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Add a context: a name for a cluster, and where some of its nodes are.
    ///
    /// Nodes are asked in turn until one answers. A ticket is kept without its secret, which only a node that joins needs.
    #[command(after_help = "Examples:
  blixard context add lab 10.0.0.1:7001 10.0.0.2:7001
  blixard context add home ./data1/node-1-registry.json --use
  blixard context add lab 10.0.0.3:7001 --replace")]
    Add {
        /// The name to give it.
        #[arg(value_name = "NAME")]
        name: ContextName,
        /// A node of the cluster: HOST:PORT, a registry file, a ticket or an endpoint id.
        #[arg(value_name = "NODE", required = true, value_parser = kept_form)]
        nodes: Vec<String>,
        /// Make it the current context.
        #[arg(long = "use")]
        make_current: bool,
        /// Put it in place of a context of this name.
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Make a context the current one: it holds for every command that names neither a node nor a context.
    #[command(after_help = "Examples:
  blixard context use lab
  blixard context use --none            ask the nodes on this host again")]
    Use {
        /// The context's name.
        #[arg(value_name = "NAME", required_unless_present = "none")]
        name: Option<ContextName>,
        /// Have no current context.
        #[arg(long, conflicts_with = "name")]
        none: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Remove a context. The cluster does not notice.
    #[command(after_help = "Examples:
  blixard context remove lab")]
    Remove {
        /// The context's name.
        #[arg(value_name = "NAME")]
        name: ContextName,
        #[command(flatten)]
        output: Output,
    },
    /// Show which nodes a command would ask, and why those: because of a flag, a variable or a context.
    #[command(after_help = "Examples:
  blixard context show
  blixard context show --context lab
  BLIXARD_CONTEXT=lab blixard context show -o json")]
    Show {
        #[command(flatten)]
        output: Output,
    },
}

/// A context as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    name: ContextName,
    is_current: bool,
    nodes: Vec<String>,
}

/// Does what was asked for.
pub(super) fn run(node: &NodeAddress, verb: Verb) -> anyhow::Result<()> {
    let file = || ContextFile::locate().context("there is no place for contexts: set BLIXARD_CONFIG_DIR or HOME");
    match verb {
        Verb::Show { output } => show(&node.choose()?, output),
        Verb::List { output } => {
            let Contexts { current, contexts } = file()?.read()?;
            let shown = contexts.into_iter().map(|(name, entry)| {
                let is_current = current.as_ref() == Some(&name);
                Shown { name, is_current, nodes: entry.nodes }
            });
            let names = |shown: &Vec<Shown>| shown.iter().map(|context| context.name.clone()).collect();
            output.show(&shown.collect(), list_text, names)
        }
        Verb::Add { name, nodes, make_current, replace, output } => {
            let shown = file()?.change(|contexts| {
                if !replace && contexts.contexts.contains_key(&name) {
                    let failure = Failure::usage(format!("there is a context {name} already"));
                    bail!(failure.next_step("choose another name, or put this one in its place with --replace"));
                }
                contexts.contexts.insert(name.clone(), Entry { nodes: nodes.clone() });
                if make_current {
                    contexts.current = Some(name.clone());
                }
                let is_current = contexts.current.as_ref() == Some(&name);
                Ok(Shown { name: name.clone(), is_current, nodes })
            })?;
            let text = |shown: &Shown| {
                let state = if shown.is_current { "and is the current one" } else { "and not the current one" };
                format!("context {name} is kept {state}\n")
            };
            output.show(&shown, text, |shown| vec![shown.name.clone()])
        }
        Verb::Use { name, none: _, output } => {
            file()?.change(|contexts| {
                if let Some(name) = &name {
                    named(contexts, name)?;
                }
                contexts.current.clone_from(&name);
                Ok(())
            })?;
            let text = |_: &_| match &name {
                Some(name) => format!("context {name} is the current one\n"),
                None => "no context is the current one\n".to_owned(),
            };
            output.show(&serde_json::json!({ "current": name }), text, |_| name.iter().cloned().collect())
        }
        Verb::Remove { name, output } => {
            file()?.change(|contexts| {
                named(contexts, &name)?;
                contexts.contexts.remove(&name);
                contexts.current.take_if(|current| *current == name);
                Ok(())
            })?;
            let answer = serde_json::json!({ "removed": name });
            output.show(&answer, |_| format!("context {name} is removed\n"), |_| vec![name.clone()])
        }
    }
}

/// A context that has to be there.
pub(super) fn named<'a>(contexts: &'a Contexts, name: &ContextName) -> anyhow::Result<&'a Entry> {
    contexts.contexts.get(name).ok_or_else(|| {
        let failure = Failure::new(Exit::NotFound, format!("there is no context {name}"));
        let known = output::list(contexts.contexts.keys());
        let next_step = match known.as_str() {
            "" => "add one with `blixard context add NAME NODE`".to_owned(),
            known => format!("choose one of these, or add one: {known}"),
        };
        failure.next_step(next_step).into()
    })
}

fn show(choice: &Choice, output: Output) -> anyhow::Result<()> {
    let text = |choice: &Choice| {
        let mut table = Table::of_pairs();
        table.row([&"context", &choice.context.as_ref().map(ToString::to_string).unwrap_or_default()]);
        match choice.nodes.as_slice() {
            [] => table.row([&"nodes", &"those that you started on this host"]),
            nodes => table.row([&"nodes", &output::list(nodes.iter().map(|node| short_form(node)))]),
        }
        table.row([&"chosen by", &choice.origin]);
        table.render()
    };
    output.show(choice, text, |choice| choice.context.iter().cloned().collect())
}

fn list_text(contexts: &Vec<Shown>) -> String {
    let mut table = Table::new(&["NAME", "CURRENT", "NODES"]);
    for context in contexts {
        let mark = if context.is_current { "yes" } else { "" };
        table.row([&context.name, &mark, &output::list(context.nodes.iter().map(|node| short_form(node)))]);
    }
    table.render()
}

/// A node as it fits into a table: a ticket is hundreds of letters long.
fn short_form(node: &str) -> String {
    match node.parse() {
        Ok(Target::Ticket(ticket)) => format!("a ticket for cluster {}", ticket.cluster.short()),
        Ok(Target::Endpoint(endpoint)) => format!("endpoint {}", endpoint.short()),
        _ => node.to_owned(),
    }
}
