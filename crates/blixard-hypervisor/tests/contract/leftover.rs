//! What a run leaves behind when its guard dies: nothing that could still write to the vm's disk while the next run does.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};

use blixard_hypervisor::{Driver, ExitReason, VmState};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::Case;
use crate::bench::{Bench, PATIENCE, QemuBench, await_exit, state};

pub(crate) fn cases() -> Vec<Case> {
    let name = "qemu::a_hypervisor_that_outlives_its_guard_is_ended_before_the_next_run";
    vec![(name.to_owned(), Box::new(|| is_ended_before_the_next_run(&QemuBench::new())))]
}

/// A process that lives until it is killed.
struct Stray(Child);

impl Drop for Stray {
    fn drop(&mut self) {
        // It was killed already, unless the test failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_ended_before_the_next_run(bench: &QemuBench) {
    let driver = bench.driver();
    let mut spec = bench.stubborn();
    driver.launch(&spec).unwrap();
    let path = bench.root().join(&spec.vm).join("guard.json");
    let mut record: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    kill(Pid::from_raw(record["guard"]["pid"].as_i64().unwrap() as i32), Signal::SIGKILL).unwrap();
    assert!(driver.wait_change(PATIENCE));
    assert_eq!(await_exit(&driver, &spec.vm), ExitReason::GuardDied);

    // The kernel ends a hypervisor with its guard, in its own time. So another process stands for one that takes longer.
    let mut stray = Stray(Command::new("sleep").arg("600").spawn().unwrap());
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", stray.0.id())).unwrap();
    let start_ticks: u64 = stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap().parse().unwrap();
    record["hypervisor"]["pid"] = stray.0.id().into();
    record["hypervisor"]["start_ticks"] = start_ticks.into();
    std::fs::write(&path, record.to_string()).unwrap();

    spec.run = 2;
    driver.launch(&spec).unwrap();
    assert!(matches!(state(&driver, &spec.vm), VmState::Running(_)));
    let ended = stray.0.try_wait().unwrap().expect("the hypervisor of the last run lives on beside the next");
    assert_eq!(ended.signal(), Some(9));
}
