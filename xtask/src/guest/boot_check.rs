//! Boots the guest under QEMU on each kind of machine that Blixard uses, and holds it to its promises: the ready line,
//! a shell on the serial console, an address, a name, a page over a forwarded port, and a clean end when the power
//! button is pressed.
//!
//! Guests run under TCG here, which every machine can do; whether KVM works is for the hypervisor crate to find out.

use super::qmp::Qmp;
use super::{DISK, INITRD, KERNEL, READY};
use crate::setup;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A boot takes some 3 s on an idle machine; a busy one with two cores has needed ten times that.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
/// For the shell's answer, the page and the end after the power button.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at something that has no way to tell us.
const POLL: Duration = Duration::from_millis(20);
/// Long enough that the two readings of the clock do not matter: 50 ms gives some 10 parts in a million.
const MEASUREMENT: Duration = Duration::from_millis(50);
/// Given to the guest on the kernel's command line.
const NAME: &str = "checked";
/// Given to the guest on a seed disk, which counts for more. The first guest writes that disk, the next ones read it.
const SEEDED_NAME: &str = "seeded";
const SEED: &str = "seed.img";
/// 1 MiB, the size of the seeds that the node writes.
const SEED_BYTES: u64 = 1 << 20;

/// What a guest is booted from, and on which machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Boot {
    /// Kernel and initramfs on a machine with virtio over mmio.
    Microvm,
    /// Kernel and initramfs on a machine with virtio over PCI.
    Q35,
    /// The disk image, through BIOS and boot loader.
    Disk,
}

/// Boots what lies in `folder` in each way, one after the other.
pub(super) fn run(folder: &Path) -> Result<()> {
    setup::install_missing(setup::BOOT)?;
    // Sockets have short paths only (108 bytes), so they do not go below target/, which may lie deep.
    let scratch = std::env::temp_dir().join(format!("guest-check-{}", std::process::id()));
    fs::create_dir_all(&scratch).with_context(|| format!("create {}", scratch.display()))?;
    let result = boot_all(&scratch, folder);
    fs::remove_dir_all(&scratch).with_context(|| format!("remove {}", scratch.display()))?;
    result
}

fn boot_all(scratch: &Path, folder: &Path) -> Result<()> {
    let seed = scratch.join(SEED);
    File::create(&seed)
        .and_then(|file| file.set_len(SEED_BYTES))
        .with_context(|| format!("make {}", seed.display()))?;
    for boot in [Boot::Microvm, Boot::Q35, Boot::Disk] {
        let seen = check(scratch, folder, boot).with_context(|| format!("check the guest on {boot:?}"))?;
        println!("guest: {boot:?}: {seen}");
    }
    Ok(())
}

fn check(scratch: &Path, folder: &Path, boot: Boot) -> Result<String> {
    // The port is free again for a moment before QEMU takes it. Should another program be faster, QEMU says so.
    let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    let port = listener.local_addr()?.port();
    drop(listener);
    let started = Instant::now();
    let mut guest = Guest::start(scratch, folder, boot, port)?;
    let mut qmp = Qmp::connect(&scratch.join("qmp"))?;
    guest.wait_for_line(READY, BOOT_TIMEOUT)?;
    let boot_ms = started.elapsed().as_millis();
    let uptime = guest.line_with("blixard-guest: uptime ")?;
    let address = guest.line_with("blixard-guest: address inet ")?;
    let name = if boot == Boot::Microvm { NAME } else { SEEDED_NAME };
    if guest.line_with("blixard-guest: hostname ")? != name {
        bail!("the guest is not called {name}; its console:\n{}", guest.seen);
    }
    if guest.seen.contains("was not loaded") {
        bail!("a module was not loaded; the guest's console:\n{}", guest.seen);
    }
    // The product is no part of what is typed, so that the echo of the command is not taken for its answer.
    guest.type_line("echo product $((1234 * 5678))")?;
    guest.wait_for_line("product 7006652", ANSWER_TIMEOUT)?;
    if boot == Boot::Microvm {
        guest.type_line(&format!(
            "mkdosfs -n CIDATA /dev/vda && mount -t vfat /dev/vda /seed && \
             echo 'local-hostname: {SEEDED_NAME}' >/seed/meta-data && umount /seed && echo seed written"
        ))?;
        guest.wait_for_line("seed written", ANSWER_TIMEOUT)?;
    }
    let page = page(port)?;
    if !page.contains(&format!("hello from {name}")) {
        bail!("the guest's page is not the expected one:\n{page}");
    }
    let pressed = Instant::now();
    qmp.execute("system_powerdown")?;
    // A guest that panics also ends QEMU, but by a reset.
    let end = qmp.wait_for_event("SHUTDOWN").with_context(|| format!("the guest's console:\n{}", guest.seen))?;
    if end["reason"] != "guest-shutdown" {
        bail!("the guest did not power off but ended QEMU otherwise: {end}");
    }
    guest.wait_for_end(ANSWER_TIMEOUT)?;
    let off_ms = pressed.elapsed().as_millis();
    Ok(format!("ready after {boot_ms} ms (guest uptime {uptime}), {name}, {address}, off {off_ms} ms after the button"))
}

/// A running QEMU with its console. Killed when dropped, so that a failed check leaves nothing behind.
struct Guest {
    qemu: Child,
    console: UnixStream,
    /// Everything the console has said, without carriage returns.
    seen: String,
    errors: PathBuf,
}

