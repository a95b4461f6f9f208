//! What holds for QEMU besides the contract: processes, ports, disks, seeds.

use std::fs::Permissions;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use blixard_hypervisor::{
    Accelerator, AcceleratorChoice, BaseDisk, Boot, DiskFormat, Driver, ExitReason, LaunchError, LaunchSpec,
    PortForward, Protocol, QemuDriver, QemuOptions, Running, Seed, VmState, inspect_disk,
};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, geteuid};

use crate::Case;
use crate::bench::{
    Bench, GUARD_ARGUMENT, LAUNCH_ARGUMENT, QemuBench, READY, await_exit, await_log, eventually, guest_dir, log_text,
    spec, state,
};

type Check = fn(&QemuBench);

const CHECKS: &[(&str, Check)] = &[
    ("the_hypervisor_is_confined", the_hypervisor_is_confined),
    ("guests_cannot_reach_each_other", guests_cannot_reach_each_other),
    ("a_low_port_costs_one_capability", a_low_port_costs_one_capability),
    ("a_node_without_root_says_what_is_missing", a_node_without_root_says_what_is_missing),
    ("a_vm_outlives_the_group_that_launched_it", a_vm_outlives_the_group_that_launched_it),
    ("a_guard_that_dies_takes_the_guest_along", a_guard_that_dies_takes_the_guest_along),
    ("a_hypervisor_that_dies_is_noticed", a_hypervisor_that_dies_is_noticed),
    ("a_polite_signal_to_the_guard_stops_the_guest", a_polite_signal_to_the_guard_stops_the_guest),
    ("a_reboot_ends_the_run", a_reboot_ends_the_run),
    ("a_restart_of_the_host_is_told_apart", a_restart_of_the_host_is_told_apart),
    ("a_published_port_leads_into_the_guest", a_published_port_leads_into_the_guest),
    ("a_port_in_use_fails_the_launch", a_port_in_use_fails_the_launch),
    ("a_disk_keeps_what_was_written", a_disk_keeps_what_was_written),
    ("the_best_accelerator_is_found", the_best_accelerator_is_found),
    ("a_disk_image_boots_by_itself", a_disk_image_boots_by_itself),
    ("a_damaged_record_of_a_guard_does_not_save_it", a_damaged_record_of_a_guard_does_not_save_it),
    ("what_a_failing_hypervisor_says_is_told", what_a_failing_hypervisor_says_is_told),
    ("what_does_not_fit_this_host_is_refused", what_does_not_fit_this_host_is_refused),
];

pub(crate) fn cases() -> Vec<Case> {
    let case = |&(name, check): &(&str, Check)| -> Case {
        (format!("qemu::{name}"), Box::new(move || check(&QemuBench::new())))
    };
    CHECKS.iter().map(case).collect()
}

/// A vm's processes, from its guard's record.
struct Processes {
    guard: Pid,
    hypervisor: Pid,
}

