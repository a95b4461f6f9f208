//! What holds for every driver.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use blixard_hypervisor::{ConsoleError, Driver, ExitReason, LaunchError, LogError, LogPosition, StopError, VmState};

use crate::Case;
use crate::bench::{
    Bench, FakeBench, PATIENCE, QemuBench, READY, await_exit, await_log, eventually, log_text, seen, state,
};

type Check = fn(&dyn Bench);

const CHECKS: &[(&str, Check)] = &[
    ("launch_is_seen_and_repeatable", launch_is_seen_and_repeatable),
    ("a_vm_outlives_its_driver", a_vm_outlives_its_driver),
    ("a_stop_is_obeyed", a_stop_is_obeyed),
    ("a_stop_that_is_ignored_is_forced", a_stop_that_is_ignored_is_forced),
    ("a_second_stop_tightens", a_second_stop_tightens),
    ("a_kill_ends_at_once", a_kill_ends_at_once),
    ("the_guest_may_shut_down", the_guest_may_shut_down),
    ("old_orders_are_refused", old_orders_are_refused),
    ("a_failed_launch_says_why_and_can_be_repeated", a_failed_launch_says_why_and_can_be_repeated),
    ("a_console_serves_several_viewers", a_console_serves_several_viewers),
    ("the_log_goes_on_over_runs", the_log_goes_on_over_runs),
    ("remove_leaves_nothing", remove_leaves_nothing),
    ("a_damaged_record_hides_no_other_vm", a_damaged_record_hides_no_other_vm),
    ("several_vms_start_at_once", several_vms_start_at_once),
    ("unknown_vms_are_named", unknown_vms_are_named),
    ("a_bad_spec_is_refused", a_bad_spec_is_refused),
];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = vec![];
    for &(name, check) in CHECKS {
        cases.push((format!("fake::{name}"), Box::new(move || check(&FakeBench::new()))));
        cases.push((format!("qemu::{name}"), Box::new(move || check(&QemuBench::new()))));
    }
    cases
}

fn is_running(state: &VmState) -> bool {
    matches!(state, VmState::Running(_))
}

fn launch_is_seen_and_repeatable(bench: &dyn Bench) {
    let driver = bench.open();
    assert_eq!(driver.list().unwrap(), []);
    let spec = bench.obedient();
    driver.launch(&spec).unwrap();
    let first = seen(&*driver, &spec.vm).unwrap();
    assert_eq!((first.name.as_str(), first.epoch, first.run), (spec.name.as_str(), 1, 1));
    let VmState::Running(running) = &first.state else { panic!("{first:?}") };
    assert!(running.since_ms > 0 && !running.stopping);
    // Either something holds the process back, or it is said why nothing does.
    let confinement = &running.confinement;
    assert_eq!(confinement.privileges.is_some(), running.pid != 0);
    assert!(confinement.limits.is_some() || confinement.unlimited.as_ref().is_some_and(|why| !why.is_empty()));
    driver.launch(&spec).unwrap();
    assert_eq!(seen(&*driver, &spec.vm).unwrap(), first, "a repeated launch changed something");
    await_log(&*driver, &spec.vm, READY);
}

fn a_vm_outlives_its_driver(bench: &dyn Bench) {
    let spec = bench.obedient();
    bench.open().launch(&spec).unwrap();
    let driver = bench.open();
    let before = state(&*driver, &spec.vm);
    assert!(is_running(&before), "{before:?}");
    driver.launch(&spec).unwrap();
    assert_eq!(state(&*driver, &spec.vm), before);
    await_log(&*driver, &spec.vm, READY);
    driver.kill(&spec.vm).unwrap();
    assert_eq!(await_exit(&*bench.open(), &spec.vm), ExitReason::Killed);
}

fn a_stop_is_obeyed(bench: &dyn Bench) {
    let driver = bench.open();
    let spec = bench.obedient();
    driver.launch(&spec).unwrap();
    await_log(&*driver, &spec.vm, READY);
    assert!(is_running(&state(&*driver, &spec.vm)));
    driver.stop(&spec.vm, PATIENCE).unwrap();
    let reason = await_exit(&*driver, &spec.vm);
    assert_eq!(reason, ExitReason::Stopped, "the console said {}", log_text(&*driver, &spec.vm));
    driver.stop(&spec.vm, PATIENCE).unwrap();
}

fn a_stop_that_is_ignored_is_forced(bench: &dyn Bench) {
    let driver = bench.open();
    let spec = bench.stubborn();
    driver.launch(&spec).unwrap();
    let ordered = Instant::now();
    driver.stop(&spec.vm, Duration::from_millis(700)).unwrap();
    match state(&*driver, &spec.vm) {
        VmState::Running(running) => assert!(running.stopping),
        state => panic!("{state:?}"),
    }
    assert_eq!(await_exit(&*driver, &spec.vm), ExitReason::Forced { timeout_ms: 700 });
    assert!(ordered.elapsed() >= Duration::from_millis(700), "it was not given its time");
}

