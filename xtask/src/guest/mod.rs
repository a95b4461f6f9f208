//! Makes a tiny bootable Linux guest in `target/guest`, for tests and the demo.
//!
//! Owns: `vmlinuz` (the distribution's kernel), `initrd.gz` (busybox, drivers and a few scripts), `disk.qcow2` (both,
//! behind a boot loader) and `guest.json` (what they were made from). Packages are downloaded and unpacked, never
//! installed. Nothing is done when the outputs were made by this very recipe.
//!
//! ```text
//! packages -> unpacked/ -> modules -> initramfs -> cpio -> initrd.gz -+-> disk.qcow2
//!                 +------> vmlinuz ----------------------------------+
//! ```
//!
//! What the guest does, and the lines that it prints, stand in `files/rc`. `boot_check` holds that it really does.

mod boot_check;
mod cpio;
mod disk;
mod initramfs;
mod modules;
mod packages;
mod qmp;

pub(crate) use boot_check::page;

use crate::distribution::Distribution;
use crate::{setup, workspace_root};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// The line that the guest prints when it is up.
pub(crate) const READY: &str = "blixard-guest: ready";
const RECORD: &str = "guest.json";
/// The guest's kernel, below [`folder`].
pub(crate) const KERNEL: &str = "vmlinuz";
/// The guest's initial ramdisk, below [`folder`].
pub(crate) const INITRD: &str = "initrd.gz";
const DISK: &str = "disk.qcow2";

/// The sources that decide what comes out. A change of any of them makes the outputs stale.
const RECIPE: &[&str] = &[
    include_str!("mod.rs"),
    include_str!("cpio.rs"),
    include_str!("disk.rs"),
    include_str!("initramfs.rs"),
    include_str!("modules.rs"),
    include_str!("packages.rs"),
    include_str!("files/inittab"),
    include_str!("files/rc"),
    include_str!("files/profile"),
    include_str!("files/udhcpc.script"),
    include_str!("files/power-button"),
];

/// `guest.json`: what the outputs were made from.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// Hash of the recipe, to notice that the outputs are stale.
    recipe: u64,
    kernel_release: String,
    /// File names of the packages, with their versions.
    packages: Vec<String>,
    /// Modules in loading order.
    modules: Vec<String>,
    outputs: Vec<Output>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Output {
    name: String,
    bytes: u64,
}

/// Where the guest is once [`run`] has made it.
pub(crate) fn folder() -> PathBuf {
    workspace_root().join("target/guest")
}

/// `cargo xtask guest`: builds what is missing or stale, and then boots it when `check`.
pub fn run(refresh: bool, check: bool) -> Result<()> {
    let folder = folder();
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    // Two builds at once would unpack into the same folder; the second waits, and then finds everything done.
    let lock = File::create(folder.join("lock")).context("open the lock of target/guest")?;
    lock.lock().context("lock target/guest")?;
    if !refresh && is_up_to_date(&folder) {
        println!("guest: {} is up to date", folder.display());
    } else {
        build(&folder, refresh).context("build the guest")?;
    }
    if check {
        boot_check::run(&folder)?;
    }
    Ok(())
}

fn recipe() -> u64 {
    let mut hasher = DefaultHasher::new();
    RECIPE.hash(&mut hasher);
    hasher.finish()
}

fn is_up_to_date(folder: &Path) -> bool {
    let Ok(text) = fs::read_to_string(folder.join(RECORD)) else { return false };
    let Ok(record) = serde_json::from_str::<Record>(&text) else { return false };
    let is_whole =
        |output: &Output| fs::metadata(folder.join(&output.name)).is_ok_and(|file| file.len() == output.bytes);
    record.recipe == recipe() && record.outputs.iter().all(is_whole)
}

