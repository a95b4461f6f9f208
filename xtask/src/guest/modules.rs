//! Finds the kernel modules that the guest needs and the order in which they load.
//!
//! A package that was unpacked but not installed has no modules.dep, so what a module needs is read from the module
//! itself: its `.modinfo` section says `depends=a,b`.

use crate::process;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Modules without which the guest has no disk, network, entropy, console channel or power button. Each may also be
/// built into the kernel.
const REQUIRED: &[&str] = &[
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_console",
    "button",
    "evdev",
    "ext4",
    "vfat",
    "nls_cp437",
];
/// Modules that are loaded where the kernel has them: character sets that vfat asks for depending on how the kernel
/// was configured, seed disks in ISO 9660, sockets for raw packets (udhcpc) and IPv6.
const WANTED: &[&str] = &["nls_ascii", "nls_utf8", "nls_iso8859_1", "isofs", "af_packet", "ipv6"];

/// One module: its file name in the guest and its contents, not compressed.
#[derive(Debug)]
pub(super) struct Module {
    /// For example `virtio_net.ko`.
    pub(super) file_name: String,
    /// The ELF file.
    pub(super) contents: Vec<u8>,
}

/// The modules below `folder` (`lib/modules/<release>`) that the guest loads, each after those that it depends on.
pub(super) fn collect(folder: &Path, busybox: &Path) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    index(folder, &mut files)?;
    let built_in = fs::read_to_string(folder.join("modules.builtin"))
        .with_context(|| format!("read which modules are built in, from {}", folder.display()))?;
    let built_in: Vec<String> = built_in.lines().map(|line| module_name(Path::new(line))).collect();
    let mut loading =
        Loading { files: &files, built_in: &built_in, busybox, state: BTreeMap::new(), modules: Vec::new() };
    for name in REQUIRED {
        loading.add(name)?;
    }
    for name in WANTED.iter().filter(|&&name| files.contains_key(name)) {
        loading.add(name)?;
    }
    Ok(loading.modules)
}

/// How far a module has got while its dependencies are followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Entered,
    Done,
}

struct Loading<'a> {
    files: &'a BTreeMap<String, PathBuf>,
    built_in: &'a [String],
    busybox: &'a Path,
    state: BTreeMap<String, State>,
    modules: Vec<Module>,
}

impl Loading<'_> {
    /// Appends the module after everything that it depends on.
    fn add(&mut self, name: &str) -> Result<()> {
        match self.state.get(name) {
            Some(State::Done) => return Ok(()),
            Some(State::Entered) => bail!("kernel module {name} depends on itself"),
            None => {}
        }
        let Some(file) = self.files.get(name) else {
            if self.built_in.iter().any(|built_in| built_in == name) {
                return Ok(());
            }
            bail!("the kernel package has no module {name}, which the guest needs, and does not have it built in");
        };
        self.state.insert(name.to_owned(), State::Entered);
        let contents = contents(file, self.busybox)?;
        for dependency in dependencies(&contents) {
            self.add(&dependency)?;
        }
        self.modules.push(Module { file_name: format!("{name}.ko"), contents });
        self.state.insert(name.to_owned(), State::Done);
        Ok(())
    }
}

/// All module files below a folder, by module name.
fn index(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            index(&path, files)?;
        } else if entry.file_name().to_string_lossy().contains(".ko") {
            files.insert(module_name(&path), path);
        }
    }
    Ok(())
}

/// The name the kernel knows a module file by: `virtio-rng.ko.xz` is `virtio_rng`.
fn module_name(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.split(".ko").next().unwrap_or_default().replace('-', "_")
}

/// The names in the module's `depends=`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"depends=";
    // The strings of .modinfo end with a zero each; the one before the first belongs to what precedes the section.
    let value = module.split(|&byte| byte == 0).find_map(|text| text.strip_prefix(KEY)).unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    value.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

/// The module's ELF file, whatever the distribution has packed it with.
fn contents(file: &Path, busybox: &Path) -> Result<Vec<u8>> {
    let context = || format!("read kernel module {}", file.display());
    let extension = file.extension().unwrap_or_default().to_string_lossy();
    let contents = match extension.as_ref() {
        "ko" => fs::read(file).with_context(context)?,
        "gz" => process::output(Command::new(busybox).args(["zcat"]).arg(file)).with_context(context)?,
        "xz" => process::output(Command::new(busybox).args(["xzcat"]).arg(file)).with_context(context)?,
        "zst" => process::output(Command::new("zstd").args(["-dcq"]).arg(file)).with_context(context)?,
        other => bail!("kernel module {} is packed in a way that is not known here: {other}", file.display()),
    };
    if !contents.starts_with(b"\x7fELF") {
        bail!("kernel module {} is not an ELF file", file.display());
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn module(depends: &str) -> Vec<u8> {
        format!("\x7fELF..code..\0license=GPL\0softdep=pre: other\0depends={depends}\0intree=Y\0").into_bytes()
    }

    /// A module tree in which every required module is built in, but for those given.
    fn tree(modules: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let drivers = folder.path().join("kernel/drivers");
        fs::create_dir_all(&drivers).unwrap();
        for (name, depends) in modules {
            fs::write(drivers.join(format!("{name}.ko")), module(depends)).unwrap();
        }
        let is_module = |name: &str| modules.iter().any(|(module, _)| module.replace('-', "_") == name);
        let built_in = REQUIRED.iter().filter(|name| !is_module(name)).map(|name| format!("kernel/x/{name}.ko\n"));
        fs::write(folder.path().join("modules.builtin"), built_in.collect::<String>()).unwrap();
        folder
    }

    fn order(folder: &Path) -> Result<Vec<String>> {
        Ok(collect(folder, Path::new("busybox"))?.into_iter().map(|module| module.file_name).collect())
    }

    #[test]
    fn modules_come_after_what_they_depend_on() {
        let folder = tree(&[
            ("virtio_net", "virtio,net-failover"),
            ("net_failover", "failover"),
            ("failover", ""),
            ("virtio-rng", "virtio"),
            ("virtio", "virtio_ring"),
            ("virtio_ring", ""),
            ("not_needed", ""),
        ]);
        let expected =
            ["virtio_ring.ko", "virtio.ko", "failover.ko", "net_failover.ko", "virtio_net.ko", "virtio_rng.ko"];
        assert_eq!(order(folder.path()).unwrap(), expected);
    }

    #[test]
    fn a_missing_module_is_an_error_unless_it_is_built_in() {
        let folder = tree(&[("virtio_net", "virtio")]);
        let error = order(folder.path()).unwrap_err().to_string();
        assert!(error.contains("no module virtio,"), "{error}");
    }

    #[test]
    fn a_circle_is_an_error_and_not_an_endless_walk() {
        let folder = tree(&[("virtio_net", "a"), ("a", "b"), ("b", "a")]);
        assert!(order(folder.path()).unwrap_err().to_string().contains("depends on itself"));
    }

    #[test]
    fn a_file_that_is_not_a_module_is_an_error() {
        let folder = tree(&[("virtio_net", "")]);
        fs::write(folder.path().join("kernel/drivers/virtio_net.ko"), "text").unwrap();
        assert!(order(folder.path()).unwrap_err().to_string().contains("not an ELF"));
    }
}