fn processes(bench: &QemuBench, vm: &str) -> Processes {
    let record = std::fs::read(bench.root().join(vm).join("guard.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let pid = |key: &str| Pid::from_raw(record[key]["pid"].as_i64().unwrap() as i32);
    Processes { guard: pid("guard"), hypervisor: pid("hypervisor") }
}

/// Waits until a process has ended, reaped or not.
fn await_gone(pid: Pid) {
    eventually(&format!("the end of process {pid}"), || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
        stat.is_none_or(|stat| stat.contains(") Z ")).then_some(())
    });
}

fn status_field(pid: Pid, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

/// Types a line and waits for a text that the guest then prints.
fn type_line(driver: &dyn Driver, vm: &str, line: &str, answer: &str) {
    driver.console(vm).unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    await_log(driver, vm, answer);
}

fn the_hypervisor_is_confined(bench: &QemuBench) {
    let driver = bench.driver();
    let spec = bench.obedient();
    driver.launch(&spec).unwrap();
    let processes = processes(bench, &spec.vm);
    // 2 is filter mode.
    assert_eq!(status_field(processes.hypervisor, "Seccomp"), "2");
    assert_eq!(status_field(processes.hypervisor, "NoNewPrivs"), "1");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status_field(processes.hypervisor, set), "0000000000000000", "{set}");
    }
    let user = user_of(&processes);
    for field in ["Uid", "Gid"] {
        let ids = format!("{user}\t{user}\t{user}\t{user}");
        assert_eq!(status_field(processes.hypervisor, field), ids, "{field}");
    }
    if geteuid().is_root() {
        assert_eq!(status_field(processes.hypervisor, "Groups"), "");
    }
    let environment = std::fs::read(format!("/proc/{}/environ", processes.hypervisor)).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("CARGO"), "the environment was handed on");
    let resident = status_field(processes.guard, "VmRSS");
    let resident_kib: u64 = resident.strip_suffix(" kB").unwrap().parse().unwrap();
    assert!(resident_kib < 16 * 1024, "a guard needs {resident}");
    // The hypervisor holds neither the lock of the vm nor any socket but its own two.
    let files = std::fs::read_dir(format!("/proc/{}/fd", processes.hypervisor)).unwrap();
    let targets: Vec<_> = files.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok()).collect();
    assert!(!targets.iter().any(|target| target.ends_with("lock")), "{targets:?}");
    let confinement = running(&driver, &spec.vm).confinement;
    let privileges = confinement.privileges.unwrap();
    assert_eq!((privileges.user, privileges.group), (user, user));
    assert!(privileges.no_new_privileges && privileges.system_call_filter && privileges.capabilities.is_empty());
    assert_eq!(confinement.shared_user.is_none(), geteuid().is_root());
    assert_ne!(confinement.limits.is_none(), confinement.unlimited.is_none());
}

fn running(driver: &dyn Driver, vm: &str) -> Running {
    match state(driver, vm) {
        VmState::Running(running) => running,
        state => panic!("{state:?}"),
    }
}

/// The user that a vm's hypervisor must have: the one of its guard's number where this test is root, else its own.
fn user_of(processes: &Processes) -> u32 {
    if geteuid().is_root() { 2_100_000_000 + processes.guard.as_raw() as u32 } else { geteuid().as_raw() }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn guests_cannot_reach_each_other(bench: &QemuBench) {
    let driver = bench.driver();
    let specs = [bench.stubborn(), LaunchSpec { vm: "0b".into(), ..bench.stubborn() }];
    let [one, other] = specs.map(|spec| {
        let spec = LaunchSpec { disk_bytes: Some(1 << 20), ..spec };
        driver.launch(&spec).unwrap();
        (processes(bench, &spec.vm), bench.root().join(&spec.vm).join("disk.qcow2"))
    });
    // Among its descriptors is its own disk and no other vm's.
    let files = std::fs::read_dir(format!("/proc/{}/fd", one.0.hypervisor)).unwrap();
    let targets: Vec<_> = files.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok()).collect();
    assert!(targets.contains(&one.1) && !targets.contains(&other.1), "{targets:?}");
    if !geteuid().is_root() {
        return;
    }
    // The folders are no help, so that the file itself must refuse.
    for folder in [bench.scratch(), bench.root(), other.1.parent().unwrap(), one.1.parent().unwrap()] {
        set_mode(folder, 0o755);
    }
    let user = std::fs::metadata(format!("/proc/{}", one.0.hypervisor)).unwrap().uid();
    let refused = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).uid(user).gid(user).output().unwrap();
        assert!(!output.status.success(), "{program} {arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    // Not the other's disk, nor its own but through the descriptor that it was handed.
    for disk in [&other.1, &one.1] {
        let said = refused("head", &["-c1", &path(disk)]);
        assert!(said.contains("Permission denied"), "{said}");
    }
    let said = refused("ls", &[&format!("/proc/{}/fd", other.0.hypervisor)]);
    assert!(said.contains("Permission denied"), "{said}");
    let said = refused("sh", &["-c", &format!("kill -9 {}", other.0.hypervisor)]);
    assert!(said.contains("not permitted"), "{said}");
}

