//! A root folder, a driver on it, and specs that it can run.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blixard_hypervisor::{
    AcceleratorChoice, BaseDisk, Boot, DiskFormat, Driver, FakeDriver, FakeScript, LaunchSpec, LogPosition, ObservedVm,
    QemuDriver, QemuOptions, VmState,
};

/// First argument with which this program is a guard.
pub(crate) const GUARD_ARGUMENT: &str = "guard";
/// First argument with which this program launches a vm and waits to be killed.
pub(crate) const LAUNCH_ARGUMENT: &str = "launch";
/// What the test guest prints when its shell is there.
pub(crate) const READY: &str = "blixard-guest: ready";
/// The longest that anything here may take on a host that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What the contract needs of a driver under test.
pub(crate) trait Bench {
    /// A driver on this bench's root, as a new process would open it.
    fn open(&self) -> Box<dyn Driver>;
    /// A vm that prints the ready line, offers a console, and obeys a stop.
    fn obedient(&self) -> LaunchSpec;
    /// A vm that runs but never obeys a stop.
    fn stubborn(&self) -> LaunchSpec;
    /// A vm that cannot start, and a word of the reason.
    fn hopeless(&self) -> (LaunchSpec, &'static str);
    fn root(&self) -> &Path;
}

/// QEMU with the tiny guest.
pub(crate) struct QemuBench {
    dir: tempfile::TempDir,
    root: PathBuf,
}

impl QemuBench {
    pub(crate) fn new() -> QemuBench {
        let dir = tempfile::tempdir().unwrap();
        // Longer than a socket address can hold: data folders of users are.
        let root = dir.path().join("d".repeat(150));
        QemuBench { dir, root }
    }

    pub(crate) fn driver(&self) -> QemuDriver {
        Self::driver_on(&self.root, AcceleratorChoice::Tcg)
    }

    pub(crate) fn driver_with(&self, accelerator: AcceleratorChoice) -> QemuDriver {
        Self::driver_on(&self.root, accelerator)
    }

    pub(crate) fn driver_on(root: &Path, accelerator: AcceleratorChoice) -> QemuDriver {
        let guard: Vec<OsString> = vec![std::env::current_exe().unwrap().into(), GUARD_ARGUMENT.into()];
        QemuDriver::new(root, guard, QemuOptions { accelerator, ..QemuOptions::default() }).unwrap()
    }

    pub(crate) fn scratch(&self) -> &Path {
        self.dir.path()
    }
}

impl Bench for QemuBench {
    fn open(&self) -> Box<dyn Driver> {
        Box::new(self.driver())
    }

    fn obedient(&self) -> LaunchSpec {
        let guest = guest_dir();
        spec(
            1,
            Boot::Kernel {
                kernel: guest.join("vmlinuz"),
                initrd: Some(guest.join("initrd.gz")),
                cmdline: "quiet".into(),
                root: None,
            },
        )
    }

    fn stubborn(&self) -> LaunchSpec {
        // Without anything to run the kernel panics, and `panic=0` lets it stay like that for ever.
        spec(
            2,
            Boot::Kernel { kernel: guest_dir().join("vmlinuz"), initrd: None, cmdline: "panic=0".into(), root: None },
        )
    }

    fn hopeless(&self) -> (LaunchSpec, &'static str) {
        let not_a_kernel = self.scratch().join("kernel");
        std::fs::write(&not_a_kernel, "no kernel at all").unwrap();
        let boot = Boot::Kernel { kernel: not_a_kernel, initrd: None, cmdline: String::new(), root: None };
        (spec(3, boot), "kernel")
    }

