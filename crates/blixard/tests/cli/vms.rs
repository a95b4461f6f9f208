//! Vms from creation to deletion, on a node with the fake driver.

use std::process::Stdio;

use crate::bench::{Bench, Node, Ran, eventually};

fn with_image(bench: &Bench) -> Node {
    let node = bench.node();
    bench.run(&["image", "import", "--name", "tiny", &bench.disk("d.raw", 0)]).ends_with(0);
    node
}

#[test]
fn a_vm_lives_and_dies() {
    let bench = Bench::new();
    let _node = with_image(&bench);
    let create = [
        "vm",
        "create",
        "web",
        "--image",
        "tiny",
        "--memory",
        "256M",
        "--publish",
        "8080:80",
        "--require",
        "zone=here",
    ];
    assert_eq!(bench.run(&create).ends_with(0).stdout, "vm web is running on node 1\n");
    bench.run(&create).ends_with(6);
    let view = bench.run(&["vm", "status", "web", "-o", "json"]).ends_with(0).json();
    assert_eq!((&view["phase"], &view["memory_mib"], &view["node"]), (&"running".into(), &256.into(), &1.into()));
    let status = bench.run(&["vm", "status", "web"]).ends_with(0).stdout;
    assert!(status.contains("8080:80/tcp") && status.contains("running on node 1"), "{status}");

    assert_eq!(bench.run(&["vm", "stop", "web"]).ends_with(0).stdout, "vm web is stopped on node 1\n");
    let started = bench.run(&["vm", "start", "web", "-o", "json"]).ends_with(0).json();
    assert_eq!((&started["phase"], &started["observed_run"]), (&"running".into(), &2.into()));
    bench.run(&["vm", "restart", "web", "--force"]).ends_with(0);

    let logs = bench.run(&["vm", "logs", "web"]).ends_with(0).stdout;
    assert_eq!(logs.matches("ready").count(), 3, "one for each run: {logs}");
    let last = bench.run(&["vm", "logs", "web", "--tail", "1"]).ends_with(0).stdout;
    assert_eq!(last.lines().collect::<Vec<_>>(), logs.lines().last().as_slice());

    let explained = bench.run(&["vm", "explain", "web"]).ends_with(0).stdout;
    assert!(explained.starts_with("vm web is on node 1: 1 of 1 nodes could carry it\n"), "{explained}");
    bench.run(&["image", "delete", "tiny"]).ends_with(6);
    assert_eq!(bench.run(&["vm", "delete", "web"]).ends_with(0).stdout, "vm web is deleted\n");
    assert_eq!(bench.run(&["vm", "list", "-o", "json"]).ends_with(0).json(), serde_json::json!([]));
    for verb in ["start", "stop", "restart", "status", "explain", "delete", "logs", "console"] {
        bench.run(&["vm", verb, "web"]).ends_with(5);
    }
}

#[test]
fn waiting_ends_in_time_and_says_how_things_are() {
    let bench = Bench::new();
    let _node = with_image(&bench);
    let create = ["vm", "create", "web", "--image", "tiny", "--require", "zone=elsewhere"];
    let ran = bench.run(&[&create[..], &["--timeout", "300ms"]].concat()).ends_with(8);
    assert!(
        ran.stderr.contains("does not run after 300ms: pending") && ran.stderr.contains("zone=elsewhere"),
        "{ran:?}"
    );
    let explained = bench.run(&["vm", "explain", "web"]).ends_with(0).stdout;
    assert!(explained.contains("no node yet") && explained.contains("zone=elsewhere"), "{explained}");
    bench.run(&["vm", "delete", "web", "--no-wait"]).ends_with(0);
    eventually("the deletion", || (bench.run(&["vm", "status", "web"]).code == 5).then_some(()));

    let created = bench.run(&["vm", "create", "idle", "--image", "tiny", "--no-start"]).ends_with(0);
    assert!(created.stdout.contains("was not started"), "{created:?}");
    bench.run(&["vm", "create", "other", "--image", "missing"]).ends_with(5);
}

#[test]
fn an_interrupt_says_that_the_request_goes_on() {
    let bench = Bench::new();
    let _node = with_image(&bench);
    let child = bench
        .command(&["vm", "create", "web", "--image", "tiny", "--require", "zone=elsewhere"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the request", || (bench.run(&["vm", "status", "web"]).code == 0).then_some(()));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    // The request is accepted before the wait begins, so the first signal may come too early to be caught.
    eventually("catching signals", || catches(pid, nix::libc::SIGINT).then_some(()));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap()).ends_with(130);
    assert!(ran.stderr.contains("the request goes on"), "{ran:?}");
    bench.run(&["vm", "status", "web"]).ends_with(0);
}

/// Whether a process has a handler for a signal.
pub(crate) fn catches(pid: nix::unistd::Pid, signal: i32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).map(str::trim);
    mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()).is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}
