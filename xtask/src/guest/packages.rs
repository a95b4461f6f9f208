//! Fetches the distribution's kernel, busybox and boot loader packages and unpacks them below `target/guest`, without
//! installing anything.
//!
//! Downloads are kept: the next build uses them again, without a network, until it is told to refresh.

use crate::distribution::{self, Distribution};
use crate::process;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lists the downloaded files, one a line; written last, so that a download that was cut short is not taken for whole.
const COMPLETE: &str = "complete";

/// The unpacked packages.
#[derive(Debug)]
pub(super) struct Packages {
    /// The root that the packages were unpacked to.
    pub(super) root: PathBuf,
    /// The package files, which carry their versions in their names.
    pub(super) files: Vec<String>,
}

/// Downloads what is not there yet (everything, when `refresh`) and unpacks it to a fresh tree.
pub(super) fn fetch(distribution: Distribution, folder: &Path, refresh: bool) -> Result<Packages> {
    let downloads = folder.join("packages");
    let files = match kept(&downloads) {
        Some(files) if !refresh => files,
        _ => download(distribution, &downloads)?,
    };
    let root = folder.join("unpacked");
    remove(&root)?;
    fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
    for file in &files {
        unpack(distribution, &downloads.join(file), &root).with_context(|| format!("unpack {file}"))?;
    }
    Ok(Packages { root, files })
}

/// The files of an earlier download, if all of them are still there.
fn kept(downloads: &Path) -> Option<Vec<String>> {
    let list = fs::read_to_string(downloads.join(COMPLETE)).ok()?;
    let files: Vec<String> = list.lines().map(str::to_owned).collect();
    files.iter().all(|file| downloads.join(file).is_file()).then_some(files)
}

/// Fills the folder anew. What an earlier download left there stays until this one is whole.
fn download(distribution: Distribution, downloads: &Path) -> Result<Vec<String>> {
    let part = downloads.with_extension("part");
    remove(&part)?;
    fs::create_dir_all(&part).with_context(|| format!("create {}", part.display()))?;
    let files = download_to(distribution, &part)?;
    remove(downloads)?;
    fs::rename(&part, downloads).with_context(|| format!("rename {}", part.display()))?;
    Ok(files)
}

fn download_to(distribution: Distribution, downloads: &Path) -> Result<Vec<String>> {
    if let Err(error) = run_download(distribution, downloads) {
        let Some(update) = distribution.update_command() else { return Err(error) };
        println!("guest: {error:#}; trying again with fresh package lists");
        distribution::as_root(&update)?;
        run_download(distribution, downloads)?;
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(downloads)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if is_package(&name) {
            files.push(name);
        }
    }
    files.sort();
    if files.is_empty() {
        bail!("the package tool downloaded nothing to {}", downloads.display());
    }
    fs::write(downloads.join(COMPLETE), files.join("\n")).context("note that the download is complete")?;
    Ok(files)
}

/// Whether a file is a package, and not a signature that some tools put beside it.
fn is_package(name: &str) -> bool {
    name.ends_with(".deb")
        || name.ends_with(".rpm")
        || name.ends_with(".apk")
        || (name.contains(".pkg.tar") && !name.ends_with(".sig"))
}

fn run_download(distribution: Distribution, downloads: &Path) -> Result<()> {
    let packages = wanted(distribution)?;
    println!("guest: downloading {}", packages.join(", "));
    let mut command = match distribution {
        Distribution::Debian | Distribution::Ubuntu => {
            let mut command = Command::new("apt-get");
            command.args(["--quiet", "download"]);
            command
        }
        Distribution::Fedora => {
            let mut command = Command::new("dnf");
            command.args(["download", "--arch", "x86_64", "--arch", "noarch"]);
            command
        }
        Distribution::Alpine => {
            let mut command = Command::new("apk");
            command.arg("fetch");
            command
        }
        // pacman writes its lock even when it only downloads, so it has to be root.
        Distribution::Arch => {
            let cache = format!("--cachedir={}", downloads.display());
            let words = ["pacman", "-Swdd", "--noconfirm", &cache].map(str::to_owned);
            return distribution::as_root(&[words.as_slice(), &packages].concat());
        }
    };
    command.args(&packages).current_dir(downloads);
    process::output(&mut command)?;
    Ok(())
}

