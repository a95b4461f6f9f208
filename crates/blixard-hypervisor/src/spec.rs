//! What a driver is asked to run: plain data, checked once at the door.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The longest folder name a vm may have; a UUID has 36 characters.
pub const VM_ID_CHARS_MAX: usize = 64;
/// What q35 gives without an interrupt remapper, minus room for firmware that counts less well.
pub const VCPUS_MAX: u32 = 240;
/// Below this no Linux kernel of today unpacks itself.
pub const MEMORY_MIB_MIN: u64 = 32;
/// Linux refuses a longer command line on x86 (COMMAND_LINE_SIZE is 2048), and ours must still fit behind it.
pub const CMDLINE_BYTES_MAX: usize = 1792;
/// Each forward costs a listening socket in the hypervisor, whose descriptors are limited.
pub const PORTS_MAX: usize = 64;
/// The seed disk has 1 MiB in all; cloud providers allow 16 to 64 KiB of user data.
pub const USER_DATA_BYTES_MAX: usize = 256 * 1024;
/// Room for the keys of a large team; together with the user data they must fit the seed disk.
pub const SSH_KEYS_BYTES_MAX: usize = 128 * 1024;
/// Room for some configuration files, as base64; the seed disk has to hold them beside all else.
pub const SEED_FILES_BYTES_MAX: usize = 256 * 1024;
/// A disk larger than this cannot be mapped by one cluster of level-one table per 32 MiB of table memory.
pub const DISK_BYTES_MAX: u64 = 64 << 40;

/// Everything a driver needs to run one vm once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// The vm's id, also the name of its folder: 1 to 64 of `0-9`, `a-f` and `-`.
    pub vm: String,
    /// The name people gave the vm; shown, never used to find anything.
    pub name: String,
    /// Rises at each new placement of the vm.
    pub epoch: u64,
    /// Rises at each start that a user asks for within an epoch.
    pub run: u64,
    /// How often this run was begun again after it had ended; recorded, and shown by [`list`](crate::Driver::list).
    pub restarts: u32,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory of the guest in MiB; the hypervisor's own comes on top.
    pub memory_mib: u64,
    /// What the guest boots from.
    pub boot: Boot,
    /// Size of the vm's own disk in bytes. At least the size of its base; absent means exactly that size, or no disk
    /// where there is no base. Fixed when the disk is first made.
    pub disk_bytes: Option<u64>,
    /// First-boot configuration for cloud-init, offered as a second, read-only disk.
    pub seed: Option<Seed>,
    /// Ports of this host that lead into the guest.
    pub publish: Vec<PortForward>,
    /// Hardware address of the guest's network card.
    pub mac: [u8; 6],
}

/// What a guest boots from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Boot {
    /// A Linux kernel started directly, without firmware or boot loader.
    Kernel {
        /// The kernel (see [`inspect_kernel`](crate::inspect_kernel)).
        kernel: PathBuf,
        /// The initial ramdisk, when the kernel needs one.
        initrd: Option<PathBuf>,
        /// Kernel arguments; the driver adds a console and what the machine needs, unless they are named here.
        cmdline: String,
        /// Base of the vm's disk, when it has one.
        root: Option<BaseDisk>,
    },
    /// A disk with its own boot loader.
    Disk(BaseDisk),
}

/// A disk image that is read and never written; the vm writes to an overlay on top of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseDisk {
    /// Absolute path of the image.
    pub path: PathBuf,
    /// How the image is laid out. It is never guessed: a guest may write any header into a raw disk.
    pub format: DiskFormat,
    /// Where the image is read from while `path` does not hold all of it; absent when it does.
    #[serde(default)]
    pub lazy: Option<LazyBase>,
}

/// An image that is still on its way to this host: the guest reads it from a server until
/// [`settle`](crate::Driver::settle).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LazyBase {
    /// Absolute path of a folder with a socket named [`LAZY_SOCKET`], on which an NBD server gives out the content of the image's
    /// file. The user that the guest runs as owns nothing, so others must be allowed to enter the folder and to write to the socket;
    /// what keeps the rest of the host out is the folder above.
    pub server: PathBuf,
    /// Size of the disk in the image in bytes, which the file cannot tell yet.
    pub virtual_bytes: u64,
    /// How long a read waits for a server that is gone, in seconds, until the guest sees an error.
    pub patience_s: u32,
}

/// The socket in the folder of a [`LazyBase`].
pub const LAZY_SOCKET: &str = "disk.sock";

/// Layout of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// The bytes of the disk, one after the other.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

impl DiskFormat {
    /// The name that QEMU has for the format.
    pub fn qemu_name(self) -> &'static str {
        match self {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        }
    }
}

/// First-boot configuration, in the terms of cloud-init's NoCloud source.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Seed {
    /// Host name of the guest.
    pub hostname: String,
    /// User data as cloud-init takes it (`#cloud-config`, a script, MIME); absent means none.
    pub user_data: Option<String>,
    /// Public keys, in the format of `authorized_keys`, for the image's default user.
    pub ssh_keys: Vec<String>,
    /// Changes when first-boot work is to be done again.
    pub instance_id: String,
    /// Files that cloud-init writes, beside what the user data asks for.
    #[serde(default)]
    pub files: Vec<SeedFile>,
}