fn a_low_port_costs_one_capability(bench: &QemuBench) {
    let driver = bench.driver();
    let mut spec = bench.stubborn();
    // Free when looked at; nothing else on this host asks for ports of that kind in between.
    let Some(port) = (600..1024).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()) else {
        assert!(!geteuid().is_root(), "root finds no free port below 1024");
        spec.publish = vec![tcp(1023)];
        assert!(driver.launch(&spec).unwrap_err().to_string().contains("not allowed to this user"));
        return;
    };
    spec.publish = vec![tcp(port)];
    driver.launch(&spec).unwrap();
    TcpStream::connect(("127.0.0.1", port)).unwrap();
    let privileges = running(&driver, &spec.vm).confinement.privileges.unwrap();
    assert_eq!(privileges.capabilities, ["net_bind_service"]);
    let hypervisor = processes(bench, &spec.vm).hypervisor;
    assert_eq!(status_field(hypervisor, "CapEff"), format!("{:016x}", 1 << 10));
}

fn a_node_without_root_says_what_is_missing(bench: &QemuBench) {
    // Somewhere that another user can enter: this program, a kernel, and a root folder.
    let folder = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
    let (program, kernel, root) =
        (folder.path().join("contract"), folder.path().join("vmlinuz"), folder.path().join("vms"));
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    std::fs::copy(guest_dir().join("vmlinuz"), &kernel).unwrap();
    std::fs::create_dir(&root).unwrap();
    let mut spec = bench.stubborn();
    spec.boot = Boot::Kernel { kernel, initrd: None, cmdline: "panic=0".into(), root: None };
    spec.disk_bytes = Some(1 << 20);
    let mut launcher = Command::new(program);
    let user = if geteuid().is_root() { 65_534 } else { geteuid().as_raw() };
    if geteuid().is_root() {
        std::os::unix::fs::chown(&root, Some(user), Some(user)).unwrap();
        launcher.uid(user).gid(user);
    }
    let mut launcher =
        launcher.arg(LAUNCH_ARGUMENT).arg(&root).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut orders = launcher.stdin.take().unwrap();
    writeln!(orders, "{}", serde_json::to_string(&spec).unwrap()).unwrap();
    drop(orders);
    // The driver of this process only looks, and ends what it finds.
    let driver = QemuBench::driver_on(&root, AcceleratorChoice::Tcg);
    let seen = eventually("the vm of another user", || match crate::bench::seen(&driver, &spec.vm)?.state {
        VmState::Running(running) => Some(running.confinement),
        _ => None,
    });
    driver.remove(&spec.vm).unwrap();
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    let privileges = seen.privileges.unwrap();
    assert_eq!(privileges.user, user);
    assert!(privileges.capabilities.is_empty() && privileges.system_call_filter && privileges.no_new_privileges);
    assert!(seen.shared_user.unwrap().contains("does not run as root"));
}

/// Body of this program started with [`LAUNCH_ARGUMENT`]: launches and waits to be killed.
pub(crate) fn launch_and_wait(root: &std::path::Path) {
    let driver = QemuBench::driver_on(root, AcceleratorChoice::Tcg);
    let mut spec = String::new();
    std::io::stdin().read_line(&mut spec).unwrap();
    let spec: LaunchSpec = serde_json::from_str(&spec).unwrap();
    driver.launch(&spec).unwrap();
    println!("launched");
    loop {
        std::thread::park();
    }
}

fn a_vm_outlives_the_group_that_launched_it(bench: &QemuBench) {
    let spec = bench.obedient();
    let mut launcher = Command::new(std::env::current_exe().unwrap())
        .arg(LAUNCH_ARGUMENT)
        .arg(bench.root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let line = format!("{}\n", serde_json::to_string(&spec).unwrap());
    launcher.stdin.take().unwrap().write_all(line.as_bytes()).unwrap();
    let mut said = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(launcher.stdout.take().unwrap()), &mut said).unwrap();
    assert_eq!(said, "launched\n");
    killpg(Pid::from_raw(launcher.id() as i32), Signal::SIGKILL).unwrap();
    launcher.wait().unwrap();
    let driver = bench.driver();
    assert!(matches!(state(&driver, &spec.vm), VmState::Running(_)));
    await_log(&driver, &spec.vm, READY);
    driver.stop(&spec.vm, crate::bench::PATIENCE).unwrap();
    assert_eq!(await_exit(&driver, &spec.vm), ExitReason::Stopped);
}

