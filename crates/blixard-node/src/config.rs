//! The configuration of a node, and where each value came from: flags over environment over file over default.

mod cache;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use blixard_core::{NodeId, Settings};
use serde::{Deserialize, Serialize};
use toml::Value;

use crate::damage::read_bounded;
pub use cache::{CacheConfig, CacheMax};

/// The HTTP door is this far above the UDP port of `bind`.
pub const HTTP_PORT_OFFSET: u16 = 1000;
/// More than any configuration file holds; a larger file is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Timing and thresholds of consensus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RaftConfig {
    /// How often the leader shows that it lives, in milliseconds.
    pub heartbeat_ms: u64,
    /// The shortest silence after which a voter stands for election, in milliseconds.
    pub election_min_ms: u64,
    /// The longest silence after which a voter stands for election, in milliseconds.
    pub election_max_ms: u64,
    /// Entries after which a snapshot is written.
    pub snapshot_entries: u64,
    /// Entries kept behind a snapshot, so that a node that was away briefly needs none.
    pub keep_entries: u64,
}

impl Default for RaftConfig {
    fn default() -> Self {
        // A lost leader is replaced within half a second on a LAN: its lease lasts for the longest time-out, and the
        // candidates wait for another. Where leaders are heard less regularly, voters wait for longer by themselves.
        Self {
            heartbeat_ms: 50,
            election_min_ms: 200,
            election_max_ms: 250,
            snapshot_entries: 5000,
            keep_entries: 1000,
        }
    }
}

/// Which driver runs the guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HypervisorKind {
    /// QEMU: with KVM where it works, otherwise by emulation.
    Qemu,
    /// No guests at all: vms are entries in a folder. For tests and rehearsals of large clusters.
    Fake,
}

/// What the node offers to vms. What is not given is measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CapacityConfig {
    /// Processors for vms; without a number, all of the host's.
    pub vcpus: Option<u64>,
    /// Memory for vms in MiB; without a number, the host's less what the system needs.
    pub memory_mib: Option<u64>,
    /// Disk for vms in MiB; without a number, the free space at the data directory when the node first starts.
    pub disk_mib: Option<u64>,
    /// See [`blixard_core::Capacity`].
    pub overcommit_vcpus_percent: u32,
    /// See [`blixard_core::Capacity`].
    pub overcommit_memory_percent: u32,
    /// See [`blixard_core::Capacity`].
    pub overcommit_disk_percent: u32,
}

/// How images come to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransfersConfig {
    /// Images that are fetched at once; each comes from several nodes already.
    pub running_max: usize,
}

impl Default for TransfersConfig {
    fn default() -> Self {
        Self { running_max: 3 }
    }
}

/// How vms boot whose image is still on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LazyConfig {
    /// How long a guest's read waits for bytes that have to come first, in seconds; then the guest sees an error of its disk.
    pub patience_s: u32,
}

impl Default for LazyConfig {
    fn default() -> Self {
        Self { patience_s: 120 }
    }
}

/// Where the spans of traces go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TracingConfig {
    /// The URL of a collector that takes OTLP over HTTP; without one, nothing is traced.
    pub otlp_endpoint: Option<String>,
}

/// The configuration of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// The node's number in the cluster.
    pub id: NodeId,
    /// The UDP address for traffic between hosts; HTTP is served at the same address, 1000 ports higher.
    pub bind: SocketAddr,
    /// Where the node keeps all its files.
    pub data_dir: PathBuf,
    /// Nodes to join, as HOST:PORT of their `bind`.
    pub peers: Vec<String>,
    /// A ticket to join with.
    pub join: Option<String>,
    /// Whether images are shared with other nodes and peers are discovered.
    pub p2p_enabled: bool,
    /// Relays to be reachable through; none turns relaying off.
    pub relays: Vec<String>,
    /// Labels for `--require`.
    pub labels: BTreeMap<String, String>,
    /// Which driver runs the guests.
    pub hypervisor: HypervisorKind,
    /// What the node offers to vms.
    pub capacity: CapacityConfig,
    /// Timing and thresholds of consensus.
    pub raft: RaftConfig,
    /// Settings of the cluster, if this node creates it.
    pub cluster: Settings,
    /// How images come to the node.
    #[serde(default)]
    pub transfers: TransfersConfig,
    /// How vms boot whose image is still on its way.
    #[serde(default)]
    pub lazy: LazyConfig,
    /// What images may take of the node.
    #[serde(default)]
    pub cache: CacheConfig,
    /// Where the spans of traces go.
    #[serde(default)]
    pub tracing: TracingConfig,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Origin {
    /// Built in.
    Default,
    /// A configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A command-line flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// What kind of value a setting takes, which decides how text from the environment or a flag is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Number,
    Switch,
    Text,
    /// Comma-separated.
    List,
    /// Comma-separated `key=value`.
    Map,
}

