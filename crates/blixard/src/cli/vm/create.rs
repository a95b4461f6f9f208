//! `blixard vm create`: from flags and files to one request.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use blixard_core::limits::{SEED_BYTES_MAX, VCPUS_MAX};
use blixard_core::{ConfigSource, ImageName, NodeId, PublishedPort, RestartPolicy, Seed, Strategy, VmName};
use blixard_node::api::CreateVm;
use clap::{Args, ValueEnum};

use super::super::output::Output;
use super::super::values::{self, Label};
use super::Waiting;
use crate::failure::Failure;

/// What OpenSSH's public keys begin with.
const PUBLIC_KEY_PREFIXES: [&str; 4] = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"];

/// How to choose among nodes.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum StrategyName {
    /// The emptiest node.
    Spread,
    /// The fullest node that still fits.
    Pack,
}

/// What to create.
#[derive(Debug, Args)]
pub(in crate::cli) struct Create {
    /// The vm's name, which is also its guest's host name: lower-case letters, digits and `-`.
    #[arg(value_name = "NAME")]
    name: VmName,
    /// The image to boot.
    #[arg(long, value_name = "NAME")]
    image: ImageName,
    /// Virtual processors.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(VCPUS_MAX)))]
    vcpus: u32,
    /// Memory, as in 256M or 4G.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = values::mebibytes)]
    memory: u64,
    /// Size of its disk, as in 10G; without it, the size of the image's disk.
    #[arg(long, value_name = "SIZE", value_parser = values::mebibytes)]
    disk: Option<u64>,
    /// The only node it may run on.
    #[arg(long, value_name = "N", value_parser = values::node_id)]
    node: Option<NodeId>,
    /// A label that its node must have. May be repeated.
    #[arg(long = "require", value_name = "KEY=VALUE", value_parser = values::label)]
    require: Vec<Label>,
    /// Vms of one group are kept on different nodes.
    #[arg(long, value_name = "GROUP")]
    anti_affinity: Option<String>,
    /// Whether to prefer the emptiest node or the fullest one that still fits.
    #[arg(long, value_enum, default_value_t = StrategyName::Spread)]
    strategy: StrategyName,
    /// A port of the guest to publish on its host: [ADDRESS:]HOST_PORT:GUEST_PORT[/tcp|/udp]. May be repeated.
    #[arg(long = "publish", value_name = "PORTS")]
    publish: Vec<PublishedPort>,
    /// A file with user data for cloud-init in the guest.
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    /// A public key that may log in over ssh, or a file of such keys. May be repeated.
    #[arg(long = "ssh-key", value_name = "FILE|KEY")]
    ssh_keys: Vec<String>,
    /// A file that cloud-init writes in the guest at its first boot, with the value of a key as it is now. May be repeated.
    #[arg(long = "config-file", value_name = "PATH=doc:DOCUMENT/KEY")]
    config_files: Vec<ConfigSource>,
    /// What happens when the guest ends by itself: always, never, on-failure or on-failure:LIMIT.
    #[arg(long, value_name = "POLICY", default_value = "on-failure", value_parser = values::restart_policy)]
    restart: RestartPolicy,
    /// Boot before the image is on its node as a whole: the guest reads the rest as it comes. Without this, large images are booted
    /// like that.
    #[arg(long, conflicts_with = "no_lazy")]
    lazy: bool,
    /// Boot only once all of the image is on its node.
    #[arg(long)]
    no_lazy: bool,
    /// Create it without starting it.
    #[arg(long)]
    no_start: bool,
    #[command(flatten)]
    pub(super) waiting: Waiting,
    #[command(flatten)]
    pub(super) output: Output,
}

