//! `blixard vm`: create, run and watch virtual machines.

mod console;
mod create;
mod explain;
mod logs;
mod reading;
mod screen;
mod terminal;
mod text;
mod wait;

use std::time::Duration;

use blixard_core::limits::STOP_TIMEOUT_MS_DEFAULT;
use blixard_core::{NodeId, VmName};
use blixard_node::api::{Client, ExplainView, StopVm, VmView};
use clap::{Args, Subcommand};

use super::connect::NodeAddress;
use super::output::Output;
use super::values;
use wait::{Goal, Wait};

/// How long a stop may take beyond the guest's own time before waiting for it is given up: forcing a guest takes
/// milliseconds, and the rest is for hearing of it.
const STOP_MARGIN: Duration = Duration::from_secs(60);

/// What to do with vms.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Create a vm and start it. The scheduler chooses its node.
    #[command(after_help = "Examples:
  blixard vm create web --image debian --vcpus 2 --memory 1G --publish 8080:80/tcp
  blixard vm create db --image debian --disk 50G --require disk=ssd --anti-affinity db
  blixard vm create probe --image tiny --node 3 --restart never
  blixard vm create web --image debian --ssh-key ~/.ssh/id_ed25519.pub --user-data cloud.yaml
  blixard vm create web --image debian --config-file /etc/app.conf=doc:config/app.conf")]
    Create(Box<create::Create>),
    /// Start a vm that is stopped or has failed.
    #[command(after_help = "Examples:
  blixard vm start web
  blixard vm start web --no-wait")]
    Start {
        #[command(flatten)]
        vm: Named,
        #[command(flatten)]
        waiting: Waiting,
        #[command(flatten)]
        output: Output,
    },
    /// Stop a vm: ask the guest to shut down, and force it when it takes too long.
    #[command(after_help = "Examples:
  blixard vm stop web
  blixard vm stop web --timeout 2m
  blixard vm stop web --force")]
    Stop {
        #[command(flatten)]
        vm: Named,
        #[command(flatten)]
        stopping: Stopping,
        #[command(flatten)]
        output: Output,
    },
    /// Restart a vm: stop it, and start it again on its node.
    #[command(after_help = "Examples:
  blixard vm restart web
  blixard vm restart web --force")]
    Restart {
        #[command(flatten)]
        vm: Named,
        #[command(flatten)]
        stopping: Stopping,
        #[command(flatten)]
        output: Output,
    },
    /// Delete a vm with its disk and all its files, running or not.
    #[command(after_help = "Examples:
  blixard vm delete web")]
    Delete {
        #[command(flatten)]
        vm: Named,
        #[command(flatten)]
        waiting: Waiting,
        #[command(flatten)]
        output: Output,
    },
    /// Show a vm: what it is, where it is, and how it does.
    #[command(after_help = "Examples:
  blixard vm status web
  blixard vm status web -o json")]
    Status {
        #[command(flatten)]
        vm: Named,
        #[command(flatten)]
        output: Output,
    },
    /// Explain for each node why the vm is there, could be there, or could not.
    #[command(after_help = "Examples:
  blixard vm explain web
  blixard vm explain web -o name      the nodes that it fits on")]
    Explain {
        #[command(flatten)]
        vm: Named,
        /// Show a line for every node. Without this, many nodes are told together by what keeps them from it.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        output: Output,
    },
    /// List the vms.
    #[command(after_help = "Examples:
  blixard vm list
  blixard vm list --stale -o json
  blixard vm list -o name | xargs -n 1 blixard vm stop")]
    List {
        /// Show what the asked node last knew, without asking the leader whether that is current.
        #[arg(long)]
        stale: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Print what the guest wrote to its serial console.
    #[command(after_help = "Examples:
  blixard vm logs web
  blixard vm logs -f --tail 20 web")]
    Logs(logs::Logs),
    /// Sit at the guest's serial console. Ctrl-] leaves it; the guest runs on.
    #[command(after_help = "Examples:
  blixard vm console web
  echo 'uname -a' | blixard vm console web      type this, show what comes back, and leave")]
    Console {
        #[command(flatten)]
        vm: Named,
    },
}

/// Which vm.
#[derive(Debug, Args)]
pub(super) struct Named {
    /// The vm's name.
    #[arg(value_name = "NAME")]
    name: VmName,
}

/// Whether and how long to wait.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Waiting {
    /// Return as soon as the request is accepted.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait for the outcome. The request itself has no end.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = values::duration, conflicts_with = "no_wait")]
    timeout: Duration,
}

impl Waiting {
    fn limit(self) -> Option<Duration> {
        (!self.no_wait).then_some(self.timeout)
    }
}

/// How to stop, and whether to wait.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Stopping {
    /// How long the guest may take to shut down before it is forced. [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    timeout: Option<Duration>,
    /// Force the guest at once, as pulling the plug would: what it has not written is lost.
    #[arg(long, conflicts_with = "timeout")]
    force: bool,
    /// Return as soon as the request is accepted.
    #[arg(long)]
    no_wait: bool,
}

