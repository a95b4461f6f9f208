#!/bin/sh
# The compiler for `cargo xtask fuzz`, in cargo's RUSTC_WORKSPACE_WRAPPER: our own crates are built so that libFuzzer sees
# where an input leads, and a little optimised; packages from elsewhere are built as ever, and so are those of the tests.
# The code of serde and postcard that reads our types is generic, and so part of our crates.
for argument in "$@"; do
    if [ "$argument" = engine ]; then
        # The program itself, which libFuzzer's archive is the other half of.
        set -- "$@" "-Clink-arg=$BLIXARD_FUZZ_ENGINE" -Clink-arg=-lstdc++
        break
    fi
done
exec "$@" \
    -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Copt-level=1 -Cdebuginfo=0 -Cdebug-assertions=on -Coverflow-checks=on