/// The packages that hold the kernel with its modules, a static busybox, and GRUB with its program that makes images.
fn wanted(distribution: Distribution) -> Result<Vec<String>> {
    let fixed: &[&str] = match distribution {
        Distribution::Debian => {
            let kernel = current_kernel("linux-image-cloud-amd64")?;
            return Ok(owned(&[&kernel, "busybox-static", "grub-pc-bin", "grub-common", "libdevmapper1.02.1"]));
        }
        Distribution::Ubuntu => {
            let kernel = current_kernel("linux-image-virtual")?;
            let modules = kernel.replace("linux-image-", "linux-modules-");
            let rest = ["busybox-static", "grub-pc-bin", "grub-common", "libdevmapper1.02.1"];
            return Ok([owned(&[&kernel, &modules]), owned(&rest)].concat());
        }
        Distribution::Fedora => &[
            "kernel-core",
            "kernel-modules-core",
            "kernel-modules",
            "busybox",
            "grub2-pc-modules",
            "grub2-tools-minimal",
            "device-mapper-libs",
        ],
        Distribution::Arch => &["linux", "busybox", "grub", "device-mapper"],
        Distribution::Alpine => &["linux-virt", "busybox-static", "grub-bios", "grub", "device-mapper-libs"],
    };
    Ok(owned(fixed))
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// The kernel package that a Debian metapackage stands for today.
fn current_kernel(metapackage: &str) -> Result<String> {
    let text =
        process::text(Command::new("apt-cache").args(["depends", "--important", metapackage]).env("LC_ALL", "C"))?;
    dependency(&text, "linux-image-")
        .with_context(|| format!("{metapackage} depends on no kernel: is its section in the apt sources?"))
}

/// The first dependency with a prefix in what `apt-cache depends` wrote.
fn dependency(text: &str, prefix: &str) -> Option<String> {
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.map(str::trim).find(|name| name.starts_with(prefix)).map(str::to_owned)
}

fn unpack(distribution: Distribution, file: &Path, root: &Path) -> Result<()> {
    let mut command = match distribution {
        Distribution::Debian | Distribution::Ubuntu => {
            let mut command = Command::new("dpkg");
            command.arg("-x").arg(file).arg(root);
            command
        }
        Distribution::Fedora => {
            let mut command = Command::new("sh");
            let script = r#"rpm2cpio "$1" | (cd "$2" && cpio --extract --make-directories --quiet --unconditional)"#;
            command.args(["-c", script, "unpack"]).arg(file).arg(root);
            command
        }
        Distribution::Arch => {
            let mut command = Command::new("bsdtar");
            command.arg("-xf").arg(file).arg("-C").arg(root);
            command
        }
        Distribution::Alpine => {
            let mut command = Command::new("tar");
            command.arg("-xzf").arg(file).arg("-C").arg(root);
            command
        }
    };
    process::output(&mut command)?;
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_kernel_is_read_from_its_metapackage() {
        let text = "linux-image-cloud-amd64\n  Depends: firmware\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(dependency(text, "linux-image-").as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(dependency("linux-image-cloud-amd64\n", "linux-image-"), None);
    }

    #[test]
    fn a_download_counts_only_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::write(path.join("a.deb"), "").unwrap();
        assert_eq!(kept(path), None);
        fs::write(path.join(COMPLETE), "a.deb\nb.deb").unwrap();
        assert_eq!(kept(path), None);
        fs::write(path.join("b.deb"), "").unwrap();
        assert_eq!(kept(path), Some(vec!["a.deb".to_owned(), "b.deb".to_owned()]));
    }

    #[test]
    fn packages_are_told_from_their_signatures() {
        for name in ["a_1.deb", "a.rpm", "a.apk", "linux-6.pkg.tar.zst"] {
            assert!(is_package(name), "{name}");
        }
        for name in [COMPLETE, "linux-6.pkg.tar.zst.sig", "lock"] {
            assert!(!is_package(name), "{name}");
        }
    }
}
