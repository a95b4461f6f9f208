//! From a vm in the state to what the driver is asked to run.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context;
use blixard_core::{ConfigFile, DiskPart, Manifest, Part, Protocol, Vm};
use blixard_hypervisor as hypervisor;
use data_encoding::BASE64;
use hypervisor::{BaseDisk, Boot, LaunchSpec, LazyBase, PortForward, SeedFile};

use crate::images::Images;
use crate::lazy::LazyDisks;

/// Which launch of a vm it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) epoch: u64,
    pub(super) run: u64,
    pub(super) restarts: u32,
}

/// What the driver is to run for a vm. The image's files are used where the blob store has them; the disk of an image that is not
/// whole is served to the vm, if it is one that boots before that.
pub(super) async fn launch_spec(
    images: &Images,
    disks: &LazyDisks,
    vm: &Vm,
    manifest: &Manifest,
    times: Times,
) -> anyhow::Result<LaunchSpec> {
    let Times { epoch, run, restarts } = times;
    let is_lazy = vm.spec.is_lazy(manifest) && !images.is_complete(manifest).await.context("look at the image")?;
    let path = async |part: &Part| images.path(part.hash).await.context("find the image's file");
    let disk = async |disk: &DiskPart| {
        let format = match disk.format {
            blixard_core::DiskFormat::Raw => hypervisor::DiskFormat::Raw,
            blixard_core::DiskFormat::Qcow2 => hypervisor::DiskFormat::Qcow2,
        };
        if !is_lazy {
            return anyhow::Ok(BaseDisk { path: path(&disk.part).await?, format, lazy: None });
        }
        let server = disks.serve(vm.id, disk.part).context("serve the image's disk while it comes")?;
        let patience_s = u32::try_from(disks.patience().as_secs()).unwrap_or(u32::MAX);
        let lazy = LazyBase { server, virtual_bytes: disk.virtual_bytes, patience_s };
        Ok(BaseDisk { path: images.place(disk.part.hash), format, lazy: Some(lazy) })
    };
    let boot = match manifest {
        Manifest::Disk(base) => Boot::Disk(disk(base).await?),
        Manifest::Kernel { kernel, initrd, root, cmdline } => Boot::Kernel {
            kernel: path(kernel).await?,
            initrd: match initrd {
                Some(initrd) => Some(path(initrd).await?),
                None => None,
            },
            cmdline: cmdline.clone(),
            root: match root {
                Some(root) => Some(disk(root).await?),
                None => None,
            },
        },
    };
    let publish = vm.spec.publish.iter().map(|port| PortForward {
        host_addr: port.host_address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        host_port: port.host_port,
        guest_port: port.guest_port,
        protocol: match port.protocol {
            Protocol::Tcp => hypervisor::Protocol::Tcp,
            Protocol::Udp => hypervisor::Protocol::Udp,
        },
    });
    Ok(LaunchSpec {
        vm: vm.id.to_string(),
        name: vm.name.to_string(),
        epoch,
        run,
        restarts,
        vcpus: vm.spec.vcpus,
        memory_mib: vm.spec.memory_mib,
        boot,
        disk_bytes: (vm.spec.disk_mib > 0).then_some(vm.spec.disk_mib << 20),
        seed: Some(hypervisor::Seed {
            hostname: vm.name.to_string(),
            user_data: vm.spec.seed.user_data.clone(),
            ssh_keys: vm.spec.seed.ssh_keys.clone(),
            instance_id: vm.id.to_string(),
            files: vm.spec.config_files.iter().map(seed_file).collect(),
        }),
        publish: publish.collect(),
        mac: mac_address(vm),
    })
}

fn seed_file(file: &ConfigFile) -> SeedFile {
    SeedFile { path: file.source.path.to_string(), content_base64: BASE64.encode(&file.content) }
}

/// A hardware address that is the vm's own for as long as it lives: QEMU's prefix and three bytes drawn from the vm's id.
fn mac_address(vm: &Vm) -> [u8; 6] {
    let hash = blake3::hash(&vm.id.0);
    let [a, b, c, ..] = *hash.as_bytes();
    [0x52, 0x54, 0x00, a, b, c]
}