    fn root(&self) -> &Path {
        &self.root
    }
}

/// The fake driver.
pub(crate) struct FakeBench {
    root: tempfile::TempDir,
}

impl FakeBench {
    pub(crate) fn new() -> FakeBench {
        let bench = FakeBench { root: tempfile::tempdir().unwrap() };
        let (stubborn, (hopeless, word)) = (bench.stubborn(), bench.hopeless());
        let script = FakeScript {
            launch_failures: [(hopeless.name, format!("the script has no {word} for it"))].into(),
            // One by name and one by id, since a script may have either.
            ignore_stop: [stubborn.vm].into(),
        };
        FakeDriver::new(bench.root.path()).unwrap().set_script(&script).unwrap();
        bench
    }
}

impl Bench for FakeBench {
    fn open(&self) -> Box<dyn Driver> {
        Box::new(FakeDriver::new(self.root.path()).unwrap())
    }

    fn obedient(&self) -> LaunchSpec {
        spec(1, no_boot())
    }

    fn stubborn(&self) -> LaunchSpec {
        spec(2, no_boot())
    }

    fn hopeless(&self) -> (LaunchSpec, &'static str) {
        (spec(3, no_boot()), "kernel")
    }

    fn root(&self) -> &Path {
        self.root.path()
    }
}

fn no_boot() -> Boot {
    Boot::Disk(BaseDisk { path: "/nowhere".into(), format: DiskFormat::Raw, lazy: None })
}

impl Drop for QemuBench {
    /// A case that failed must not leave guests behind.
    fn drop(&mut self) {
        let driver = self.driver();
        for vm in driver.list().unwrap_or_default() {
            if let Err(error) = driver.remove(&vm.vm) {
                println!("clean up {}: {error:?}", vm.vm);
            }
        }
    }
}

/// A small vm with this boot.
pub(crate) fn spec(number: u64, boot: Boot) -> LaunchSpec {
    LaunchSpec {
        vm: format!("00000000-0000-4000-8000-{number:012x}"),
        name: format!("test-{number}"),
        epoch: 1,
        run: 1,
        restarts: 0,
        vcpus: 1,
        memory_mib: 128,
        boot,
        disk_bytes: None,
        seed: None,
        publish: vec![],
        mac: [0x52, 0x54, 0, 0, 0, 1],
    }
}

/// Where the kernel and initramfs of the test guest are.
pub(crate) fn guest_dir() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest");
    let dir = std::env::var_os("BLIXARD_GUEST_DIR").map_or_else(default, PathBuf::from);
    for file in ["vmlinuz", "initrd.gz", "disk.qcow2"] {
        assert!(dir.join(file).is_file(), "there is no {}: run `cargo xtask guest` first", dir.join(file).display());
    }
    dir.canonicalize().unwrap()
}

/// Waits until `look` finds something, and fails with `what` when it does not.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What the driver sees of a vm.
pub(crate) fn seen(driver: &dyn Driver, vm: &str) -> Option<ObservedVm> {
    driver.list().unwrap().into_iter().find(|seen| seen.vm == vm)
}

/// The state of a vm that must be there.
pub(crate) fn state(driver: &dyn Driver, vm: &str) -> VmState {
    seen(driver, vm).unwrap_or_else(|| panic!("vm {vm} is not listed")).state
}

/// Waits for the end of a run through the driver's own waiting.
pub(crate) fn await_exit(driver: &dyn Driver, vm: &str) -> blixard_hypervisor::ExitReason {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match state(driver, vm) {
            VmState::Exited { reason, at_ms, .. } => {
                assert!(at_ms > 0);
                return reason;
            }
            state => assert!(Instant::now() < deadline, "still {state:?}"),
        }
        driver.wait_change(Duration::from_secs(5));
    }
}

/// Everything in a vm's log.
pub(crate) fn log_text(driver: &dyn Driver, vm: &str) -> String {
    let chunk = driver.read_log(vm, LogPosition(0), usize::MAX).unwrap();
    String::from_utf8_lossy(&chunk.bytes).into_owned()
}

/// Waits until a vm's log contains a text.
pub(crate) fn await_log(driver: &dyn Driver, vm: &str, text: &str) {
    eventually(&format!("`{text}` in the log"), || log_text(driver, vm).contains(text).then_some(()));
}
