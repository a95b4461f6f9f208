//! Which Linux distribution this machine runs, and how its package tool is spoken to.
//!
//! Only the words of the package tools live here; which packages are wanted is the business of `setup` and `guest`.

use crate::process;
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

/// A family of distributions that share a package tool and package names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    /// Debian and what follows its package names.
    Debian,
    /// Ubuntu: Debian's tools, other kernel packages.
    Ubuntu,
    /// Fedora and its relatives with dnf.
    Fedora,
    /// Arch Linux.
    Arch,
    /// Alpine Linux.
    Alpine,
}

impl Distribution {
    /// The distribution of this machine, from os-release; an error that names the supported ones when it is none.
    pub fn of_this_machine() -> Result<Self> {
        let text = fs::read_to_string("/etc/os-release")
            .or_else(|_| fs::read_to_string("/usr/lib/os-release"))
            .context("read /etc/os-release to learn which distribution this is")?;
        Self::from_os_release(&text).with_context(|| {
            let name = field(&text, "PRETTY_NAME").unwrap_or_else(|| "this system".to_owned());
            format!("{name} is none of Debian, Ubuntu, Fedora, Arch and Alpine, whose packages are known here")
        })
    }

    /// The family an os-release file speaks of: its own ID first, then the ones it says it is like, in its order.
    fn from_os_release(text: &str) -> Option<Self> {
        let id = field(text, "ID").unwrap_or_default();
        let like = field(text, "ID_LIKE").unwrap_or_default();
        std::iter::once(id.as_str()).chain(like.split_whitespace()).find_map(|word| match word {
            "debian" => Some(Self::Debian),
            "ubuntu" => Some(Self::Ubuntu),
            "fedora" | "rhel" | "centos" => Some(Self::Fedora),
            "arch" => Some(Self::Arch),
            "alpine" => Some(Self::Alpine),
            _ => None,
        })
    }

    /// The command that installs packages without questions.
    pub fn install_command(self, packages: &[&str]) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Debian | Self::Ubuntu => &["apt-get", "install", "--yes", "--no-install-recommends"],
            Self::Fedora => &["dnf", "install", "--assumeyes", "--setopt=install_weak_deps=False"],
            Self::Arch => &["pacman", "-S", "--noconfirm", "--needed"],
            Self::Alpine => &["apk", "add"],
        };
        words.iter().chain(packages).map(|&word| word.to_owned()).collect()
    }

    /// The command that brings the package lists up to date, where the tool does not do so by itself.
    pub fn update_command(self) -> Option<Vec<String>> {
        let words: &[&str] = match self {
            Self::Debian | Self::Ubuntu => &["apt-get", "update"],
            Self::Arch => &["pacman", "-Sy"],
            Self::Alpine => &["apk", "update"],
            Self::Fedora => return None,
        };
        Some(words.iter().map(|&word| word.to_owned()).collect())
    }
}

/// One value of an os-release file, without its quotes.
fn field(text: &str, name: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned())
}

/// Runs a command as root, directly or through sudo, after printing it. Where neither is possible, the error says what
/// to run by hand.
pub fn as_root(words: &[String]) -> Result<()> {
    if !can_be_root()? {
        bail!("this needs root and there is no sudo: run `{}` as root, then try again", words.join(" "));
    }
    let mut command = if is_root()? {
        Command::new(&words[0])
    } else {
        let mut command = Command::new("sudo");
        command.arg(&words[0]);
        command
    };
    // apt asks its questions through debconf unless this says that nobody is there to answer.
    command.args(&words[1..]).env("DEBIAN_FRONTEND", "noninteractive");
    println!("running: {}", process::shown(&command));
    process::check(&mut command)
}

/// Whether [`as_root`] has a way to become root.
pub fn can_be_root() -> Result<bool> {
    Ok(is_root()? || process::find("sudo").is_some())
}

fn is_root() -> Result<bool> {
    Ok(fs::metadata("/proc/self").context("learn who runs this from /proc/self")?.uid() == 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn families_are_told_by_id_and_then_by_likeness() {
        let cases = [
            ("PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n", Some(Distribution::Debian)),
            ("ID=ubuntu\nID_LIKE=debian\n", Some(Distribution::Ubuntu)),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", Some(Distribution::Ubuntu)),
            ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", Some(Distribution::Fedora)),
            ("ID=arch\n", Some(Distribution::Arch)),
            ("VERSION_ID=3.20\nID=alpine\n", Some(Distribution::Alpine)),
            ("ID=nixos\n", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(Distribution::from_os_release(text), expected, "{text}");
        }
    }

    #[test]
    fn install_commands_never_ask() {
        assert_eq!(
            Distribution::Debian.install_command(&["qemu-utils"]).join(" "),
            "apt-get install --yes --no-install-recommends qemu-utils"
        );
        assert_eq!(Distribution::Arch.install_command(&["a", "b"]).join(" "), "pacman -S --noconfirm --needed a b");
        assert_eq!(Distribution::Alpine.install_command(&["a"]).join(" "), "apk add a");
    }
}
