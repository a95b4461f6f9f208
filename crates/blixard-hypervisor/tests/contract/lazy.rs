//! What holds of a vm whose base is read from a server until the base's file is there: for every driver, and with real guests
//! under QEMU, whose server is `qemu-nbd`.

use std::fs::{Permissions, create_dir, remove_file, set_permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use blixard_hypervisor::{BaseDisk, Boot, DiskFormat, Driver, LAZY_SOCKET, LaunchSpec, LazyBase, SettleError, VmState};

use crate::Case;
use crate::bench::{Bench, FakeBench, QemuBench, READY, await_log, eventually, log_text, state};

/// Large enough to be read in many requests, and small enough for a guest without KVM.
const BASE_BYTES: usize = 8 << 20;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        ("fake::a_lazy_vm_is_settled_while_it_runs".into(), Box::new(|| settled(&FakeBench::new(), &fake_server))),
        ("qemu::a_lazy_vm_is_settled_while_it_runs".into(), Box::new(|| settled(&QemuBench::new(), &nbd_server))),
        ("qemu::a_guest_sees_its_whole_base_before_and_after".into(), Box::new(a_guest_sees_its_whole_base)),
        ("qemu::a_lazy_qcow2_boots_and_is_settled".into(), Box::new(a_lazy_qcow2_boots_and_is_settled)),
    ]
}

/// A server of a base, which ends when it is dropped.
trait Server {}
impl Server for UnixListener {}

struct Nbd(Child);
impl Server for Nbd {}

impl Drop for Nbd {
    fn drop(&mut self) {
        // One that has ended needs no signal.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

type Start<'a> = &'a dyn Fn(&Path, &Path) -> Box<dyn Server>;

fn open_to_all(socket: &Path) {
    set_permissions(socket, Permissions::from_mode(0o666)).unwrap();
}

/// Somebody listens; a fake guest reads nothing.
fn fake_server(folder: &Path, _: &Path) -> Box<dyn Server> {
    Box::new(UnixListener::bind(folder.join(LAZY_SOCKET)).unwrap())
}

/// QEMU's own server.
fn nbd_server(folder: &Path, content: &Path) -> Box<dyn Server> {
    let socket = folder.join(LAZY_SOCKET);
    // One that was killed leaves its socket behind.
    let _ = remove_file(&socket);
    let mut command = Command::new("qemu-nbd");
    command
        .args(["--read-only", "--persistent", "--format=raw", "--shared=4"])
        .arg("--socket")
        .arg(&socket)
        .arg(content);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = command.spawn().expect("qemu-nbd is installed with qemu-img: run `cargo xtask setup`");
    eventually("the socket of qemu-nbd", || socket.exists().then_some(()));
    open_to_all(&socket);
    Box::new(Nbd(server))
}

/// A folder for the server, a content that it serves, and where that content will be as a file.
struct Place {
    dir: tempfile::TempDir,
    content: Vec<u8>,
}

impl Place {
    fn new(content: Vec<u8>) -> Place {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("far"), &content).unwrap();
        create_dir(dir.path().join("server")).unwrap();
        set_permissions(dir.path().join("server"), Permissions::from_mode(0o711)).unwrap();
        Place { dir, content }
    }

    fn server(&self) -> PathBuf {
        self.dir.path().join("server")
    }

    fn far(&self) -> PathBuf {
        self.dir.path().join("far")
    }

    fn base(&self, virtual_bytes: u64, format: DiskFormat) -> BaseDisk {
        let lazy = LazyBase { server: self.server(), virtual_bytes, patience_s: 60 };
        BaseDisk { path: self.dir.path().join("here"), format, lazy: Some(lazy) }
    }

    /// The content has come.
    fn arrive(&self) {
        std::fs::write(self.dir.path().join("here"), &self.content).unwrap();
    }
}

/// Bytes without a pattern that a wrong offset could hide in.
fn noise() -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(BASE_BYTES).collect()
}

fn with_base(mut spec: LaunchSpec, base: BaseDisk) -> LaunchSpec {
    match &mut spec.boot {
        Boot::Kernel { root, .. } => *root = Some(base),
        Boot::Disk(disk) => *disk = base,
    }
    spec
}

fn is_lazy(driver: &dyn Driver, vm: &str) -> bool {
    match state(driver, vm) {
        VmState::Running(running) => running.lazy,
        state => panic!("it does not run: {state:?}"),
    }
}

