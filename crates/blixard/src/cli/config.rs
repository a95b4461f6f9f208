//! The settings of a node: its flags, and `blixard config show`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use blixard_core::NodeId;
use blixard_node::config::{Layers, NodeConfig};
use blixard_node::transport::Ticket;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::output::{self, Output, Table};
use super::values::{self, Label};
use crate::failure::Failure;

/// The configuration file that is read where there is one and no other is named.
const FILE_DEFAULT: &str = "/etc/blixard/blixard.toml";
/// The setting that may hold a ticket, and with it a secret.
const SECRET_SETTING: &str = "join";

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show every setting that a node would start with, and where its value comes from.
    ///
    /// Flags go before environment variables (BLIXARD_ and the setting in capitals, as in BLIXARD_RAFT_HEARTBEAT_MS), which
    /// go before the configuration file, which goes before the defaults.
    #[command(after_help = "Examples:
  blixard config show
  blixard config show --config ./blixard.toml -o json
  BLIXARD_RAFT_HEARTBEAT_MS=200 blixard config show --id 1")]
    Show {
        #[command(flatten)]
        settings: NodeSettings,
        #[command(flatten)]
        output: Output,
    },
}

/// The driver that runs guests, as a flag.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Hypervisor {
    /// QEMU: with KVM where it works, otherwise by emulation.
    Qemu,
    /// No guests at all: for tests and rehearsals.
    Fake,
}

/// Settings of a node that have flags.
#[derive(Debug, Default, Args)]
pub(super) struct NodeSettings {
    /// The node's number, unique in the cluster.
    #[arg(long, value_name = "N", value_parser = values::node_id)]
    id: Option<NodeId>,
    /// The UDP address for traffic between hosts. The HTTP port is 1000 higher. [default: 0.0.0.0:7001]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = values::bind)]
    bind: Option<SocketAddr>,
    /// Where the node keeps all its files. [default: /var/lib/blixard]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// A node of the cluster to join, as HOST:PORT of its --bind. May be repeated: they are tried in turn.
    #[arg(long = "peers", value_name = "HOST:PORT", value_delimiter = ',', value_parser = values::peer)]
    peers: Vec<String>,
    /// A ticket to join with, from `blixard cluster token create`. In BLIXARD_JOIN other users of this host cannot see it.
    #[arg(long, value_name = "TICKET", value_parser = values::ticket)]
    join: Option<String>,
    /// The configuration file. [default: /etc/blixard/blixard.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A label of this node, for `blixard vm create --require`. May be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = values::node_label)]
    labels: Vec<Label>,
    /// A relay to be reachable through. May be repeated.
    #[arg(long = "relay", value_name = "URL", value_parser = values::relay)]
    relays: Vec<String>,
    /// Where traces are sent to: a collector that takes OTLP over HTTP, as in http://127.0.0.1:4318. Without one there are
    /// no traces.
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// What runs the guests. [default: qemu]
    #[arg(long, value_enum)]
    hypervisor: Option<Hypervisor>,
}

impl NodeSettings {
    /// Lays these flags over the environment, that over the configuration file, and that over the defaults.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub(super) fn layers(&self) -> anyhow::Result<Layers> {
        let layers = self.lay(Path::new(FILE_DEFAULT), |name| std::env::var(name).ok());
        layers.map_err(|error| Failure::usage(format!("{error:#}")).into())
    }

    fn lay(&self, file_default: &Path, variables: impl Fn(&str) -> Option<String>) -> anyhow::Result<Layers> {
        let mut layers = Layers::defaults();
        match &self.config {
            Some(file) => layers = layers.file(file)?,
            None if file_default.exists() => layers = layers.file(file_default)?,
            None => {}
        }
        layers = layers.environment(variables)?;
        let data_dir = match &self.data_dir {
            Some(path) => Some(path.to_str().context("--data-dir must be UTF-8 text")?.to_owned()),
            None => None,
        };
        let some_of = |items: &[String]| (!items.is_empty()).then(|| items.join(","));
        let labels: Vec<String> = self.labels.iter().map(|label| format!("{}={}", label.key, label.value)).collect();
        let hypervisor = self.hypervisor.map(|kind| match kind {
            Hypervisor::Qemu => "qemu".to_owned(),
            Hypervisor::Fake => "fake".to_owned(),
        });
        let flags = [
            ("--id", "id", self.id.map(|id| id.to_string())),
            ("--bind", "bind", self.bind.map(|bind| bind.to_string())),
            ("--data-dir", "data_dir", data_dir),
            ("--peers", "peers", some_of(&self.peers)),
            ("--join", SECRET_SETTING, self.join.clone()),
            ("--label", "labels", some_of(&labels)),
            ("--relay", "relays", some_of(&self.relays)),
            ("--hypervisor", "hypervisor", hypervisor),
            ("--otlp-endpoint", "tracing.otlp_endpoint", self.otlp_endpoint.clone()),
        ];
        for (flag, key, value) in flags {
            if let Some(value) = value {
                layers = layers.flag(flag, key, &value)?;
            }
        }
        Ok(layers)
    }
}