fn a_second_stop_tightens(bench: &dyn Bench) {
    let driver = bench.open();
    let spec = bench.stubborn();
    driver.launch(&spec).unwrap();
    driver.stop(&spec.vm, Duration::from_secs(3600)).unwrap();
    driver.stop(&spec.vm, Duration::ZERO).unwrap();
    let reason = await_exit(&*driver, &spec.vm);
    assert!(matches!(reason, ExitReason::Forced { timeout_ms: 0..60_000 }), "{reason:?}");
}

fn a_kill_ends_at_once(bench: &dyn Bench) {
    let driver = bench.open();
    let spec = bench.stubborn();
    driver.launch(&spec).unwrap();
    driver.kill(&spec.vm).unwrap();
    let state = state(&*driver, &spec.vm);
    assert!(matches!(state, VmState::Exited { reason: ExitReason::Killed, .. }), "{state:?}");
    driver.kill(&spec.vm).unwrap();
}

fn the_guest_may_shut_down(bench: &dyn Bench) {
    let driver = bench.open();
    let spec = bench.obedient();
    driver.launch(&spec).unwrap();
    await_log(&*driver, &spec.vm, READY);
    assert!(is_running(&state(&*driver, &spec.vm)));
    driver.console(&spec.vm).unwrap().write_all(b"\npoweroff -f\n").unwrap();
    assert!(driver.wait_change(PATIENCE), "the end was not noticed");
    assert_eq!(await_exit(&*driver, &spec.vm), ExitReason::GuestShutdown);
}

fn old_orders_are_refused(bench: &dyn Bench) {
    let driver = bench.open();
    let mut spec = bench.stubborn();
    (spec.epoch, spec.run) = (5, 2);
    driver.launch(&spec).unwrap();
    let launch = |epoch, run| {
        let mut spec = spec.clone();
        (spec.epoch, spec.run) = (epoch, run);
        driver.launch(&spec)
    };
    assert!(matches!(launch(4, 9), Err(LaunchError::Stale { epoch: 5, run: 2 })));
    assert!(matches!(launch(5, 3), Err(LaunchError::AnotherRun { epoch: 5, run: 2 })));
    driver.kill(&spec.vm).unwrap();
    assert!(matches!(launch(5, 1), Err(LaunchError::Stale { epoch: 5, run: 2 })));
    launch(6, 1).unwrap();
    let seen = seen(&*driver, &spec.vm).unwrap();
    assert_eq!((seen.epoch, seen.run, is_running(&seen.state)), (6, 1, true));
    assert_eq!(seen.last_exit, Some(ExitReason::Killed));
}