impl Create {
    /// The request that the flags and the files they name come to.
    ///
    /// # Errors
    /// When a file cannot be read or is not what its flag asks for.
    pub(super) fn request(&self) -> anyhow::Result<CreateVm> {
        let user_data = match &self.user_data {
            Some(path) => Some(read_text(path, "--user-data")?),
            None => None,
        };
        let mut ssh_keys = Vec::new();
        for key in &self.ssh_keys {
            ssh_keys.extend(public_keys(key)?);
        }
        Ok(CreateVm {
            name: self.name.clone(),
            image: self.image.clone(),
            vcpus: self.vcpus,
            memory_mib: self.memory,
            disk_mib: self.disk,
            publish: self.publish.clone(),
            seed: Seed { user_data, ssh_keys },
            require: self.require.iter().map(|label| (label.key.clone(), label.value.clone())).collect(),
            anti_affinity: self.anti_affinity.clone(),
            strategy: match self.strategy {
                StrategyName::Spread => Strategy::Spread,
                StrategyName::Pack => Strategy::Pack,
            },
            node: self.node,
            restart: self.restart,
            config_files: self.config_files.clone(),
            lazy: (self.lazy || self.no_lazy).then_some(self.lazy),
            start: !self.no_start,
        })
    }
}

/// Reads a file of no more than all that cloud-init may be given.
fn read_text(path: &Path, flag: &str) -> anyhow::Result<String> {
    let read = || -> anyhow::Result<String> {
        let mut text = String::new();
        let limit = SEED_BYTES_MAX as u64;
        std::fs::File::open(path)?.take(limit + 1).read_to_string(&mut text)?;
        if text.len() > SEED_BYTES_MAX {
            bail!("it is larger than {} KiB, which is all that cloud-init may be given", SEED_BYTES_MAX >> 10);
        }
        Ok(text)
    };
    read().with_context(|| format!("{flag}: read {}", path.display()))
}

/// The public keys that `--ssh-key` names: one given as it is, or those of a file.
fn public_keys(text: &str) -> anyhow::Result<Vec<String>> {
    let is_public_key = |line: &str| {
        let mut words = line.split_whitespace();
        words.next().is_some_and(|kind| PUBLIC_KEY_PREFIXES.iter().any(|prefix| kind.starts_with(prefix)))
            && words.next().is_some()
    };
    if is_public_key(text) {
        return Ok(vec![text.trim().to_owned()]);
    }
    let content = read_text(Path::new(text), "--ssh-key")?;
    // A private key must not leave this host, least of all for the cluster's replicated state.
    if content.contains("PRIVATE KEY-----") {
        bail!(Failure::usage(format!("--ssh-key: {text} is a private key: give the public one, {text}.pub")));
    }
    let lines = content.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut keys = Vec::new();
    for line in lines {
        if !is_public_key(line) {
            bail!(Failure::usage(format!("--ssh-key: {text} holds a line that is not a public key of OpenSSH")));
        }
        keys.push(line.to_owned());
    }
    if keys.is_empty() {
        bail!(Failure::usage(format!("--ssh-key: {text} holds no key")));
    }
    Ok(keys)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_taken_as_they_are_or_from_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            path.to_str().unwrap().to_owned()
        };
        assert_eq!(public_keys("ssh-ed25519 AAAA me").unwrap(), ["ssh-ed25519 AAAA me"]);
        let two = file("two.pub", "# mine\nssh-ed25519 AAAA me\n\nsk-ssh-ed25519@openssh.com BBBB\n");
        assert_eq!(public_keys(&two).unwrap(), ["ssh-ed25519 AAAA me", "sk-ssh-ed25519@openssh.com BBBB"]);
        let refused = |text: &str| public_keys(text).unwrap_err().to_string();
        assert!(refused(&file("id", "-----BEGIN OPENSSH PRIVATE KEY-----\n")).contains("private key"));
        assert!(refused(&file("empty", "\n")).contains("no key"));
        assert!(refused(&file("other", "hello\n")).contains("not a public key"));
        assert!(refused("ssh-missing").contains("ssh-missing"));
    }

    #[test]
    fn a_file_beyond_the_limit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("user-data");
        std::fs::write(&path, "x".repeat(SEED_BYTES_MAX)).unwrap();
        assert_eq!(read_text(&path, "--user-data").unwrap().len(), SEED_BYTES_MAX);
        std::fs::write(&path, "x".repeat(SEED_BYTES_MAX + 1)).unwrap();
        assert!(format!("{:#}", read_text(&path, "--user-data").unwrap_err()).contains("64 KiB"));
    }
}
