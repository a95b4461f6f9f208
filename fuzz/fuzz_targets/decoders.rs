//! libFuzzer's way into the decoders; `cargo xtask fuzz` builds and runs it. `BLIXARD_FUZZ_TARGET` names the target: one
//! program has them all, because linking one takes longer than a run in CI.
#![no_main]
#![allow(unsafe_code, reason = "libFuzzer calls this from C++, with a pointer and a length")]

use std::io::Write;
use std::sync::LazyLock;

static TARGET: LazyLock<&fuzz::Target> = LazyLock::new(|| {
    // A panic ends the process where it is. Were it to unwind, it could not pass through C++, and its words would be lost behind
    // those that say so.
    std::panic::set_hook(Box::new(|panic| {
        // Nobody else is left to tell.
        let _ = writeln!(std::io::stderr(), "{panic}");
        std::process::abort();
    }));
    let name = std::env::var("BLIXARD_FUZZ_TARGET").expect("BLIXARD_FUZZ_TARGET names the target");
    fuzz::target(&name).expect("BLIXARD_FUZZ_TARGET names a folder of fuzz/corpus")
});

/// Tries one input. When it ends the process, libFuzzer keeps it.
#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "the name is libFuzzer's")]
extern "C" fn LLVMFuzzerTestOneInput(data: *const u8, bytes: usize) -> i32 {
    let input = match bytes {
        0 => &[][..],
        // SAFETY: libFuzzer gives that many bytes, which nobody changes or frees during this call.
        _ => unsafe { std::slice::from_raw_parts(data, bytes) },
    };
    TARGET.check(input);
    0
}