fn a_guard_that_dies_takes_the_guest_along(bench: &QemuBench) {
    let driver = bench.driver();
    let mut spec = bench.stubborn();
    driver.launch(&spec).unwrap();
    assert!(matches!(state(&driver, &spec.vm), VmState::Running(_)));
    let processes = processes(bench, &spec.vm);
    kill(processes.guard, Signal::SIGKILL).unwrap();
    assert!(driver.wait_change(crate::bench::PATIENCE));
    assert_eq!(await_exit(&driver, &spec.vm), ExitReason::GuardDied);
    await_gone(processes.hypervisor);
    spec.run = 2;
    driver.launch(&spec).unwrap();
    assert!(matches!(state(&driver, &spec.vm), VmState::Running(_)));
}

fn a_hypervisor_that_dies_is_noticed(bench: &QemuBench) {
    let driver = bench.driver();
    let spec = bench.stubborn();
    driver.launch(&spec).unwrap();
    kill(processes(bench, &spec.vm).hypervisor, Signal::SIGKILL).unwrap();
    assert_eq!(await_exit(&driver, &spec.vm), ExitReason::Signal { signal: 9 });
}

fn a_polite_signal_to_the_guard_stops_the_guest(bench: &QemuBench) {
    let driver = bench.driver();
    let spec = bench.obedient();
    driver.launch(&spec).unwrap();
    await_log(&driver, &spec.vm, READY);
    kill(processes(bench, &spec.vm).guard, Signal::SIGTERM).unwrap();
    assert_eq!(await_exit(&driver, &spec.vm), ExitReason::Stopped);
}

fn a_reboot_ends_the_run(bench: &QemuBench) {
    let driver = bench.driver();
    let spec = bench.obedient();
    driver.launch(&spec).unwrap();
    await_log(&driver, &spec.vm, READY);
    driver.console(&spec.vm).unwrap().write_all(b"\nreboot -f\n").unwrap();
    assert_eq!(await_exit(&driver, &spec.vm), ExitReason::GuestRebooted);
}

fn a_restart_of_the_host_is_told_apart(bench: &QemuBench) {
    let driver = bench.driver();
    let spec = bench.stubborn();
    driver.launch(&spec).unwrap();
    let processes = processes(bench, &spec.vm);
    kill(processes.guard, Signal::SIGKILL).unwrap();
    await_gone(processes.guard);
    await_gone(processes.hypervisor);
    let record = bench.root().join(&spec.vm).join("guard.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let changed = text.replace(boot_id.trim(), "another boot");
    assert_ne!(text, changed);
    std::fs::write(&record, changed).unwrap();
    assert_eq!(await_exit(&driver, &spec.vm), ExitReason::HostRestarted);
}

fn tcp(host_port: u16) -> PortForward {
    PortForward { host_addr: [127, 0, 0, 1].into(), host_port, guest_port: 80, protocol: Protocol::Tcp }
}

fn a_published_port_leads_into_the_guest(bench: &QemuBench) {
    let driver = bench.driver();
    let mut spec = bench.obedient();
    // Free when looked at; nothing else on this host asks for ports of that kind in between.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    spec.publish = vec![tcp(port)];
    driver.launch(&spec).unwrap();
    await_log(&driver, &spec.vm, READY);
    eventually("an answer of the guest's web server", || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(std::time::Duration::from_secs(5))).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = [0; 64];
        let got = std::io::Read::read(&mut stream, &mut answer).ok()?;
        (got > 0).then_some(())
    });
}

fn a_port_in_use_fails_the_launch(bench: &QemuBench) {
    let driver = bench.driver();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut spec = bench.obedient();
    spec.publish = vec![tcp(port)];
    let error = driver.launch(&spec).unwrap_err();
    let LaunchError::Hypervisor { detail } = &error else { panic!("{error:?}") };
    assert!(detail.contains(&format!("port tcp:127.0.0.1:{port}")), "{detail}");
    let left = processes(bench, &spec.vm);
    await_gone(left.hypervisor);
    await_gone(left.guard);
    drop(taken);
    driver.launch(&spec).unwrap();
    assert!(matches!(state(&driver, &spec.vm), VmState::Running(_)));
}

