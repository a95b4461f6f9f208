//! Makes a disk image that a BIOS boots: GRUB, then the same kernel and initramfs, on a disk without a file system.
//!
//! GRUB's first sector loads its core from the sectors that follow, and the core's built-in commands name kernel and
//! initramfs by their sectors, so that neither a partition table nor a loop device (hence no root) is needed:
//!
//! ```text
//! sector 0         1 ..                 2048 ..        after it, at a multiple of 2048
//!        boot.img  core.img             kernel         initramfs
//! ```

use super::unpacked_program;
use crate::process;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::Path;
use std::process::Command;

const SECTOR_BYTES: usize = 512;
/// Where the kernel begins, and what everything is rounded to: 1 MiB, the usual start of a first partition.
const ALIGNMENT_SECTORS: usize = 2048;
const ALIGNMENT_BYTES: usize = ALIGNMENT_SECTORS * SECTOR_BYTES;
/// `quiet` keeps the console for the guest's own lines; `panic=-1` restarts at once, which `-no-reboot` turns into an end.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1";

/// Writes the disk image in qcow2.
pub(super) fn make(root: &Path, kernel: &[u8], initrd: &[u8], target: &Path) -> Result<()> {
    let modules = ["usr/lib/grub/i386-pc", "lib/grub/i386-pc"].map(|path| root.join(path));
    let modules = modules.iter().find(|folder| folder.is_dir()).context("the packages hold no GRUB for BIOS")?;
    let layout = Layout::of(kernel.len(), initrd.len());
    let commands = target.with_extension("grub");
    let core = target.with_extension("core");
    fs::write(&commands, layout.commands()).with_context(|| format!("write {}", commands.display()))?;
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib64", "usr/lib", "lib"];
    let libraries = libraries.map(|path| root.join(path).display().to_string()).join(":");
    let mut command = Command::new(unpacked_program(root, &["grub-mkimage", "grub2-mkimage"])?);
    // Its libraries come from the packages too, since this machine may not have them.
    command.env("LD_LIBRARY_PATH", libraries).args(["--format=i386-pc", "--prefix=(hd0)"]);
    command.arg("--directory").arg(modules).arg("--config").arg(&commands).arg("--output").arg(&core);
    process::output(command.args(["biosdisk", "linux", "serial"]))?;
    let raw = layout.disk(&read(&modules.join("boot.img"))?, &read(&core)?, kernel, initrd)?;
    let raw_file = target.with_extension("raw");
    fs::write(&raw_file, raw).with_context(|| format!("write {}", raw_file.display()))?;
    let part = target.with_extension("part");
    let mut convert = Command::new("qemu-img");
    process::output(convert.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw_file).arg(&part))?;
    fs::rename(&part, target).with_context(|| format!("rename {}", part.display()))?;
    for file in [commands, core, raw_file] {
        fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
    }
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("read {}", file.display()))
}

/// Where the parts lie, in sectors.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    kernel_sectors: usize,
    initrd_start: usize,
    initrd_sectors: usize,
}

impl Layout {
    fn of(kernel_bytes: usize, initrd_bytes: usize) -> Self {
        let kernel_sectors = kernel_bytes.div_ceil(SECTOR_BYTES);
        let initrd_start = ALIGNMENT_SECTORS + kernel_sectors.next_multiple_of(ALIGNMENT_SECTORS);
        Self { kernel_sectors, initrd_start, initrd_sectors: initrd_bytes.div_ceil(SECTOR_BYTES) }
    }

    /// What GRUB runs. Errors have to be seen where a person looks, which is the serial console.
    fn commands(&self) -> String {
        let Self { kernel_sectors, initrd_start, initrd_sectors } = self;
        format!(
            "serial --unit=0 --speed=115200\n\
             terminal_output serial\n\
             linux (hd0){ALIGNMENT_SECTORS}+{kernel_sectors} {KERNEL_ARGUMENTS}\n\
             initrd (hd0){initrd_start}+{initrd_sectors}\n\
             boot\n"
        )
    }

    fn disk(&self, boot: &[u8], core: &[u8], kernel: &[u8], initrd: &[u8]) -> Result<Vec<u8>> {
        if boot.len() != SECTOR_BYTES {
            bail!("GRUB's boot.img has {} bytes and not one sector", boot.len());
        }
        if SECTOR_BYTES + core.len() > ALIGNMENT_BYTES {
            bail!("GRUB's core has {} bytes and does not fit before the kernel", core.len());
        }
        let end = (self.initrd_start + self.initrd_sectors) * SECTOR_BYTES;
        let mut disk = vec![0; end.next_multiple_of(ALIGNMENT_BYTES)];
        let parts = [(0, boot), (1, core), (ALIGNMENT_SECTORS, kernel), (self.initrd_start, initrd)];
        for (sector, part) in parts {
            let start = sector * SECTOR_BYTES;
            disk[start..start + part.len()].copy_from_slice(part);
        }
        Ok(disk)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn parts_lie_where_the_commands_say() {
        let kernel = vec![1; ALIGNMENT_BYTES + 1];
        let initrd = vec![2; 700];
        let layout = Layout::of(kernel.len(), initrd.len());
        let commands = layout.commands();
        assert!(commands.contains("linux (hd0)2048+2049 "), "{commands}");
        assert!(commands.contains("initrd (hd0)6144+2\n"), "{commands}");
        let disk = layout.disk(&[3; 512], &[4; 600], &kernel, &initrd).unwrap();
        assert_eq!((disk[511], disk[512], disk[1111], disk[1112]), (3, 4, 4, 0));
        assert_eq!((disk[ALIGNMENT_BYTES], disk[2 * ALIGNMENT_BYTES]), (1, 1));
        assert_eq!((disk[6144 * 512], disk[6144 * 512 + 699], disk[6144 * 512 + 700]), (2, 2, 0));
        assert_eq!(disk.len() % ALIGNMENT_BYTES, 0);
    }

    #[test]
    fn a_core_that_would_reach_into_the_kernel_is_refused() {
        let layout = Layout::of(1, 1);
        assert!(layout.disk(&[0; 512], &vec![0; ALIGNMENT_BYTES - 512], &[0], &[0]).is_ok());
        assert!(layout.disk(&[0; 512], &vec![0; ALIGNMENT_BYTES - 511], &[0], &[0]).is_err());
    }
}