fn build(folder: &Path, refresh: bool) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!(
            "the guest is made from x86_64 packages of this machine's distribution, and this is {}",
            std::env::consts::ARCH
        );
    }
    let started = Instant::now();
    setup::install_missing(setup::GUEST)?;
    let distribution = Distribution::of_this_machine()?;
    let packages = packages::fetch(distribution, folder, refresh)?;
    let kernel = Kernel::find(&packages.root)?;
    let busybox = static_busybox(&packages.root)?;
    let modules = modules::collect(&kernel.modules, &busybox)?;
    let initrd = gzip(&initramfs::archive(&busybox, &modules)?)?;
    let image = fs::read(&kernel.image).with_context(|| format!("read {}", kernel.image.display()))?;
    // The record goes first and comes back last: a build that was cut short leaves none.
    let _ = fs::remove_file(folder.join(RECORD));
    publish(folder, KERNEL, &image)?;
    publish(folder, INITRD, &initrd)?;
    disk::make(&packages.root, &image, &initrd, &folder.join(DISK)).context("make the disk image")?;
    let mut outputs = Vec::new();
    for name in [KERNEL, INITRD, DISK] {
        outputs.push(Output { name: name.to_owned(), bytes: fs::metadata(folder.join(name))?.len() });
    }
    let record = Record {
        recipe: recipe(),
        kernel_release: kernel.release,
        packages: packages.files,
        modules: modules.into_iter().map(|module| module.file_name).collect(),
        outputs,
    };
    publish(folder, RECORD, &serde_json::to_vec_pretty(&record)?)?;
    let sizes: Vec<String> =
        record.outputs.iter().map(|output| format!("{} {} KiB", output.name, output.bytes / 1024)).collect();
    let seconds = started.elapsed().as_secs_f32();
    println!(
        "guest: made {} in {seconds:.1} s: kernel {}, {}",
        folder.display(),
        record.kernel_release,
        sizes.join(", ")
    );
    Ok(())
}

/// A kernel in the unpacked packages.
struct Kernel {
    image: PathBuf,
    modules: PathBuf,
    release: String,
}

impl Kernel {
    fn find(root: &Path) -> Result<Self> {
        for modules in ["lib/modules", "usr/lib/modules"].map(|path| root.join(path)) {
            let Ok(entries) = fs::read_dir(&modules) else { continue };
            for entry in entries {
                let entry = entry?;
                let release = entry.file_name().to_string_lossy().into_owned();
                // Alpine names its image after the flavour, which ends the release.
                let flavour = release.rsplit('-').next().unwrap_or_default();
                let images = [
                    root.join(format!("boot/vmlinuz-{release}")),
                    entry.path().join(KERNEL),
                    root.join(format!("boot/vmlinuz-{flavour}")),
                ];
                if let Some(image) = images.into_iter().find(|image| image.is_file()) {
                    return Ok(Self { image, modules: entry.path(), release });
                }
            }
        }
        bail!("the packages unpacked in {} hold no kernel with its modules", root.display());
    }
}

