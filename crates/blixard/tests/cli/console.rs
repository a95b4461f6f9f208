//! The console in a terminal, in a pipe, and on every way out.

use std::io::Write;
use std::process::Stdio;

use crate::bench::{Bench, Node, Ran, terminate};
use crate::program::session::Session;

fn with_vm(bench: &Bench) -> Node {
    let node = bench.node();
    bench.run(&["image", "import", "--name", "tiny", &bench.disk("d.raw", 0)]).ends_with(0);
    bench.run(&["vm", "create", "web", "--image", "tiny"]).ends_with(0);
    node
}

#[test]
fn a_console_takes_keys_and_leaves_the_terminal_as_it_was() {
    let bench = Bench::new();
    let _node = with_vm(&bench);
    let mut session = Session::start(&bench, &["vm", "console", "web"]);
    session.sees("Ctrl-]");
    session.sees("ready");
    session.becomes_raw();
    session.press(b"knock knock\r");
    session.sees("knock knock");
    session.press(b"\x03");
    session.press(b"still here\r");
    session.sees("still here");
    session.press(b"\x1d");
    session.ends_with(0);
}

#[test]
fn a_signal_puts_the_terminal_back() {
    let bench = Bench::new();
    let _node = with_vm(&bench);
    let mut session = Session::start(&bench, &["vm", "console", "web"]);
    session.sees("ready");
    session.becomes_raw();
    terminate(&session.child);
    session.ends_with(130);
}

#[test]
fn the_end_of_the_node_ends_the_console() {
    let bench = Bench::new();
    let mut node = with_vm(&bench);
    let mut session = Session::start(&bench, &["vm", "console", "web"]);
    session.sees("ready");
    session.becomes_raw();
    node.stop();
    session.ends_with(3);
}

#[test]
fn a_pipe_is_typed_and_the_answer_is_printed() {
    let bench = Bench::new();
    let _node = with_vm(&bench);
    let mut child = bench
        .command(&["vm", "console", "web"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"from a pipe\n").unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap()).ends_with(0);
    assert!(ran.stdout.contains("from a pipe"), "{ran:?}");
    assert_eq!(ran.stderr, "");
}

#[test]
fn a_followed_log_goes_on() {
    let bench = Bench::new();
    let _node = with_vm(&bench);
    let mut session = Session::start(&bench, &["vm", "logs", "-f", "--tail", "1", "web"]);
    session.sees("ready");
    bench.run(&["vm", "restart", "web", "--force"]).ends_with(0);
    session.sees("run 2");
    assert!(!session.is_raw());
}