fn a_disk_keeps_what_was_written(bench: &QemuBench) {
    let driver = bench.driver();
    let base = bench.scratch().join("base, image.raw");
    let content = [&b"from-the-base"[..], &[0; (1 << 20) - 13]].concat();
    std::fs::write(&base, &content).unwrap();
    let mut spec = bench.obedient();
    let Boot::Kernel { root, .. } = &mut spec.boot else { panic!("the guest boots from a kernel") };
    *root = Some(BaseDisk { path: base.clone(), format: DiskFormat::Raw, lazy: None });
    spec.disk_bytes = Some(64 << 20);
    spec.seed = Some(Seed { hostname: "seeded".into(), instance_id: "one".into(), ..Seed::default() });
    driver.launch(&spec).unwrap();
    await_log(&driver, &spec.vm, READY);
    let vm = &spec.vm.clone();
    // The quotes keep what is typed from being taken for what is printed.
    type_line(&driver, vm, "head -c 13 /dev/vda; echo ':'base", "from-the-base:base");
    type_line(&driver, vm, "cat /sys/block/vda/size; echo ':'size", "131072\r\n:size");
    type_line(&driver, vm, "dd if=/dev/vdb bs=1 skip=43 count=6 2>/dev/null; echo ':'label", "CIDATA:label");
    type_line(&driver, vm, "cat /sys/block/vdb/ro; echo ':'read-only", "1\r\n:read-only");
    type_line(&driver, vm, "echo from-the-guest | dd of=/dev/vda conv=fsync; echo ':'written", "\n:written");
    driver.stop(vm, crate::bench::PATIENCE).unwrap();
    assert_eq!(await_exit(&driver, vm), ExitReason::Stopped);
    assert_eq!(std::fs::read(&base).unwrap(), content, "the base was written to");
    spec.run = 2;
    driver.launch(&spec).unwrap();
    eventually("the second ready line", || (log_text(&driver, vm).matches(READY).count() == 2).then_some(()));
    type_line(&driver, vm, "head -c 14 /dev/vda; echo ':'again", "from-the-guest:again");
    driver.kill(vm).unwrap();

    let mut other = spec.clone();
    other.run = 3;
    other.disk_bytes = Some(65 << 20);
    assert!(driver.launch(&other).unwrap_err().to_string().contains("cannot be changed"));
    other.disk_bytes = spec.disk_bytes;
    let path = bench.scratch().join("another.raw");
    std::fs::write(&path, &content).unwrap();
    other.boot = Boot::Disk(BaseDisk { path, format: DiskFormat::Raw, lazy: None });
    assert!(driver.launch(&other).unwrap_err().to_string().contains("on top of another.raw"));
}

fn the_best_accelerator_is_found(bench: &QemuBench) {
    let driver = bench.driver_with(AcceleratorChoice::Auto);
    let spec = bench.obedient();
    driver.launch(&spec).unwrap();
    let VmState::Running(running) = state(&driver, &spec.vm) else { panic!("it does not run") };
    let expected = if driver.kvm().unwrap().is_ok() { Accelerator::Kvm } else { Accelerator::Tcg };
    assert_eq!(running.accelerator, expected);
    await_log(&driver, &spec.vm, READY);
    let Err(reason) = driver.kvm().unwrap() else { return };
    assert!(!reason.is_empty());
    let insisting = bench.driver_with(AcceleratorChoice::Kvm);
    let other = bench.stubborn();
    assert!(insisting.launch(&other).unwrap_err().to_string().contains(&reason));
}

fn a_disk_image_boots_by_itself(bench: &QemuBench) {
    let driver = bench.driver();
    let image = guest_dir().join("disk.qcow2");
    let facts = inspect_disk(&image, "qemu-img".as_ref()).unwrap();
    assert_eq!(facts.format, DiskFormat::Qcow2);
    let mut spec = spec(4, Boot::Disk(BaseDisk { path: image, format: facts.format, lazy: None }));
    spec.memory_mib = 256;
    spec.disk_bytes = Some(facts.virtual_bytes + (64 << 20));
    driver.launch(&spec).unwrap();
    await_log(&driver, &spec.vm, READY);
    driver.stop(&spec.vm, crate::bench::PATIENCE).unwrap();
    assert_eq!(await_exit(&driver, &spec.vm), ExitReason::Stopped);
}

