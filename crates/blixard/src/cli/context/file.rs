//! The file of contexts: the clusters that a user goes to by name.
//!
//! It is TOML, so that people may mend it by hand. It says where clusters are and holds no secret; still only its owner may
//! read it, as what a user's machines are called is nobody else's business.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use blixard_node::api::Target;
use blixard_node::transport::{Ticket, write_private};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Names the folder, in place of the usual one.
const DIR_VARIABLE: &str = "BLIXARD_CONFIG_DIR";
const FILE_NAME: &str = "contexts.toml";
/// More than hundreds of contexts take; a larger file is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// As long as a host name may be, which is what people call a cluster after.
const NAME_BYTES_MAX: usize = 63;

/// What a context is called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(in crate::cli) struct ContextName(String);

impl FromStr for ContextName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let begins_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if begins_well && text.len() <= NAME_BYTES_MAX && text.chars().all(is_plain) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "a context's name has up to {NAME_BYTES_MAX} letters, digits, `-`, `_` and `.`, as in home or lab-2"
        ))
    }
}

impl TryFrom<String> for ContextName {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ContextName> for String {
    fn from(name: ContextName) -> Self {
        name.0
    }
}

impl std::fmt::Display for ContextName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where the nodes of one cluster are, in any of the forms of `--addr`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::cli) struct Entry {
    /// Asked in turn, until one answers.
    pub(in crate::cli) nodes: Vec<String>,
}

/// All contexts of a user.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::cli) struct Contexts {
    /// The one that holds where no other is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) current: Option<ContextName>,
    /// Each by its name.
    #[serde(default)]
    pub(in crate::cli) contexts: BTreeMap<ContextName, Entry>,
}

/// A node as it is kept: by a path that means the same from any folder, and without a ticket's secret, which lets nodes join
/// and is not needed to ask.
pub(super) fn kept_form(node: &str) -> anyhow::Result<String> {
    Ok(match node.parse()? {
        Target::Registry(path) => {
            let path = std::path::absolute(&path).with_context(|| format!("use the path {}", path.display()))?;
            path.into_os_string().into_string().map_err(|path| anyhow::anyhow!("{path:?} is not UTF-8 text"))?
        }
        Target::Ticket(ticket) => Ticket { secret: None, ..*ticket }.to_string(),
        Target::HostPort(_) | Target::Endpoint(_) => node.to_owned(),
    })
}

/// The file of a user's contexts.
#[derive(Debug, Clone)]
pub(in crate::cli) struct ContextFile {
    path: PathBuf,
}

impl ContextFile {
    /// The file of the user that runs this process, in `$BLIXARD_CONFIG_DIR`, else `$XDG_CONFIG_HOME/blixard`, else
    /// `~/.config/blixard`; nothing when none of the three is set.
    pub(in crate::cli) fn locate() -> Option<Self> {
        Self::locate_by(|name| std::env::var_os(name))
    }

    fn locate_by(variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let dir = path(DIR_VARIABLE)
            .map(|dir| std::path::absolute(&dir).unwrap_or(dir))
            // As the XDG base directory specification wants it: a relative path there is ignored.
            .or_else(|| path("XDG_CONFIG_HOME").filter(|base| base.is_absolute()).map(|base| base.join("blixard")))
            .or_else(|| path("HOME").map(|home| home.join(".config/blixard")))?;
        Some(Self { path: dir.join(FILE_NAME) })
    }

    /// A file of the caller's choice.
    #[cfg(test)]
    pub(in crate::cli) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Its path.
    pub(in crate::cli) fn path(&self) -> &Path {
        &self.path
    }

    /// The contexts in it; none when there is no such file.
    ///
    /// # Errors
    /// When it cannot be read, or holds something else.
    pub(in crate::cli) fn read(&self) -> anyhow::Result<Contexts> {
        self.parse().map_err(|error| {
            let next_step = "mend the file, or remove it and add its contexts anew; --addr names a node without it";
            Failure::usage(format!("read the contexts in {}: {error:#}", self.path.display()))
                .next_step(next_step)
                .into()
        })
    }

