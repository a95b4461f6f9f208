//! From a spec to QEMU's command line: a pure function, held by the texts in `testdata/`.
//!
//! QEMU gets no path of a guest's files but descriptors, which its guard has opened: it may run as a user that could open
//! none of them. It knows those of disks as descriptor sets; a kernel it only takes by a name, and has that of the
//! descriptor.

use std::path::Path;

use serde_json::{Value, json};

use crate::folder::{DISK_FILE, FIRST_FILE_FD, HandedFile, Handing, SEED_FILE, Settling};
use crate::observed::Accelerator;
use crate::spec::{BaseDisk, Boot, LAZY_SOCKET, LaunchSpec, LazyBase, Protocol};

/// The descriptor set of a base that is changed over to: the number of no descriptor that a guard hands over.
const SETTLED_SET: u32 = 1000;
/// How long QEMU tries to reach the server of a base when it starts, in seconds: the server was there a moment ago.
const OPEN_TIMEOUT_S: u32 = 10;

/// What the command line depends on besides the spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) accelerator: Accelerator,
    /// Frequency of this host's time stamp counter, where it is known.
    pub(super) tsc_khz: Option<u64>,
}

/// How devices sit in the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Machine {
    /// No firmware to wait for and no PCI: for kernels that are started directly.
    Microvm,
    /// A PC as boot loaders know it.
    Q35,
}

impl Machine {
    fn device(self, kind: &str) -> String {
        match self {
            Machine::Microvm => format!("virtio-{kind}-device"),
            Machine::Q35 => format!("virtio-{kind}-pci"),
        }
    }
}

/// How QEMU is started.
pub(super) struct CommandLine {
    pub(super) argv: Vec<String>,
    pub(super) files: Vec<HandedFile>,
    /// How a guest that reads its base from a server is changed over to the file.
    pub(super) settling: Option<Settling>,
}

/// The files that QEMU is handed, in the order of their descriptors.
#[derive(Default)]
struct Files(Vec<HandedFile>);

impl Files {
    fn hand(&mut self, path: &Path, handing: Handing) -> usize {
        self.0.push(HandedFile { path: path.to_owned(), handing });
        FIRST_FILE_FD as usize + self.0.len() - 1
    }

    /// A name under which QEMU opens the file itself.
    fn name(&mut self, path: &Path) -> String {
        format!("/proc/self/fd/{}", self.hand(path, Handing::Reopen))
    }

    /// A name for a block device's file, which stands for the descriptor of that number.
    fn set(&mut self, path: &Path, read_only: bool) -> String {
        let handing = if read_only { Handing::ReadOnly } else { Handing::ReadWrite };
        format!("/dev/fdset/{}", self.hand(path, handing))
    }
}

