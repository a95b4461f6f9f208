//! Whether /dev/kvm runs guests. The device may open, answer and make machines, and still be of no use: some hosts offer
//! a paravirtual KVM whose instructions are interpreted. So two guests of a few instructions are run, each in a process
//! of its own with a time limit, because a virtual processor that spins ends only with its process.

use std::alloc::{Layout, alloc_zeroed};
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd};

use crate::guard::PROBE_ARGUMENT;
use crate::process;

/// What a real processor needs some 20 ms for.
const STAGE_TIMEOUT: Duration = Duration::from_secs(2);
const MEMORY_BYTES: usize = 2 << 20;
/// A guest of some twenty instructions that leaves more often than this is not running.
const EXITS_MAX: usize = 64;
/// Port on which a guest says where it is.
const WORD_PORT: u16 = 0xe9;
/// Port on which a guest says that it is done.
const DONE_PORT: u16 = 0xea;

/// The two guests, by name.
const STAGES: [(&str, &[u8], &[u8]); 2] = [("instructions", INSTRUCTIONS, b"pcd"), ("speed", SPEED, b"ab")];

/// What hardware executes and an interpreter in the kernel does not: SSE2, popcnt, cmpxchg16b.
const INSTRUCTIONS: &[u8] = &[
    0x66, 0x0f, 0xef, 0xc0, // pxor xmm0, xmm0
    0x66, 0x0f, 0xfe, 0xc0, // paddd xmm0, xmm0
    0xf3, 0x0f, 0xb8, 0xc1, // popcnt eax, ecx
    0xb0, b'p', 0xe6, 0xe9, // say p
    0x31, 0xc0, 0x31, 0xd2, 0x31, 0xdb, 0x31, 0xc9, // clear eax, edx, ebx, ecx
    0xf0, 0x48, 0x0f, 0xc7, 0x0c, 0x25, 0, 0x90, 0, 0, // lock cmpxchg16b [0x9000]
    0xb0, b'c', 0xe6, 0xe9, // say c
    0x48, 0xd1, 0xe0, 0x48, 0x0f, 0xaf, 0xc0, // shl rax, 1; imul rax, rax
    0xb0, b'd', 0xe6, 0xe9, 0xe6, 0xea, // say d; done
];

/// 32 Mi turns of a loop: 10 to 40 ms on hardware, seconds to minutes where each instruction is interpreted.
const SPEED: &[u8] = &[
    0xb0, b'a', 0xe6, 0xe9, // say a
    0xb9, 0, 0, 0, 2, // mov ecx, 0x2000000
    0xff, 0xc9, 0x75, 0xfc, // dec ecx; jnz back
    0xb0, b'b', 0xe6, 0xe9, 0xe6, 0xea, // say b; done
];

/// Runs both guests; says why KVM is of no use here when it is not. An error means that the guests could not be tried.
pub(crate) fn probe(guard_command: &[OsString]) -> io::Result<Result<(), String>> {
    // Opened here first: "no such device" needs no second process to be found out.
    if let Err(error) = Kvm::new() {
        return Ok(Err(format!("open /dev/kvm: {error}")));
    }
    for (name, ..) in STAGES {
        let mut command = guard_command.to_vec();
        command.extend([PROBE_ARGUMENT.into(), name.into()]);
        match process::run_tool(&command, STAGE_TIMEOUT) {
            Ok(output) if output.status.success() => {}
            Ok(output) => return Ok(Err(format!("{name} probe: {} ({})", output.stderr, output.status))),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(Err(format!("{name} probe: {error}"))),
            Err(error) => return Err(error),
        }
    }
    Ok(Ok(()))
}