fn a_damaged_record_of_a_guard_does_not_save_it(bench: &QemuBench) {
    let driver = bench.driver();
    let spec = bench.stubborn();
    driver.launch(&spec).unwrap();
    let processes = processes(bench, &spec.vm);
    std::fs::write(bench.root().join(&spec.vm).join("guard.json"), "{\"epoch\": 1, \"ru").unwrap();
    assert!(matches!(state(&driver, &spec.vm), VmState::Damaged { .. }));
    assert!(matches!(driver.launch(&spec), Err(LaunchError::Unsuitable { .. })));
    driver.remove(&spec.vm).unwrap();
    await_gone(processes.guard);
    await_gone(processes.hypervisor);
}

fn what_a_failing_hypervisor_says_is_told(bench: &QemuBench) {
    let script = bench.scratch().join("qemu");
    std::fs::write(&script, "#!/bin/sh\necho 'no luck today' >&2\nexit 3\n").unwrap();
    set_mode(&script, 0o755);
    let options = QemuOptions { qemu: script, accelerator: AcceleratorChoice::Tcg, ..QemuOptions::default() };
    let guard = vec![std::env::current_exe().unwrap().into(), GUARD_ARGUMENT.into()];
    let driver = QemuDriver::new(bench.root(), guard, options).unwrap();
    if geteuid().is_root() {
        // A folder that is closed to others is closed to the guest's user.
        set_mode(bench.scratch(), 0o700);
        let error = driver.launch(&bench.obedient()).unwrap_err().to_string();
        assert!(error.contains("others must be allowed to run"), "{error}");
    }
    set_mode(bench.scratch(), 0o755);
    let error = driver.launch(&bench.obedient()).unwrap_err();
    assert!(error.to_string().contains("no luck today"), "{error}");
}

fn what_does_not_fit_this_host_is_refused(bench: &QemuBench) {
    let driver = bench.driver();
    let refused = |bend: &dyn Fn(&mut LaunchSpec)| {
        let mut spec = bench.obedient();
        bend(&mut spec);
        let error = driver.launch(&spec).unwrap_err();
        driver.remove(&spec.vm).unwrap();
        error.to_string()
    };
    let v6 = PortForward { host_addr: "::1".parse().unwrap(), ..tcp(8080) };
    assert!(refused(&|spec| spec.publish = vec![v6]).contains("IPv4"));
    let image = bench.scratch().join("image.raw");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let boot = || Boot::Disk(BaseDisk { path: image.clone(), format: DiskFormat::Raw, lazy: None });
    let too_small = refused(&|spec| (spec.boot, spec.disk_bytes) = (boot(), Some(512)));
    assert!(too_small.contains("smaller than its image"), "{too_small}");
    let missing = || Boot::Disk(BaseDisk { path: "/no/such/image".into(), format: DiskFormat::Qcow2, lazy: None });
    assert!(refused(&|spec| spec.boot = missing()).contains("/no/such/image"));
    let options = QemuOptions { qemu: "no-such-qemu".into(), ..QemuOptions::default() };
    let without_qemu = QemuDriver::new(bench.root(), vec!["no-such-guard".into()], options).unwrap();
    assert!(without_qemu.launch(&bench.obedient()).unwrap_err().to_string().contains("install QEMU"));
    let other_root = bench.scratch().join("other");
    let options = QemuOptions { accelerator: AcceleratorChoice::Tcg, ..QemuOptions::default() };
    let without_guard = QemuDriver::new(&other_root, vec!["no-such-guard".into()], options).unwrap();
    without_guard.launch(&bench.obedient()).unwrap_err();
    let seen = state(&without_guard, &bench.obedient().vm);
    assert!(matches!(&seen, VmState::Exited { reason: ExitReason::LaunchFailed { .. }, .. }), "{seen:?}");
    let guard = |arguments: &[&str]| {
        let exe = std::env::current_exe().unwrap();
        let output = Command::new(exe).arg(GUARD_ARGUMENT).args(arguments).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(guard(&[]).contains("needs the folder"));
    assert!(guard(&["/no/such/folder"]).contains("enter the folder"));
}
