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

pub use driver::{ConsoleError, Driver, LaunchError, ListError, LogError, RemoveError, StopError};
pub use host::{HostFacts, probe};
pub use log::{LOG_FILE_BYTES_MAX, LogChunk, LogPosition, LogSpan};
pub use observed::{Accelerator, Confinement, ExitReason, ObservedVm, Running, VmState};
pub use qemu::{AcceleratorChoice, QemuDriver, QemuOptions};
pub use spec::{BaseDisk, Boot, DiskFormat, LaunchSpec, PortForward, Protocol, Seed, SpecError, is_vm_id};