/// QEMU's arguments, and the files that it is handed. Its monitor is on descriptor 0 and its serial console on descriptor
/// 1, both sockets.
pub(super) fn command_line(spec: &LaunchSpec, host: Host) -> CommandLine {
    let mut files = Files::default();
    let machine = match spec.boot {
        Boot::Kernel { .. } => Machine::Microvm,
        Boot::Disk(_) => Machine::Q35,
    };
    let mut argv: Vec<String> = vec![];
    let mut option = |name: &str, value: String| {
        argv.push(format!("-{name}"));
        argv.push(value);
    };
    option("name", spec.name.replace(',', ",,"));
    option("machine", if machine == Machine::Microvm { "microvm" } else { "q35" }.into());
    match host.accelerator {
        Accelerator::Kvm => {
            option("accel", "kvm".into());
            option("cpu", "host".into());
        }
        // 32 MiB of translated code: more makes no guest faster, and the default is a quarter of the host's memory. The
        // processor model is the fastest to translate that today's distributions still accept.
        Accelerator::Tcg | Accelerator::Fake => {
            option("accel", "tcg,tb-size=32".into());
            option("cpu", "Nehalem-v1".into());
        }
    }
    option("smp", spec.vcpus.to_string());
    option("m", format!("{}M", spec.memory_mib));
    if let Boot::Kernel { kernel, initrd, cmdline, .. } = &spec.boot {
        option("kernel", files.name(kernel));
        if let Some(initrd) = initrd {
            option("initrd", files.name(initrd));
        }
        option("append", kernel_arguments(cmdline, host));
    }
    for (name, value) in [
        ("sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        ("display", "none"),
        ("chardev", "socket,id=monitor0,fd=0"),
        ("mon", "chardev=monitor0,mode=control"),
        ("chardev", "socket,id=serial0,fd=1"),
        ("serial", "chardev:serial0"),
    ] {
        option(name, value.into());
    }
    // The order decides the names in the guest: the vm's own disk is vda, the seed comes behind it.
    let mut drives = vec![];
    let lazy = spec.boot.base().and_then(|base| Some((base, base.lazy.as_ref()?)));
    if has_disk(spec) {
        let overlay = match lazy {
            Some(_) => lazy_overlay(&mut files),
            None => disk(&mut files, spec.boot.base()),
        };
        drives.push(("disk0", overlay));
    }
    let served = lazy.map(|(base, lazy)| served_base(&mut files, base, lazy));
    if spec.seed.is_some() {
        drives.push(("seed0", file_node(&mut files, "raw", Path::new(SEED_FILE), true)));
    }
    for (fd, file) in (FIRST_FILE_FD..).zip(&files.0) {
        if matches!(file.handing, Handing::ReadOnly | Handing::ReadWrite) {
            option("add-fd", format!("fd={fd},set={fd}"));
        }
    }
    if let Some(served) = served {
        option("blockdev", served.to_string());
    }
    for (node, mut description) in drives {
        description["node-name"] = json!(node);
        option("blockdev", description.to_string());
        let boot = if node == "disk0" && machine == Machine::Q35 { ",bootindex=0" } else { "" };
        option("device", format!("{},drive={node}{boot}", machine.device("blk")));
    }
    option("netdev", network(spec));
    let mac = spec.mac.map(|byte| format!("{byte:02x}")).join(":");
    // Nobody boots over the network here, and its ROM would only make the firmware slower.
    let rom = if machine == Machine::Q35 { ",romfile=" } else { "" };
    option("device", format!("{},netdev=net0,mac={mac}{rom}", machine.device("net")));
    option("device", machine.device("rng"));
    argv.extend(["-no-reboot", "-nodefaults", "-no-user-config"].map(str::to_owned));
    let settling = lazy.map(|(base, _)| settling(base));
    CommandLine { argv, files: files.0, settling }
}

/// Whether the vm has a disk of its own.
pub(super) fn has_disk(spec: &LaunchSpec) -> bool {
    spec.boot.base().is_some() || spec.disk_bytes.is_some()
}

fn file_node(files: &mut Files, format: &str, path: &Path, read_only: bool) -> Value {
    let name = files.set(path, read_only);
    json!({ "driver": format, "read-only": read_only, "file": { "driver": "file", "filename": name } })
}

/// The overlay with its base spelled out, so that QEMU follows no name in any header.
fn disk(files: &mut Files, base: Option<&BaseDisk>) -> Value {
    let mut overlay = file_node(files, "qcow2", Path::new(DISK_FILE), false);
    overlay["discard"] = json!("unmap");
    overlay["file"]["discard"] = json!("unmap");
    if let Some(base) = base {
        let mut node = file_node(files, base.format.qemu_name(), &base.path, true);
        if node["driver"] == "qcow2" {
            // A base stands on its own; were it to name another file, that file stays shut.
            node["backing"] = Value::Null;
        }
        overlay["backing"] = node;
    }
    overlay
}

/// A base on a server, as a node of its own: within the overlay's description QEMU would mix it with the name in the overlay's
/// header.
fn served_base(files: &mut Files, base: &BaseDisk, lazy: &LazyBase) -> Value {
    let folder = files.hand(&lazy.server, Handing::Folder);
    let mut node = json!({ "driver": base.format.qemu_name(), "node-name": "served0", "read-only": true, "file": {
        "driver": "nbd", "read-only": true, "export": "",
        "server": { "type": "unix", "path": format!("/proc/self/fd/{folder}/{LAZY_SOCKET}") },
        "reconnect-delay": lazy.patience_s, "open-timeout": OPEN_TIMEOUT_S,
    } });
    if node["driver"] == "qcow2" {
        node["backing"] = Value::Null;
    }
    node
}

/// The overlay of a guest whose base is on a server; its nodes have names by which it is changed over to the file.
fn lazy_overlay(files: &mut Files) -> Value {
    let mut overlay = disk(files, None);
    overlay["file"]["node-name"] = json!("overlay0");
    overlay["backing"] = json!("served0");
    overlay
}

/// What changes the overlay over from the server to the file, in this order: only the third command touches the guest, for
/// some milliseconds.
fn settling(base: &BaseDisk) -> Settling {
    let command = |name: &str, arguments: Value| json!({ "execute": name, "arguments": arguments });
    let file = json!({ "driver": "file", "read-only": true, "filename": format!("/dev/fdset/{SETTLED_SET}") });
    let mut node =
        json!({ "driver": base.format.qemu_name(), "node-name": "settled0", "read-only": true, "file": file });
    if node["driver"] == "qcow2" {
        node["backing"] = Value::Null;
    }
    let overlay = json!({ "driver": "qcow2", "node-name": "disk0", "read-only": false, "discard": "unmap",
        "file": "overlay0", "backing": "settled0" });
    let steps = vec![
        command("add-fd", json!({ "fdset-id": SETTLED_SET })),
        command("blockdev-add", node),
        command("blockdev-reopen", json!({ "options": [overlay] })),
        command("blockdev-del", json!({ "node-name": "served0" })),
    ];
    let undo = vec![
        command("blockdev-del", json!({ "node-name": "settled0" })),
        command("remove-fd", json!({ "fdset-id": SETTLED_SET })),
    ];
    Settling { base: base.path.clone(), steps, undo }
}

fn network(spec: &LaunchSpec) -> String {
    let mut netdev = "user,id=net0".to_owned();
    for port in &spec.publish {
        let protocol = match port.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        netdev += &format!(",hostfwd={protocol}:{}:{}-:{}", port.host_addr, port.host_port, port.guest_port);
    }
    netdev
}

/// The user's kernel arguments and those that the machine needs, where the user has not named them.
fn kernel_arguments(cmdline: &str, host: Host) -> String {
    let mut arguments: Vec<String> = cmdline.split_whitespace().map(str::to_owned).collect();
    // What follows a double dash is not for the kernel but for the first program.
    let kernel_end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    let for_init = arguments.split_off(kernel_end);
    let mut wanted = vec![("console=", "console=ttyS0".to_owned()), ("panic=", "panic=-1".into())];
    // The machine has no reset line but a triple fault.
    wanted.push(("reboot=", "reboot=t".into()));
    if let (Accelerator::Tcg, Some(khz)) = (host.accelerator, host.tsc_khz) {
        // The machine has one slow timer, and a kernel that calibrates against it on a busy host waits for ever; without
        // the second argument the guest distrusts the counter and its clock falls behind.
        wanted.push(("tsc_early_khz=", format!("tsc_early_khz={khz}")));
        wanted.push(("tsc=", "tsc=reliable".into()));
    }
    for (key, argument) in wanted {
        if !arguments.iter().any(|named| named.starts_with(key)) {
            arguments.push(argument);
        }
    }
    arguments.extend(for_init);
    arguments.join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::spec::tests::sample;
    use crate::spec::{DiskFormat, PortForward, Seed};

    const TCG: Host = Host { accelerator: Accelerator::Tcg, tsc_khz: Some(2_596_134) };
    const KVM: Host = Host { accelerator: Accelerator::Kvm, tsc_khz: Some(2_596_134) };

    /// Compares with the text in `testdata/`, an argument and its value to a line, then the files. With `BLIXARD_UPDATE_TESTDATA` set
    /// the text is written instead.
    fn check(name: &str, spec: &LaunchSpec, host: Host) {
        spec.validate().unwrap();
        let mut text = String::new();
        let line = command_line(spec, host);
        for argument in line.argv {
            let begins = argument.starts_with('-') && !text.is_empty();
            text += if begins {
                "\n"
            } else if text.is_empty() {
                ""
            } else {
                " "
            };
            text += &argument;
        }
        text += "\n";
        for (fd, file) in (FIRST_FILE_FD..).zip(line.files) {
            text += &format!("{fd} {:?} {}\n", file.handing, file.path.display());
        }
        for step in line.settling.iter().flat_map(|settling| &settling.steps) {
            text += &format!("{step}\n");
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/qemu/testdata").join(name);
        if std::env::var_os("BLIXARD_UPDATE_TESTDATA").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{name}: set BLIXARD_UPDATE_TESTDATA to accept");
    }

    fn everything(mut spec: LaunchSpec) -> LaunchSpec {
        spec.name = "web, the first".into();
        spec.disk_bytes = Some(10 << 30);
        spec.seed = Some(Seed {
            hostname: "web".into(),
            user_data: None,
            ssh_keys: vec![],
            instance_id: "i-1".into(),
            files: vec![],
        });
        let port =
            PortForward { host_addr: [127, 0, 0, 1].into(), host_port: 8080, guest_port: 80, protocol: Protocol::Tcp };
        spec.publish = vec![port, PortForward { host_port: 5353, guest_port: 53, protocol: Protocol::Udp, ..port }];
        spec
    }

    #[test]
    fn command_lines_are_as_written_down() {
        let kernel = sample();
        check("kernel-tcg.txt", &kernel, TCG);
        check("kernel-kvm.txt", &kernel, KVM);
        check("kernel-everything-tcg.txt", &everything(kernel), TCG);
        let base = BaseDisk { path: "/images/a, b.qcow2".into(), format: DiskFormat::Qcow2, lazy: None };
        let lazy = LazyBase { server: "/run/lazy".into(), virtual_bytes: 1 << 30, patience_s: 120 };
        let lazily = BaseDisk { lazy: Some(lazy), ..base.clone() };
        let lazily = LaunchSpec { boot: Boot::Disk(lazily), ..sample() };
        check("disk-lazy-tcg.txt", &lazily, TCG);
        let disk = LaunchSpec { boot: Boot::Disk(base), ..sample() };
        check("disk-tcg.txt", &disk, TCG);
        check("disk-everything-kvm.txt", &everything(disk), KVM);
    }

    #[test]
    fn kernel_arguments_of_the_user_come_first_and_win() {
        assert_eq!(kernel_arguments("", KVM), "console=ttyS0 panic=-1 reboot=t");
        assert_eq!(kernel_arguments("console=ttyS0 panic=0", KVM), "console=ttyS0 panic=0 reboot=t");
        assert_eq!(kernel_arguments("reboot=k -- panic=5", KVM), "reboot=k console=ttyS0 panic=-1 -- panic=5");
        let ours = "console=ttyS0 panic=-1 reboot=t tsc_early_khz=2596134 tsc=reliable";
        assert_eq!(kernel_arguments(" quiet  ", TCG), format!("quiet {ours}"));
        assert_eq!(kernel_arguments("", Host { tsc_khz: None, ..TCG }), "console=ttyS0 panic=-1 reboot=t");
    }
}
