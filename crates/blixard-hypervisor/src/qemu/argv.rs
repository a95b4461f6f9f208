//! From a spec to QEMU's command line: a pure function, held by the texts in `testdata/`.

use serde_json::{Value, json};

use crate::folder::{DISK_FILE, SEED_FILE};
use crate::observed::Accelerator;
use crate::spec::{BaseDisk, Boot, LaunchSpec, Protocol};

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

/// QEMU's arguments. It is started in the vm's folder, with its monitor on descriptor 0 and its serial console on
/// descriptor 1, both sockets.
pub(super) fn argv(spec: &LaunchSpec, host: Host) -> Vec<String> {
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
        option("kernel", kernel.to_string_lossy().into_owned());
        if let Some(initrd) = initrd {
            option("initrd", initrd.to_string_lossy().into_owned());
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
    if has_disk(spec) {
        drives.push(("disk0", disk(spec.boot.base())));
    }
    if spec.seed.is_some() {
        drives.push(("seed0", file_node("raw", SEED_FILE, true)));
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
    argv
}

/// Whether the vm has a disk of its own.
pub(super) fn has_disk(spec: &LaunchSpec) -> bool {
    spec.boot.base().is_some() || spec.disk_bytes.is_some()
}

fn file_node(format: &str, path: &str, read_only: bool) -> Value {
    json!({ "driver": format, "read-only": read_only, "file": { "driver": "file", "filename": path } })
}

/// The overlay with its base spelled out, so that QEMU follows no name in any header.
fn disk(base: Option<&BaseDisk>) -> Value {
    let mut overlay = file_node("qcow2", DISK_FILE, false);
    overlay["discard"] = json!("unmap");
    overlay["file"]["discard"] = json!("unmap");
    if let Some(base) = base {
        let mut node = file_node(base.format.qemu_name(), &base.path.to_string_lossy(), true);
        if node["driver"] == "qcow2" {
            // A base stands on its own; were it to name another file, that file stays shut.
            node["backing"] = Value::Null;
        }
        overlay["backing"] = node;
    }
    overlay
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
