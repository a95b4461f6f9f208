//! Runs virtual machines on this host.
//!
//! This crate owns the hypervisor processes of a host, the folders of their vms, and what may be said about the host
//! itself: its sizes, its accelerator, and whether a file can be booted. It blocks, has no runtime, and opens no network
//! connection; it has never heard of a cluster, an image catalog or a placement. `epoch` and `run` are numbers to it that
//! only rise. It never starts a vm by itself: a run that has ended stays ended until somebody launches the next.
//!
//! The node's agent feeds it: [`Driver::launch`], [`stop`](Driver::stop), [`kill`](Driver::kill) and
//! [`remove`](Driver::remove) act, [`settle`](Driver::settle) lets a guest read its image from the file that has come meanwhile, [`list`](Driver::list) looks, and [`wait_change`](Driver::wait_change) says when to
//! look again. There is nothing to stop: dropping a driver leaves its vms running, and the next driver on the same root
//! folder finds them.
//!
//! # Processes
//!
//! ```text
//! node ──launch──> guard ──owns──> qemu          the guard has a session of its own and outlives the node
//!   │                │  └─ monitor (QMP) and serial console: socket pairs that nobody else can reach
//!   ├─ control.sock ─┤     one JSON order per line: stop, kill, settle
//!   └─ console.sock ─┘     raw bytes, several viewers
//! ```
//!
//! A guard is this same program started again (see [`guard::run`]). If it dies, the kernel kills its hypervisor; there is
//! never a guest without a guard. Where the node is root a hypervisor has a user of its own, and no capabilities; the guard
//! opens the files of the guest and hands them over, so that this user needs to be allowed to open none. Under systemd the node's unit needs `KillMode=process`, or guards end with the node.
//!
//! # The folder of a vm
//!
//! `<root>/<vm id>/`, open to its owner only:
//!
//! | file | written by | holds |
//! |---|---|---|
//! | `spec.json` | driver | the [`LaunchSpec`] of the last launch |
//! | `plan.json` | driver | what the guard is to run: program, arguments, files, control group |
//! | `guard.json` | guard | processes (id and start time, so that a reused id fools nobody), state, why it is not more confined |
//! | `exit.json` | guard, or driver if the guard could not | how the run ended |
//! | `disk.qcow2` | driver, then the guest | the vm's own disk, on top of the read-only base |
//! | `seed.img` | driver | cloud-init's NoCloud seed |
//! | `console-<position>.log` | guard | the console log, two files of 2 MiB at most |
//! | `control.sock`, `console.sock` | guard | where it listens |
//! | `lock` | guard | held while it lives: two guards never share a vm |
//! | `guard.stderr` | guard | nothing, unless it panics |
//!
//! Each record names its epoch and run and is replaced in one step; one that belongs to another run is ignored. So the
//! state of a vm follows from its files and from the processes that they name, whatever was interrupted when:
//!
//! ```text
//! spec only ───────────────────────────────> Exited: launch failed (it was interrupted)
//! spec + guard alive, not ready ───────────> Starting
//! spec + guard alive, ready ───────────────> Running
//! spec + exit ─────────────────────────────> Exited: as recorded
//! spec + guard dead, no exit, same boot ───> Exited: the guard died
//! spec + guard dead, no exit, other boot ──> Exited: the host was restarted
//! any record that cannot be read ──────────> Damaged; other vms are not affected
//! ```
//!
//! The root folder itself holds `host.json`, what was found out about the accelerator since the host started.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("blixard-hypervisor runs QEMU for x86-64 guests on x86-64 Linux; other hosts are not supported yet");

mod confinement;
#[doc(hidden)]
pub mod decoders;
mod disk;
mod driver;
mod fake;
mod folder;
pub mod guard;
mod host;
mod identity;
mod log;
mod observe;
mod observed;
mod order;
mod process;
mod qemu;
mod root;
mod seed;
mod spec;

pub use disk::{DiskFacts, InspectError, KernelFormat, inspect_disk, inspect_kernel};
pub use driver::{ConsoleError, Driver, LaunchError, ListError, LogError, RemoveError, SettleError, StopError};
pub use fake::{FakeDriver, FakeScript};
pub use host::{HostFacts, probe};
pub use log::{LOG_FILE_BYTES_MAX, LogChunk, LogPosition, LogSpan};
pub use observed::{Accelerator, Confinement, ExitReason, Limits, ObservedVm, Privileges, Running, VmState};
pub use qemu::{AcceleratorChoice, QemuDriver, QemuOptions};
pub use spec::{
    BaseDisk, Boot, CMDLINE_BYTES_MAX, DISK_BYTES_MAX, DiskFormat, LAZY_SOCKET, LaunchSpec, LazyBase, MEMORY_MIB_MIN,
    PORTS_MAX, PortForward, Protocol, SEED_FILES_BYTES_MAX, SSH_KEYS_BYTES_MAX, Seed, SeedFile, SpecError,
    USER_DATA_BYTES_MAX, VCPUS_MAX, VM_ID_CHARS_MAX, is_vm_id,
};