/// Every setting: its key in the file, the kind of its value, and its default in TOML, if it has one.
const SETTINGS: &[(&str, Kind, &str)] = &[
    ("id", Kind::Number, ""),
    ("bind", Kind::Text, "'0.0.0.0:7001'"),
    ("data_dir", Kind::Text, "'/var/lib/blixard'"),
    ("peers", Kind::List, "[]"),
    ("join", Kind::Text, ""),
    ("p2p_enabled", Kind::Switch, "true"),
    ("relays", Kind::List, "[]"),
    ("labels", Kind::Map, "{}"),
    ("hypervisor", Kind::Text, "'qemu'"),
    ("capacity.vcpus", Kind::Number, ""),
    ("capacity.memory_mib", Kind::Number, ""),
    ("capacity.disk_mib", Kind::Number, ""),
    // Processors are shared in time, and most guests idle; memory and disk are not.
    ("capacity.overcommit_vcpus_percent", Kind::Number, "400"),
    ("capacity.overcommit_memory_percent", Kind::Number, "100"),
    ("capacity.overcommit_disk_percent", Kind::Number, "100"),
    ("raft.heartbeat_ms", Kind::Number, "50"),
    ("raft.election_min_ms", Kind::Number, "200"),
    ("raft.election_max_ms", Kind::Number, "250"),
    ("raft.snapshot_entries", Kind::Number, "5000"),
    ("raft.keep_entries", Kind::Number, "1000"),
    ("cluster.voters", Kind::Number, "3"),
    ("cluster.copies", Kind::Number, "2"),
    // More at once would only all be slow.
    ("transfers.running_max", Kind::Number, "3"),
    // Longer than it takes to find another source or to restart a node, and about as long as Linux waits until it complains of
    // a task that hangs.
    ("lazy.patience_s", Kind::Number, "120"),
    ("cache.max", Kind::Text, "'50%'"),
    ("tracing.otlp_endpoint", Kind::Text, ""),
];

/// The values of all settings, layer over layer.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    values: BTreeMap<&'static str, (Value, Origin)>,
}

fn setting(key: &str) -> Option<(&'static str, Kind)> {
    SETTINGS.iter().find(|(name, ..)| *name == key).map(|(name, kind, _)| (*name, *kind))
}

/// Reads text from the environment or a flag as a kind of value.
fn parse(kind: Kind, text: &str) -> anyhow::Result<Value> {
    let items = || text.split(',').map(str::trim).filter(|item| !item.is_empty());
    Ok(match kind {
        Kind::Text => Value::String(text.to_owned()),
        Kind::Number => Value::Integer(text.trim().parse().with_context(|| format!("{text:?} is not a whole number"))?),
        Kind::Switch => match text.trim() {
            "true" | "1" | "yes" | "on" => Value::Boolean(true),
            "false" | "0" | "no" | "off" => Value::Boolean(false),
            _ => bail!("{text:?} is neither true nor false"),
        },
        Kind::List => Value::Array(items().map(|item| Value::String(item.to_owned())).collect()),
        Kind::Map => {
            let mut table = toml::Table::new();
            for item in items() {
                let (key, value) =
                    item.split_once('=').with_context(|| format!("{item:?} is not of the form KEY=VALUE"))?;
                table.insert(key.to_owned(), Value::String(value.to_owned()));
            }
            Value::Table(table)
        }
    })
}

impl Layers {
    /// The defaults.
    pub fn defaults() -> Self {
        let mut values = BTreeMap::new();
        for (key, _, default) in SETTINGS.iter().filter(|(.., default)| !default.is_empty()) {
            let mut table: toml::Table = format!("v = {default}").parse().expect("the defaults above are TOML");
            let value = table.remove("v").expect("just parsed");
            values.insert(*key, (value, Origin::Default));
        }
        Self { values }
    }