    fn parse(&self) -> anyhow::Result<Contexts> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Contexts::default()),
            file => file?,
        };
        let mut text = String::new();
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
        ensure!(text.len() as u64 <= FILE_BYTES_MAX, "it is larger than {} MiB", FILE_BYTES_MAX >> 20);
        let contexts: Contexts = toml::from_str(&text).map_err(|error| {
            // The error's own text is several lines with a drawing, and errors here are one.
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            anyhow::anyhow!("line {}: {}", before.matches('\n').count() + 1, error.message())
        })?;
        for (name, entry) in &contexts.contexts {
            ensure!(!entry.nodes.is_empty(), "context {name} names no node");
            for node in &entry.nodes {
                node.parse::<Target>().with_context(|| format!("read context {name}"))?;
            }
        }
        if let Some(current) = contexts.current.as_ref().filter(|name| !contexts.contexts.contains_key(name)) {
            bail!("the current context is to be {current}, and there is none of that name");
        }
        Ok(contexts)
    }

    /// Changes the contexts, with nobody else changing them meanwhile. When `change` fails nothing is written.
    ///
    /// # Errors
    /// When the file cannot be read or written, or `change` fails.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Contexts) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let _lock = self.lock()?;
        let mut contexts = self.read()?;
        let done = change(&mut contexts)?;
        let text = toml::to_string(&contexts).context("encode the contexts")?;
        write_private(&self.path, text.as_bytes())?;
        Ok(done)
    }

    fn lock(&self) -> anyhow::Result<Flock<File>> {
        // A file of its own: the file of contexts is replaced as a whole, and a lock on it would be on what is gone.
        let path = self.path.with_extension("lock");
        let open = || -> anyhow::Result<_> {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
        };
        open().with_context(|| format!("lock {}", path.display()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use blixard_core::{ClusterId, TokenId};
    use blixard_node::transport::TicketSecret;

    use super::*;

    fn file() -> (tempfile::TempDir, ContextFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config").join(FILE_NAME);
        (dir, ContextFile { path })
    }

    fn name(text: &str) -> ContextName {
        text.parse().unwrap()
    }

    #[test]
    fn names_are_plain_words() {
        for good in ["a", "home", "lab-2", "eu.west_1", "9"] {
            assert_eq!(name(good).to_string(), good);
        }
        for bad in ["", "-a", ".a", "a b", "ä", "a/b", &"a".repeat(64)] {
            assert!(bad.parse::<ContextName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_folder_is_the_first_that_is_named() {
        let locate = |variables: &[(&str, &str)]| {
            let value = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
            ContextFile::locate_by(value).map(|file| file.path.display().to_string())
        };
        let all = &[("BLIXARD_CONFIG_DIR", "/a"), ("XDG_CONFIG_HOME", "/b"), ("HOME", "/c")];
        assert_eq!(locate(all).unwrap(), "/a/contexts.toml");
        assert_eq!(locate(&[("BLIXARD_CONFIG_DIR", ""), all[1], all[2]]).unwrap(), "/b/blixard/contexts.toml");
        assert_eq!(locate(&[("XDG_CONFIG_HOME", "relative"), all[2]]).unwrap(), "/c/.config/blixard/contexts.toml");
        assert_eq!(locate(&[]), None);
    }

    #[test]
    fn what_is_written_is_read_again_and_private() {
        let (_dir, file) = file();
        assert_eq!(file.read().unwrap(), Contexts::default());
        let entry = Entry { nodes: vec!["10.0.0.1:7001".to_owned(), "/data/node-1-registry.json".to_owned()] };
        file.change(|contexts| {
            contexts.contexts.insert(name("home"), entry.clone());
            contexts.current = Some(name("home"));
            Ok(())
        })
        .unwrap();
        let read = file.read().unwrap();
        assert_eq!((read.current, read.contexts[&name("home")].clone()), (Some(name("home")), entry));
        assert_eq!(std::fs::metadata(&file.path).unwrap().mode() & 0o777, 0o600);
        let before = std::fs::read(&file.path).unwrap();
        assert!(
            file.change(|contexts| {
                contexts.contexts.clear();
                bail!("no") as anyhow::Result<()>
            })
            .is_err()
        );
        assert_eq!(std::fs::read(&file.path).unwrap(), before, "a change that fails changes nothing");
    }

    #[test]
    fn changes_at_once_are_all_kept() {
        let (_dir, file) = file();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let file = &file;
                scope.spawn(move || {
                    let entry = Entry { nodes: vec!["10.0.0.1:7001".to_owned()] };
                    file.change(|contexts| Ok(contexts.contexts.insert(name(&format!("c{number}")), entry))).unwrap();
                });
            }
        });
        assert_eq!(file.read().unwrap().contexts.len(), 8);
    }

    #[test]
    fn a_bad_file_is_told_with_its_place() {
        let (_dir, file) = file();
        std::fs::create_dir_all(file.path.parent().unwrap()).unwrap();
        let good = "[contexts.home]\nnodes = ['10.0.0.1:7001']\n";
        for (text, told) in [
            ("[contexts]\ncurrent = ", "line 2: "),
            ("colour = 'red'", "colour"),
            ("[contexts.home]\nnodes = []", "names no node"),
            ("[contexts.home]\nnodes = ['here']", "HOST:PORT"),
            ("[contexts.'a b']\nnodes = ['10.0.0.1:7001']", "a context's name"),
            (&format!("current = 'work'\n{good}"), "none of that name"),
            (&format!("#{}\n{good}", "x".repeat(2 << 20)), "larger than"),
        ] {
            std::fs::write(&file.path, text).unwrap();
            let error = format!("{:#}", file.read().unwrap_err());
            assert!(error.contains("contexts.toml") && error.contains(told), "{text:.80}: {error}");
            assert!(file.change(|_| Ok(())).is_err(), "a file that cannot be read is not overwritten");
            assert_eq!(std::fs::read_to_string(&file.path).unwrap(), text);
        }
        std::fs::write(&file.path, good).unwrap();
        assert_eq!(file.read().unwrap().contexts.len(), 1);
    }

    #[test]
    fn nodes_are_kept_in_a_form_that_lasts() {
        let secret = TicketSecret { token: TokenId([1; 8]), secret: [9; 32] };
        let ticket = Ticket { cluster: ClusterId([3; 32]), peers: vec![], secret: Some(secret) };
        let kept: Ticket = kept_form(&ticket.to_string()).unwrap().parse().unwrap();
        assert_eq!(kept, Ticket { secret: None, ..ticket });
        assert!(Path::new(&kept_form("./node-1-registry.json").unwrap()).is_absolute());
        assert_eq!(kept_form("host:7001").unwrap(), "host:7001");
        assert!(kept_form("nowhere").is_err());
    }
}