/// A file in the guest, written when it boots for the first time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedFile {
    /// Where: an absolute path.
    pub path: String,
    /// What is in it, as base64.
    pub content_base64: String,
}

/// A port of this host that leads to a port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortForward {
    /// Address of this host to listen on.
    pub host_addr: IpAddr,
    /// Port of this host, never 0.
    pub host_port: u16,
    /// Port of the guest, never 0.
    pub guest_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl std::fmt::Display for PortForward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let host = std::net::SocketAddr::new(self.host_addr, self.host_port);
        write!(f, "{host}/{}", self.protocol.name())
    }
}

/// Transport protocol of a forwarded port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// `tcp` or `udp`.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

/// Why a spec cannot be run anywhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct SpecError {
    /// The field at fault.
    pub field: &'static str,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

/// Whether `vm` may name a vm's folder: it must never lead out of the driver's root.
pub fn is_vm_id(vm: &str) -> bool {
    (1..=VM_ID_CHARS_MAX).contains(&vm.len()) && vm.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'))
}

impl LaunchSpec {
    /// Checks everything that can be checked without looking at the host.
    pub fn validate(&self) -> Result<(), SpecError> {
        ensure(is_vm_id(&self.vm), "vm", || {
            format!("`{}` is not 1 to {VM_ID_CHARS_MAX} characters of 0-9, a-f and -", self.vm.escape_debug())
        })?;
        ensure(
            !self.name.is_empty() && self.name.len() <= 255 && !self.name.chars().any(char::is_control),
            "name",
            || "must have 1 to 255 bytes and no control characters".into(),
        )?;
        ensure((1..=VCPUS_MAX).contains(&self.vcpus), "vcpus", || {
            format!("{} is not between 1 and {VCPUS_MAX}", self.vcpus)
        })?;
        ensure(self.memory_mib >= MEMORY_MIB_MIN, "memory_mib", || {
            format!("{} MiB is less than the {MEMORY_MIB_MIN} MiB that any guest needs", self.memory_mib)
        })?;
        if let Some(bytes) = self.disk_bytes {
            ensure((1..=DISK_BYTES_MAX).contains(&bytes), "disk_bytes", || {
                format!("{bytes} is not between 1 and {DISK_BYTES_MAX}")
            })?;
        }
        ensure(self.mac[0] & 1 == 0, "mac", || {
            "is a group address: the lowest bit of its first byte must be 0".into()
        })?;
        self.boot.validate()?;
        if let Some(seed) = &self.seed {
            seed.validate()?;
        }
        ensure(self.publish.len() <= PORTS_MAX, "publish", || {
            format!("{} ports are more than the {PORTS_MAX} that are allowed", self.publish.len())
        })?;
        for (index, port) in self.publish.iter().enumerate() {
            ensure(port.host_port != 0 && port.guest_port != 0, "publish", || format!("{port}: port 0 means no port"))?;
            let twice = self.publish[..index].iter().any(|other| {
                (other.host_addr, other.host_port, other.protocol) == (port.host_addr, port.host_port, port.protocol)
            });
            ensure(!twice, "publish", || format!("{port} is named twice"))?;
        }
        Ok(())
    }
}

impl Boot {
    /// The base of the vm's disk, when there is one.
    pub fn base(&self) -> Option<&BaseDisk> {
        match self {
            Boot::Kernel { root, .. } => root.as_ref(),
            Boot::Disk(base) => Some(base),
        }
    }

    fn validate(&self) -> Result<(), SpecError> {
        let mut paths = vec![];
        if let Boot::Kernel { kernel, initrd, cmdline, .. } = self {
            paths.push(kernel);
            paths.extend(initrd);
            ensure(cmdline.len() <= CMDLINE_BYTES_MAX, "cmdline", || {
                format!("{} bytes are more than the {CMDLINE_BYTES_MAX} that are allowed", cmdline.len())
            })?;
            ensure(!cmdline.chars().any(char::is_control), "cmdline", || "must not have control characters".into())?;
        }
        paths.extend(self.base().map(|base| &base.path));
        paths.extend(self.base().and_then(|base| base.lazy.as_ref()).map(|lazy| &lazy.server));
        for path in paths {
            // The hypervisor runs in the vm's folder, so a relative path would mean another file there.
            ensure(path.is_absolute(), "boot", || format!("{} is not an absolute path", path.display()))?;
            ensure(path.to_str().is_some(), "boot", || format!("{} is not valid UTF-8", path.display()))?;
        }
        Ok(())
    }
}