/// The busybox of the packages. It has to be static: the guest has no libraries.
fn static_busybox(root: &Path) -> Result<PathBuf> {
    let places = [
        "bin/busybox",
        "usr/bin/busybox",
        "bin/busybox.static",
        "usr/bin/busybox.static",
        "sbin/busybox",
        "usr/sbin/busybox",
    ];
    let busybox = places
        .into_iter()
        .map(|place| root.join(place))
        .find(|file| file.is_file())
        .with_context(|| format!("the packages unpacked in {} hold no busybox", root.display()))?;
    let contents = fs::read(&busybox).with_context(|| format!("read {}", busybox.display()))?;
    // A dynamic program names its loader, which begins like this on every x86_64 Linux.
    if [&b"/lib64/ld-linux"[..], b"/lib/ld-musl"]
        .iter()
        .any(|name| contents.windows(name.len()).any(|part| part == *name))
    {
        bail!("{} needs shared libraries; the guest needs a static busybox", busybox.display());
    }
    Ok(busybox)
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    // -n leaves out name and time, so that equal contents give equal bytes.
    let mut child = Command::new("gzip")
        .args(["-n", "-6"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start gzip")?;
    let mut input = child.stdin.take().expect("stdin was piped just now");
    let output = std::thread::scope(|scope| {
        let writer = scope.spawn(move || input.write_all(bytes));
        let output = child.wait_with_output().context("wait for gzip")?;
        writer.join().expect("writing does not panic").context("write to gzip")?;
        anyhow::Ok(output)
    })?;
    if !output.status.success() {
        bail!("gzip ended with {}", output.status);
    }
    Ok(output.stdout)
}

/// Puts a file in place in one step, so that nobody boots half of one.
fn publish(folder: &Path, name: &str, contents: &[u8]) -> Result<()> {
    let part = folder.join(format!("{name}.part"));
    fs::write(&part, contents).with_context(|| format!("write {}", part.display()))?;
    fs::rename(&part, folder.join(name)).with_context(|| format!("rename {}", part.display()))
}

/// The program to use from the unpacked packages, which may lie in one of two folders depending on the distribution.
fn unpacked_program(root: &Path, names: &[&str]) -> Result<PathBuf> {
    let folders = ["usr/bin", "usr/sbin", "bin", "sbin"];
    let mut places = names.iter().flat_map(|name| folders.map(|folder| root.join(folder).join(name)));
    places.find(|file| file.is_file()).with_context(|| format!("the unpacked packages hold no {}", names.join(" or ")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn outputs_are_up_to_date_only_while_recipe_and_sizes_agree() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert!(!is_up_to_date(path));
        let write_record = |recipe| {
            let outputs = vec![Output { name: KERNEL.to_owned(), bytes: 3 }];
            let record = Record { recipe, kernel_release: "6".into(), packages: vec![], modules: vec![], outputs };
            publish(path, RECORD, &serde_json::to_vec(&record).unwrap()).unwrap();
        };
        write_record(recipe());
        assert!(!is_up_to_date(path), "the kernel is missing");
        publish(path, KERNEL, b"abc").unwrap();
        assert!(is_up_to_date(path));
        publish(path, KERNEL, b"ab").unwrap();
        assert!(!is_up_to_date(path), "the kernel was cut short");
        publish(path, KERNEL, b"abc").unwrap();
        write_record(recipe() ^ 1);
        assert!(!is_up_to_date(path), "the recipe has changed");
    }

    #[test]
    fn gzip_packs_what_it_is_given() {
        let text = vec![b'x'; 1 << 20];
        let packed = gzip(&text).unwrap();
        assert!(packed.starts_with(&[0x1f, 0x8b]) && packed.len() < 10_000);
        assert_eq!(packed, gzip(&text).unwrap());
    }

    #[test]
    fn a_busybox_that_needs_libraries_is_refused() {
        let root = tempfile::tempdir().unwrap();
        assert!(static_busybox(root.path()).unwrap_err().to_string().contains("no busybox"));
        fs::create_dir_all(root.path().join("bin")).unwrap();
        fs::write(root.path().join("bin/busybox"), "\x7fELF /lib64/ld-linux-x86-64.so.2\0").unwrap();
        assert!(static_busybox(root.path()).unwrap_err().to_string().contains("static"));
        fs::write(root.path().join("bin/busybox"), "\x7fELF").unwrap();
        assert!(static_busybox(root.path()).is_ok());
    }

    #[test]
    fn kernels_are_found_where_distributions_put_them() {
        let layouts = [
            ("lib/modules/6.1.0-1-cloud-amd64", "boot/vmlinuz-6.1.0-1-cloud-amd64"),
            ("usr/lib/modules/6.9.7-arch1-1", "usr/lib/modules/6.9.7-arch1-1/vmlinuz"),
            ("lib/modules/6.12.3-0-virt", "boot/vmlinuz-virt"),
        ];
        for (modules, image) in layouts {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join(modules)).unwrap();
            assert!(Kernel::find(root.path()).is_err());
            let image = root.path().join(image);
            fs::create_dir_all(image.parent().unwrap()).unwrap();
            fs::write(&image, "kernel").unwrap();
            let kernel = Kernel::find(root.path()).unwrap();
            assert_eq!((kernel.image, kernel.modules), (image, root.path().join(modules)));
        }
    }
}