    /// Lays a configuration file over what is there.
    ///
    /// # Errors
    /// When it cannot be read, is not TOML, or has a setting that does not exist.
    pub fn file(self, path: &Path) -> anyhow::Result<Self> {
        let read = || -> anyhow::Result<String> { Ok(String::from_utf8(read_bounded(path, FILE_BYTES_MAX)?)?) };
        let text = read().with_context(|| format!("read configuration file {}", path.display()))?;
        self.text(&text, path)
    }

    /// Lays the text of a configuration file over what is there. The path is for errors and origins.
    ///
    /// # Errors
    /// When it is not TOML, or has a setting that does not exist.
    pub fn text(mut self, text: &str, path: &Path) -> anyhow::Result<Self> {
        let table: toml::Table = text.parse().with_context(|| format!("read configuration file {}", path.display()))?;
        for (key, value) in table {
            match value {
                Value::Table(section) if setting(&key).is_none() => {
                    for (inner, value) in section {
                        self.set_from_file(&format!("{key}.{inner}"), value, path)?;
                    }
                }
                value => self.set_from_file(&key, value, path)?,
            }
        }
        Ok(self)
    }

    fn set_from_file(&mut self, key: &str, value: Value, path: &Path) -> anyhow::Result<()> {
        let Some((name, _)) = setting(key) else {
            let known = SETTINGS.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ");
            bail!("{}: there is no setting {key:?}; there are: {known}", path.display());
        };
        self.values.insert(name, (value, Origin::File(path.to_owned())));
        Ok(())
    }

    /// Lays environment variables over what is there: `BLIXARD_` and the key in capitals, with `_` for `.`.
    ///
    /// # Errors
    /// When a value is not of the setting's kind.
    pub fn environment(mut self, variables: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        for (key, kind, _) in SETTINGS {
            let name = format!("BLIXARD_{}", key.to_ascii_uppercase().replace('.', "_"));
            if let Some(text) = variables(&name) {
                let value = parse(*kind, &text).with_context(|| format!("read environment variable {name}"))?;
                self.values.insert(key, (value, Origin::Environment(name)));
            }
        }
        Ok(self)
    }

    /// Lays a flag over what is there.
    ///
    /// # Errors
    /// When there is no such setting, or the value is not of its kind.
    pub fn flag(mut self, flag: &str, key: &str, text: &str) -> anyhow::Result<Self> {
        let (name, kind) = setting(key).with_context(|| format!("there is no setting {key:?}"))?;
        let value = parse(kind, text).with_context(|| format!("read flag {flag}"))?;
        self.values.insert(name, (value, Origin::Flag(flag.to_owned())));
        Ok(self)
    }

    /// Each setting that has a value, with the value as TOML and where it came from.
    pub fn effective(&self) -> impl Iterator<Item = (&'static str, &Value, &Origin)> {
        self.values.iter().map(|(key, (value, origin))| (*key, value, origin))
    }

    /// The configuration that the layers come to.
    ///
    /// # Errors
    /// When a value is missing or not of the form that its setting needs; the error names where the value came from.
    pub fn config(&self) -> anyhow::Result<NodeConfig> {
        if !self.values.contains_key("id") {
            bail!("the node needs a number: give --id N, set BLIXARD_ID, or write id = N in the configuration file");
        }
        let mut table = toml::Table::new();
        for (key, value, _) in self.effective() {
            match key.split_once('.') {
                None => drop(table.insert(key.to_owned(), value.clone())),
                Some((section, inner)) => {
                    let section = table.entry(section).or_insert_with(|| Value::Table(toml::Table::new()));
                    if let Value::Table(section) = section {
                        section.insert(inner.to_owned(), value.clone());
                    }
                }
            }
        }
        let config: NodeConfig = Value::Table(table).try_into().map_err(|error: toml::de::Error| {
            // The error names the key; say where its value came from, too.
            let origins: Vec<String> = self
                .effective()
                .filter(|(.., origin)| **origin != Origin::Default)
                .map(|(key, value, origin)| format!("{key} = {value} from {origin}"))
                .collect();
            anyhow::anyhow!("the configuration cannot be read: {}. It has {}", error.message(), origins.join("; "))
        })?;
        config.check()?;
        Ok(config)
    }
}