fn a_failed_launch_says_why_and_can_be_repeated(bench: &dyn Bench) {
    let driver = bench.open();
    let (spec, word) = bench.hopeless();
    for _ in 0..2 {
        let error = driver.launch(&spec).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    match state(&*driver, &spec.vm) {
        VmState::Exited { reason: ExitReason::LaunchFailed { detail }, .. } => {
            assert!(detail.contains(word), "{detail}");
        }
        state => panic!("{state:?}"),
    }
    assert!(matches!(driver.console(&spec.vm), Err(ConsoleError::NotRunning)));
}

fn a_console_serves_several_viewers(bench: &dyn Bench) {
    let driver = bench.open();
    let spec = bench.obedient();
    driver.launch(&spec).unwrap();
    await_log(&*driver, &spec.vm, READY);
    let mut one = driver.console(&spec.vm).unwrap();
    let mut two = driver.console(&spec.vm).unwrap();
    // Both are shown the past.
    expect(&mut one, READY);
    expect(&mut two, READY);
    one.write_all(b"echo abc-\"def\"\n").unwrap();
    expect(&mut one, "abc-");
    expect(&mut two, "abc-");
    drop(one);
    two.write_all(b"echo after\n").unwrap();
    expect(&mut two, "after");
    driver.kill(&spec.vm).unwrap();
    // The end of the vm is the end of the stream.
    two.set_read_timeout(Some(PATIENCE)).unwrap();
    two.read_to_end(&mut vec![]).unwrap();
    assert!(matches!(driver.console(&spec.vm), Err(ConsoleError::NotRunning)));
}

/// Reads until a text has come.
fn expect(viewer: &mut UnixStream, text: &str) {
    viewer.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut shown = vec![];
    let mut byte = [0];
    while !String::from_utf8_lossy(&shown).contains(text) {
        let got = viewer.read(&mut byte).unwrap_or_else(|error| panic!("waiting for `{text}`: {error}"));
        assert_eq!(got, 1, "the console ended before `{text}`, after {}", String::from_utf8_lossy(&shown));
        shown.push(byte[0]);
    }
}

fn the_log_goes_on_over_runs(bench: &dyn Bench) {
    let driver = bench.open();
    let mut spec = bench.obedient();
    driver.launch(&spec).unwrap();
    await_log(&*driver, &spec.vm, READY);
    driver.kill(&spec.vm).unwrap();
    let first = log_text(&*driver, &spec.vm);
    let span = driver.log_span(&spec.vm).unwrap();
    assert_eq!((span.oldest, span.end), (LogPosition(0), LogPosition(first.len() as u64)));
    spec.run = 2;
    driver.launch(&spec).unwrap();
    let mut at = span.end;
    let mut second = vec![];
    eventually("the second run in the log", || {
        let chunk = driver.read_log(&spec.vm, at, 7).unwrap();
        assert_eq!(chunk.start, at);
        at = chunk.next;
        second.extend_from_slice(&chunk.bytes);
        while let Ok(chunk) = driver.read_log(&spec.vm, at, 4096)
            && !chunk.bytes.is_empty()
        {
            at = chunk.next;
            second.extend_from_slice(&chunk.bytes);
        }
        String::from_utf8_lossy(&second).contains(READY).then_some(())
    });
    assert_eq!(log_text(&*driver, &spec.vm).matches(READY).count(), 2);
}

fn remove_leaves_nothing(bench: &dyn Bench) {
    let driver = bench.open();
    let spec = bench.stubborn();
    driver.launch(&spec).unwrap();
    let dir = bench.root().join(&spec.vm);
    assert!(dir.is_dir());
    driver.remove(&spec.vm).unwrap();
    assert!(!dir.exists());
    assert_eq!(seen(&*driver, &spec.vm), None);
    driver.remove(&spec.vm).unwrap();
    // A vm of the same id begins from nothing, whatever epoch the old one had.
    driver.launch(&spec).unwrap();
    assert!(is_running(&state(&*driver, &spec.vm)));
}

fn a_damaged_record_hides_no_other_vm(bench: &dyn Bench) {
    let driver = bench.open();
    let spec = bench.stubborn();
    driver.launch(&spec).unwrap();
    let damaged = "dddddddd";
    let dir = bench.root().join(damaged);
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("spec.json"), "{\"vm\": \"ddd").unwrap();
    let VmState::Damaged { detail } = state(&*driver, damaged) else { panic!("not seen as damaged") };
    assert!(detail.contains("spec.json"), "{detail}");
    assert!(is_running(&state(&*driver, &spec.vm)));
    let mut again = bench.stubborn();
    again.vm = damaged.into();
    assert!(matches!(driver.launch(&again), Err(LaunchError::Unsuitable { .. })));
    driver.remove(damaged).unwrap();
    driver.launch(&again).unwrap();
}

fn several_vms_start_at_once(bench: &dyn Bench) {
    let driver = bench.open();
    let specs = [10, 11, 12].map(|number| {
        let mut spec = bench.stubborn();
        spec.vm = format!("{number}{}", &spec.vm[2..]);
        spec
    });
    let driver = &*driver;
    std::thread::scope(|scope| {
        for spec in &specs {
            // Twice each: the second order finds the first carried out.
            scope.spawn(move || driver.launch(spec).unwrap());
            scope.spawn(move || driver.launch(spec).unwrap());
        }
        // Meanwhile a vm is starting or runs, and never looks like a failure.
        while driver.list().unwrap().iter().filter(|seen| is_running(&seen.state)).count() < specs.len() {
            for seen in driver.list().unwrap() {
                assert!(matches!(seen.state, VmState::Starting | VmState::Running(_)), "{seen:?}");
            }
        }
    });
    for spec in &specs {
        driver.kill(&spec.vm).unwrap();
    }
}

fn unknown_vms_are_named(bench: &dyn Bench) {
    let driver = bench.open();
    for vm in ["abc", "../..", ""] {
        assert!(matches!(driver.stop(vm, Duration::ZERO), Err(StopError::Unknown { .. })));
        assert!(matches!(driver.kill(vm), Err(StopError::Unknown { .. })));
        assert!(matches!(driver.console(vm), Err(ConsoleError::Unknown { .. })));
        assert!(matches!(driver.read_log(vm, LogPosition(0), 1), Err(LogError::Unknown { .. })));
        driver.remove(vm).unwrap();
    }
    assert!(!driver.wait_change(Duration::from_millis(1)));
}

fn a_bad_spec_is_refused(bench: &dyn Bench) {
    let driver: Box<dyn Driver> = bench.open();
    let mut spec = bench.obedient();
    spec.vcpus = 0;
    assert!(matches!(driver.launch(&spec), Err(LaunchError::Spec(_))));
    assert_eq!(driver.list().unwrap(), []);
}
