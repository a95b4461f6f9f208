//! What lies in the guest's initramfs: busybox under all its names, the kernel modules in loading order, and the few
//! scripts of `files/`.

use super::cpio::{self, Entry, Tree};
use super::modules::Module;
use crate::process;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The guest's own files: path, permissions, contents.
const FILES: &[(&str, u32, &str)] = &[
    ("etc/inittab", 0o644, include_str!("files/inittab")),
    ("etc/rc", 0o755, include_str!("files/rc")),
    ("etc/profile", 0o644, include_str!("files/profile")),
    ("etc/udhcpc.script", 0o755, include_str!("files/udhcpc.script")),
    ("etc/acpi/PWRF/00000080", 0o755, include_str!("files/power-button")),
    ("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/group", 0o644, "root:x:0:\n"),
];
/// Folders that nothing is put into here: mount points, and places that programs write to.
const FOLDERS: &[&str] = &[
    "bin",
    "dev",
    "etc",
    "etc/acpi",
    "etc/acpi/PWRF",
    "lib",
    "lib/modules",
    "proc",
    "root",
    "run",
    "seed",
    "sys",
    "tmp",
    "var",
    "var/log",
    "www",
];

/// The archive, not yet compressed.
pub(super) fn archive(busybox: &Path, modules: &[Module]) -> Result<Vec<u8>> {
    let mut tree = Tree::new();
    for folder in FOLDERS {
        tree.insert((*folder).to_owned(), Entry::Folder);
    }
    for (path, mode, contents) in FILES {
        tree.insert((*path).to_owned(), Entry::File { mode: *mode, contents: contents.as_bytes().to_vec() });
    }
    tree.insert("sbin".to_owned(), Entry::Link("bin".to_owned()));
    tree.insert("var/run".to_owned(), Entry::Link("/run".to_owned()));
    // The kernel opens the console for init before anything has mounted /dev.
    tree.insert("dev/console".to_owned(), Entry::Device { major: 5, minor: 1 });
    add_busybox(&mut tree, busybox)?;
    let mut order = String::new();
    for module in modules {
        order.push_str(&module.file_name);
        order.push('\n');
        let file = Entry::File { mode: 0o644, contents: module.contents.clone() };
        tree.insert(format!("lib/modules/{}", module.file_name), file);
    }
    tree.insert("lib/modules/order".to_owned(), Entry::File { mode: 0o644, contents: order.into_bytes() });
    cpio::archive(&tree)
}

/// busybox, and a link for each of its applets. `init` is busybox too: it reads /etc/inittab.
fn add_busybox(tree: &mut Tree, busybox: &Path) -> Result<()> {
    let contents = fs::read(busybox).with_context(|| format!("read {}", busybox.display()))?;
    tree.insert("bin/busybox".to_owned(), Entry::File { mode: 0o755, contents });
    let applets = process::text(Command::new(busybox).arg("--list")).context("ask busybox for its applets")?;
    for applet in applets.split_whitespace().filter(|applet| *applet != "busybox") {
        tree.insert(format!("bin/{applet}"), Entry::Link("busybox".to_owned()));
    }
    tree.insert("init".to_owned(), Entry::Link("bin/busybox".to_owned()));
    for needed in ["acpid", "cttyhack", "dd", "httpd", "init", "insmod", "ip", "poweroff", "udhcpc"] {
        if !tree.contains_key(&format!("bin/{needed}")) {
            anyhow::bail!("the distribution's busybox lacks the applet {needed}, which the guest needs");
        }
    }
    Ok(())
}
