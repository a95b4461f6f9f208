//! Runs virtual machines on this host.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("blixard-hypervisor runs QEMU for x86-64 guests on x86-64 Linux; other hosts are not supported yet");

mod disk;
mod driver;
mod folder;
pub mod guard;
mod host;
mod identity;
mod log;
mod observe;
mod observed;
mod process;
mod qemu;
mod root;
mod seed;
mod spec;

pub use disk::{DiskFacts, InspectError, KernelFormat, inspect_disk, inspect_kernel};
pub use driver::{ConsoleError, Driver, LaunchError, ListError, LogError, RemoveError, StopError};
pub use host::{HostFacts, probe};
pub use log::{LOG_FILE_BYTES_MAX, LogChunk, LogPosition, LogSpan};
pub use observed::{Accelerator, Confinement, ExitReason, ObservedVm, Running, VmState};
pub use qemu::{AcceleratorChoice, QemuDriver, QemuOptions};
pub use spec::{
    BaseDisk, Boot, CMDLINE_BYTES_MAX, DISK_BYTES_MAX, DiskFormat, LaunchSpec, MEMORY_MIB_MIN, PORTS_MAX, PortForward,
    Protocol, SSH_KEYS_BYTES_MAX, Seed, SpecError, USER_DATA_BYTES_MAX, VCPUS_MAX, VM_ID_CHARS_MAX, is_vm_id,
};
