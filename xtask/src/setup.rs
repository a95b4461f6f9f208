//! Installs the tools that the other tasks call, from the distribution's packages.
//!
//! The C compiler is not among them: without one, cargo could not have built this program (`.ci/run` installs it).
//! A tool that is already there is left alone, whatever package it came from. Nothing is installed without the
//! command being printed first.

use crate::distribution::{self, Distribution};
use crate::process;
use anyhow::{Context, Result};
use std::process::Command;

/// A program that some task runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// `qemu-system-x86_64`: runs the guests.
    Qemu,
    /// `qemu-img`: makes and inspects disk images.
    QemuImg,
    /// `gzip`: packs the initramfs.
    Gzip,
    /// `zstd`: opens kernel modules that a distribution has packed with it.
    Zstd,
    /// `cpio`: opens rpm packages.
    Cpio,
    /// `groff`: formats manual pages.
    Groff,
    /// `ip`: makes network namespaces for tests.
    Ip,
    /// `nft`: makes the NAT of network tests.
    Nft,
    /// `c++`: builds libFuzzer.
    Cxx,
    /// `prometheus`: scrapes nodes in tests, and answers the queries of the dashboard.
    Prometheus,
    /// `dpkg`, with `dpkg-deb`: makes and tries the package.
    Dpkg,
    /// `fakeroot`: plays root for `dpkg` where this is not run as root.
    Fakeroot,
    /// `shellcheck`: looks through the scripts of the package.
    Shellcheck,
    /// `objdump`, with `strip`: look into the program and make it small.
    Binutils,
    /// `systemd-analyze`: reads the unit of the package.
    SystemdAnalyze,
    /// `python3`, with what makes an environment of its own for a program: runs schemathesis.
    Python,
}

/// What `guest` needs.
pub const GUEST: &[Tool] = &[Tool::QemuImg, Tool::Gzip, Tool::Zstd, Tool::Cpio];
/// What booting a guest needs.
pub const BOOT: &[Tool] = &[Tool::Qemu, Tool::QemuImg];
/// What making the package, and checking it, needs.
pub const PACKAGE: &[Tool] =
    &[Tool::Gzip, Tool::Dpkg, Tool::Fakeroot, Tool::Shellcheck, Tool::Binutils, Tool::SystemdAnalyze];
/// What `fuzz` needs.
pub const FUZZ: &[Tool] = &[Tool::Cxx];
/// What `schema` needs.
pub const SCHEMA: &[Tool] = &[Tool::Python];
/// Everything that any task needs.
pub const EVERYTHING: &[Tool] = &[
    Tool::Qemu,
    Tool::QemuImg,
    Tool::Gzip,
    Tool::Zstd,
    Tool::Cpio,
    Tool::Groff,
    Tool::Ip,
    Tool::Nft,
    Tool::Cxx,
    Tool::Prometheus,
    Tool::Dpkg,
    Tool::Fakeroot,
    Tool::Shellcheck,
    Tool::Binutils,
    Tool::SystemdAnalyze,
    Tool::Python,
];