/// Body of the process that runs one guest.
pub(crate) fn run_stage(stage: Option<&OsStr>) -> ExitCode {
    let known = STAGES.iter().find(|(name, ..)| stage == Some(OsStr::new(name)));
    let result = match known {
        Some((_, code, expected)) => run_guest(code, expected),
        None => Err("there is no such probe".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(detail) => {
            // The exit code says the same with fewer words.
            let _ = std::io::stderr().write_all(detail.as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// Runs `code` in 64-bit mode until it is done, and compares what it said.
fn run_guest(code: &[u8], expected: &[u8]) -> Result<(), String> {
    let context = |doing: &'static str| move |error: kvm_ioctls::Error| format!("{doing}: {error}");
    let kvm = Kvm::new().map_err(context("open /dev/kvm"))?;
    for capability in [Cap::UserMemory, Cap::Irqchip, Cap::ExtCpuid, Cap::SetTssAddr] {
        if !kvm.check_extension(capability) {
            return Err(format!("it lacks {capability:?}"));
        }
    }
    let vm = kvm.create_vm().map_err(context("create a machine"))?;
    let memory = guest_memory(code)?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY_BYTES as u64,
        userspace_addr: memory.as_ptr() as u64,
        flags: 0,
    };
    set_memory(&vm, region).map_err(context("give it memory"))?;
    vm.set_tss_address(0xfffb_d000).map_err(context("set the task state address"))?;
    vm.create_irq_chip().map_err(context("create an interrupt controller"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(context("create a processor"))?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(context("ask for processor features"))?;
    vcpu.set_cpuid2(&cpuid).map_err(context("set processor features"))?;
    enter_long_mode(&vcpu).map_err(context("set registers"))?;
    let said = drive(&mut vcpu)?;
    if said == expected { Ok(()) } else { Err(format!("the guest said {:?}", String::from_utf8_lossy(&said))) }
}

#[allow(unsafe_code)]
fn set_memory(vm: &kvm_ioctls::VmFd, region: kvm_userspace_memory_region) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: the region is memory of exactly this size and page alignment that is leaked, so it outlives the machine,
    // and after this call nothing in this process reads or writes it but the guest.
    unsafe { vm.set_user_memory_region(region) }
}

/// Page tables that map the first 2 MiB onto themselves, a descriptor table, and the code at 0x7000.
#[allow(unsafe_code)]
fn guest_memory(code: &[u8]) -> Result<&'static mut [u8], String> {
    let layout = Layout::from_size_align(MEMORY_BYTES, 4096).map_err(|error| error.to_string())?;
    // SAFETY: the layout has a size above zero; the pointer is checked before use, covers MEMORY_BYTES zeroed bytes, is
    // never freed, and no other reference to it exists.
    let memory = unsafe {
        let start = alloc_zeroed(layout);
        if start.is_null() {
            return Err("out of memory".into());
        }
        std::slice::from_raw_parts_mut(start, MEMORY_BYTES)
    };
    let mut put = |at: usize, value: u64| memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(0x2000, 0x3007);
    put(0x3000, 0x4007);
    put(0x4000, 0x87);
    put(0x5008, 0x00af_9b00_0000_ffff);
    put(0x5010, 0x00cf_9300_0000_ffff);
    memory[0x7000..0x7000 + code.len()].copy_from_slice(code);
    Ok(memory)
}

fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let code =
        kvm_segment { limit: 0xffff_ffff, selector: 8, type_: 11, present: 1, s: 1, l: 1, g: 1, ..Default::default() };
    let data = kvm_segment { selector: 16, type_: 3, db: 1, l: 0, ..code };
    let mut registers = vcpu.get_sregs()?;
    registers.cs = code;
    for segment in [&mut registers.ds, &mut registers.es, &mut registers.fs, &mut registers.gs, &mut registers.ss] {
        *segment = data;
    }
    registers.gdt.base = 0x5000;
    registers.gdt.limit = 0x17;
    registers.cr3 = 0x2000;
    registers.cr4 = 0x620; // PAE, and SSE for the operating system
    registers.cr0 = 0x8005_0033; // paging, protection, native floating point
    registers.efer = 0x500; // long mode, enabled and active
    vcpu.set_sregs(&registers)?;
    vcpu.set_regs(&kvm_regs { rip: 0x7000, rsp: 0x8ff0, rflags: 2, ..Default::default() })
}

fn drive(vcpu: &mut VcpuFd) -> Result<Vec<u8>, String> {
    let mut said = vec![];
    for _ in 0..EXITS_MAX {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(WORD_PORT, bytes)) => said.extend_from_slice(bytes),
            Ok(VcpuExit::IoOut(DONE_PORT, _)) => return Ok(said),
            Ok(other) => return Err(format!("the guest left with {other:?}")),
            Err(error) if error.errno() == nix::libc::EINTR || error.errno() == nix::libc::EAGAIN => {}
            Err(error) => return Err(format!("run the guest: {error}")),
        }
    }
    Err("the guest leaves all the time".into())
}