impl Seed {
    fn validate(&self) -> Result<(), SpecError> {
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        ensure(self.hostname.len() <= 253 && self.hostname.split('.').all(is_label), "seed.hostname", || {
            format!("`{}` is not a host name", self.hostname.escape_debug())
        })?;
        let user_data_bytes = self.user_data.as_ref().map_or(0, String::len);
        ensure(user_data_bytes <= USER_DATA_BYTES_MAX, "seed.user_data", || {
            format!("{user_data_bytes} bytes are more than the {USER_DATA_BYTES_MAX} that are allowed")
        })?;
        let key_bytes: usize = self.ssh_keys.iter().map(String::len).sum();
        ensure(key_bytes <= SSH_KEYS_BYTES_MAX, "seed.ssh_keys", || {
            format!("{key_bytes} bytes are more than the {SSH_KEYS_BYTES_MAX} that are allowed")
        })?;
        ensure(self.ssh_keys.iter().all(|key| !key.chars().any(char::is_control)), "seed.ssh_keys", || {
            "each key must be one line".into()
        })?;
        for SeedFile { path, content_base64 } in &self.files {
            let is_path = path.starts_with('/') && path.len() <= 255 && !path.chars().any(char::is_control);
            ensure(is_path, "seed.files", || format!("`{}` is not an absolute path", path.escape_debug()))?;
            let is_base64 = content_base64.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b));
            ensure(is_base64, "seed.files", || format!("the content of {path} is not base64"))?;
        }
        let file_bytes: usize = self.files.iter().map(|file| file.path.len() + file.content_base64.len()).sum();
        ensure(file_bytes <= SEED_FILES_BYTES_MAX, "seed.files", || {
            format!("{file_bytes} bytes are more than the {SEED_FILES_BYTES_MAX} that are allowed")
        })?;
        ensure(!self.instance_id.is_empty() && self.instance_id.len() <= 255, "seed.instance_id", || {
            "must have 1 to 255 bytes".into()
        })
    }
}

fn ensure(holds: bool, field: &'static str, problem: impl FnOnce() -> String) -> Result<(), SpecError> {
    if holds { Ok(()) } else { Err(SpecError { field, problem: problem() }) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A spec that passes every check, for tests to bend.
    pub(crate) fn sample() -> LaunchSpec {
        LaunchSpec {
            vm: "0f1e2d3c-0000-4000-8000-000000000001".into(),
            name: "web".into(),
            epoch: 3,
            run: 2,
            restarts: 0,
            vcpus: 2,
            memory_mib: 256,
            boot: Boot::Kernel {
                kernel: "/images/vmlinuz".into(),
                initrd: Some("/images/initrd.gz".into()),
                cmdline: "quiet".into(),
                root: None,
            },
            disk_bytes: None,
            seed: None,
            publish: vec![],
            mac: [0x52, 0x54, 0, 1, 2, 3],
        }
    }

    fn refused(field: &str, bend: impl FnOnce(&mut LaunchSpec)) {
        let mut spec = sample();
        bend(&mut spec);
        assert_eq!(spec.validate().expect_err("must be refused").field, field);
    }

    #[test]
    fn what_cannot_run_is_refused_by_field() {
        assert_eq!(sample().validate(), Ok(()));
        for vm in ["", "..", "a/b", "A", "web", &"a".repeat(65)] {
            refused("vm", |spec| spec.vm = vm.into());
        }
        refused("name", |spec| spec.name = "a\nb".into());
        refused("vcpus", |spec| spec.vcpus = 0);
        refused("memory_mib", |spec| spec.memory_mib = 1);
        refused("disk_bytes", |spec| spec.disk_bytes = Some(0));
        refused("mac", |spec| spec.mac[0] = 1);
        refused("boot", |spec| {
            spec.boot = Boot::Disk(BaseDisk { path: "relative.img".into(), format: DiskFormat::Raw, lazy: None });
        });
        refused("boot", |spec| {
            let lazy = Some(LazyBase { server: "relative".into(), virtual_bytes: 1, patience_s: 1 });
            spec.boot = Boot::Disk(BaseDisk { path: "/image".into(), format: DiskFormat::Raw, lazy });
        });
        refused("cmdline", |spec| {
            let Boot::Kernel { cmdline, .. } = &mut spec.boot else { return };
            *cmdline = "a\nb".into();
        });
        let port =
            PortForward { host_addr: [127, 0, 0, 1].into(), host_port: 8080, guest_port: 80, protocol: Protocol::Tcp };
        refused("publish", |spec| spec.publish = vec![PortForward { host_port: 0, ..port }]);
        refused("publish", |spec| spec.publish = vec![port, PortForward { guest_port: 81, ..port }]);
        let seed =
            Seed { hostname: "web".into(), user_data: None, ssh_keys: vec![], instance_id: "i".into(), files: vec![] };
        refused("seed.hostname", |spec| spec.seed = Some(Seed { hostname: "-web".into(), ..seed.clone() }));
        refused("seed.ssh_keys", |spec| spec.seed = Some(Seed { ssh_keys: vec!["a\nb".into()], ..seed.clone() }));
        refused("seed.user_data", |spec| {
            spec.seed = Some(Seed { user_data: Some("x".repeat(USER_DATA_BYTES_MAX + 1)), ..seed.clone() });
        });
    }
}