impl Stopping {
    fn request(self) -> StopVm {
        let ms = |timeout: Duration| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        StopVm { timeout_ms: if self.force { Some(0) } else { self.timeout.map(ms) } }
    }

    fn limit(self) -> Option<Duration> {
        let grace = if self.force { Duration::ZERO } else { Duration::from_millis(STOP_TIMEOUT_MS_DEFAULT) };
        (!self.no_wait).then(|| self.timeout.unwrap_or(grace).saturating_add(STOP_MARGIN))
    }
}

/// Does what was asked for.
pub(super) async fn run(node: NodeAddress, verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Create(create) => {
            let request = create.request()?;
            node.ask(async |client| {
                let view = client.create_vm(&request).await?;
                outcome(client, view, create.waiting.limit(), create.output).await
            })
            .await
        }
        Verb::Start { vm, waiting, output } => {
            node.ask(async |client| {
                let view = client.start_vm(&vm.name).await?;
                outcome(client, view, waiting.limit(), output).await
            })
            .await
        }
        Verb::Stop { vm, stopping, output } => {
            node.ask(async |client| {
                let view = client.stop_vm(&vm.name, &stopping.request()).await?;
                outcome(client, view, stopping.limit(), output).await
            })
            .await
        }
        Verb::Restart { vm, stopping, output } => {
            node.ask(async |client| {
                let view = client.restart_vm(&vm.name, &stopping.request()).await?;
                outcome(client, view, stopping.limit(), output).await
            })
            .await
        }
        Verb::Delete { vm, waiting, output } => {
            node.ask(async |client| delete(client, &vm.name, waiting, output).await).await
        }
        Verb::Status { vm, output } => {
            node.ask(async |client| output.show(&client.vm(&vm.name).await?, text::status, name_of)).await
        }
        Verb::Explain { vm, all, output } => {
            let told = |view: &ExplainView| explain::text(view, all);
            node.ask(async |client| output.show(&client.explain_vm(&vm.name).await?, told, fitting)).await
        }
        Verb::List { stale, output } => {
            let names = |vms: &Vec<VmView>| vms.iter().map(|vm| vm.name.clone()).collect();
            node.ask(async |client| output.show(&client.vms(stale).await?, |vms| text::list(vms), names)).await
        }
        Verb::Logs(logs) => node.ask(async |client| logs::run(client, logs).await).await,
        Verb::Console { vm } => node.ask(async |client| console::run(client, &vm.name).await).await,
    }
}

fn name_of(view: &VmView) -> Vec<VmName> {
    vec![view.name.clone()]
}

/// The nodes on which the vm is or could be.
fn fitting(view: &ExplainView) -> Vec<NodeId> {
    view.verdicts.iter().filter(|verdict| verdict.fits).map(|verdict| verdict.node).collect()
}

/// Waits, if that is wanted, for what `view` was asked to become, and shows what became of it.
async fn outcome(client: &Client, view: VmView, limit: Option<Duration>, output: Output) -> anyhow::Result<()> {
    let Some(limit) = limit else {
        let text = |view: &VmView| {
            format!("vm {}: the request is accepted; `blixard vm status {}` shows how it goes\n", view.name, view.name)
        };
        return output.show(&view, text, name_of);
    };
    let wait = Wait { name: view.name.clone(), id: view.id, goal: Goal::Settled(view.desired), limit };
    match wait.run(client).await? {
        Some(view) => output.show(&view, text::outcome, name_of),
        None => Ok(()),
    }
}

async fn delete(client: &Client, name: &VmName, waiting: Waiting, output: Output) -> anyhow::Result<()> {
    // Another vm may get the name as soon as this one is gone: only the id tells the two apart.
    let id = client.vm(name).await?.id;
    client.delete_vm(name).await?;
    let Some(limit) = waiting.limit() else {
        let answer = serde_json::json!({ "deleting": name });
        return output.show(&answer, |_| format!("vm {name}: it is being deleted\n"), |_| vec![name]);
    };
    Wait { name: name.clone(), id, goal: Goal::Gone, limit }.run(client).await?;
    let answer = serde_json::json!({ "deleted": name });
    output.show(&answer, |_| format!("vm {name} is deleted\n"), |_| vec![name])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forced_stop_gives_no_time_and_waits_the_margin() {
        let stopping = |timeout, force| Stopping { timeout, force, no_wait: false };
        assert_eq!(stopping(None, true).request().timeout_ms, Some(0));
        assert_eq!(stopping(None, true).limit(), Some(STOP_MARGIN));
        assert_eq!(stopping(None, false).request().timeout_ms, None);
        assert_eq!(stopping(None, false).limit(), Some(STOP_MARGIN + Duration::from_secs(30)));
        let minutes = Some(Duration::from_secs(120));
        assert_eq!(stopping(minutes, false).request().timeout_ms, Some(120_000));
        assert_eq!(Stopping { no_wait: true, ..stopping(minutes, false) }.limit(), None);
    }
}