impl NodeConfig {
    fn check(&self) -> anyhow::Result<()> {
        let raft = &self.raft;
        if self.id.0 == 0 {
            bail!("id must be at least 1");
        }
        if raft.heartbeat_ms == 0
            || raft.election_min_ms < 2 * raft.heartbeat_ms
            || raft.election_max_ms <= raft.election_min_ms
        {
            bail!(
                "raft: expected 0 < heartbeat_ms, 2 * heartbeat_ms <= election_min_ms < election_max_ms, found {}, {}, {}",
                raft.heartbeat_ms,
                raft.election_min_ms,
                raft.election_max_ms
            );
        }
        if self.transfers.running_max == 0 {
            bail!("transfers.running_max must be at least 1, or no image would ever come");
        }
        if self.lazy.patience_s == 0 {
            bail!("lazy.patience_s must be at least 1, or no guest could boot before its image is here");
        }
        if raft.snapshot_entries == 0 {
            bail!("raft.snapshot_entries must be at least 1");
        }
        if self.bind.port() == 0 || self.bind.port().checked_add(HTTP_PORT_OFFSET).is_none() {
            bail!("bind: port {} leaves no room for the HTTP port, which is 1000 higher", self.bind.port());
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_layer_covers_the_one_below() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blixard.toml");
        std::fs::write(&path, "id = 1\nbind = '127.0.0.1:1'\nvoters_typo = 1\n").unwrap();
        assert!(Layers::defaults().file(&path).unwrap_err().to_string().contains("voters_typo"));
        std::fs::write(&path, "id = 1\nbind = '127.0.0.1:7009'\n[raft]\nheartbeat_ms = 70\n[labels]\nzone = 'a'\n")
            .unwrap();
        let env = |name: &str| match name {
            "BLIXARD_ID" => Some("2".to_owned()),
            "BLIXARD_RAFT_HEARTBEAT_MS" => Some("80".to_owned()),
            "BLIXARD_P2P_ENABLED" => Some("false".to_owned()),
            _ => None,
        };
        let layers = Layers::defaults().file(&path).unwrap().environment(env).unwrap().flag("--id", "id", "3").unwrap();
        let config = layers.config().unwrap();
        assert_eq!((config.id, config.bind.port(), config.raft.heartbeat_ms), (NodeId(3), 7009, 80));
        assert!(!config.p2p_enabled);
        assert_eq!(config.labels["zone"], "a");
        assert_eq!(config.raft.keep_entries, RaftConfig::default().keep_entries);
        let origin = |key| layers.effective().find(|(name, ..)| *name == key).unwrap().2.to_string();
        assert_eq!(origin("id"), "flag --id");
        assert_eq!(origin("raft.heartbeat_ms"), "environment BLIXARD_RAFT_HEARTBEAT_MS");
        assert_eq!(origin("bind"), format!("file {}", path.display()));
        assert_eq!(origin("cluster.voters"), "default");
    }

    #[test]
    fn defaults_agree_with_the_types() {
        let config = Layers::defaults().flag("--id", "id", "1").unwrap().config().unwrap();
        assert_eq!(config.raft, RaftConfig::default());
        assert_eq!(config.cluster, Settings::default());
        assert_eq!(config.transfers, TransfersConfig::default());
        assert_eq!(config.lazy, LazyConfig::default());
        assert_eq!(config.cache, CacheConfig::default());
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let error = |key: &str, text: &str| {
            let layers = Layers::defaults().flag("--id", "id", "1").unwrap();
            layers.flag("--x", key, text).and_then(|layers| layers.config()).unwrap_err().to_string()
        };
        assert!(Layers::defaults().config().unwrap_err().to_string().contains("--id"));
        assert!(error("bind", "nonsense").contains("nonsense"));
        assert!(error("bind", "127.0.0.1:65000").contains("HTTP port"));
        assert!(error("hypervisor", "xen").contains("xen"));
        assert!(error("raft.election_min_ms", "99").contains("heartbeat"));
        assert!(error("transfers.running_max", "0").contains("at least 1"));
        assert!(error("lazy.patience_s", "0").contains("at least 1"));
        for text in ["", "0%", "101%", "0GiB", "5", "-1GiB", "18446744073709551615TiB"] {
            assert!(error("cache.max", text).contains("200GiB"), "{text}");
        }
        assert_eq!("2GiB".parse(), Ok(CacheMax::Bytes(2 << 30)));
        assert!(error("id", "0").contains("at least 1"));
    }
}
