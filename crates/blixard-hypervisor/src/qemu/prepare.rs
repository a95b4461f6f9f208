//! Makes a vm's folder ready for a run: its disk, its seed, and the guard's plan.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::argv::{self, Host};
use super::{AcceleratorChoice, QemuDriver};
use crate::disk::qcow2::{Flaw, Header};
use crate::disk::{overlay, search_path};
use crate::driver::LaunchError;
use crate::folder::{DISK_FILE, Folder, Plan, SEED_FILE};
use crate::host::cgroup;
use crate::observed::Accelerator;
use crate::seed;
use crate::spec::{BaseDisk, Boot, DiskFormat, LaunchSpec};

/// QEMU rounds the size of a raw disk up to whole sectors.
const SECTOR_BYTES: u64 = 512;

impl QemuDriver {
    pub(super) fn prepare(&self, folder: &Folder, spec: &LaunchSpec) -> Result<(), LaunchError> {
        let context = |doing: &str| {
            let doing = doing.to_owned();
            move |source: io::Error| LaunchError::Prepare { doing, source }
        };
        if let Some(port) = spec.publish.iter().find(|port| port.host_addr.is_ipv6()) {
            return Err(unsuitable(format!(
                "cannot publish {port}: QEMU's user network listens on IPv4 addresses only; name one"
            )));
        }
        if let Boot::Kernel { kernel, initrd, .. } = &spec.boot {
            for path in std::iter::once(kernel).chain(initrd) {
                File::open(path).map_err(context(&format!("open {}", path.display())))?;
            }
        }
        let program = search_path(&self.options.qemu).ok_or_else(|| {
            unsuitable(format!("there is no {} on this host; install QEMU", self.options.qemu.display()))
        })?;
        if argv::has_disk(spec) {
            prepare_disk(&folder.path().join(DISK_FILE), spec)?;
        }
        if let Some(seed) = &spec.seed {
            seed::write(&folder.path().join(SEED_FILE), seed).map_err(context("write the seed disk"))?;
        }
        let host = self.host()?;
        let command_line = argv::command_line(spec, host);
        let plan = Plan {
            epoch: spec.epoch,
            run: spec.run,
            program,
            argv: command_line.argv,
            files: command_line.files,
            settling: command_line.settling,
            accelerator: host.accelerator,
            group: cgroup::create(self.options.cgroup_parent.as_deref(), spec),
            lowest_port: spec.publish.iter().map(|port| port.host_port).min(),
        };
        folder.write_plan(&plan).map_err(context("write plan.json"))
    }

    fn host(&self) -> Result<Host, LaunchError> {
        let probed = self
            .probed()
            .map_err(|source| LaunchError::Prepare { doing: "probe the accelerators of this host".into(), source })?;
        let accelerator = match (self.options.accelerator, &probed.kvm) {
            (AcceleratorChoice::Tcg, _) | (AcceleratorChoice::Auto, Err(_)) => Accelerator::Tcg,
            (AcceleratorChoice::Auto | AcceleratorChoice::Kvm, Ok(())) => Accelerator::Kvm,
            (AcceleratorChoice::Kvm, Err(reason)) => {
                return Err(unsuitable(format!("KVM is required by the settings but does not work here: {reason}")));
            }
        };
        Ok(Host { accelerator, tsc_khz: probed.tsc_khz })
    }
}

fn unsuitable(detail: String) -> LaunchError {
    LaunchError::Unsuitable { detail }
}

/// Makes the vm's disk on its first run; on later ones checks that it is still the disk that the spec means.
fn prepare_disk(path: &Path, spec: &LaunchSpec) -> Result<(), LaunchError> {
    let base = spec.boot.base();
    let base_bytes = base.map(base_bytes).transpose()?.unwrap_or(0);
    let disk_bytes = spec.disk_bytes.unwrap_or(base_bytes).next_multiple_of(SECTOR_BYTES);
    if disk_bytes < base_bytes {
        return Err(unsuitable(format!(
            "a disk of {disk_bytes} bytes is smaller than its image, which has {base_bytes}"
        )));
    }
    if !path.exists() {
        return overlay::create(path, disk_bytes, base)
            .map_err(|source| LaunchError::Prepare { doing: "create the disk".into(), source });
    }
    let header = read_header(path).map_err(|error| prepare_error("read the disk", error))?;
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    // Where the images are kept may change; which image it is may not, or the overlay would show a mixture of two.
    let (had, wanted) =
        (header.backing_name.as_deref().and_then(|had| name(Path::new(had))), base.and_then(|base| name(&base.path)));
    if had != wanted {
        let shown = |name: Option<String>| name.unwrap_or_else(|| "no image".into());
        return Err(unsuitable(format!(
            "the disk was made on top of {}, and cannot be used on top of {}; delete the vm and create it anew",
            shown(had),
            shown(wanted)
        )));
    }
    if header.virtual_bytes != disk_bytes {
        return Err(unsuitable(format!(
            "the disk was made with {} bytes and cannot be changed to {disk_bytes}",
            header.virtual_bytes
        )));
    }
    Ok(())
}

/// Size of the disk in a base image.
fn base_bytes(base: &BaseDisk) -> Result<u64, LaunchError> {
    let doing = format!("read the image {}", base.path.display());
    if let Some(lazy) = &base.lazy {
        return Ok(lazy.virtual_bytes.next_multiple_of(SECTOR_BYTES));
    }
    match base.format {
        DiskFormat::Qcow2 => {
            read_header(&base.path).map(|header| header.virtual_bytes).map_err(|error| prepare_error(&doing, error))
        }
        DiskFormat::Raw => fs::metadata(&base.path)
            .map(|meta| meta.len().next_multiple_of(SECTOR_BYTES))
            .map_err(|source| LaunchError::Prepare { doing, source }),
    }
}

fn read_header(path: &Path) -> Result<Header, Flaw> {
    Header::read(&mut File::open(path)?)
}

fn prepare_error(doing: &str, error: Flaw) -> LaunchError {
    match error {
        Flaw::Read(source) => LaunchError::Prepare { doing: doing.to_owned(), source },
        Flaw::Refused(detail) => unsuitable(format!("{doing}: {detail}")),
    }
}