fn settled(bench: &dyn Bench, serve: Start<'_>) {
    let place = Place::new(noise());
    let server = serve(&place.server(), &place.far());
    let mut spec = with_base(bench.obedient(), place.base(BASE_BYTES as u64, DiskFormat::Raw));
    let vm = &spec.vm.clone();
    let driver = bench.open();
    assert!(matches!(driver.settle(vm), Err(SettleError::Unknown { .. })));
    driver.launch(&spec).unwrap();
    assert!(is_lazy(&*driver, vm));
    // As after a restart of the node.
    let driver = bench.open();
    assert!(is_lazy(&*driver, vm));
    driver.settle(vm).expect_err("the file is not there");
    assert!(is_lazy(&*driver, vm), "it runs on as it was");
    place.arrive();
    driver.settle(vm).unwrap();
    assert!(!is_lazy(&*driver, vm));
    drop(server);
    driver.settle(vm).unwrap();
    await_log(&*driver, vm, READY);
    driver.kill(vm).unwrap();
    driver.settle(vm).unwrap();
    // The next run needs no server.
    spec.run = 2;
    let here = BaseDisk { lazy: None, ..place.base(BASE_BYTES as u64, DiskFormat::Raw) };
    let spec = with_base(spec, here);
    driver.launch(&spec).unwrap();
    assert!(!is_lazy(&*driver, vm));
}

/// Types a command between two marks. The quotes keep what is typed from being taken for what is printed.
fn ask(driver: &dyn Driver, vm: &str, command: &str, number: u32) {
    let line = format!("echo '<'{number}; {command}; echo {number}'>'\n");
    driver.console(vm).unwrap().write_all(line.as_bytes()).unwrap();
}

/// What the command of this number printed.
fn answer(driver: &dyn Driver, vm: &str, number: u32) -> String {
    let (begin, end) = (format!("<{number}\r\n"), format!("{number}>"));
    eventually("the guest's answer", || {
        let text = log_text(driver, vm);
        let from = text.find(&begin)? + begin.len();
        let length = text[from..].find(&end)?;
        Some(text[from..from + length].trim().to_owned())
    })
}

/// What the guest reads of its disk, past its own cache, as a checksum; the same as that of a program of this host.
fn a_guest_sees_its_whole_base() {
    let bench = QemuBench::new();
    let place = Place::new(noise());
    let output = Command::new("md5sum").arg(place.far()).output().expect("md5sum is part of every distribution");
    let expected = String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned();
    let server = nbd_server(&place.server(), &place.far());
    let spec = with_base(bench.obedient(), place.base(BASE_BYTES as u64, DiskFormat::Raw));
    let (driver, vm) = (bench.driver(), &spec.vm.clone());
    driver.launch(&spec).unwrap();
    await_log(&driver, vm, READY);
    const READ: &str = "echo 3 > /proc/sys/vm/drop_caches; md5sum < /dev/vda | cut -c1-32";
    // A server that goes away while the guest reads: the read waits, and goes on when the server is back.
    drop(server);
    ask(&driver, vm, READ, 1);
    eventually("the read to begin", || log_text(&driver, vm).contains("<1\r\n").then_some(()));
    assert!(!log_text(&driver, vm).contains("1>\r\n"), "it read from nobody");
    let server = nbd_server(&place.server(), &place.far());
    assert_eq!(answer(&driver, vm, 1), expected);
    place.arrive();
    driver.settle(vm).unwrap();
    drop(server);
    ask(&driver, vm, READ, 2);
    assert_eq!(answer(&driver, vm, 2), expected, "from the file");
}

fn a_lazy_qcow2_boots_and_is_settled() {
    let bench = QemuBench::new();
    let image = std::fs::read(crate::bench::guest_dir().join("disk.qcow2")).unwrap();
    let virtual_bytes = u64::from_be_bytes(image[24..32].try_into().unwrap());
    let place = Place::new(image);
    let server = nbd_server(&place.server(), &place.far());
    let spec = crate::bench::spec(7, Boot::Disk(place.base(virtual_bytes, DiskFormat::Qcow2)));
    let (driver, vm) = (bench.driver(), &spec.vm.clone());
    driver.launch(&spec).unwrap();
    // While the guest reads its kernel.
    place.arrive();
    driver.settle(vm).unwrap();
    drop(server);
    await_log(&driver, vm, READY);
    assert!(!is_lazy(&driver, vm));
}