impl Tool {
    /// The program's name on the PATH.
    fn program(self) -> &'static str {
        match self {
            Self::Qemu => "qemu-system-x86_64",
            Self::QemuImg => "qemu-img",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Cpio => "cpio",
            Self::Groff => "groff",
            Self::Ip => "ip",
            Self::Nft => "nft",
            Self::Cxx => "c++",
            Self::Prometheus => "prometheus",
            Self::Dpkg => "dpkg",
            Self::Fakeroot => "fakeroot",
            Self::Shellcheck => "shellcheck",
            Self::Binutils => "objdump",
            Self::SystemdAnalyze => "systemd-analyze",
            Self::Python => "python3",
        }
    }

    fn is_there(self) -> bool {
        process::find(self.program()).is_some()
            // Debian has the interpreter and this part of its library in two packages.
            && (self != Self::Python
                || process::output(Command::new(self.program()).args(["-c", "import ensurepip, venv"])).is_ok())
    }

    /// The package that brings the program; none where this distribution's way of working does not call it.
    fn package(self, distribution: Distribution) -> Option<&'static str> {
        use Distribution::{Alpine, Arch, Debian, Fedora, Ubuntu};
        Some(match (self, distribution) {
            (Self::Qemu, Debian | Ubuntu) => "qemu-system-x86",
            (Self::Qemu, Fedora) => "qemu-system-x86-core",
            (Self::Qemu, Arch) => "qemu-system-x86",
            (Self::Qemu, Alpine) => "qemu-system-x86_64",
            (Self::QemuImg, Debian | Ubuntu) => "qemu-utils",
            (Self::QemuImg, Fedora | Arch | Alpine) => "qemu-img",
            (Self::Gzip, _) => "gzip",
            (Self::Zstd, Ubuntu | Arch) => "zstd",
            (Self::Zstd, Debian | Fedora | Alpine) => return None,
            (Self::Cpio, Fedora) => "cpio",
            (Self::Cpio, _) => return None,
            (Self::Groff, Debian | Ubuntu | Fedora) => "groff-base",
            (Self::Groff, Arch | Alpine) => "groff",
            (Self::Ip, Fedora) => "iproute",
            (Self::Ip, _) => "iproute2",
            (Self::Nft, _) => "nftables",
            (Self::Cxx, Debian | Ubuntu | Alpine) => "g++",
            (Self::Cxx, Fedora) => "gcc-c++",
            (Self::Cxx, Arch) => "gcc",
            (Self::Prometheus, Fedora) => "golang-github-prometheus",
            (Self::Prometheus, _) => "prometheus",
            (Self::Dpkg, _) => "dpkg",
            (Self::Fakeroot, _) => "fakeroot",
            (Self::Shellcheck, Fedora) => "ShellCheck",
            (Self::Shellcheck, _) => "shellcheck",
            (Self::Binutils, _) => "binutils",
            (Self::Python, Debian | Ubuntu) => "python3-venv",
            (Self::Python, Fedora | Alpine) => "python3",
            (Self::Python, Arch) => "python",
            (Self::SystemdAnalyze, Alpine) => return None,
            (Self::SystemdAnalyze, _) => "systemd",
        })
    }
}

/// Installs those of the tools that are not on this machine. Does nothing, and asks nothing of the distribution, when
/// all are there.
pub fn install_missing(tools: &[Tool]) -> Result<()> {
    let absent: Vec<Tool> = tools.iter().copied().filter(|tool| !tool.is_there()).collect();
    if absent.is_empty() {
        return Ok(());
    }
    let distribution = Distribution::of_this_machine().with_context(|| {
        let programs: Vec<&str> = absent.iter().map(|tool| tool.program()).collect();
        format!("install {} by hand and run this again", programs.join(", "))
    })?;
    let packages: Vec<&str> = absent.iter().filter_map(|tool| tool.package(distribution)).collect();
    if packages.is_empty() {
        return Ok(());
    }
    println!("setup: missing {}", packages.join(", "));
    install(distribution, &packages)
}

/// Installs packages, with fresh package lists only when the ones at hand do not suffice: an update takes long, and on
/// most machines it is not needed.
fn install(distribution: Distribution, packages: &[&str]) -> Result<()> {
    let command = distribution.install_command(packages);
    if !distribution::can_be_root()? {
        return distribution::as_root(&command);
    }
    let Err(error) = distribution::as_root(&command) else { return Ok(()) };
    let Some(update) = distribution.update_command() else { return Err(error) };
    println!("setup: {error:#}; trying again with fresh package lists");
    distribution::as_root(&update)?;
    distribution::as_root(&command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_that_all_distributions_need_has_a_package_on_each() {
        use Distribution::{Alpine, Arch, Debian, Fedora, Ubuntu};
        for distribution in [Debian, Ubuntu, Fedora, Arch, Alpine] {
            for &tool in EVERYTHING {
                let is_optional = matches!(tool, Tool::Zstd | Tool::Cpio | Tool::SystemdAnalyze);
                assert!(is_optional || tool.package(distribution).is_some(), "{tool:?} on {distribution:?}");
            }
        }
    }
}