impl Guest {
    fn start(scratch: &Path, folder: &Path, boot: Boot, port: u16) -> Result<Self> {
        let errors = scratch.join("errors");
        let mut command = Command::new("qemu-system-x86_64");
        command.args(arguments(scratch, folder, boot, port));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&errors)?);
        let mut qemu = command.spawn().context("start qemu-system-x86_64")?;
        let console = match connect(&mut qemu, &scratch.join("console")) {
            Ok(console) => console,
            Err(error) => {
                qemu.kill().and_then(|()| qemu.wait()).context("end QEMU")?;
                let said = fs::read_to_string(&errors).unwrap_or_default();
                return Err(error.context(format!("QEMU said: {}", said.trim())));
            }
        };
        Ok(Self { qemu, console, seen: String::new(), errors })
    }

    /// Reads the console until it has shown a whole line that equals `line`.
    fn wait_for_line(&mut self, line: &str, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let mut bytes = [0; 4096];
        while !self.seen.lines().any(|seen| seen == line) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("no line `{line}` within {timeout:?}; the guest's console:\n{}", self.seen);
            }
            self.console.set_read_timeout(Some(left))?;
            match self.console.read(&mut bytes) {
                Ok(0) => {
                    let said = fs::read_to_string(&self.errors).unwrap_or_default();
                    bail!("QEMU ended before the line `{line}` ({}); the guest's console:\n{}", said.trim(), self.seen);
                }
                Ok(count) => self.seen.push_str(&String::from_utf8_lossy(&bytes[..count]).replace('\r', "")),
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                }
                Err(error) => return Err(error).context("read the guest's console"),
            }
        }
        Ok(())
    }

    fn type_line(&mut self, line: &str) -> Result<()> {
        writeln!(self.console, "{line}").context("type on the guest's console")
    }

    /// What follows `prefix` on the first console line that begins with it.
    fn line_with(&self, prefix: &str) -> Result<String> {
        let line = self.seen.lines().find_map(|line| line.strip_prefix(prefix));
        Ok(line.with_context(|| format!("no line `{prefix}`; the guest's console:\n{}", self.seen))?.to_owned())
    }

    fn wait_for_end(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.qemu.try_wait().context("look whether QEMU has ended")? {
                if !status.success() {
                    bail!("QEMU ended with {status}");
                }
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("QEMU still runs {timeout:?} after the guest powered off");
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Fails when QEMU has ended, as it should have.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// QEMU's arguments. Nothing is taken from the machine's own configuration of QEMU.
fn arguments(scratch: &Path, folder: &Path, boot: Boot, port: u16) -> Vec<String> {
    let machine = if boot == Boot::Microvm { "microvm" } else { "q35" };
    // virtio devices are called after the bus they sit on.
    let bus = if boot == Boot::Microvm { "device" } else { "pci" };
    let path = |name: &str| folder.join(name).display().to_string();
    let socket = |name: &str| format!("unix:{},server=on,wait=off", scratch.join(name).display());
    let mut words: Vec<String> = [
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-M",
        machine,
        "-accel",
        "tcg,tb-size=32",
        "-cpu",
        "Nehalem-v1",
        "-m",
        "128",
    ]
    .map(str::to_owned)
    .to_vec();
    let mut add = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
    if boot == Boot::Disk {
        add("-drive", format!("id=disk,if=none,format=qcow2,snapshot=on,file={}", path(DISK)));
        add("-device", format!("virtio-blk-{bus},drive=disk"));
    } else {
        add("-kernel", path(KERNEL));
        add("-initrd", path(INITRD));
        let clock = if boot == Boot::Microvm { clock_arguments() } else { String::new() };
        add("-append", format!("console=ttyS0 quiet panic=-1 reboot=t hostname={NAME}{clock}"));
    }
    add("-drive", format!("id=seed,if=none,format=raw,file={}", scratch.join(SEED).display()));
    add("-device", format!("virtio-blk-{bus},drive=seed"));
    add("-netdev", format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-:80"));
    add("-device", format!("virtio-net-{bus},netdev=net"));
    add("-device", format!("virtio-rng-{bus}"));
    add("-serial", socket("console"));
    add("-qmp", socket("qmp"));
    words
}

/// Waits until QEMU listens on a socket of its.
fn connect(qemu: &mut Child, socket: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    loop {
        if let Ok(stream) = UnixStream::connect(socket) {
            return Ok(stream);
        }
        if let Some(status) = qemu.try_wait().context("look whether QEMU has ended")? {
            bail!("QEMU ended with {status} before its console was there");
        }
        if Instant::now() > deadline {
            bail!("QEMU did not open {} within {ANSWER_TIMEOUT:?}", socket.display());
        }
        std::thread::sleep(POLL);
    }
}

/// What the guest's web server answers, with its head, at a port of this host that leads to it.
pub(crate) fn page(port: u16) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("connect to the forwarded port")?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").context("ask for the guest's page")?;
    let mut page = String::new();
    stream.read_to_string(&mut page).context("read the guest's page")?;
    Ok(page)
}

/// microvm has no timer against which the kernel could find out how fast the TSC runs: on a busy host it gives up or
/// hangs there. Under TCG the guest's TSC is the host's, so the host measures it.
fn clock_arguments() -> String {
    format!(" tsc_early_khz={} tsc=reliable", tsc_khz())
}

/// How fast this host's time stamp counter runs.
#[allow(unsafe_code)]
fn tsc_khz() -> u64 {
    // SAFETY: every x86_64 processor has RDTSC, and Linux lets user programs run it unless they asked it not to.
    let ticks = || unsafe { std::arch::x86_64::_rdtsc() };
    let (started, first) = (Instant::now(), ticks());
    std::thread::sleep(MEASUREMENT);
    let (last, elapsed) = (ticks(), started.elapsed());
    let khz = u128::from(last - first) * 1_000_000 / elapsed.as_nanos();
    u64::try_from(khz).expect("no processor counts at 10^19 kHz")
}