/// What all layers come to.
///
/// # Errors
/// When a value is missing or makes no sense.
pub(super) fn resolve(layers: &Layers) -> anyhow::Result<NodeConfig> {
    layers.config().map_err(|error| Failure::usage(format!("{error:#}")).into())
}

/// A setting as it is shown.
#[derive(Debug, Serialize)]
struct Setting {
    key: &'static str,
    value: serde_json::Value,
    origin: String,
}

/// Does what was asked for.
pub(super) fn run(verb: Verb) -> anyhow::Result<()> {
    let Verb::Show { settings, output } = verb;
    let layers = settings.layers()?;
    let shown = shown(&layers)?;
    let text = |shown: &Vec<Setting>| {
        let mut table = Table::new(&["SETTING", "VALUE", "ORIGIN"]);
        for setting in shown {
            table.row([&setting.key, &setting.value, &setting.origin]);
        }
        table.render()
    };
    output.show(&shown, text, |shown| shown.iter().map(|setting| setting.key).collect())?;
    // A node needs a number, but nobody need give one to look at the rest.
    if layers.effective().any(|(key, ..)| key == "id") {
        resolve(&layers)?;
    } else {
        output::note("note: id is not set, and a node needs it");
        resolve(&layers.flag("--id", "id", "1")?)?;
    }
    Ok(())
}

fn shown(layers: &Layers) -> anyhow::Result<Vec<Setting>> {
    let setting = |(key, value, origin): (&'static str, _, &blixard_node::config::Origin)| {
        let mut value = serde_json::to_value(value).context("show a setting")?;
        if key == SECRET_SETTING {
            value = hide_secret(value);
        }
        Ok(Setting { key, value, origin: origin.to_string() })
    };
    layers.effective().map(setting).collect()
}

/// What is shown often ends in a bug report, where a ticket's secret must not be.
fn hide_secret(value: serde_json::Value) -> serde_json::Value {
    let ticket: Option<Ticket> = value.as_str().and_then(|text| text.parse().ok());
    match ticket {
        Some(ticket) => format!("a ticket for cluster {}", ticket.cluster.short()).into(),
        None => "not a ticket".into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use blixard_core::ClusterId;
    use blixard_node::transport::TicketSecret;

    use super::*;

    #[test]
    fn a_ticket_is_shown_without_its_secret() {
        let secret = TicketSecret { token: blixard_core::TokenId([1; 8]), secret: [9; 32] };
        let text = Ticket { cluster: ClusterId([3; 32]), peers: vec![], secret: Some(secret) }.to_string();
        let layers = Layers::defaults().flag("--join", "join", &text).unwrap();
        let shown = serde_json::to_string(&shown(&layers).unwrap()).unwrap();
        assert!(!shown.contains(&text) && shown.contains("a ticket for cluster 0303030303"), "{shown}");
    }

    #[test]
    fn the_usual_file_is_read_unless_another_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (usual, other) = (dir.path().join("usual.toml"), dir.path().join("other.toml"));
        let id = |settings: &NodeSettings| {
            let layers = settings.lay(&usual, |_| None).unwrap();
            layers.effective().find(|(key, ..)| *key == "id").map(|(_, value, _)| value.to_string())
        };
        assert_eq!(id(&NodeSettings::default()), None, "there is no such file yet");
        std::fs::write(&usual, "id = 1").unwrap();
        std::fs::write(&other, "id = 2").unwrap();
        assert_eq!(id(&NodeSettings::default()).as_deref(), Some("1"));
        assert_eq!(id(&NodeSettings { config: Some(other), ..Default::default() }).as_deref(), Some("2"));
        let missing = NodeSettings { config: Some(dir.path().join("missing")), ..Default::default() };
        assert!(missing.lay(&usual, |_| None).is_err(), "a file that is named has to be there");
    }
}
